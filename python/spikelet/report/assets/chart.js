"use strict";
// Line charts in SVG: axes, ticks, lines, a read-out under the pointer, and a range to zoom into.
// Knows nothing of runs; `report.js` says what to draw. Colours are CSS variables, so the same
// drawing serves light, dark and paper.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Texts become text nodes, never markup. */
function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(key, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** 12345 -> "12.3k", 0.00032 -> "3.2e-4". */
function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.9995) return trim((value / unit).toPrecision(digits)) + letter;
  }
  if (size && size < 1e-3) return value.toExponential(digits - 2).replace(/\.?0+e/, "e");
  return trim(value.toPrecision(digits));
}

function trim(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

function duration(seconds) {
  if (seconds < 60) return `${short(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (!hours) return `${minutes} min`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Round numbers within a range, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

/** Powers of ten and, where they are few, their multiples by 2 and 5. */
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, 5);
  const factors = decades < 3 ? [1, 2, 5] : [1];
  const every = Math.ceil(decades / 6);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % every) continue;
    for (const factor of factors) {
      const value = Number((factor * 10 ** power).toPrecision(3));
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

/** From values to pixels. */
function scale(low, high, from, to, isLog) {
  const f = isLog ? Math.log : (value) => value;
  const [a, b] = [f(low), f(high)];
  const at = (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
  at.inverse = (pixel) => {
    const value = a + ((pixel - from) / (to - from)) * (b - a);
    return isLog ? Math.exp(value) : value;
  };
  return at;
}

/** Means over the neighbourhood of each point, which is `width` wide along x. */
function smoothed(points, width) {
  const first = points.length ? points[0][0] : 0;
  const sums = [0];
  for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
  let [from, to] = [0, 0];
  return points.map(([x]) => {
    // At the start, where values fall fast, as far ahead as back; at the end all there is, so that
    // the last values are as quiet as the others.
    const reach = Math.min(width / 2, x - first);
    while (points[from][0] < x - reach) from++;
    while (to < points.length && points[to][0] <= x + reach) to++;
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}

/** The least and the greatest of some numbers; too many for Math.min(...). */
function bounds(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** The vertical range: all lines and nearly all raw points; `above` counts the rest. */
function verticalRange(points, raw, isLog) {
  const values = points.map(([, y]) => y);
  const sorted = raw.map(([, y]) => y).sort((a, b) => a - b);
  if (sorted.length) {
    values.push(sorted[Math.floor(0.005 * sorted.length)], sorted[Math.ceil(0.995 * sorted.length) - 1]);
  }
  let [low, high] = bounds(values);
  if (low === high) [low, high] = low ? [low - Math.abs(low) / 10, high + Math.abs(high) / 10] : [-1, 1];
  if (isLog) {
    const factor = (high / low) ** 0.04;
    return [low / factor, high * factor];
  }
  const margin = (high - low) * 0.05;
  return [low >= 0 && low < 3 * margin ? 0 : low - margin, high + margin];
}

function horizontalRange(points, zoom, isLog) {
  if (zoom) return zoom;
  let [first, last] = bounds(points.map(([x]) => x));
  if (!isLog && first > 0 && first < (last - first) * 0.2) first = 0;
  return first === last ? [first - 0.5, last + 0.5] : [first, last];
}

/**
 * Draws a chart into `box`.
 *
 * spec: { title, height, xLabel, lines, isLogX, isLogY, zoom, onzoom, skip }
 * `skip` is the share of the run at its start that does not count for the vertical range.
 * A line: { label, color, points: [[x, y]], faint: [[x, y]] or null, dash, dots }.
 */
function drawChart(box, { isLogY: wantsLogY, ...spec }) {
  spec.isLogY = wantsLogY && spec.lines.some((line) => line.points.some(([, y]) => y > 0));
  const width = Math.max(260, box.clientWidth);
  const height = spec.height || 210;
  const edge = { left: 48, right: 14, top: 10, bottom: 34 };
  const zoom = spec.zoom && (!spec.isLogX || spec.zoom[0] > 0) ? spec.zoom : null;
  const canShow = ([x, y]) => (!spec.isLogX || x > 0) && (!spec.isLogY || y > 0);
  const isInside = ([x]) => !zoom || (x >= zoom[0] && x <= zoom[1]);
  const lines = spec.lines.map((line) => ({
    ...line,
    points: line.points.filter(canShow),
    faint: (line.faint || []).filter(canShow),
  }));
  const visible = lines.flatMap((line) => line.points).filter(isInside);
  const raw = lines.flatMap((line) => line.faint).filter(isInside);
  if (!visible.length) {
    box.replaceChildren(h("p", { class: "empty" }, "nothing to draw here yet"));
    return;
  }
  const [first, last] = horizontalRange(visible, zoom, spec.isLogX);
  const counts = ([x]) => zoom || x >= first + (spec.skip || 0) * (last - first);
  const [low, high] = verticalRange(visible.filter(counts), raw.filter(counts), spec.isLogY);
  const x = scale(first, last, edge.left, width - edge.right, spec.isLogX);
  const y = scale(low, high, height - edge.bottom, edge.top, spec.isLogY);
  const frame = { x, y, low, high, first, last, width, height, edge };

  const svg = s("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
    "aria-label": `${spec.title}: ${lines.map(describe).join("; ")}`,
  });
  drawChart.count = (drawChart.count || 0) + 1;
  const clip = `clip${drawChart.count}`;
  const plot = s("g", { "clip-path": `url(#${clip})` });
  svg.append(s("clipPath", { id: clip }, s("rect", {
    x: edge.left, y: edge.top - 4, width: width - edge.left - edge.right, height: height - edge.bottom - edge.top + 4,
  })));
  drawAxes(svg, spec, frame);
  for (const line of lines.filter((each) => each.faint.length)) {
    plot.append(s("path", { class: lines.length > 2 ? "raw many" : "raw", d: trace(line.faint, frame), style: `stroke:${line.color}` }));
  }
  for (const line of lines.filter((each) => each.points.length)) {
    const style = `stroke:${line.color}`;
    plot.append(s("path", { class: "line", d: trace(line.points, frame), "stroke-dasharray": line.dash, style }));
    // A single point makes no line; very many points would hide it.
    const inside = line.points.filter(isInside);
    if (inside.length === 1 || (line.dots && inside.length <= 60)) {
      plot.append(...inside.map(([px, py]) => s("circle", {
        class: "dot", cx: x(px).toFixed(1), cy: y(py).toFixed(1), r: 2.5, style: `fill:${line.color}`,
      })));
    }
  }
  svg.append(plot);
  const above = raw.filter((point) => counts(point) && point[1] > high).length;
  if (above) {
    svg.append(s("text", { class: "tick", x: width - edge.right, y: edge.top + 4, "text-anchor": "end" }, `▲ ${above} above`));
  }
  const tip = h("div", { class: "tip", hidden: true });
  box.replaceChildren(svg, tip);
  readOut(box, svg, tip, spec, lines, frame);
}

function describe(line) {
  const last = line.points[line.points.length - 1];
  return last ? `${line.label} ends at ${short(last[1], 4)}` : `${line.label} has no values`;
}

function trace(points, { x, y }) {
  return "M" + points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join("L");
}

function drawAxes(svg, spec, { x, y, low, high, first, last, width, height, edge }) {
  const values = spec.isLogY ? logTicks(low, high) : ticks(low, high, (height - 40) / 45);
  for (const value of values) {
    svg.append(
      s("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: edge.left - 7, y: y(value) + 3.5, "text-anchor": "end" }, short(value)),
    );
  }
  const base = height - edge.bottom;
  svg.append(s("line", { class: "axis", x1: edge.left, x2: width - edge.right, y1: base, y2: base }));
  drawTicks(svg, spec.isLogX ? logTicks(first, last) : ticks(first, last, (width - 60) / 90), x, base);
  svg.append(s("text", { class: "label", x: width - edge.right, y: height - 3, "text-anchor": "end" }, spec.xLabel));
}

function drawTicks(svg, values, x, base) {
  for (const value of values) {
    svg.append(
      s("line", { class: "axis", x1: x(value), x2: x(value), y1: base, y2: base + 4 }),
      s("text", { class: "tick", x: x(value), y: base + 15, "text-anchor": "middle" }, short(value, 4)),
    );
  }
}

/** Index of the point whose x is nearest; points are in order of x. */
function nearest(points, value) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < value) low = middle;
    else high = middle;
  }
  return points[value - points[low][0] <= points[high][0] - value ? low : high];
}

