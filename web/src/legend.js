// The legend: a histogram of the view above the ramp, whose ends the reader moves.
import * as format from "./format.js";
import * as ramps from "./ramps.js";

const BINS = 40, WIDTH = 400, HEIGHT = 72, TICK_SHARE = 0.15;

/** Axis of the legend for a band: a little more than its values, in steps that read well. */
export function domainOf(band, difference) {
  if (difference) return [-30, 30];
  const top = Math.max(40, Math.ceil((band?.range?.max ?? 0) / 10) * 10);
  return [0, top];
}

export function createLegend(root, onRange) {
  const strip = root.querySelector(".ramp"), bars = root.querySelector(".bars"), ticks = root.querySelector(".ticks");
  const [low, high] = root.querySelectorAll("input[type=range]");
  const note = root.querySelector(".note");
  const title = root.querySelector("h2"), scale = root.querySelector(".scale"), classes = root.querySelector(".classes");
  let domain = [0, 40], stops = [[0, "#ffffff"]], bins = BINS, product = null, counts = null;

  const changed = (moved) => {
    let [from, to] = [Number(low.value), Number(high.value)];
    // The ends push each other, so the range never turns round.
    if (from > to - 1) [from, to] = moved === low ? [Math.min(from, domain[1] - 1), Math.min(from, domain[1] - 1) + 1] : [to - 1, to];
    onRange([Math.max(domain[0], from), to]);
  };
  low.addEventListener("input", () => changed(low));
  high.addEventListener("input", () => changed(high));

  function drawBars() {
    bars.replaceChildren();
    const hasClasses = product?.kind === "classes";
    bars.toggleAttribute("hidden", !counts || hasClasses);
    if (hasClasses) return drawClasses();
    if (!counts) return;
    const most = Math.max(...counts.counts, 1);
    const step = WIDTH / counts.counts.length;
    counts.counts.forEach((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max(1.5, HEIGHT * Math.sqrt(count / most)) : 0;
      const middle = (counts.edges[i] + counts.edges[i + 1]) / 2;
      for (const [name, value] of Object.entries({
        x: i * step + 0.5, y: HEIGHT - height, width: step - 1, height, rx: 1, fill: ramps.colourAt(stops, middle),
      })) bar.setAttribute(name, value);
      bars.append(bar);
    });
  }

  /** The classes of a product, each with its share of what is known in the view. */
  function drawClasses() {
    const all = counts?.counts.reduce((sum, one) => sum + one, 0);
    classes.replaceChildren(...product.entries.map(({ colour, label }, i) => {
      const item = document.createElement("li");
      const [patch, text, share] = ["patch", "", ""].map((className) => Object.assign(document.createElement("span"), { className }));
      patch.style.background = colour;
      text.textContent = label;
      share.textContent = all ? format.percent(counts.counts[i] / all) : "";
      item.append(patch, text, share);
      return item;
    }));
  }

  function drawTicks(labels) {
    ticks.replaceChildren(...labels.map(([value, text]) => {
      const label = Object.assign(document.createElement("span"), { textContent: text });
      label.style.left = `${(100 * (value - domain[0])) / (domain[1] - domain[0])}%`;
      return label;
    }));
  }

  /** Entries whose texts have room on the axis; its ends always have some. */
  function apart(entries) {
    const last = entries.at(-1).value, room = TICK_SHARE * (domain[1] - domain[0]);
    let previous = -Infinity;
    return entries.filter(({ value }) => {
      const fits = value === last || (value - previous >= room && last - value >= room);
      if (fits) previous = value;
      return fits;
    });
  }

  /** Show what belongs to heights, whose ends the reader moves, or to a product, whose colours are fixed. */
  function showParts() {
    title.hidden = !product;
    for (const input of [low, high]) input.hidden = Boolean(product);
    scale.hidden = ticks.hidden = product?.kind === "classes";
    classes.hidden = product?.kind !== "classes";
  }

  return {
    get bins() { return bins; },
    get domain() { return domain; },
    /** Show the legend of a product as the server draws it. */
    showProduct(legend, name, unit) {
      product = legend;
      counts = null;
      const all = legend.entries;
      stops = all.map(({ value, colour }) => [value, colour]);
      // Each class has a bin of its own, whose middle is its value.
      [domain, bins] = legend.kind === "classes" ? [[all[0].value - 0.5, all.at(-1).value + 0.5], all.length] : [[all[0].value, all.at(-1).value], BINS];
      title.textContent = unit && unit !== "1" ? `${name} (${unit})` : name;
      strip.style.background = ramps.gradientOf(stops, domain);
      drawTicks(apart(all.filter(({ label }) => label !== null)).map(({ value, label }) => [value, label]));
      showParts();
      drawBars();
    },
    update(next) {
      const { ramp, range } = next;
      ({ domain } = next);
      stops = ramps.stops(ramp, range);
      if (product) counts = null;
      [product, bins] = [null, BINS];
      showParts();
      for (const input of [low, high]) [input.min, input.max] = domain;
      [low.value, high.value] = range;
      low.setAttribute("aria-valuetext", `${range[0]} m`);
      high.setAttribute("aria-valuetext", `${range[1]} m`);
      root.style.setProperty("--low", (range[0] - domain[0]) / (domain[1] - domain[0]));
      root.style.setProperty("--high", (range[1] - domain[0]) / (domain[1] - domain[0]));
      strip.style.background = ramps.gradient(ramp, range, domain);
      const step = domain[1] - domain[0] > 60 ? 20 : 10;
      const labels = [];
      for (let value = domain[0]; value <= domain[1] + 1e-9; value += step) labels.push(value);
      drawTicks(labels.map((value) => [value, value === domain[1] ? `${value} m` : `${value}`]));
      drawBars();
    },
    show(next, text) {
      counts = next;
      note.textContent = text;
      drawBars();
    },
  };
}

/** A small histogram of a polygon, as SVG. */
export function histogramOf({ edges_m: edges, area_m2: areas }, ramp, range, label) {
  const ns = "http://www.w3.org/2000/svg", most = Math.max(...areas, 1e-9), step = 100 / areas.length;
  const svg = document.createElementNS(ns, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 100 28", preserveAspectRatio: "none", role: "img", "aria-label": label })) {
    svg.setAttribute(name, value);
  }
  areas.forEach((area, i) => {
    const bar = document.createElementNS(ns, "rect"), height = (27 * area) / most;
    for (const [name, value] of Object.entries({
      x: i * step + 0.25, y: 28 - height, width: step - 0.5, height, fill: ramps.colourOf(ramp, range, (edges[i] + edges[i + 1]) / 2),
    })) bar.setAttribute(name, value);
    svg.append(bar);
  });
  return svg;
}
