// Builds the page into tiles/web/static: the shell, the map library in a chunk of its own, its worker, the licences.
import { build } from "esbuild";
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";

const OUT = new URL("../tiles/web/static/", import.meta.url);
const LIMIT = { bytes: 2.5e6, gzipped: 700e3 };
const options = {
  bundle: true, format: "esm", minify: true, legalComments: "none", target: ["chrome110", "firefox115", "safari16.4"],
  outExtension: { ".js": ".mjs" }, outdir: OUT.pathname, logLevel: "warning",
};

await rm(OUT, { recursive: true, force: true });
await mkdir(OUT, { recursive: true });
// What loads later has a name of its own: the large library then stays one file of one name in the history.
const entries = { app: "src/main.js", map: "src/map.js", draw: "src/draw.js", hover: "src/hover.js" };
await build({ ...options, entryPoints: entries, splitting: true, chunkNames: "shared-[hash]" });
// MapLibre 6 starts its worker from a file next to it, as a module.
await build({ ...options, entryPoints: { "map-worker": "node_modules/maplibre-gl/dist/maplibre-gl-worker.mjs" } });
await build({
  bundle: true, minify: true, entryPoints: { style: "src/style.css", map: "node_modules/maplibre-gl/dist/maplibre-gl.css" },
  outdir: OUT.pathname, loader: { ".svg": "dataurl" }, legalComments: "none", logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) await copyFile(`src/${name}`, new URL(name, OUT));
await writeFile(new URL("LICENCES.txt", OUT), await licences());

let bytes = 0, gzipped = 0;
for (const name of (await readdir(OUT)).sort()) {
  const content = await readFile(new URL(name, OUT));
  bytes += content.length;
  gzipped += gzipSync(content, { level: 9 }).length;
}
console.log(`tiles/web/static: ${(bytes / 1e6).toFixed(2)} MB, ${Math.round(gzipped / 1e3)} kB gzipped`);
if (bytes > LIMIT.bytes || gzipped > LIMIT.gzipped) throw new Error("the page is larger than its limit");

/** Licences of the packages whose code is in the bundle; MapLibre's release contains its own dependencies. */
async function licences() {
  const direct = JSON.parse(await readFile("package.json")).dependencies;
  const inner = JSON.parse(await readFile("node_modules/maplibre-gl/package.json")).dependencies;
  const names = [...Object.keys(direct), ...Object.keys(inner).filter((name) => !name.startsWith("@types/"))];
  const parts = [];
  for (const name of names) {
    const folder = `node_modules/${name}`;
    const about = JSON.parse(await readFile(`${folder}/package.json`));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? (await readFile(`${folder}/${file}`, "utf8")).trim() : mit(about);
    parts.push(`${about.name} ${about.version} (${about.license})\n\n${text}\n`);
  }
  return `Third-party code in this folder, and its licences.\n\n${parts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

/** The text of a licence that a package names without enclosing it. */
function mit(about) {
  if (about.license !== "MIT") return `Licence as named by the package: ${about.license}.`;
  const author = typeof about.author === "object" ? about.author.name : about.author;
  return `Copyright (c) ${author ?? `the authors of ${about.name}`}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`;
}
