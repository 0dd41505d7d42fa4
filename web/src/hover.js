// The value under the pointer, read from the server's own cells; one request at a time.
import * as api from "./api.js";
import * as format from "./format.js";

const WAIT_MS = 40, REMEMBERED = 400;

/**
 * `layerOf()` returns {first, minus}: the layer to read, and the one that is subtracted from it; `linesAt(point)` a line
 * on each feature there.
 */
export function createHover(map, tooltip, live, { layerOf, bandOf, linesAt }) {
  const remembered = new Map();
  let abort = null, timer = null, last = null;

  async function read(lngLat, signal) {
    const { first, minus } = layerOf();
    const one = (layer) => {
      const key = `${layer.id}:${lngLat.lng.toFixed(7)}:${lngLat.lat.toFixed(7)}`;
      if (remembered.has(key)) return remembered.get(key);
      return api.point(layer.id, lngLat.lng, lngLat.lat, signal).then((answer) => {
        remembered.set(key, answer);
        if (remembered.size > REMEMBERED) remembered.delete(remembered.keys().next().value);
        return answer;
      });
    };
    const [here, other] = await Promise.all([one(first), minus ? one(minus) : null]);
    return { first, here, other };
  }

  function describe({ first, here, other }) {
    const band = bandOf();
    const value = here.values[band] ?? null;
    if (other) {
      const second = other.values[band] ?? null;
      const change = value === null || second === null ? null : value - second;
      return {
        value: change, lines: [
          change === null ? "Not known in both maps" : `${format.metres(value)} less ${format.metres(second)}`,
          `${format.acquired(here.acquired)}, ${format.acquired(other.acquired)}`,
        ], text: change === null ? "unknown" : format.signed(change),
      };
    }
    if (first.product) {
      const label = first.legend.kind === "classes" ? first.legend.entries.find((entry) => entry.value === value)?.label : null;
      const text = value === null ? `No ${first.product} known here` : label ?? `${format.capital(first.product)} ${format.quantity(value, here.unit)}`;
      return { value, text, lines: [format.acquired(here.acquired)] };
    }
    return {
      value, text: value === null ? "No height known here" : format.metres(value),
      lines: [here.interval ? format.interval(here.interval) : null, format.acquired(here.acquired)],
    };
  }

  function show(point, { value, text, lines }) {
    tooltip.replaceChildren();
    const strong = document.createElement("strong");
    strong.textContent = text;
    tooltip.append(strong, ...lines.filter(Boolean).map((line) => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
    tooltip.dataset.value = value === null ? "" : String(value);
    tooltip.hidden = false;
    const { clientWidth: width, clientHeight: height } = map.getContainer();
    const right = point.x + 16 + tooltip.offsetWidth < width;
    const x = right ? point.x + 16 : Math.max(8, point.x - 16 - tooltip.offsetWidth);
    const y = Math.min(Math.max(8, point.y - tooltip.offsetHeight - 12), height - tooltip.offsetHeight - 8);
    tooltip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }

  function hide() {
    clearTimeout(timer);
    abort?.abort();
    tooltip.hidden = true;
  }

  async function look(point, lngLat, speak) {
    const layer = layerOf().first;
    const features = linesAt(point);
    if (!layer || !inside(layer.bounds, lngLat)) {
      hide();
      if (speak && features.length) live.textContent = features.join(", ");
      return;
    }
    abort?.abort();
    abort = new AbortController();
    try {
      const described = describe(await read(lngLat, abort.signal));
      described.lines.push(...features);
      show(point, described);
      if (speak) live.textContent = [described.text, ...described.lines.filter(Boolean)].join(", ");
    } catch (error) {
      if (error.name !== "AbortError") hide();
    }
  }

  map.on("mousemove", (event) => {
    last = event;
    clearTimeout(timer);
    timer = setTimeout(() => look(last.point, last.lngLat, false), WAIT_MS);
  });
  map.on("mouseout", hide);
  map.on("movestart", (event) => { if (event.originalEvent) hide(); });
  map.on("click", (event) => look(event.point, event.lngLat, true));
  map.getCanvas().addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (event.key !== "Enter") return;
    const centre = map.getCenter();
    look(map.project(centre), centre, true);
  });
  return { hide };
}

function inside([west, south, east, north], { lng, lat }) {
  const between = west <= east ? lng >= west && lng <= east : lng >= west || lng <= east;
  return between && lat >= south && lat <= north;
}
