// Features over the map: trees, gaps, stands. Outlines of the view alone, and the attributes of those that are chosen.
import * as api from "./api.js";
import * as format from "./format.js";
import { VECTORS_TOP } from "./order.js";

const WAIT_MS = 150, MARGIN = 0.25, ZOOM_STEP = 1, POINT_PX = 5, MAX_CHOSEN = 5;
const NOTHING = { type: "FeatureCollection", features: [] };
const INK = "#10201a";

/**
 * Create the layers of features. `elements` are {section, list, card, live}; `onSwitch(ids)` is called when the reader
 * switches one on or off, and `isChoosing()` says whether a click chooses features.
 */
export function createVectors(map, layers, elements, { onSwitch, isChoosing }) {
  const byId = new Map(layers.map((layer) => [layer.id, { layer, features: new Map(), view: null, abort: null, ...row(layer) }]));
  const maps = new Set([map]);
  let on = new Set(), chosen = [], timer = null;

  elements.list.replaceChildren(...[...byId.values()].map(({ item }) => item));
  elements.section.hidden = !layers.length;

  function row(layer) {
    const item = document.createElement("li"), label = document.createElement("label"), input = document.createElement("input");
    const note = Object.assign(document.createElement("span"), { className: "note", id: `vector-note-${layer.id}` });
    Object.assign(input, { type: "checkbox", value: layer.id });
    input.setAttribute("aria-describedby", note.id);
    input.addEventListener("change", () => {
      onSwitch([...byId.keys()].filter((id) => (id === layer.id ? input.checked : on.has(id))));
    });
    label.append(input, swatch(layer), layer.title);
    item.append(label, note);
    return { item, input, note };
  }

  /** Switch layers on, and all others off. */
  function update(ids) {
    on = new Set(ids.filter((id) => byId.has(id)));
    for (const [id, entry] of byId) {
      entry.input.checked = on.has(id);
      if (!on.has(id)) {
        entry.abort?.abort();
        entry.view = null;
        entry.features.clear();
        say(entry, count(entry.layer));
      }
      for (const one of maps) show(one, id);
    }
    choose(chosen.filter(({ id }) => on.has(id)));
    refresh();
  }

  function show(one, id) {
    const { layer } = byId.get(id), key = keyOf(id);
    if (!on.has(id)) {
      for (const part of parts(layer)) if (one.getLayer(part.id)) one.removeLayer(part.id);
      if (one.getSource(key)) one.removeSource(key);
    } else if (!one.getSource(key)) {
      one.addSource(key, { type: "geojson", data: collection(id), tolerance: 0 });
      const above = before(one, id);
      for (const part of parts(layer)) one.addLayer(part, above);
    }
  }

  /** Layer of the map below which a layer of features belongs: the first one in the list lies on top. */
  function before(one, id) {
    const ids = [...byId.keys()];
    const higher = ids.slice(0, ids.indexOf(id)).reverse().find((other) => one.getLayer(parts(byId.get(other).layer)[0].id));
    return higher ? parts(byId.get(higher).layer)[0].id : VECTORS_TOP;
  }

  const collection = (id) => ({ ...NOTHING, features: [...byId.get(id).features.values()] });

  function refresh() {
    clearTimeout(timer);
    timer = setTimeout(() => { for (const id of on) load(byId.get(id)); }, WAIT_MS);
  }

  async function load(entry) {
    const { layer } = entry, view = viewOf(map), zoom = Math.min(24, Math.max(0, map.getZoom()));
    if (!meets(view, layer.bounds)) return put(entry, [], null, `none in this view`);
    if (entry.view && contains(entry.view.bbox, view) && Math.abs(entry.view.zoom - zoom) < ZOOM_STEP) return;
    entry.abort?.abort();
    const { signal } = (entry.abort = new AbortController());
    try {
      // A margin, so that a small step shows no gap; where that is too much, the view alone may still be little enough.
      for (const bbox of [grown(view), view]) {
        const answer = await api.features(layer.id, { bbox, zoom: zoom.toFixed(2) }, signal);
        if (answer.complete) return put(entry, answer.features, { bbox, zoom }, count(layer));
      }
      if (put(entry, [], null, `zoom in to see ${layer.content}`)) elements.live.textContent = `Zoom in to see ${layer.content}`;
    } catch (error) {
      if (error.name !== "AbortError") put(entry, [], null, error.message);
    }
  }

  function put(entry, features, view, text) {
    const { layer } = entry;
    entry.view = view;
    entry.features = new Map(features.map((feature) => [feature.id, feature]));
    for (const one of maps) one.getSource(keyOf(layer.id))?.setData(collection(layer.id));
    return say(entry, text);
  }

  /** Write the note of a layer; returns whether it is a new one. */
  function say({ note }, text) {
    const isNew = note.textContent !== text;
    if (isNew) note.textContent = text;
    return isNew;
  }

  /** Features at a point of the map, those on top first: [{id, layer, feature}]. */
  function at({ x, y }) {
    const hits = new Map();
    const near = [[x - POINT_PX, y - POINT_PX], [x + POINT_PX, y + POINT_PX]];
    for (const [id, { layer, features }] of byId) {
      const target = parts(layer)[0].id;
      if (!on.has(id) || !map.getLayer(target)) continue;
      for (const hit of map.queryRenderedFeatures(layer.geometry === "point" ? near : [x, y], { layers: [target] })) {
        const feature = features.get(hit.id);
        if (feature) hits.set(`${id}:${hit.id}`, { id, layer, feature });
      }
    }
    return [...hits.values()].slice(0, MAX_CHOSEN);
  }

  /** Mark features on the map and list their attributes; none to close the list. */
  function choose(hits) {
    const had = chosen.length;
    chosen = hits;
    for (const [id, { layer }] of byId) {
      const ids = chosen.filter((hit) => hit.id === id).map(({ feature }) => feature.id);
      for (const one of maps) {
        const mark = parts(layer).at(-1).id;
        if (one.getLayer(mark)) one.setFilter(mark, ["in", ["id"], ["literal", ids]]);
      }
    }
    elements.card.hidden = !chosen.length;
    if (!chosen.length && !had) return;
    elements.card.querySelector("ol").replaceChildren(...chosen.map(described));
    if (chosen.length) elements.card.scrollIntoView({ block: "nearest" });
  }

  const pick = (point) => { if (isChoosing()) choose(at(point)); };
  map.on("moveend", refresh);
  map.on("click", ({ point }) => pick(point));
  map.getCanvas().addEventListener("keydown", ({ key }) => {
    if (key === "Enter") pick(map.project(map.getCenter()));
    if (key === "Escape") choose([]);
  });
  elements.card.querySelector("button").addEventListener("click", () => {
    choose([]);
    map.getCanvas().focus();
  });

  return {
    update, at,
    /** One line on each feature at a point, for the tooltip. */
    linesAt: (point) => at(point).map(({ layer, feature }) => summary(layer, feature)),
    /** Draw the same features on a second map that follows the first. */
    attach(one) {
      maps.add(one);
      for (const id of on) show(one, id);
      choose(chosen);
    },
    detach: (one) => maps.delete(one),
  };
}