/** Puts a note beside a place that is `left` and `top` pixels within `box`. */
function placeTip(tip, box, left, top) {
  const flip = left > box.clientWidth / 2;
  tip.style.left = flip ? "" : `${left + 14}px`;
  tip.style.right = flip ? `${box.clientWidth - left + 14}px` : "";
  tip.style.top = `${top}px`;
  tip.hidden = false;
}

function readOut(box, svg, tip, spec, lines, { x, y, low, high, width, height, edge }) {
  const [leftmost, rightmost] = [edge.left, width - edge.right];
  const cursor = s("line", { class: "cursor", y1: edge.top, y2: height - edge.bottom });
  const brush = s("rect", { class: "brush", y: edge.top, height: height - edge.top - edge.bottom });
  const marks = s("g");
  let at = null;
  let start = null;
  const clamp = (pixel) => Math.min(rightmost, Math.max(leftmost, pixel));
  const position = (event) => {
    const place = svg.getBoundingClientRect();
    return clamp(((event.clientX - place.left) / place.width) * width);
  };
  const hide = () => {
    tip.hidden = true;
    cursor.remove();
    marks.remove();
  };
  const show = (pixel) => {
    at = pixel;
    const rows = [];
    let snapped = null;
    marks.replaceChildren();
    for (const line of lines.filter((each) => each.points.length)) {
      const [px, py] = nearest(line.points, x.inverse(pixel));
      // A run that ended long before this place has nothing to say here.
      if (Math.abs(x(px) - pixel) > 40) continue;
      snapped = snapped ?? px;
      const faint = line.faint.length ? nearest(line.faint, px) : null;
      rows.push(h("div", {}, h("i", { style: `background:${line.color}` }), h("span", {}, line.label),
        h("b", {}, short(py, 4)), faint ? h("small", {}, `raw ${short(faint[1], 4)}`) : null));
      if (py >= low && py <= high) {
        marks.append(s("circle", { class: "mark", cx: x(px), cy: y(py), r: 4, style: `fill:${line.color}` }));
      }
    }
    if (!rows.length) return hide();
    cursor.setAttribute("x1", pixel);
    cursor.setAttribute("x2", pixel);
    svg.append(cursor, marks);
    tip.replaceChildren(h("div", { class: "at" }, `${spec.xLabel} ${short(snapped, 5)}`), ...rows);
    placeTip(tip, box, (pixel / width) * box.clientWidth, 8);
  };
  svg.addEventListener("pointermove", (event) => {
    const pixel = position(event);
    show(pixel);
    if (start === null) return;
    brush.setAttribute("x", Math.min(start, pixel));
    brush.setAttribute("width", Math.abs(pixel - start));
    svg.append(brush);
  });
  svg.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && spec.onzoom) start = position(event);
  });
  svg.addEventListener("pointerup", (event) => {
    const end = position(event);
    brush.remove();
    if (start !== null && Math.abs(end - start) > 8) {
      spec.onzoom([x.inverse(Math.min(start, end)), x.inverse(Math.max(start, end))]);
    }
    start = null;
  });
  svg.addEventListener("pointerleave", () => {
    start = null;
    brush.remove();
    hide();
  });
  svg.addEventListener("dblclick", () => spec.onzoom && spec.onzoom(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(clamp((at ?? (step > 0 ? leftmost : rightmost)) + (step * (rightmost - leftmost)) / 60));
  });
  svg.addEventListener("blur", hide);
}
