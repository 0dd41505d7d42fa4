// Hatching where the interval is wider than a limit: tiles of widths, fetched once, drawn again for each limit.
const PERIOD_PX = 16; // divides the side of a tile, so lines run on into the next one
const LINE_PX = 2.2, CACHED_TILES = 96;
const cache = new Map();

/** Protocol handler of addresses like hatch://8.5/http://host/tile.png: limit in metres, then a terrain tile. */
export async function hatchTile({ url }, abort) {
  const [, limit, address] = /^hatch:\/\/([\d.]+)\/(.*)$/.exec(url);
  const { size, widths } = await load(address, abort.signal);
  return { data: await draw(size, widths, Number(limit)) };
}

async function load(address, signal) {
  const cached = cache.get(address);
  if (cached) return cached;
  const response = await fetch(address, { signal });
  if (!response.ok) throw Object.assign(new Error(`status ${response.status}`), { status: response.status });
  const bitmap = await createImageBitmap(await response.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const widths = new Float32Array(data.length / 4);
  // The encoding that MapLibre calls mapbox; unknown cells are -10000 m and never wider than a limit.
  for (let i = 0; i < widths.length; i++) {
    widths[i] = -10000 + (65536 * data[4 * i] + 256 * data[4 * i + 1] + data[4 * i + 2]) / 10;
  }
  const tile = { size: bitmap.width, widths };
  cache.set(address, tile);
  if (cache.size > CACHED_TILES) cache.delete(cache.keys().next().value);
  return tile;
}

async function draw(size, widths, limit) {
  const image = new ImageData(size, size);
  const pixels = new Uint32Array(image.data.buffer);
  const ink = 0xd0201a18, halo = 0x70ffffff; // alpha, blue, green, red
  for (let y = 0, i = 0; y < size; y++) {
    for (let x = 0; x < size; x++, i++) {
      if (!(widths[i] > limit)) continue;
      const phase = (x + y) % PERIOD_PX;
      if (phase < LINE_PX) pixels[i] = ink;
      else if (phase < LINE_PX + 1 || phase >= PERIOD_PX - 1) pixels[i] = halo;
    }
  }
  return createImageBitmap(image);
}
