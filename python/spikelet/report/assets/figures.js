"use strict";
// Figures that are no line charts: heat maps of layers over time, and the spike raster of a text.

// Stops of the viridis map: brightness rises evenly, for every kind of colour vision and in grey.
const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** The colour of a share from 0 to 1. */
function ramp(share) {
  const at = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const [a, b] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
  const mixed = a.map((part, index) => Math.round(part + (b[index] - part) * (at % 1)));
  return `rgb(${mixed.join(",")})`;
}

function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${trim((100 * share).toFixed(share < 0.1 ? 1 : 0))} %`;
}

/** The range of rows of numbers, in which null is nothing. */
function extent(rows) {
  return bounds(rows.flat().filter((value) => value !== null));
}

/** The same without the most extreme values, such as those of the first steps. */
function middleRange(rows) {
  const sorted = rows.flat().filter((value) => value !== null).sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return [at(0.04), at(0.96)];
}

/** Shows what `tell` says of the place under the pointer. */
function hover(box, svg, tip, width, tell) {
  svg.addEventListener("pointermove", (event) => {
    const place = svg.getBoundingClientRect();
    const factor = width / place.width;
    const said = tell((event.clientX - place.left) * factor, (event.clientY - place.top) * factor);
    tip.hidden = !said;
    if (!said) return;
    tip.replaceChildren(...said.map((text, index) => h("div", index ? {} : { class: "at" }, text)));
    const frame = box.getBoundingClientRect();
    placeTip(tip, box, event.clientX - frame.left, event.clientY - frame.top + 12);
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
}

/** Borders of columns half-way between their middles. */
function borders(xs) {
  if (xs.length === 1) return [xs[0] - 0.5, xs[0] + 0.5];
  const inner = xs.slice(1).map((value, index) => (xs[index] + value) / 2);
  return [Math.max(0, 2 * xs[0] - inner[0]), ...inner, 2 * xs[xs.length - 1] - inner[inner.length - 1]];
}

/**
 * Draws rows of shares as coloured cells, the first row at the top.
 *
 * spec: { title, rows: [[value]], names: [label of a row], xs: [middle of a column], xLabel, xRange, range }
 */
function drawHeat(box, spec) {
  const width = Math.max(240, box.clientWidth);
  const edge = { left: 34, right: 14, top: 4, bottom: 34 };
  const row = Math.max(7, Math.min(30, Math.floor(170 / spec.rows.length)));
  const height = edge.top + row * spec.rows.length + edge.bottom;
  const [low, high] = spec.range;
  const edges = borders(spec.xs);
  const [first, last] = [spec.xRange[0], Math.max(spec.xRange[1], edges[edges.length - 1])];
  const x = scale(first, last, edge.left, width - edge.right, false);
  const svg = s("svg", {
    class: "chart heat", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${spec.title}: ${spec.rows.length} layers, from ${percent(low)} to ${percent(high)}`,
  });
  spec.rows.forEach((values, index) => {
    const top = edge.top + index * row;
    values.forEach((value, column) => {
      if (value === null) return;
      const left = x(edges[column]);
      svg.append(s("rect", {
        x: left.toFixed(1), y: top, width: (x(edges[column + 1]) - left + 0.4).toFixed(1), height: row - 1,
        fill: ramp((value - low) / (high - low || 1)),
      }));
    });
    if (row >= 10 || index % 2 === 0) {
      svg.append(s("text", { class: "tick", x: edge.left - 6, y: top + row / 2 + 3, "text-anchor": "end" }, spec.names[index]));
    }
  });
  drawTicks(svg, ticks(first, last, (width - 50) / 90), x, height - edge.bottom);
  svg.append(s("text", { class: "label", x: width - edge.right, y: height - 3, "text-anchor": "end" }, spec.xLabel));
  const tip = h("div", { class: "tip", hidden: true });
  box.replaceChildren(svg, tip);
  hover(box, svg, tip, width, (px, py) => {
    const index = Math.floor((py - edge.top) / row);
    const value = x.inverse(px);
    const column = spec.xs.findIndex((_, at) => value >= edges[at] && value < edges[at + 1]);
    if (!spec.rows[index] || column < 0) return null;
    return [`${spec.xLabel} ${short(spec.xs[column], 4)}`, `layer ${spec.names[index]}: ${percent(spec.rows[index][column])}`];
  });
}

/** The key of a heat map: its colours from the least to the greatest value. */
function heatKey([low, high]) {
  const stops = VIRIDIS.map((rgb, index) => `rgb(${rgb.join(",")}) ${(100 * index) / (VIRIDIS.length - 1)}%`);
  return h("span", { class: "key" }, percent(low),
    h("i", { style: `background:linear-gradient(90deg,${stops.join(",")})` }), percent(high));
}

/** A token as a label: what cannot be seen gets a sign. */
function tokenLabel(text) {
  const signs = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };
  return text.replace(/[ \n\t\r]/g, (letter) => signs[letter]);
}

