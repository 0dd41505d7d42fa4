// The page: loads the list of maps, then the map library, and keeps controls, map and address in step.
import * as api from "./api.js";
import * as format from "./format.js";
import { createLegend, domainOf, histogramOf } from "./legend.js";
import * as ramps from "./ramps.js";
import { createState, readLink, writeLink } from "./state.js";
import { initTheme } from "./theme.js";
import { createVectors, shownOf } from "./vectors.js";

const $ = (id) => document.getElementById(id);
const SHORT = { canopy_height: "Height", canopy_height_p05: "5th pct", canopy_height_p95: "95th pct", interval_width: "Interval" };
const PLAIN_RANGE = [0, 35], CHANGE_RANGE = [-15, 15], WIDTH_RANGE = [0, 20];
const LINK_WAIT_MS = 250, HISTOGRAM_WAIT_MS = 200, SWIPE_STEP = 0.02;
// The shell is drawn first; the library then comes while the list of maps is on its way. A hidden tab draws nothing.
const painted = new Promise((resolve) => {
  requestAnimationFrame(() => setTimeout(resolve));
  setTimeout(resolve, 300);
});
const library = painted.then(() => import("./map.js"));

const state = createState();
const byId = new Map();
let heights = [], pictures = [], products = [], map = null, leftMap = null, unfollow = null, drawing = null, hover = null, legend = null;
let histogramAbort = null, polygons = [], features = [], vectors = null;

const values = () => state.get();
const current = () => byId.get(values().layer);
const mains = () => [...heights, ...products];
/** The map of heights that polygons are measured on: the one that is shown, or that below a product. */
const measuredMap = () => (current().product ? heights.find(({ bounds }) => overlaps(bounds, current().bounds)) : current());
const titleOf = ({ title, kind, product }) => (kind === "imagery" ? `${format.capital(product ?? "imagery")}: ${title}` : title);
const bandOf = (layer, name) => layer.bands.find((band) => band.name === name) ?? layer.bands[0];
const isWidth = () => values().band === current().interval?.width;
const rampOf = () => values().ramp ?? (values().minus ? "rdbu" : isWidth() ? "width" : "height");
const rangeOf = () => values().range ?? (values().minus ? CHANGE_RANGE : isWidth() ? WIDTH_RANGE : PLAIN_RANGE);

initTheme($("theme"));
start();

async function start() {
  showState("Opening the maps…", { busy: true });
  try {
    const answers = await Promise.all([api.layers(), api.vectors()]);
    const layers = answers[0];
    features = answers[1];
    heights = layers.filter(({ kind }) => kind === "height");
    pictures = layers.filter(({ kind, product }) => kind === "imagery" && !product);
    products = layers.filter(({ product }) => product);
    for (const layer of layers) byId.set(layer.id, layer);
    if (!mains().length) {
      $("title").textContent = "No maps";
      return showState("There is no height map here yet. Map an area with canopy predict, then name its folder to canopy serve.");
    }
    await Promise.all([library, addStyle("map.css")]);
    await open(await library);
    hideState();
  } catch (error) {
    console.warn(error);
    $("title").textContent = "Not available";
    showState(error.status === undefined ? `The map cannot be drawn in this browser: ${error.message}` : error.message, { retry: true });
  }
}

async function open(maps) {
  const link = readLink(location.hash);
  const known = (id) => (byId.has(id) ? id : null);
  const layer = mains().find(({ id }) => id === link.layer) ?? mains()[0];
  state.set({
    ...link, layer: layer.id, band: bandOf(layer, link.band).name, minus: layer.product ? null : known(link.minus), left: known(link.left),
  });
  // A view of another map's place would open on empty ground.
  const view = link.layer && link.layer !== layer.id ? null : link.view;
  map = maps.createMap("map", { interactive: true, bounds: boundsOf(layer), padding: padding(), view });
  await new Promise((resolve, reject) => {
    map.once("style.load", resolve);
    map.once("error", ({ error }) => reject(error));
  });
  map.on("error", ({ error }) => tileFailed(error));
  map.on("dataloading", () => document.body.classList.add("busy"));
  map.on("idle", () => {
    document.body.classList.remove("busy");
    document.body.dataset.idle = String(Number(document.body.dataset.idle ?? 0) + 1);
  });
  legend = createLegend($("legend"), (range) => state.set({ range }));
  buildControls();
  vectors = createVectors(map, features,
    { section: $("vectors"), list: $("vectors").querySelector("ul"), card: $("feature"), live: $("live") },
    { onSwitch: (ids) => state.set({ vectors: ids.join(",") }), isChoosing: () => document.body.dataset.mode === "select" });
  vectors.update(shownOf(features, values().vectors));
  const [{ createHover }, { createDrawing }] = await Promise.all([import("./hover.js"), import("./draw.js")]);
  hover = createHover(map, $("tooltip"), $("live"), {
    layerOf: () => ({ first: current(), minus: values().minus && byId.get(values().minus) }),
    bandOf: () => values().band,
    linesAt: vectors.linesAt,
  });
  draw(new Set(["layer", "band"]));
  drawing = createDrawing(map, (next) => { polygons = next; measure(); saveLink(); }, showMode);
  $("tools").hidden = false;
  if (link.polygons?.length) drawing.add(link.polygons);
  state.listen((_, changed) => { draw(changed); saveLink(); });
  const seen = later(showHistogram, HISTOGRAM_WAIT_MS);
  map.on("moveend", () => { saveLink(); seen(); });
  if (values().canopy3d && !link.view) map.easeTo({ pitch: 62, bearing: -24, duration: 0 });
  window.addEventListener("hashchange", () => { if (location.hash !== written) location.reload(); });
  document.body.classList.remove("loading");
}