/** Ids of the layers that are on: those of the address, else those that the server shows. */
export function shownOf(layers, text) {
  if (text === null) return layers.filter(({ shown }) => shown).map(({ id }) => id);
  return text.split(",").filter((id) => layers.some((layer) => layer.id === id));
}

const keyOf = (id) => `vector:${id}`;

/** Layers of the map for a layer of features: the first one is asked for hits, the last one marks the chosen ones. */
function parts({ id, geometry, colour }) {
  const key = keyOf(id), none = ["in", ["id"], ["literal", []]];
  if (geometry === "point") {
    const circle = (radius) => ({
      "circle-radius": radius, "circle-color": colour, "circle-stroke-color": INK, "circle-stroke-width": 1.2,
    });
    return [
      { id: `${key}:points`, type: "circle", source: key, paint: circle(4) },
      { id: `${key}:chosen`, type: "circle", source: key, paint: circle(8), filter: none },
    ];
  }
  const line = (name, paint, more = {}) => ({ id: `${key}:${name}`, type: "line", source: key, layout: { "line-join": "round" }, paint, ...more });
  return [
    { id: `${key}:areas`, type: "fill", source: key, paint: { "fill-color": colour, "fill-opacity": 0.05 } },
    // A dark rim, so that the colour stands out from pale ground as well.
    line("rim", { "line-color": INK, "line-opacity": 0.55, "line-width": 3 }),
    line("line", { "line-color": colour, "line-width": 1.6 }),
    line("chosen", { "line-color": colour, "line-width": 4.5 }, { filter: none }),
  ];
}

