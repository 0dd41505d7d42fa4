// What the reader has chosen, and its deep link: everything that the page shows again from the address alone.
import * as ramps from "./ramps.js";

export const DEFAULTS = {
  layer: null, band: null, minus: null, ramp: null, range: null, opacity: 1, imagery: true, left: null, swipe: null,
  canopy3d: false, shade: false, hatch: null, threshold: 2, vectors: null,
};
const NUMBERS = new Set(["opacity", "swipe", "hatch", "threshold"]);
const FLAGS = new Set(["imagery", "canopy3d", "shade"]);
const MAX_POLYGONS = 20;

export function createState() {
  const values = { ...DEFAULTS };
  const listeners = new Set();
  return {
    get: () => values,
    set(changes) {
      const changed = Object.keys(changes).filter((key) => String(values[key]) !== String(changes[key]));
      if (!changed.length) return;
      Object.assign(values, changes);
      for (const listener of listeners) listener(values, new Set(changed));
    },
    listen: (listener) => listeners.add(listener),
  };
}

/** Read an address's fragment: {view, polygons, ...choices}; what cannot be read is left out. */
export function readLink(fragment) {
  const link = {};
  for (const [key, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (key === "view") {
      const numbers = text.split("/").map(Number);
      if (numbers.length >= 3 && numbers.every(Number.isFinite)) link.view = numbers;
    } else if (key === "polygons") {
      link.polygons = text.split("~").map(parseRing).filter(Boolean).slice(0, MAX_POLYGONS);
    } else if (key === "range") {
      const numbers = text.split(",").map(Number);
      if (numbers.length === 2 && numbers.every(Number.isFinite) && numbers[0] < numbers[1]) link.range = numbers;
    } else if (FLAGS.has(key)) link[key] = text === "1";
    else if (NUMBERS.has(key)) {
      if (text !== "" && Number.isFinite(Number(text))) link[key] = Number(text);
    } else if (key === "ramp") {
      if (ramps.names.includes(text)) link.ramp = text;
    } else if (key in DEFAULTS) link[key] = text;
  }
  return link;
}

/** Write the fragment of an address. */
export function writeLink(values, view, polygons) {
  const link = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value === null || String(value) === String(DEFAULTS[key])) continue;
    link.set(key, FLAGS.has(key) ? (value ? "1" : "0") : String(value));
  }
  if (view) link.set("view", view.join("/"));
  if (polygons?.length) link.set("polygons", polygons.slice(0, MAX_POLYGONS).map(writeRing).join("~"));
  return `#${link.toString().replaceAll("%2F", "/").replaceAll("%2C", ",")}`;
}

const writeRing = (feature) =>
  feature.geometry.coordinates[0].slice(0, -1).map(([lon, lat]) => `${lon.toFixed(6)},${lat.toFixed(6)}`).join("_");

function parseRing(text) {
  const corners = text.split("_").map((pair) => pair.split(",").map(Number));
  if (corners.length < 3 || !corners.every((corner) => corner.length === 2 && corner.every(Number.isFinite))) return null;
  return [...corners, corners[0]];
}