/* ---------------------------------------------------------------- the drawing follows the state */

function drawn(layer) {
  const { minus, band, opacity, imagery, hatch, shade, canopy3d } = values();
  return {
    height: layer.product ? null : { layer, band, minus, opacity, ramp: rampOf(), range: rangeOf() },
    product: layer.product ? { layer, opacity } : null,
    imagery: imagery ? pictures.find((picture) => overlaps(picture.bounds, layer.bounds)) : null,
    hatch, shade, canopy3d,
  };
}

async function draw(changed) {
  const { applyDrawing } = await library;
  const layer = current();
  if (changed.has("layer") || changed.has("minus") || changed.has("band")) {
    if (!layer.bands.some(({ name }) => name === values().band)) return state.set({ band: layer.bands[0].name });
    describeLayer(layer);
  }
  applyDrawing(map, drawn(layer));
  await drawLeft(applyDrawing);
  showControls(layer);
  if (layer.product) {
    if (changed.has("layer") || changed.has("band")) legend.showProduct(layer.legend, format.capital(layer.product), layer.bands[0].unit);
  } else {
    legend.update({
      domain: isWidth() ? [0, 40] : domainOf(layer.bands[0], values().minus), ramp: rampOf(), range: rangeOf(),
    });
  }
  if (["layer", "band", "minus"].some((key) => changed.has(key))) showHistogram();
  if (["layer", "threshold", "band", "ramp", "range"].some((key) => changed.has(key))) measure();
  if (changed.has("vectors")) vectors.update(shownOf(features, values().vectors));
  if (changed.has("canopy3d") && drawing) {
    map.easeTo(values().canopy3d ? { pitch: 62, bearing: -24 } : { pitch: 0, bearing: 0 });
  }
}

/** The picture left of the swipe: imagery, or another map, on a map of its own that follows the first. */
async function drawLeft(applyDrawing) {
  const { swipe, left, canopy3d, shade } = values();
  $("left").hidden = $("swipe").hidden = $("sides").hidden = swipe === null;
  if (swipe === null) {
    unfollow?.();
    vectors?.detach(leftMap);
    leftMap?.remove();
    leftMap = unfollow = null;
    return;
  }
  const share = Math.min(1, Math.max(0, swipe));
  $("stage").style.setProperty("--swipe", share);
  $("swipe").setAttribute("aria-valuenow", Math.round(100 * share));
  const chosen = byId.get(left) ?? leftLayer();
  if (!leftMap) {
    const maps = await library;
    leftMap = maps.createMap("left", { interactive: false, bounds: boundsOf(current()), padding: 0 });
    unfollow = maps.follow(map, leftMap);
    await new Promise((resolve) => leftMap.once("style.load", resolve));
    vectors.attach(leftMap);
    leftMap.on("error", ({ error }) => tileFailed(error));
    leftMap.on("idle", () => { document.body.dataset.leftIdle = String(Number(document.body.dataset.leftIdle ?? 0) + 1); });
  }
  const picture = chosen.kind === "imagery";
  const ground = picture ? current() : chosen;
  const height = ground.product ? null : { layer: ground, band: ground.bands[0].name, minus: null,
    opacity: picture ? 0 : 1, ramp: "height", range: values().minus ? PLAIN_RANGE : rangeOf() };
  const product = chosen.product ? { layer: chosen, opacity: 1 } : null;
  applyDrawing(leftMap, { height, product, imagery: picture && !product ? chosen : null, hatch: null, shade: shade && !picture, canopy3d });
  const [one, two] = $("sides").children;
  [one.textContent, two.textContent] = [chosen.title, values().minus ? "Difference" : current().title];
}