function swatch({ colour, geometry }) {
  const mark = Object.assign(document.createElement("span"), { className: `swatch ${geometry}` });
  mark.style.setProperty("--colour", colour);
  mark.setAttribute("aria-hidden", "true");
  return mark;
}

const count = ({ features, content }) => `${features.toLocaleString("en")} ${content}`;

/** The first attribute with a unit, which is the one that a layer is about. */
function summary({ title, fields }, { properties }) {
  const field = fields.find(({ name, unit }) => unit && properties[name] !== null);
  return field ? `${title}: ${field.title.toLowerCase()} ${format.quantity(properties[field.name], field.unit)}` : title;
}

function described({ layer, feature }) {
  const item = document.createElement("li"), heading = document.createElement("h3"), list = document.createElement("dl");
  heading.append(swatch(layer), layer.title);
  for (const [title, text] of rows(layer.fields, feature.properties)) {
    const pair = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
    [dt.textContent, dd.textContent] = [title, text];
    pair.append(dt, dd);
    list.append(pair);
  }
  item.append(heading, list);
  return item;
}

/** Attributes as people read them: [title, text], an interval behind its value, unknown ones left out. */
export function rows(fields, properties) {
  const known = new Map(fields.filter(({ name }) => properties[name] !== null && properties[name] !== undefined).map((field) => [field.name, field]));
  const ends = new Map();
  for (const name of known.keys()) {
    const pair = [[`${name}_low`, `${name}_high`], ["_p05", "_p95"].map((mark) => name.replace(/(_[a-z0-9]+)?$/, (unit) => mark + unit))];
    const bounds = pair.find((names) => names.every((end) => end !== name && known.has(end)));
    if (bounds) ends.set(name, bounds);
  }
  const within = new Set([...ends.values()].flat());
  return [...known.values()].filter(({ name }) => !within.has(name)).map(({ name, title, unit }) => {
    const text = format.quantity(properties[name], unit);
    if (!ends.has(name)) return [title, text];
    return [title, `${text} (${format.span(...ends.get(name).map((end) => properties[end]), unit)})`];
  });
}

function viewOf(map) {
  const bounds = map.getBounds();
  const shift = 360 * Math.round(map.getCenter().lng / 360);
  return inWorld([bounds.getWest() - shift, bounds.getSouth(), bounds.getEast() - shift, bounds.getNorth()]);
}

const inWorld = ([west, south, east, north]) =>
  [Math.max(-180, west), Math.max(-90, south), Math.min(180, east), Math.min(90, north)];

function grown([west, south, east, north]) {
  const [x, y] = [MARGIN * (east - west), MARGIN * (north - south)];
  return inWorld([west - x, south - y, east + x, north + y]);
}

const contains = (box, view) => box[0] <= view[0] && box[1] <= view[1] && box[2] >= view[2] && box[3] >= view[3];

function meets([west, south, east, north], [w, s, e, n]) {
  if (north < s || south > n) return false;
  return w <= e ? west <= e && east >= w : west <= e || east >= w;
}