/** Draws the spikes of a text: tokens along, neurons of all layers down. */
function drawRaster(box, raster) {
  const count = raster.tokens.length;
  const lines = raster.bands.length ? raster.bands[0].neurons.length : 0;
  const edge = { left: 120, right: 64, top: 6 };
  const room = Math.max(320, box.clientWidth) - edge.left - edge.right;
  const cell = Math.min(26, Math.max(7.5, room / count));
  const width = edge.left + edge.right + cell * count;
  const line = lines > 20 ? 2.4 : lines > 10 ? 3.2 : 4.5;
  const x = (token) => edge.left + token * cell;
  const bits = Uint8Array.from(atob(raster.bits), (letter) => letter.charCodeAt(0));
  const fired = (row, token) => (bits[(row * count + token) >> 3] >> (7 - ((row * count + token) & 7))) & 1;
  const parts = [];
  const label = (y, text) => parts.push(s("text", { class: "tick", x: edge.left - 8, y: y + 3.5, "text-anchor": "end" }, text));
  const figure = (y, text) => parts.push(s("text", { class: "tick", x: x(count) + 8, y: y + 3.5 }, text));
  let top = edge.top;

  const bars = (values, name, write) => {
    const tall = 40;
    const highest = bounds(values.filter((value) => value !== null))[1] || 1;
    const base = top + tall;
    const d = values.map((value, token) => (value === null ? "" :
      `M${(x(token) + 0.5).toFixed(1)},${base}v${((-tall * value) / highest).toFixed(1)}h${(cell - 1).toFixed(1)}V${base}z`));
    parts.push(s("path", { class: "bars", d: d.join("") }), s("line", { class: "axis", x1: x(0), x2: x(count), y1: base, y2: base }));
    label(top + tall / 2, name);
    figure(top + 4, write(highest));
    top = base + 10;
  };
  if (count > 1) bars(raster.surprise, "surprise", (value) => `${short(value)} bits`);
  if (raster.share.length) bars(raster.share, "neurons firing", percent);

  const places = raster.bands.map((band, index) => {
    if (index && band.site === 0) top += 6;
    const place = top;
    let d = "";
    for (let row = 0; row < lines; row++) {
      const y = (top + (row + 0.5) * line).toFixed(1);
      for (let token = 0; token < count; token++) {
        if (fired(index * lines + row, token)) d += `M${(x(token) + 0.7).toFixed(1)},${y}h${(cell - 1.4).toFixed(1)}`;
      }
    }
    parts.push(s("rect", { class: "band", x: x(0), y: top, width: cell * count, height: lines * line }),
      s("path", { class: `spikes site${band.site}`, d, "stroke-width": (line * 0.8).toFixed(2) }));
    label(top + (lines * line) / 2, band.site ? "channel mix" : `layer ${band.layer}   time mix`);
    figure(top + (lines * line) / 2, percent(band.rate));
    top += lines * line + 3;
    return place;
  });

  if (raster.relu2.length) {
    top += 8;
    const [low, high] = extent(raster.relu2);
    const row = Math.max(5, Math.min(9, 80 / raster.relu2.length));
    raster.relu2.forEach((values, layer) => values.forEach((value, token) => parts.push(s("rect", {
      x: x(token).toFixed(1), y: (top + layer * row).toFixed(1), width: (cell - 0.4).toFixed(1), height: (row - 0.4).toFixed(1),
      fill: ramp((value - low) / (high - low || 1)),
    }))));
    const middle = top + (row * raster.relu2.length) / 2;
    label(middle, "relu² density");
    figure(middle - 6, `${percent(low)} to`);
    figure(middle + 6, percent(high));
    top += row * raster.relu2.length;
  }
  top += 7;
  const labels = raster.tokens.map(tokenLabel).map((text) => (text.length > 14 ? `${text.slice(0, 13)}…` : text));
  labels.forEach((text, token) => {
    const [tx, ty] = [x(token) + cell / 2 + 3, top];
    parts.push(s("text", { class: "token", x: tx, y: ty, transform: `rotate(-90 ${tx} ${ty})`, "text-anchor": "end" }, text));
  });
  const height = top + 8 + 6 * bounds(labels.map((text) => text.length))[1];
  const pillar = s("rect", { class: "brush", y: 0, width: cell, height, visibility: "hidden" });
  const svg = s("svg", {
    class: "chart raster", viewBox: `0 0 ${width} ${height}`, role: "img", style: `width:${width}px`,
    "aria-label": `spikes of ${raster.bands.length} groups of neurons over ${count} tokens`,
  }, parts, pillar);
  const tip = h("div", { class: "tip", hidden: true });
  box.replaceChildren(h("div", { class: "scroll" }, svg), tip);
  svg.addEventListener("pointerleave", () => pillar.setAttribute("visibility", "hidden"));
  hover(box, svg, tip, width, (px, py) => {
    const token = Math.floor((px - edge.left) / cell);
    const isInside = token >= 0 && token < count;
    pillar.setAttribute("visibility", isInside ? "visible" : "hidden");
    if (!isInside) return null;
    pillar.setAttribute("x", x(token));
    const said = [`token ${token + 1}: ${tokenLabel(raster.tokens[token])}`];
    if (raster.surprise[token] !== null) said.push(`surprise ${short(raster.surprise[token])} bits`);
    if (raster.share.length) said.push(`${percent(raster.share[token])} of all neurons fire`);
    const index = places.findIndex((place) => py >= place && py < place + lines * line);
    if (index >= 0) {
      const band = raster.bands[index];
      const row = Math.min(lines - 1, Math.floor((py - places[index]) / line));
      said.push(`layer ${band.layer}, ${band.site ? "channel" : "time"} mixing, neuron ${band.neurons[row]}: ` +
        (fired(index * lines + row, token) ? "spike" : "none"));
    }
    return said;
  });
}
