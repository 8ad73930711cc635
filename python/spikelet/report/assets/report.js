"use strict";
// The page: reads the document embedded in it, lays out its sections, and redraws them when a
// switch is turned, the window changes, or (live) the run has gone on.

let data = JSON.parse(document.getElementById("data").textContent);
const view = {
  x: "step", metric: "loss", smooth: 2, zoom: null, layers: "heat", raster: 0,
  sample: null, hidden: new Set(), logs: new Set(["grad_norm"]), whole: new Set(), open: new Set(), notice: null,
};
// The first steps of a run fall from so high that an axis which holds them shows nothing else.
const START = 0.04;
let figures = []; // what to draw once the page has its width

const isMany = () => data.runs.length > 1;
const color = (index) => `var(--c${index % 8})`;
const dash = (index) => (index % 8 >= 4 ? "9 2.5" : null);
const shown = () => data.runs.map((run, index) => ({ run, index })).filter(({ run }) => !view.hidden.has(run.name));
const has = (name) => data.runs.some((run) => run.columns[name]);
const last = (list) => list[list.length - 1];

function render() {
  const focused = document.activeElement && document.activeElement.id;
  figures = [];
  document.title = `${data.title} · spikelet report`;
  document.getElementById("report").replaceChildren(
    ...[head(), toolbar(), lossSection(), smallCharts(), customCharts(), layerSection(), sampleSection(),
      rasterSection(), configSection(), foot()].filter((part) => part !== null));
  redraw();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function redraw() {
  figures.forEach((draw) => draw());
}

/** A box that `draw(box)` fills when the page is laid out. */
function figure(kind, draw) {
  const box = h("div", { class: kind });
  figures.push(() => draw(box));
  return box;
}

/** Buttons of which one is on. */
function choice(id, label, options, current, choose) {
  return h("span", { class: "choice", role: "group", "aria-label": label }, options.map(([value, text]) => h("button", {
    id: `${id}-${value}`, type: "button", "aria-pressed": String(value === current),
    onclick: () => { choose(value); render(); },
  }, text)));
}

// ---- head -----------------------------------------------------------------------------------

const STATES = { running: "● running", finished: "✓ finished", stopped: "■ stopped", failed: "✕ failed" };

function badge(run) {
  return h("span", { class: `badge ${run.state}` }, STATES[run.state]);
}

function size(summary) {
  const kind = summary.model || { spikegpt: "SpikeGPT", rwkv4: "RWKV-4" }[summary.type];
  return [kind, summary.shape].filter(Boolean).join(" · ") || "–";
}

function progress(done, all) {
  if (done === null || done === undefined) return "–";
  return all && done < all ? `${short(done)} of ${short(all)}` : short(done);
}

function head() {
  const parts = [];
  if (isMany()) parts.push(h("h1", {}, `${data.runs.length} training runs`), comparison());
  else {
    const [run] = data.runs;
    parts.push(h("h1", {}, run.name, " ", badge(run)), 
      h("p", { class: "sub" }, size(run.summary), run.summary.parameters ? ` · ${short(run.summary.parameters)} parameters` : ""), tiles(run));
  }
  for (const run of data.runs) {
    const name = isMany() ? `${run.name}: ` : "";
    if (run.exception) {
      parts.push(h("div", { class: "notice bad", role: "alert" }, h("b", {}, `${name}the run ended with an exception`), h("pre", {}, run.exception)));
    } else if (data.live && run.state !== "running") {
      parts.push(h("div", { class: "notice", role: "status" }, h("b", {}, `${name}training has ended (${run.state}).`)));
    }
    for (const note of run.notes) parts.push(h("div", { class: "notice warn" }, name + note));
  }
  if (data.live) parts.push(h("div", { id: "connection", class: "notice bad", role: "status", hidden: !view.notice }, view.notice || ""));
  return h("header", {}, parts);
}

function tiles({ summary, is_language: isLanguage }) {
  const best = summary.best || {};
  const loss = best.val_loss;
  const tile = (name, value, ...more) => h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), h("small", {}, more.filter(Boolean).join(" · ")));
  return h("div", { class: "tiles" }, [
    summary.best ? tile("best validation loss", short(loss ?? best.val_bits_per_byte, 4),
      best.val_bits_per_byte ? `${short(best.val_bits_per_byte, 4)} bits per byte` : null,
      loss && isLanguage ? `perplexity ${short(Math.exp(loss), 4)}` : null, `at step ${short(best.step, 4)}`)
      : summary.train_loss !== null ? tile("training loss", short(summary.train_loss, 4), "mean over the last rows") : null,
    tile("steps", progress(summary.step, summary.max_step)),
    summary.tokens !== null ? tile("tokens seen", progress(summary.tokens, summary.max_tokens)) : null,
    summary.seconds !== null ? tile("time", duration(summary.seconds),
      summary.tokens_per_second ? `${short(summary.tokens_per_second)} tokens/s` : null) : null,
    summary.firing_rate !== null ? tile("neurons firing", percent(summary.firing_rate),
      summary.relu2_density !== null ? `relu² density ${percent(summary.relu2_density)}` : null) : null,
  ]);
}