/** What lies left of the swipe before the reader chooses: imagery, a product, or another map. */
function leftLayer() {
  const other = ({ id }) => id !== values().layer;
  return pictures[0] ?? products.find(other) ?? heights.find(other) ?? current();
}

function tileFailed(error) {
  // A tile that misses the layer is no fault; a server that is gone is one.
  if (error?.status === 404 || error?.name === "AbortError") return;
  notify(error?.status ? `A tile could not be read (${error.status}).` : "The server does not answer. Is canopy serve still running?");
}

/* ---------------------------------------------------------------- controls */

function buildControls() {
  fill($("layer"), mains().map((layer) => [layer.id, titleOf(layer)]));
  $("layer-field").hidden = mains().length < 2;
  bind("layer", "change", (value) => {
    state.set({ layer: value, minus: values().minus === value || byId.get(value).product ? null : values().minus });
    map.fitBounds(boundsOf(current()), { padding: padding(), duration: 600 });
  });
  bind("ramp", "change", (value) => state.set({ ramp: value }));
  fill($("ramp"), ramps.names.map((name) => [name, ramps.title(name)]));
  bind("opacity", "input", (value) => state.set({ opacity: Number(value) }));
  bind("minus", "change", (value) => state.set({ minus: value || null, ramp: null, range: null }));
  bind("left-layer", "change", (value) => state.set({ left: value }));
  bind("threshold", "change", (value) => { if (value !== "" && Number(value) >= 0) state.set({ threshold: Number(value) }); });
  bind("hatch", "input", (value) => state.set({ hatch: Number(value) }));
  fill($("left-layer"), [...pictures, ...products, ...heights].map((layer) => [layer.id, titleOf(layer)]));
  $("imagery").hidden = !pictures.length;
  $("swipe-on").hidden = pictures.length + products.length + heights.length < 2;
  for (const [id, toggle] of Object.entries(TOGGLES)) $(id).addEventListener("click", toggle);
  $("clear").addEventListener("click", () => drawing.clear());
  $("csv").addEventListener("click", downloadCsv);
  $("share").addEventListener("click", share);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("handle").addEventListener("click", () => {
    const open = document.body.classList.toggle("folded");
    $("handle").setAttribute("aria-expanded", String(!open));
  });
  $("tools").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) drawing.setMode(button.dataset.mode);
  });
  document.addEventListener("keydown", pressed);
  initSwipe();
}

const TOGGLES = {
  imagery: () => state.set({ imagery: !values().imagery }),
  "swipe-on": () => state.set({ swipe: values().swipe === null ? middle() : null }),
  shade: () => state.set({ shade: !values().shade }),
  canopy3d: () => state.set({ canopy3d: !values().canopy3d }),
  "hatch-on": () => state.set({ hatch: values().hatch === null ? Number($("hatch").value) : null }),
};
const KEYS = { s: "swipe-on", 3: "canopy3d", h: "hatch-on", i: "imagery" };
const MODES = { p: "polygon", r: "rectangle", v: "select" };

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  if (key === "escape") drawing?.setMode("select");
  else if (MODES[key]) drawing?.setMode(MODES[key]);
  else if (KEYS[key] && !$(KEYS[key]).hidden) $(KEYS[key]).click();
}

function showControls(layer) {
  const { opacity, minus, hatch, threshold, left, swipe } = values();
  $("layer").value = layer.id;
  $("ramp").value = rampOf();
  $("opacity").value = opacity;
  $("threshold").value = threshold;
  const others = heights.filter(({ id, bounds }) => id !== layer.id && overlaps(bounds, layer.bounds));
  fill($("minus"), [["", "nothing"], ...others.map(({ id, title }) => [id, title])]);
  $("minus").value = minus ?? "";
  $("minus-field").hidden = !others.length || Boolean(layer.product);
  for (const id of ["ramp-field", "shade", "canopy3d"]) $(id).hidden = Boolean(layer.product);
  $("left-field").hidden = swipe === null || $("left-layer").options.length < 2;
  $("left-layer").value = left ?? leftLayer().id;
  $("hatch-field").hidden = !layer.interval || Boolean(minus);
  $("hatch-field").classList.toggle("on", hatch !== null);
  if (hatch !== null) $("hatch").value = hatch;
  $("hatch-value").textContent = format.metres(Number($("hatch").value));
  for (const id of Object.keys(TOGGLES)) {
    const on = { imagery: values().imagery, "swipe-on": swipe !== null, shade: values().shade, canopy3d: values().canopy3d, "hatch-on": hatch !== null }[id];
    $(id).setAttribute("aria-pressed", String(on));
  }
}

