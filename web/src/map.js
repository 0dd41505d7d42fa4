// The map: sources and layers that follow the state, on two maps when one is swiped over the other.
import { addProtocol, Map as GlMap, NavigationControl, ScaleControl, setWorkerUrl } from "maplibre-gl";

import * as api from "./api.js";
import { hatchTile } from "./hatch.js";
import { RASTERS_TOP, VECTORS_TOP } from "./order.js";
import { expression } from "./ramps.js";

setWorkerUrl(new URL("./map-worker.mjs", import.meta.url).href);
addProtocol("hatch", hatchTile);

const MAX_ZOOM = 22;

/** Create a map without sources. */
export function createMap(container, { interactive, bounds, padding, view }) {
  const map = new GlMap({
    container, interactive, attributionControl: false, maxZoom: MAX_ZOOM, maxPitch: 75, fadeDuration: 150,
    canvasContextAttributes: { antialias: true, preserveDrawingBuffer: true },
    style: { version: 8, transition: { duration: 0, delay: 0 }, sources: {}, layers: [RASTERS_TOP, VECTORS_TOP].map(mark) },
    ...(view ? place(view) : { bounds, fitBoundsOptions: { padding } }),
  });
  if (interactive) {
    map.addControl(new NavigationControl({ visualizePitch: true }), "top-right");
    map.addControl(new ScaleControl({ unit: "metric" }), "bottom-right");
    map.getCanvas().setAttribute("aria-label", "Map of canopy height. Arrow keys move, plus and minus zoom, Enter reads the centre.");
  }
  return map;
}

const mark = (id) => ({ id, type: "background", layout: { visibility: "none" } });
const place = ([zoom, lat, lon, bearing = 0, pitch = 0]) => ({ zoom, center: [lon, lat], bearing, pitch });

/** Sources and layers that a map needs for a drawing, by key; equal keys are not touched again. */
function plan({ height, product = null, imagery, hatch, shade, canopy3d }) {
  const sources = {}, layers = [];
  const extent = (layer) => ({
    bounds: layer.bounds[0] <= layer.bounds[2] ? layer.bounds : [-180, layer.bounds[1], 180, layer.bounds[3]],
    minzoom: layer.minzoom, maxzoom: layer.maxzoom, tileSize: 512,
  });
  const dem = (layer, values) => ({
    type: "raster-dem", encoding: "mapbox", tiles: [api.tiles(layer.id, "png", { encoding: "terrain", ...values })],
    ...extent(layer),
  });
  if (imagery) {
    const key = `imagery:${imagery.id}`;
    sources[key] = { type: "raster", tiles: [api.tiles(imagery.id, "webp")], ...extent(imagery) };
    layers.push({ id: key, type: "raster", source: key, paint: { "raster-fade-duration": 150 } });
  }
  if (product) {
    const key = `product:${product.layer.id}`;
    sources[key] = { type: "raster", tiles: [api.tiles(product.layer.id, "png")], ...extent(product.layer) };
    // Cells stay cells: a colour between two classes would be a class that the ground does not have.
    layers.push({ id: key, type: "raster", source: key, paint: { "raster-resampling": "nearest", "raster-opacity": product.opacity, "raster-fade-duration": 0 } });
  }
  if (height) {
    const { layer, band, minus } = height;
    const values = { band, ...(minus ? { minus } : {}) };
    const key = `height:${layer.id}:${band}:${minus ?? ""}`;
    sources[key] = dem(layer, values);
    layers.push({
      id: key, type: "color-relief", source: key,
      paint: { "color-relief-color": expression(height.ramp, height.range), "color-relief-opacity": height.opacity },
    });
    if (shade || canopy3d) {
      const relief = `relief:${layer.id}`;
      sources[relief] = dem(layer, { fill: 0 });
      layers.push({
        id: relief, type: "hillshade", source: relief,
        paint: {
          "hillshade-exaggeration": 0.35, "hillshade-shadow-color": "#0a1a16", "hillshade-highlight-color": "#fffbe8",
          "hillshade-accent-color": "#12241f", "hillshade-illumination-anchor": "map",
        },
      });
    }
    if (canopy3d) sources[`terrain:${layer.id}`] = dem(layer, { fill: 0 });
    if (hatch !== null && layer.interval && !minus) {
      const widths = api.tiles(layer.id, "png", { encoding: "terrain", band: layer.interval.width });
      const key = `hatch:${layer.id}`;
      sources[key] = { type: "raster", tiles: [`hatch://${hatch}/${widths}`], ...extent(layer) };
      layers.push({ id: key, type: "raster", source: key, paint: { "raster-fade-duration": 0 } });
    }
  }
  return { sources, layers };
}

/** Bring a map from one drawing to the next with as little change as needed. */
export function applyDrawing(map, drawing) {
  const { sources, layers } = plan(drawing);
  const ours = (id) => /^(imagery|product|height|relief|hatch|terrain):/.test(id);
  const style = map.getStyle();
  const terrain = Object.keys(sources).find((key) => key.startsWith("terrain:"));
  if (map.getTerrain() && map.getTerrain().source !== terrain) map.setTerrain(null);
  for (const layer of style.layers) {
    if (ours(layer.id) && !layers.some(({ id }) => id === layer.id)) map.removeLayer(layer.id);
  }
  for (const key of Object.keys(style.sources)) if (ours(key) && !sources[key]) map.removeSource(key);
  for (const [key, source] of Object.entries(sources)) {
    const present = map.getSource(key);
    if (!present) map.addSource(key, source);
    else if (source.tiles[0] !== present.tiles[0]) present.setTiles(source.tiles);
  }
  // From the top down, so that each new layer finds the one above it.
  let above = RASTERS_TOP;
  for (const layer of [...layers].reverse()) {
    if (!map.getLayer(layer.id)) map.addLayer(layer, above);
    else {
      map.moveLayer(layer.id, above);
      for (const [name, value] of Object.entries(layer.paint ?? {})) {
        if (JSON.stringify(map.getPaintProperty(layer.id, name)) !== JSON.stringify(value)) {
          map.setPaintProperty(layer.id, name, value);
        }
      }
    }
    above = layer.id;
  }
  if (terrain && !map.getTerrain()) map.setTerrain({ source: terrain, exaggeration: 1 });
}

/** Move one map with another. */
export function follow(leader, follower) {
  const move = () => follower.jumpTo({
    center: leader.getCenter(), zoom: leader.getZoom(), bearing: leader.getBearing(), pitch: leader.getPitch(),
  });
  leader.on("move", move);
  move();
  return () => leader.off("move", move);
}