function comparison() {
  const columns = [
    ["model", (sum) => size(sum)],
    ["parameters", (sum) => short(sum.parameters)],
    ["steps", (sum) => progress(sum.step, sum.max_step)],
    ["tokens", (sum) => progress(sum.tokens, sum.max_tokens)],
    ["time", (sum) => (sum.seconds === null ? "–" : duration(sum.seconds))],
    ["tokens/s", (sum) => short(sum.tokens_per_second)],
    ["firing", (sum) => percent(sum.firing_rate)],
    ["training loss", (sum) => short(sum.train_loss, 4)],
    ["best validation", (sum) => short(sum.best?.val_loss, 4), (sum) => sum.best?.val_loss],
    ["bits per byte", (sum) => short(sum.best?.val_bits_per_byte, 4), (sum) => sum.best?.val_bits_per_byte],
  ].filter(([, write]) => data.runs.some((run) => write(run.summary) !== "–"));
  const least = columns.map(([, , value]) => value && bounds(data.runs.map((run) => value(run.summary)).filter((v) => v !== null && v !== undefined))[0]);
  return h("div", { class: "scroll" }, h("table", { class: "compare" },
    h("thead", {}, h("tr", {}, ["run", "state", ...columns.map(([name]) => name)].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, data.runs.map((run, index) => h("tr", {},
      h("th", { scope: "row" }, swatch(index), run.name), h("td", {}, badge(run)),
      columns.map(([name, write, value], at) => h("td", { class: [name === "model" ? "" : "number", value && value(run.summary) === least[at] ? "best" : ""].join(" ") },
        write(run.summary))))))));
}

function swatch(index) {
  return h("i", { class: "swatch", style: `background:${color(index)}` });
}

// ---- toolbar --------------------------------------------------------------------------------

function toolbar() {
  const axes = [["step", "steps"], ["tokens", "tokens"], ["seconds", "time"]].filter(([name]) => has(name));
  if (!axes.length) return null;
  if (!axes.some(([name]) => name === view.x)) view.x = axes[0][0];
  const slider = h("input", {
    id: "smooth", type: "range", min: 0, max: 20, step: 0.5, value: view.smooth, "aria-label": "smoothing, percent of the run",
    oninput: (event) => {
      view.smooth = Number(event.target.value);
      event.target.nextSibling.textContent = `${view.smooth} %`;
      redraw();
    },
  });
  return h("nav", { class: "toolbar", "aria-label": "how to draw" },
    isMany() ? h("span", { class: "legend" }, data.runs.map((run, index) => h("button", {
      id: `run-${index}`, type: "button", "aria-pressed": String(!view.hidden.has(run.name)), title: "show or hide this run",
      onclick: () => {
        if (!view.hidden.delete(run.name)) view.hidden.add(run.name);
        render();
      },
    }, swatch(index), run.name))) : null,
    choice("x", "horizontal axis", axes, view.x, (value) => {
      view.x = value;
      view.zoom = null;
    }),
    h("label", {}, "smoothing ", slider, h("output", {}, `${view.smooth} %`)),
    view.zoom ? h("button", { id: "unzoom", type: "button", onclick: () => zoomTo(null) }, "whole run") : h("span", { class: "hint" }, "drag over a chart to zoom"));
}

function zoomTo(range) {
  view.zoom = range;
  render();
}

// ---- charts ---------------------------------------------------------------------------------

/** Name, unit and text of the horizontal axis. */
function axisOfX() {
  if (view.x !== "seconds") return { label: view.x === "step" ? "step" : "tokens", factor: 1 };
  const longest = Math.max(...data.runs.map((run) => bounds((run.columns.seconds || []).filter((v) => v !== null))[1]));
  const [label, unit] = longest > 7200 ? ["hours", 3600] : longest > 120 ? ["minutes", 60] : ["seconds", 1];
  return { label, factor: 1 / unit };
}

function points(run, xName, yName, factor = 1, change = (value) => value) {
  const [xs, ys] = [run.columns[xName] || [], run.columns[yName] || []];
  const found = [];
  for (let row = 0; row < Math.min(xs.length, ys.length); row++) {
    if (xs[row] !== null && ys[row] !== null) found.push([xs[row] * factor, change(ys[row])]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}

/** The line of a column that has a value at every step: smoothed, with the raw values behind it. */
function steady(run, index, name, label, change) {
  const { factor } = axisOfX();
  const raw = points(run, view.x, name, factor, change);
  // As wide for all runs, so that a short one is not rougher than a long one.
  const longest = Math.max(...shown().map((other) => bounds((other.run.columns[view.x] || []).filter((x) => x !== null))[1]));
  const line = view.smooth ? smoothed(raw, (view.smooth / 100) * longest * factor) : raw;
  const isFaint = line !== raw && shown().length <= 4;
  return { label, color: color(index), dash: dash(index), points: line, faint: isFaint ? raw : null };
}

/** The line of a column that has values now and then. */
function sparse(run, index, name, label, change) {
  const isOwnColor = !isMany();
  return {
    label, color: color(isOwnColor ? 1 : index), dash: isOwnColor ? null : "4 3.5", dots: true,
    points: points(run, view.x, name, axisOfX().factor, change),
  };
}

function chart(id, title, lines, options = {}) {
  const axis = axisOfX();
  const toggle = (kind, set, text, hint) => h("button", {
    id: `${kind}-${id}`, type: "button", class: "toggle", "aria-pressed": String(set.has(id)), title: hint,
    onclick: () => {
      if (!set.delete(id)) set.add(id);
      render();
    },
  }, text);
  return h("figure", {},
    h("figcaption", {}, h("b", {}, title), options.extra || null, h("span", {},
      options.skip && !view.zoom ? toggle("whole", view.whole, "start", "vertical axis that holds the first steps too") : null,
      toggle("log", view.logs, "log", "logarithmic vertical axis"))),
    figure("plot", (box) => drawChart(box, {
      title, height: options.height, xLabel: axis.label, isLogY: view.logs.has(id), zoom: view.zoom, onzoom: zoomTo,
      skip: view.whole.has(id) ? 0 : options.skip, lines: lines(), ...options.own,
    })));
}

function named(run, kind) {
  return isMany() ? (kind ? `${run.name}, ${kind}` : run.name) : kind;
}

/** Training and validation of one quantity. */
function pair(train, val, change) {
  return () => shown().flatMap(({ run, index }) => [
    run.columns[train] ? steady(run, index, train, named(run, "training"), change) : null,
    run.columns[val] ? sparse(run, index, val, named(run, "validation"), change) : null,
  ]).filter(Boolean);
}

function pairKey(val) {
  if (!has(val)) return null;
  const line = (text, attributes) => h("span", { class: "kind" }, h("i", attributes), text);
  if (isMany()) return [line("training", { class: "solid" }), line("validation", { class: "dashed" })];
  return [line("training", { style: `background:${color(0)}` }), line("validation", { style: `background:${color(1)}` })];
}

function lossSection() {
  if (!has("train_loss") && !has("val_loss")) return null;
  const isLanguage = data.runs.some((run) => run.is_language);
  const isPerplexity = isLanguage && view.metric === "perplexity";
  const title = isPerplexity ? "Perplexity" : isLanguage ? "Loss (nats per token)" : "Loss";
  const metrics = [["loss", "loss"], ["perplexity", "perplexity"]];
  return h("section", {}, chart("loss", title, pair("train_loss", "val_loss", isPerplexity ? Math.exp : undefined), {
    height: 340, skip: START,
    extra: h("span", { class: "extra" }, pairKey("val_loss"),
      isLanguage ? choice("metric", "quantity", metrics, view.metric, (value) => { view.metric = value; }) : null),
  }));
}

function smallCharts() {
  const single = (name, change) => () => shown().filter(({ run }) => run.columns[name])
    .map(({ run, index }) => steady(run, index, name, named(run, isMany() ? "" : name.replace(/_/g, " ")), change));
  const parts = [];
  if (has("bits_per_byte") || has("val_bits_per_byte")) {
    parts.push(chart("bpb", "Bits per byte", pair("bits_per_byte", "val_bits_per_byte"), { skip: START }));
  }
  const asPercent = (value) => 100 * value;
  for (const [name, title, change] of [
    ["learning_rate", "Learning rate"], ["grad_norm", "Gradient norm"], ["tokens_per_second", "Tokens per second"],
    ["firing_rate", "Firing rate, all neurons (%)", asPercent],
    ["relu2_density", "relu² density, all layers (%)", asPercent],
  ]) {
    if (has(name)) parts.push(chart(name, title, single(name, change)));
  }
  return parts.length ? h("section", { class: "grid" }, parts) : null;
}

/** Charts that the trainer itself named, or columns this page does not know. */
function customCharts() {
  const charts = new Map();
  for (const run of data.runs) for (const each of run.series) charts.set(JSON.stringify(each), each);
  if (!charts.size) return null;
  return h("section", {}, h("h2", {}, "Series of the trainer"), h("div", { class: "grid" }, [...charts.values()].map((each, at) => {
    const style = (index, nth) => (isMany() ? { color: color(index), dash: nth ? `${7 - nth} 3` : dash(index) } : { color: color(nth) });
    const lines = () => shown().flatMap(({ run, index }) => each.y.filter((name) => run.columns[name]).map((name, nth) => {
      // Over steps as every other chart; over anything else as it was asked for.
      if (each.x === "step") return { ...steady(run, index, name, named(run, name)), ...style(index, nth) };
      return { label: named(run, name), points: points(run, each.x, name), dots: true, ...style(index, nth) };
    }));
    const own = each.x === "step" ? {} : { xLabel: each.x, zoom: null, onzoom: null };
    const key = each.y.map((name, nth) => h("span", { class: "kind" }, isMany() ? null : h("i", { style: `background:${color(nth)}` }), name));
    return chart(`series${at}`, each.title, lines, { own, extra: each.y.length > 1 ? h("span", { class: "extra" }, key) : null });
  })));
}

// ---- layers ---------------------------------------------------------------------------------

const KINDS = { lif1: "Firing rate after time mixing", lif2: "Firing rate after channel mixing", relu2: "relu² density in channel mixing" };

function layerSection() {
  const runs = shown().filter(({ run }) => run.layers);
  if (!data.runs.some((run) => run.layers)) return null;
  const kinds = [...new Set(runs.flatMap(({ run }) => run.layers.kinds.map((each) => each.kind)))];
  const axis = axisOfX();
  const places = ({ layers }) => (layers[view.x] || layers.step).map((value) => value * (layers[view.x] ? axis.factor : 1));
  // One scale for all runs, along and in colour, so that they can be compared.
  const xRange = [0, bounds(runs.flatMap(({ run }) => places(run)))[1]];
  const of = (run, kind) => run.layers.kinds.find((each) => each.kind === kind);
  const unit = view.layers === "heat" ? "" : " (%)";
  const panel = ({ run, index }, kind, range) => {
    const each = of(run, kind);
    const [title, xs, xLabel] = [(KINDS[kind] || kind) + unit, places(run), run.layers[view.x] ? axis.label : "step"];
    const draw = view.layers === "heat"
      ? (box) => drawHeat(box, { title, rows: each.values, names: each.layers, xs, xLabel, xRange, range })
      : (box) => drawChart(box, { title, xLabel, lines: depthLines(each, xs) });
    const key = view.layers === "heat" ? heatKey(range) : depthKey(each);
    return h("figure", {}, h("figcaption", {}, h("b", {}, isMany() ? [swatch(index), run.name] : title), key), figure("plot", draw));
  };
  const rows = kinds.map((kind) => {
    const having = runs.filter(({ run }) => of(run, kind));
    const range = middleRange(having.flatMap(({ run }) => of(run, kind).values));
    return { kind, panels: having.map((each) => panel(each, kind, range)) };
  });
  return h("section", {}, h("h2", {}, "Layers over time ",
    choice("layers", "kind of chart", [["heat", "heat map"], ["lines", "lines"]], view.layers, (value) => { view.layers = value; })),
  h("p", { class: "sub" }, view.layers === "heat" ? "Rows are layers, the first one at the top. The colours leave out the most extreme 4 % of values at either end." : "A line for each layer."),
  isMany() ? rows.map(({ kind, panels }) => [h("h3", {}, (KINDS[kind] || kind) + unit), h("div", { class: "grid" }, panels)])
    : h("div", { class: "grid" }, rows.map(({ panels }) => panels)));
}

/** Colours by depth, without the end of the map that would drown in the background. */
function depthColor(index, count) {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
  const share = count > 1 ? index / (count - 1) : 0.5;
  return ramp(isDark ? 0.35 + 0.65 * share : 0.78 * share);
}

function depthLines(each, xs) {
  return each.values.map((values, index) => ({
    label: `layer ${each.layers[index]}`, color: depthColor(index, each.values.length),
    points: xs.map((x, at) => [x, values[at]]).filter(([, value]) => value !== null).map(([x, value]) => [x, 100 * value]),
  }));
}

function depthKey(each) {
  const count = each.values.length;
  return h("span", { class: "key" }, `layer ${each.layers[0]}`, each.layers.map((_, index) => h("i", { class: "dot", style: `background:${depthColor(index, count)}` })), String(last(each.layers)));
}

// ---- samples and raster ---------------------------------------------------------------------

function sampleSection() {
  const runs = shown().filter(({ run }) => run.samples.length);
  if (!runs.length) return null;
  const steps = [...new Set(runs.flatMap(({ run }) => run.samples.map((sample, at) => sample.step ?? at)))].sort((a, b) => a - b);
  const box = h("div", { class: "samples" });
  const place = h("output", {});
  const show = (at) => {
    const step = steps[at];
    place.textContent = `step ${step}`;
    box.replaceChildren(...runs.map(({ run, index }) => {
      const sample = last(run.samples.filter((each, nth) => (each.step ?? nth) <= step));
      return h("figure", {},
        isMany() ? h("figcaption", {}, h("b", {}, swatch(index), run.name), sample && sample.step !== step ? h("small", {}, `step ${sample.step}`) : null) : null,
        sample ? h("p", { class: "sample" }, h("span", { class: "prompt" }, sample.prompt), sample.text) : h("p", { class: "empty" }, "no sample yet"));
    }));
  };
  // Until someone moves the slider the newest sample is shown, also when a newer one arrives.
  const current = view.sample === null ? steps.length - 1 : Math.max(0, steps.findLastIndex((step) => step <= view.sample));
  const slider = h("input", {
    id: "sample", type: "range", min: 0, max: steps.length - 1, value: current, "aria-label": "sample",
    oninput: (event) => {
      const at = Number(event.target.value);
      view.sample = at === steps.length - 1 ? null : steps[at];
      show(at);
    },
  });
  show(current);
  return h("section", {}, h("h2", {}, "Samples during training"),
    steps.length > 1 ? h("p", { class: "scrub" }, slider, place) : h("p", { class: "scrub" }, place), box);
}

function rasterSection() {
  const runs = data.runs.map((run, index) => ({ run, index })).filter(({ run }) => run.raster || run.raster_note);
  if (!runs.length) return null;
  const { run, index } = runs[Math.min(view.raster, runs.length - 1)];
  const parts = [h("h2", {}, "A text, neuron by neuron")];
  if (runs.length > 1) {
    parts.push(choice("raster", "run", runs.map((each, at) => [at, each.run.name]), view.raster, (value) => { view.raster = value; }));
  }
  if (!run.raster) return h("section", {}, parts, h("p", { class: "empty" }, run.raster_note));
  const { bands, tokens, cut } = run.raster;
  const silent = bands.reduce((sum, band) => sum + band.silent, 0);
  const all = bands.reduce((sum, band) => sum + band.of, 0);
  parts.push(h("p", { class: "sub" }, isMany() ? [swatch(index), `${run.name}: `] : null,
    cut ? `The first ${tokens.length} tokens of a text` : `A text of ${tokens.length} tokens`, " as the exported model reads it. ",
    bands.length ? `Every mark is a spike. Of ${bands[0].of} neurons in each group ${bands[0].neurons.length} are shown, spread evenly over the ranks ` +
      `of those that fire, the busiest at the top; ${percent(silent / all)} of all neurons are silent throughout. ` : "This model has no spiking neurons. ",
    bands.length ? "At the right: the share of spikes of the whole group." : ""));
  parts.push(h("figure", {}, figure("plot", (box) => drawRaster(box, run.raster))));
  return h("section", {}, parts);
}

// ---- configurations -------------------------------------------------------------------------

function configSection() {
  if (!data.configs.length) return null;
  if (!isMany()) {
    return h("section", {}, h("h2", {}, "Configuration"), h("div", { class: "grid" }, data.configs.map((part) => h("figure", {},
      h("figcaption", {}, h("b", {}, part.title)), configTable([part])))));
  }
  const pick = (differs) => data.configs.map((part) => ({ ...part, rows: part.rows.filter((row) => row.differs === differs) })).filter((part) => part.rows.length);
  const [different, equal] = [pick(true), pick(false)];
  const count = equal.reduce((sum, part) => sum + part.rows.length, 0);
  return h("section", {}, h("h2", {}, "Differences of the configurations"),
    different.length ? configTable(different) : h("p", { class: "empty" }, "There are none."),
    count ? h("details", {
      open: view.open.has("equal"),
      ontoggle: (event) => view.open[event.target.open ? "add" : "delete"]("equal"),
    }, h("summary", {}, `${count} settings are equal`), configTable(equal)) : null);
}

function configTable(parts) {
  return h("div", { class: "scroll" }, h("table", { class: "config" },
    isMany() ? h("thead", {}, h("tr", {}, h("th", {}), data.runs.map((run, index) => h("th", { scope: "col" }, swatch(index), run.name)))) : null,
    parts.map((part) => h("tbody", {},
      isMany() ? h("tr", {}, h("th", { class: "part", colspan: data.runs.length + 1 }, part.title)) : null,
      part.rows.map((row) => h("tr", { class: row.differs ? "differs" : null }, h("th", { scope: "row" }, row.key), cells(row)))))));
}

/** The values of a setting; those unlike the most common one stand out, where there is one. */
function cells({ values, differs }) {
  const counts = new Map();
  values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
  const most = Math.max(...counts.values());
  const isLone = (value) => differs && (most === 1 || counts.get(value) < most);
  return values.map((value) => h("td", { class: isLone(value) ? "odd" : null }, value === null ? "–" : value));
}

function foot() {
  const made = new Date(data.made);
  return h("footer", {}, `spikelet ${data.version} · ${made.toLocaleString()} · `, data.runs.map((run) => run.folder).join(" · "));
}

// ---- while training goes on -----------------------------------------------------------------

async function poll() {
  let notice = null;
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}`);
    const text = await answer.text();
    if (text !== poll.before && !poll.isPressed) {
      poll.before = text;
      data = JSON.parse(text);
      render();
    }
  } catch {
    notice = "The training process does not answer: it has ended, or the connection is lost. Trying again.";
  }
  view.notice = notice;
  const box = document.getElementById("connection");
  box.hidden = !notice;
  box.textContent = notice || "";
  setTimeout(poll, 2000);
}

render();
let waiting = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(redraw);
}).observe(document.getElementById("report"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
if (data.live) {
  addEventListener("pointerdown", () => { poll.isPressed = true; });
  addEventListener("pointerup", () => { poll.isPressed = false; });
  setTimeout(poll, 1000);
}