function describeLayer(layer) {
  const { minus } = values();
  const other = minus && byId.get(minus);
  $("title").textContent = $("title").title = other ? `${layer.title} less ${other.title}` : layer.title;
  document.title = `${layer.title}, ${layer.product ?? "canopy height"}`;
  const parts = [`Imagery: ${format.acquired(layer.acquired)}`, layer.gsd_m ? `${Number(layer.gsd_m.toPrecision(2))} m cells` : null, layer.model];
  $("about").textContent = parts.filter(Boolean).join(" · ");
  $("bands").replaceChildren(...layer.bands.map((band) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "band", value: band.name, checked: band.name === values().band });
    input.addEventListener("change", () => state.set({ band: band.name, ramp: null, range: null }));
    text.textContent = SHORT[band.name] ?? band.title ?? band.name;
    label.title = band.title ?? band.name;
    label.append(input, text);
    return label;
  }));
  $("bands").hidden = layer.bands.length < 2 || Boolean(minus);
}

function initSwipe() {
  const handle = $("swipe");
  const move = (event) => {
    const box = $("stage").getBoundingClientRect();
    state.set({ swipe: Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) });
  };
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", move);
  });
  for (const end of ["pointerup", "pointercancel"]) handle.addEventListener(end, () => handle.removeEventListener("pointermove", move));
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -SWIPE_STEP, ArrowRight: SWIPE_STEP, PageDown: -0.1, PageUp: 0.1 }[event.key];
    const end = { Home: 0, End: 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    state.set({ swipe: end ?? Math.min(1, Math.max(0, values().swipe + step)) });
  });
}

