// Colour ramps: the same stops as tiles/style.py, scaled to the range that the reader chooses.
import RAMPS from "./ramps.json";

export const names = Object.keys(RAMPS);
export const title = (name) => RAMPS[name].title;

/** Stops of a ramp over [low, high]: [[value, "#rrggbb"], ...]. */
export function stops(name, [low, high]) {
  const ramp = RAMPS[name];
  const shares = ramp.stops ?? ramp.colours.map((colour, i, all) => [i / (all.length - 1), colour]);
  return shares.map(([share, colour]) => [low + share * (high - low), colour]);
}

/** MapLibre's expression for `color-relief-color`; unknown cells are encoded as -10000 m and stay transparent. */
export function expression(name, range) {
  const ramp = stops(name, range);
  const [low, first] = ramp[0];
  // Between unknown and known cells the map is interpolated through every value, so whatever lies below the lowest
  // height, or below any likely loss of height, fades out instead of tracing the edge in the ramp's first colour.
  const [gone, full] = low < 0 ? [-70, Math.min(-35, low)] : [Math.min(-2, low - 2), Math.min(-1, low - 1)];
  const steps = ramp.flatMap(([value, colour]) => [value, colour]);
  const fade = [-10000, "rgba(0,0,0,0)", gone, transparent(first), full, first];
  return ["interpolate", ["linear"], ["elevation"], ...fade, ...(low > full ? steps : steps.slice(2))];
}

const transparent = (colour) => `rgba(${channels(colour).join(",")},0)`;
const channels = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** Colour of a value, as CSS. */
export const colourOf = (name, range, value) => colourAt(stops(name, range), value);

/** Colour of a value between stops, as CSS. */
export function colourAt(ramp, value) {
  if (value <= ramp[0][0]) return ramp[0][1];
  for (let i = 1; i < ramp.length; i++) {
    const [v1, c1] = ramp[i];
    if (value > v1) continue;
    const [v0, c0] = ramp[i - 1];
    const t = (value - v0) / (v1 - v0 || 1);
    const [a, b] = [channels(c0), channels(c1)];
    return `rgb(${a.map((channel, k) => Math.round(channel + t * (b[k] - channel))).join(",")})`;
  }
  return ramp.at(-1)[1];
}

/** CSS gradient of a ramp along an axis from `domain[0]` to `domain[1]`. */
export const gradient = (name, range, domain) => gradientOf(stops(name, range), domain);

/** The same of stops. */
export function gradientOf(ramp, [from, to]) {
  const parts = ramp.map(([value, colour]) => `${colour} ${(100 * (value - from)) / (to - from)}%`);
  return `linear-gradient(90deg, ${parts.join(", ")})`;
}
