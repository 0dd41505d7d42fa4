// Requests to the server that this page came from; nothing is asked of any other host.

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is canopy serve still running?", 0);
  }
  if (response.ok) return response;
  let detail = `The server answered ${response.status}.`;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch { /* no JSON: the status says enough */ }
  throw new ServerError(detail, response.status);
}

const json = async (path, options) => (await request(path, options)).json();
const query = (values) => {
  const pairs = Object.entries(values).filter(([, value]) => value !== undefined && value !== null);
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
};
const layerPath = (id) => `layers/${encodeURIComponent(id)}`;

export const layers = async () => (await json("layers")).layers;
export const vectors = async () => (await json("vectors")).vectors;
export const features = (id, { bbox, zoom }, signal) =>
  json(`vectors/${encodeURIComponent(id)}/features${query({ bbox: bbox.join(","), zoom })}`, { signal });
export const point = (id, lon, lat, signal) => json(`${layerPath(id)}/point${query({ lon, lat })}`, { signal });
export const histogram = (id, { bbox, band, bins, range }, signal) =>
  json(`${layerPath(id)}/histogram${query({ bbox: bbox.join(","), band, bins, range: range.join(",") })}`, { signal });

const posted = (collection) => ({
  method: "POST", headers: { "Content-Type": "application/geo+json" }, body: JSON.stringify(collection),
});
export const statistics = (id, collection, values) =>
  json(`${layerPath(id)}/statistics${query(values)}`, posted(collection));
export const statisticsCsv = async (id, collection, values) =>
  (await request(`${layerPath(id)}/statistics${query({ ...values, format: "csv" })}`, posted(collection))).blob();

/** Address of the tiles of a layer, absolute, because MapLibre's workers know no page. */
export const tiles = (id, suffix, values = {}) =>
  new URL(`${layerPath(id)}/tiles/WebMercatorQuad/`, document.baseURI).href + `{z}/{x}/{y}.${suffix}${query(values)}`;