function showMode(mode) {
  for (const button of $("tools").children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  document.body.dataset.mode = mode;
}

/* ---------------------------------------------------------------- what the view and the polygons contain */

async function showHistogram() {
  histogramAbort?.abort();
  if (values().minus) return legend.show(null, `First less second map, metres`);
  histogramAbort = new AbortController();
  const layer = current(), bounds = map.getBounds();
  const bbox = clip([bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()], layer.bounds);
  if (!bbox) return legend.show(null, "The map lies outside this view");
  try {
    const answer = await api.histogram(layer.id, { bbox, band: values().band, bins: legend.bins, range: legend.domain }, histogramAbort.signal);
    const share = answer.known + answer.unknown ? answer.known / (answer.known + answer.unknown) : 0;
    const above = answer.above && !layer.product ? `, ${answer.above.toLocaleString("en")} cells above ${legend.domain[1]} m` : "";
    const content = layer.product ? format.capital(layer.product) : "Heights";
    legend.show(answer, answer.known ? `${content} in this view; ${format.percent(share)} known${above}` : `No ${layer.product ?? "height"} is known in this view`);
  } catch (error) {
    if (error.name !== "AbortError") legend.show(null, error.status === 404 ? "The map lies outside this view" : error.message);
  }
}

const collection = () => ({
  type: "FeatureCollection",
  features: polygons.map(({ geometry }, i) => ({ type: "Feature", id: `polygon ${i + 1}`, properties: {}, geometry })),
});

let measured = 0, shown = 0;
async function measure() {
  $("polygons").hidden = !polygons.length;
  $("hint").hidden = polygons.length > 0;
  const run = ++measured;
  if (!polygons.length) {
    shown = 0;
    return $("cards").replaceChildren();
  }
  const ground = measuredMap();
  if (!ground) return $("cards").replaceChildren(message("Polygons are measured on a map of heights, and none is served here."));
  const band = ground.bands.find(({ derived, name }) => name === values().band && !derived)?.name;
  try {
    const answer = await api.statistics(ground.id, collection(), { band, threshold: values().threshold, range: `0,${Math.max(40, rangeOf()[1])}` });
    if (run !== measured) return;
    $("cards").replaceChildren(...answer.polygons.map((statistics, i) => card(statistics, polygons[i].id)));
    if (answer.polygons.length > shown) $("cards").lastElementChild.scrollIntoView({ block: "nearest", behavior: "smooth" });
    shown = answer.polygons.length;
    $("live").textContent = answer.polygons.map((one) => `${one.id}: mean ${format.metres(one.mean_m)}`).join("; ");
  } catch (error) {
    if (run === measured) $("cards").replaceChildren(message(error.status === 404 ? "These polygons lie outside the map." : error.message));
  }
}

function card(statistics, id) {
  const item = document.createElement("li");
  const heading = document.createElement("div"), title = document.createElement("h3"), remove = document.createElement("button");
  heading.className = "heading";
  title.textContent = `${statistics.id.replace(/^p/, "P")} · ${format.area(statistics.area_m2)}`;
  Object.assign(remove, { type: "button", className: "text", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${statistics.id}`);
  remove.addEventListener("click", () => drawing.remove(id));
  heading.append(title, remove);
  item.append(heading);
  if (!statistics.known_share) {
    item.append(message("No height is known in this polygon."));
    return item;
  }
  const list = document.createElement("dl");
  for (const [name, text, hint] of [
    ["Mean", format.metres(statistics.mean_m)], ["95th pct", format.metres(statistics.p95_m)],
    ["Top height", format.metres(statistics.h100_m), "Mean of the highest cell of each 10 m square"],
    ["Highest", format.metres(statistics.max_m)], ["Cover", format.percent(statistics.cover), `Share above ${values().threshold} m`],
    ["Known", format.percent(statistics.known_share)],
    ["Interval", statistics.interval ? format.interval(statistics.interval) : "none"],
  ]) {
    const pair = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
    [dt.textContent, dd.textContent] = [name, text];
    if (hint) pair.title = hint;
    dd.dataset.name = name;
    pair.append(dt, dd);
    list.append(pair);
  }
  item.append(histogramOf(statistics.histogram, values().minus ? "height" : rampOf(), values().minus ? PLAIN_RANGE : rangeOf(), "Area by height"), list);
  return item;
}

async function downloadCsv() {
  const ground = measuredMap();
  if (!ground) return;
  try {
    const blob = await api.statisticsCsv(ground.id, collection(), { threshold: values().threshold });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${ground.id}_polygons.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    notify(error.message);
  }
}

/* ---------------------------------------------------------------- address, notices, small things */

let written = location.hash;
const saveLink = later(() => {
  const { lng, lat } = map.getCenter();
  const view = [map.getZoom().toFixed(2), lat.toFixed(6), lng.toFixed(6), Math.round(map.getBearing()), Math.round(map.getPitch())];
  written = writeLink(values(), view, polygons);
  history.replaceState(null, "", written);
}, LINK_WAIT_MS);

async function share() {
  try {
    await navigator.clipboard.writeText(location.href);
    notify("The link to this view is copied.");
  } catch {
    notify("The address bar has the link to this view.");
  }
}

/** Add a style sheet that the shell does not need, so that the shell is drawn without waiting for it. */
function addStyle(href) {
  return new Promise((resolve, reject) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: resolve });
    link.onerror = () => reject(new Error(`${href} did not load`));
    document.head.prepend(link);
  });
}

let noticeTimer = null;
function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { $("notice").hidden = true; }, 6000);
}

function showState(text, { busy = false, retry = false } = {}) {
  $("state").hidden = false;
  $("state").classList.toggle("busy", busy);
  $("state-text").textContent = text;
  $("retry").hidden = !retry;
  $("retry").onclick = () => location.reload();
}

function hideState() { $("state").hidden = true; }

function message(text) {
  return Object.assign(document.createElement("p"), { className: "note", textContent: text });
}

function bind(id, event, act) { $(id).addEventListener(event, ({ target }) => act(target.value)); }

function fill(select, options) {
  if ([...select.options].map(({ value }) => value).join() === options.map(([value]) => value).join()) return;
  select.replaceChildren(...options.map(([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text })));
}

function later(act, wait) {
  let timer = null;
  return () => { clearTimeout(timer); timer = setTimeout(act, wait); };
}

const overlaps = (a, b) => clip(a, b) !== null;
function clip([west, south, east, north], [w, s, e, n]) {
  if (w > e || west > east) return [west, south, east, north]; // across the antimeridian the server decides
  const box = [Math.max(west, w), Math.max(south, s), Math.min(east, e), Math.min(north, n)];
  return box[0] < box[2] && box[1] < box[3] ? box : null;
}

function boundsOf({ bounds: [west, south, east, north] }) {
  return [[west, south], [east < west ? east + 360 : east, north]];
}

/** The middle of what the panel leaves free, as a share of the width. */
function middle() {
  const { left } = padding();
  return Number(((left + window.innerWidth) / 2 / window.innerWidth).toFixed(2));
}

/** Room for the panel, so that a map opens next to it and not below it. */
function padding() {
  const wide = window.matchMedia("(min-width: 720px)").matches;
  return wide ? { left: $("panel").offsetWidth + 40, right: 60, top: 40, bottom: 40 } : { left: 24, right: 24, top: 84, bottom: $("panel").offsetHeight + 20 };
}
