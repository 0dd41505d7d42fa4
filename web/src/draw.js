// Polygons of the reader: drawn, changed and removed on the map with terra-draw.
import { TerraDraw, TerraDrawPolygonMode, TerraDrawRectangleMode, TerraDrawSelectMode } from "terra-draw";
import { TerraDrawMapLibreGLAdapter } from "terra-draw-maplibre-gl-adapter";

const OUTLINE = "#d81b60", WIDTH_PX = 2.5;
const fill = { fillColor: OUTLINE, fillOpacity: 0.12, outlineColor: OUTLINE, outlineWidth: WIDTH_PX };

/** Create the drawing tool. `onChange(polygons)` is called when a polygon is finished, changed or removed. */
export function createDrawing(map, onChange, onMode) {
  const corners = { draggable: true, midpoints: true, deletable: true };
  const feature = { feature: { draggable: true, coordinates: corners } };
  const draw = new TerraDraw({
    adapter: new TerraDrawMapLibreGLAdapter({ map, coordinatePrecision: 9 }),
    modes: [
      new TerraDrawPolygonMode({ styles: { ...fill, closingPointColor: OUTLINE, closingPointWidth: 5 } }),
      new TerraDrawRectangleMode({ styles: fill }),
      new TerraDrawSelectMode({
        flags: { polygon: feature, rectangle: feature },
        styles: { selectedPolygonColor: OUTLINE, selectedPolygonFillOpacity: 0.2, selectedPolygonOutlineColor: OUTLINE,
          selectedPolygonOutlineWidth: 3, selectionPointColor: OUTLINE, midPointColor: OUTLINE },
      }),
    ],
  });
  draw.start();
  const setMode = (mode) => {
    draw.setMode(mode);
    onMode(mode);
  };
  const polygons = () =>
    draw.getSnapshot().filter(({ geometry, properties }) =>
      geometry.type === "Polygon" && geometry.coordinates[0].length > 3 && !properties.currentlyDrawing);
  draw.on("finish", (_, { action }) => {
    if (action === "draw") setMode("select");
    onChange(polygons());
  });
  setMode("select");
  return {
    setMode, polygons,
    add(rings) {
      const features = rings.map((ring) => ({
        type: "Feature", properties: { mode: "polygon" }, geometry: { type: "Polygon", coordinates: [ring] },
      }));
      draw.addFeatures(features);
      onChange(polygons());
    },
    remove(id) {
      draw.removeFeatures([id]);
      onChange(polygons());
    },
    clear() {
      draw.clear();
      setMode("select");
      onChange([]);
    },
  };
}
