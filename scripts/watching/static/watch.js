// The page of `shoal watch`. One stream of events comes in; every text of a run is set as text, never as HTML.
"use strict";
(() => {
const LIGHT = ["#0b6e8f", "#c4500a", "#00805a", "#a8467f", "#7a6400", "#5b4bb0", "#3f8fd0", "#444b52"];
const DARK = ["#58bfe0", "#ff9d5c", "#4ccfa0", "#eba3cb", "#e6c94f", "#aca2f5", "#8fc7ff", "#c3ccd2"];
const SPREAD = /\/(p[1-9]0|worst_tenth)$/;  // ends the names of a metric's distribution over clients
const SHOWN = 6;            // charts at first, and never fewer than 3 if there are metrics
const THEN = ["policy_loss", "value_loss", "entropy", "train_accuracy", "update_norm"];  // if there are few others
const POINTS = 20000;       // of a curve in memory
const SPAN = 600;           // seconds of a server's latencies that are kept
const STALE = 10;           // seconds without a word after which a coordinator counts as gone
const WORDS = { barred: "quarantine" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const sources = [];
let first = [], ours = new Set(), build = "", selected = 0, axis = "", smooth = false, skew = 0, picked = null, lost = false;
let sort = { by: "number", down: false }, chosenCell = null;

// Small things -------------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const colour = (at) => (dark.matches ? DARK : LIGHT)[at % LIGHT.length];
const remembered = (name, otherwise) => { try { return localStorage.getItem("shoal-" + name) ?? otherwise; } catch { return otherwise; } };
const remember = (name, value) => { try { localStorage.setItem("shoal-" + name, value); } catch { /* a private window */ } };
const now = () => Date.now() / 1000 + skew;

function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(4).replace(/\.?0+$/, "") + " M";
  if (size >= 1e4) return Math.round(value).toLocaleString("en-US");
  if (Number.isInteger(value)) return String(value);
  if (size < 1e-4) return value.toExponential(2);
  return size >= 100 ? value.toFixed(1) : value.toPrecision(4);
}
function whole(value) { return Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "–"; }
function clock(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  const s = Math.floor(seconds % 60), m = Math.floor(seconds / 60) % 60, h = Math.floor(seconds / 3600);
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
function ago(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}
function took(seconds) {
  if (!(seconds >= 0)) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  return seconds < 1 ? `${(seconds * 1000).toPrecision(3)} ms` : seconds < 100 ? `${seconds.toPrecision(3)} s` : clock(seconds);
}
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

// A run's curves -----------------------------------------------------------------------------------------------------------

const empty = () => ({ version: [], seconds: [], steps: [], contributions: [], metrics: new Map(), thinned: false });

function take(source, { rows, fresh, thinned }) {
  if (fresh) source.curves = empty();
  const curves = source.curves;
  curves.thinned = curves.thinned || thinned;
  for (const [version, seconds, steps, contributions, metrics] of rows) {
    let many = curves.version.length;
    while (many && curves.version[many - 1] > version) cut(curves, --many);  // the run went on from an older version
    if (!many || curves.version[many - 1] < version) {
      curves.version.push(version); curves.seconds.push(seconds); curves.steps.push(steps);
      curves.contributions.push(contributions);
      many += 1;
    }
    for (const [name, value] of Object.entries(metrics)) {
      let column = curves.metrics.get(name);
      if (!column) curves.metrics.set(name, column = []);
      while (column.length < many - 1) column.push(null);
      column[many - 1] = value;
    }
  }
  if (curves.version.length > POINTS) thin(curves);
}
function cut(curves, to) {
  for (const column of [curves.version, curves.seconds, curves.steps, curves.contributions]) column.length = to;
  for (const column of curves.metrics.values()) if (column.length > to) column.length = to;
}
function thin(curves) {  // drops every other point of the older half, but none that has a metric of its own
  const half = curves.version.length / 2;
  const rare = [...curves.metrics.values()].filter((column) => column.reduce((n, v) => n + (v !== null && v !== undefined), 0) < half);
  const keep = (at) => at > half || at % 2 === 0 || rare.some((column) => column[at] !== null && column[at] !== undefined);
  const kept = curves.version.map((_, at) => at).filter(keep);
  const of = (column) => kept.map((at) => (at < column.length ? column[at] : null));
  for (const name of ["version", "seconds", "steps", "contributions"]) curves[name] = of(curves[name]);
  for (const [name, column] of curves.metrics) curves.metrics.set(name, of(column));
  curves.thinned = true;
}
function smoothed(values) {
  const share = 2 / (1 + Math.max(2, values.length / 40));
  let mean = null;
  return values.map((value) => (value === null ? null : (mean = mean === null ? value : mean + share * (value - mean))));
}
function points(source, metric) {  // [x, y] of one curve, without gaps
  const { curves } = source, xs = curves[axis], column = curves.metrics.get(metric) || [];
  const x = [], y = [];
  for (let at = 0; at < column.length; at++) {
    if (column[at] === null || column[at] === undefined) continue;
    if (x.length && xs[at] <= x[x.length - 1]) { y[y.length - 1] = column[at]; continue; }
    x.push(xs[at]); y.push(column[at]);
  }
  return [x, smooth ? smoothed(y) : y];
}

// Charts -------------------------------------------------------------------------------------------------------------------

const charts = new Map();

class Chart {
  constructor(title, parent, height = 176) {
    this.title = title; this.height = height; this.shape = ""; this.plot = null; this.zoomed = false; this.series = [];
    this.values = make("div", { class: "values" });
    this.box = make("div", { class: "plot", tabindex: 0, role: "img", onkeydown: (press) => this.press(press) });
    this.node = make("div", { class: "chart" }, make("div", { class: "cap" }, make("span", { class: "what", title }, title), this.values), this.box);
    parent.append(this.node);
    this.sized = new ResizeObserver(() => this.plot && this.plot.setSize({ width: this.box.clientWidth, height: this.height }));
    this.sized.observe(this.box);
  }
  remove() { this.sized.disconnect(); if (this.plot) this.plot.destroy(); this.node.remove(); }
  press(press) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[press.key];
    if (!step || !this.plot) return;
    const last = this.data[0].length - 1, at = this.plot.cursor.idx ?? last;
    const to = Math.min(last, Math.max(0, at + step));
    this.plot.setCursor({ left: this.plot.valToPos(this.data[0][to], "x"), top: 10 });
    press.preventDefault();
  }
  // series: [{label, colour, width, dash, points: [x, y]}]; kind: "time" for seconds
  show(series, kind, key, extent) {
    const tables = series.map((one) => one.points);
    this.data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    this.series = series; this.kind = kind; this.extent = extent && extent[0] < extent[1] ? extent : null;
    this.node.dataset.points = String(this.data[0].length);
    const many = Math.max(...tables.map((table) => table[0].length));
    const shape = JSON.stringify([kind, dark.matches, many < 30, series.map((one) => [one.label, one.colour, one.width, one.dash])]);
    if (shape !== this.shape) this.build(shape, many < 30, key);
    else if (this.zoomed) { this.plot.setData(this.data, false); this.plot.redraw(); }
    else this.plot.setData(this.data);
    this.caption(this.plot.cursor.left >= 0 ? this.plot.cursor.idx : null);
  }
  build(shape, dots, key) {
    if (this.plot) this.plot.destroy();
    this.shape = shape; this.zoomed = false;
    const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
    const font = "11px system-ui, sans-serif", soft = of("--soft"), line = of("--line");
    const shared = { stroke: soft, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const xs = this.kind === "time" ? (u, all) => all.map((s) => clock(s)) : (u, all) => all.map((v) => (Number.isInteger(v) ? compact(v) : ""));
    this.plot = new uPlot({
      width: Math.max(80, this.box.clientWidth), height: this.height, padding: [8, 8, 0, 0],
      legend: { show: false },
      scales: { x: { time: false, range: (u, low, high) => (this.zoomed || !this.extent ? around(low, high) : this.extent) }, y: { range: (u, low, high) => spread(low, high) } },
      axes: [{ ...shared, size: 24, gap: 4, values: xs, space: 60 }, { ...shared, size: 50, gap: 4, space: 28, values: (u, all) => all.map(compact) }],
      cursor: { sync: { key }, y: false, points: { size: 6 }, drag: { x: true, y: false } },
      series: [{}, ...this.series.map((one) => ({
        label: one.label, stroke: one.colour, width: one.width || 1.5, dash: one.dash, spanGaps: true, points: { show: dots, size: 4 },
      }))],
      hooks: {
        setCursor: [(u) => this.caption(u.cursor.left >= 0 ? u.cursor.idx : null)],
        setSelect: [(u) => { if (u.select.width > 0) this.zoomed = true; }],
      },
    }, this.data, this.box);
    this.box.addEventListener("dblclick", () => { this.zoomed = false; });
  }
  caption(at) {
    const told = this.series.map((one, n) => {
      const column = this.data[n + 1];
      let to = at === null || at === undefined ? column.length - 1 : at;
      while (to > 0 && (column[to] === null || column[to] === undefined)) to--;
      return [one, column.length ? column[to] : null];
    });
    const crowd = told.length > 6;
    const rows = crowd ? [make("span", { class: "at" }, `${told.length} curves`)] : told.map(([one, value]) => {
      const swatch = make("i", {});
      swatch.style.background = one.colour;
      return make("span", { title: one.label }, this.series.length > 1 ? swatch : "", short(value));
    });
    if (at !== null && at !== undefined && this.data[0].length) {
      const x = this.data[0][at];
      rows.unshift(make("span", { class: "at" }, `at ${this.kind === "time" ? clock(x) : short(x)}`));
    }
    this.values.replaceChildren(...rows);
    const words = told.slice(0, 6).map(([one, value]) => `${one.label} ${short(value)}`).join(", ");
    this.box.setAttribute("aria-label", `${this.title}: ${words}. Arrow keys move along the curve.`);
  }
}
const around = (low, high) => (low === null ? [0, 1] : low === high ? [low - 1, high + 1] : [low, high]);
function spread(low, high) {
  if (low === null || high === null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const room = (high - low) * 0.06;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}
function compact(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  return size && size < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(4));
}

const drawable = () => sources.filter((source) => source.curves.version.length);

function ordered(names) {
  const plainOf = (name) => name.replace(/^eval\//, "");
  const own = names.filter((name) => !ours.has(plainOf(name)) && !first.includes(plainOf(name)) && !SPREAD.test(name));
  own.sort((a, b) => a.startsWith("eval/") - b.startsWith("eval/"));
  return [...new Set([...first.filter((name) => names.includes(name)), ...own, ...names])];
}
function curves() {
  const runs = drawable(), panel = $("curves");
  panel.hidden = !sources.some((source) => source.kind !== "sweep" && source.kind !== "server");
  $("curves-empty").hidden = runs.length > 0;
  if (!runs.length) { for (const [name, chart] of charts) { chart.remove(); charts.delete(name); } return; }
  const elsewhere = (name) => name === "version" && axis !== "seconds";  // of a coordinator elsewhere nothing else is known
  const names = ordered([...new Set(runs.flatMap((source) => [...source.curves.metrics.keys()]))]).filter((name) => !elsewhere(name) && runs.some((source) => (source.curves.metrics.get(name) || []).some((value) => value !== null && value !== undefined)));
  const main = names.filter((name) => !ours.has(name.replace(/^eval\//, "")) && !SPREAD.test(name)).slice(0, SHOWN);
  const few = [...new Set([...main, ...THEN.filter((name) => names.includes(name)), ...names])].slice(0, Math.max(main.length, 3));
  const shown = picked ? names.filter((name) => picked.has(name)) : few;
  offer(names, new Set(shown));
  for (const [name, chart] of charts) if (!shown.includes(name)) { chart.remove(); charts.delete(name); }
  const ends = runs.flatMap((source) => [source.curves[axis][0], source.curves[axis][source.curves[axis].length - 1]]);
  const extent = [Math.min(...ends), Math.max(...ends)];
  for (const name of shown) {
    if (!charts.has(name)) charts.set(name, new Chart(name, $("charts")));
    const series = runs.map((source) => ({ label: source.label, colour: colour(source.at), points: points(source, name),
      width: source.key === selected && runs.length > 1 ? 2.2 : 1.5, dash: source.at >= LIGHT.length ? [6, 3] : undefined }))
      .filter((one) => one.points[0].length);
    charts.get(name).show(series, axis === "seconds" ? "time" : "count", "curves", extent);
  }
  const inOrder = shown.map((name) => charts.get(name).node);
  if (inOrder.some((node, at) => $("charts").children[at] !== node)) $("charts").append(...inOrder);
}
function axes(runs) {
  const steps = runs.every((source) => source.curves.steps.some((value) => value > 0));
  const kinds = [["version", "versions"], ...(steps ? [["steps", "steps"]] : []), ["seconds", "time"]];
  if (!kinds.some(([kind]) => kind === axis)) axis = kinds.some(([kind]) => kind === remembered("axis", "")) ? remembered("axis", "") : runs.every((source) => source.kind === "elsewhere") ? "seconds" : steps ? "steps" : "version";
  const shape = kinds.map(([kind]) => kind).join();
  if ($("axis").dataset.shape === shape) return;
  $("axis").dataset.shape = shape;
  $("axis").replaceChildren(...kinds.map(([kind, word]) => {
    const input = make("input", { type: "radio", name: "axis", value: kind, onchange: () => { axis = kind; remember("axis", kind); soon(); } });
    input.checked = kind === axis;
    return make("label", {}, input, make("span", {}, word));
  }));
}
function offer(names, shown) {
  const shape = names.join("\n");
  if ($("picks").dataset.shape !== shape) {
    $("picks").dataset.shape = shape;
    $("picks").replaceChildren(...names.map((name) => make("label", {}, make("input", { type: "checkbox", value: name, onchange: pick }), name)));
  }
  for (const box of $("picks").querySelectorAll("input")) box.checked = shown.has(box.value);
}
function pick() {
  picked = new Set([...$("picks").querySelectorAll("input:checked")].map((box) => box.value));
  soon();
}

// Cards --------------------------------------------------------------------------------------------------------------------

function silent(source) {  // a coordinator that wrote nothing for too long, unless nothing can be heard of it
  const { status } = source;
  return !lost && status && status.state === "running" && now() - status.written > STALE + (source.kind === "elsewhere" ? 5 : 0);
}
const lives = (source) => Boolean(source.status && source.status.state === "running" && !silent(source));
function health(source) {  // [word, class]
  const status = source.status;
  if (source.there === false) return ["folder is gone", "bad"];
  if (source.kind === "sweep") return sweepWord(source);
  if (source.serve && (source.kind === "server" || !status)) return serveWord(source.serve);
  if (!status) return [source.why ? "cannot be read" : "not started", source.why ? "bad" : ""];
  if (status.state === "no answer") return ["no answer", "bad"];
  if (status.state === "running") {
    if (silent(source)) return [`gone: silent for ${clock(now() - status.written)}`, "bad"];
    if (status.waiting_for && status.waiting_for.length) return ["waits", "warn"];
    return ["running", "live"];
  }
  return [status.state === "done" ? "done" : status.state, status.state === "done" ? "" : "warn"];
}
function sweepWord(source) {
  const counts = (source.sweep && source.sweep.counts) || {};
  const many = Object.values(counts).reduce((a, b) => a + b, 0);
  return counts.running ? [`${counts.running} running`, "live"] : [source.trials && many >= source.trials ? "done" : "no trial running", ""];
}
function serveWord(serve) {
  const silent = now() - serve.written;
  return serve.state === "ended" ? ["ended", ""] : silent > STALE ? [`gone: silent for ${clock(silent)}`, "bad"] : [serve.state, serve.state === "serving" ? "live" : "warn"];
}
function facts(source) {
  const status = source.status || {}, { curves } = source, found = [];
  const last = (column) => (column.length ? column[column.length - 1] : undefined);
  if (source.kind === "sweep") {
    const sweep = source.sweep || {}, counts = sweep.counts || {}, best = (sweep.arms || [])[0];
    found.push(["trials", whole(Object.values(counts).reduce((a, b) => a + b, 0))], ["complete", whole(counts.complete || 0)]);
    if (counts.pruned) found.push(["pruned", whole(counts.pruned)]);
    if (counts.failed) found.push(["failed", whole(counts.failed)]);
    if (best && best.state === "complete") found.push([`best ${sweep.metric}`, short(best.mean)]);
    return found;
  }
  if (source.serve && (source.kind === "server" || !source.status)) {
    const serve = source.serve;
    return [["requests/s", short(serve.rate)], ["p50", took(serve.p50)], ["p99", took(serve.p99)], ["waiting", whole(serve.queue)]];
  }
  const version = status.version ?? last(curves.version);
  if (version !== undefined) found.push(["version", whole(version)]);
  const steps = status.steps || last(curves.steps);
  if (steps) found.push(["steps", whole(steps)]);
  const main = ordered([...curves.metrics.keys()]).find((name) => first.includes(name));
  if (main) { const y = points(source, main)[1]; if (y.length) found.push([main.replace(/_/g, " "), short(y[y.length - 1])]); }
  if (lives(source)) {
    found.push(["actors", whole(status.actors)]);
    if (status.contributions_per_second !== undefined) found.push(["contributions/s", short(+status.contributions_per_second.toPrecision(3))]);
    if (status.steps_per_second) found.push(["steps/s", whole(status.steps_per_second)]);
  } else if (status.contributions !== undefined) found.push(["contributions", whole(status.contributions)]);
  const seconds = status.seconds ?? last(curves.seconds);
  if (seconds !== undefined && source.kind !== "elsewhere") found.push(["time", clock(seconds)]);
  if (lives(source) && status.done > 0.01 && status.done < 1 && status.seconds) found.push(["left, about", clock(status.seconds * (1 - status.done) / status.done)]);
  return found;
}
function cards() {
  const nav = $("runs");
  nav.classList.toggle("one", sources.length === 1);
  for (const source of sources) {
    if (!source.card) {
      const part = { swatch: make("span", { class: "swatch" }), name: make("span", { class: "name" }), badge: make("span", { class: "badge" }),
        sub: make("div", { class: "sub" }), fill: make("i", {}), numbers: make("div", { class: "numbers" }) };
      const card = make("button", { class: "run", type: "button", onclick: () => { selected = source.key; soon(); } },
        make("div", { class: "title" }, part.swatch, part.name, part.badge), part.sub, make("div", { class: "bar", "aria-hidden": "true" }, part.fill), part.numbers);
      source.card = { node: card, ...part };
      nav.append(card);
    }
    const { card } = source, [word, mood] = health(source);
    card.node.setAttribute("aria-pressed", String(source.key === selected));
    card.swatch.style.background = colour(source.at);
    card.swatch.hidden = sources.length === 1;
    say(card.name, source.label); card.name.title = source.path || "";
    say(card.badge, word); card.badge.className = "badge " + mood;
    say(card.sub, subtitle(source));
    const done = source.status ? source.status.done : undefined;
    card.fill.parentNode.hidden = done === undefined;
    if (done !== undefined) card.fill.style.width = `${Math.min(100, 100 * done)}%`;
    const found = facts(source);
    if (card.numbers.children.length !== found.length) card.numbers.replaceChildren(...found.map(() => make("span", {}, make("small", {}), make("b", {}))));
    found.forEach(([name, value], at) => { const [small, big] = card.numbers.children[at].children; say(small, name); say(big, value); });
  }
  const one = sources.find((source) => source.key === selected) || sources[0];
  document.title = one ? `${one.label}: ${health(one)[0]}` : "Shoal";
}
function subtitle(source) {
  if (source.why) return source.why;
  const parts = [];
  if (source.job && source.job !== source.label) parts.push(source.job);
  if (source.differs && source.differs.length) parts.push(source.differs.map((name) => `${name}=${source.told(name)}`).join(" "));
  if (source.status && source.status.goal) parts.push(`of ${source.status.goal}`);
  if (source.status && source.status.why && source.status.state === "no answer") parts.push(source.status.why);
  if (source.kind === "sweep") parts.push([source.sampler, source.pruner].filter(Boolean).join(", "));
  if (source.kind === "server" && source.serve) parts.push(source.serve.http || source.serve.zmq || "");
  return parts.filter(Boolean).join(" · ") || source.path || "";
}

// Panels of the selected source --------------------------------------------------------------------------------------------

function panels() {
  const source = sources.find((one) => one.key === selected) || sources[0];
  if (!source) return;
  const status = source.status, roll = status && status.roll, live = lives(source);
  waiting(source, status);
  split(status);
  lag(roll, status);
  tasks(roll, status);
  actors(roll, live);
  serving(source.serve);
  sweep(source);
  log(source);
  about(source);
}
function waiting(source, status) {
  $("waiting-panel").hidden = !status || status.version === undefined;
  if ($("waiting-panel").hidden) return;
  const live = lives(source), lines = (live && status.waiting_for) || [];
  const still = now() - status.stepped;
  say($("since"), `last step ${ago(still)}`);
  const gone = `The coordinator (process ${status.pid}) has written nothing since: it was ended, or its machine was. shoal resume goes on.`;
  const calm = live ? "Nothing: the run moves." : status.state === "running" ? gone : `The run has ended: ${status.state}.`;
  list($("waiting"), lines.length ? lines : [calm], (line) => make("li", { class: lines.length ? "stuck" : "calm" }, line));
}
function list(node, items, of) {
  const shape = JSON.stringify(items);
  if (node.dataset.shape === shape) return;
  node.dataset.shape = shape;
  node.replaceChildren(...items.map(of));
}
function split(status) {
  const shares = status && status.shares;
  $("split-panel").hidden = !shares || shares.training === undefined;
  if ($("split-panel").hidden) return;
  const box = $("split"), parts = [["training", "k1"], ["moving", "k3"], ["waiting", "k2"]];
  if (!box.children.length) {
    box.append(make("div", { class: "split", role: "img" }, ...parts.map(([, kind]) => make("i", { class: kind }))));
    const keys = make("div", { class: "keys" });
    for (const [name, kind] of [...parts, ["stepping", "k4"]]) keys.append(make("i", { class: kind }), make("span", {}), make("b", { "data-name": name }));
    box.append(keys);
  }
  parts.forEach(([name], at) => { box.firstChild.children[at].style.width = percent(shares[name]).replace(" ", ""); });
  const words = { training: "actors train", moving: "weights and results move", waiting: "actors wait", stepping: "the learner steps (of wall time)" };
  for (const value of box.querySelectorAll("b")) { const name = value.dataset.name; say(value, percent(shares[name] || 0)); say(value.previousSibling, words[name]); }
  box.firstChild.setAttribute("aria-label", parts.map(([name]) => `${words[name]} ${percent(shares[name])}`).join(", "));
}
function lag(roll, status) {
  const lags = (roll && roll.lags) || [];
  $("lag-panel").hidden = !lags.length;
  if (!lags.length) return;
  const top = 15, bars = new Map();
  for (const [versions, many] of lags) { const at = Math.min(versions, top); bars.set(at, (bars.get(at) || 0) + many); }
  const last = Math.max(...bars.keys()), all = lags.reduce((sum, [, many]) => sum + many, 0), most = Math.max(...bars.values());
  const items = Array.from({ length: Math.max(last + 1, 4) }, (_, at) => [at, bars.get(at) || 0]);
  const mean = lags.reduce((sum, [versions, many]) => sum + versions * many, 0) / all;
  say($("lag-note"), `last ${whole(all)} contributions, mean ${mean.toFixed(2)}`);
  list($("lags"), [items, most], () => "");
  $("lags").replaceChildren(...items.map(([at, many]) => {
    const bar = make("i", {});
    bar.style.height = `${(66 * many) / most}px`;
    return make("div", { title: `${many} contributions were ${at === top ? `${top} or more` : at} versions old` }, many / all >= 0.005 ? `${Math.round((100 * many) / all)} %` : "", bar, make("b", {}, at === top ? `${top}+` : String(at)));
  }));
  $("lags").setAttribute("aria-label", "Versions between the weights of a contribution and its step: " + items.filter(([, many]) => many).map(([at, many]) => `${at}: ${percent(many / all)}`).join(", "));
}
function tasks(roll, status) {
  const counts = roll && roll.tasks;
  $("tasks-panel").hidden = !counts;
  if (!counts) return;
  const found = [["with actors", counts.out], ["waiting", counts.waiting], ["accepted", counts.accepted], ["stale", counts.stale], ["refused", counts.refused, true], ["repeats", counts.duplicate], ["failed", counts.failed, true], ["given up", counts.aside, true]];
  if (status && status.left_out) found.push(["clients left out", status.left_out, true]);
  pairs($("tasks"), found.map(([name, value, bad]) => [name, whole(value), bad && value > 0]));
}
function pairs(node, found) {
  list(node, found, ([name, value, bad]) => make("div", {}, make("dt", {}, name), make("dd", { class: bad ? "bad" : "" }, value)));
}

const COLUMNS = [["number", "#", ""], ["name", "actor", "t"], ["host", "host", "t less"], ["pid", "process", "less"], ["state", "state", "t"], ["lag", "lag", ""], ["tasks", "tasks", "less"], ["pace", "s/task", ""], ["restarts", "restarts", ""], ["silence", "heard", "less"]];
const ORDER = { hangs: 0, barred: 1, away: 2, receiving: 3, working: 4, idle: 5 };

function actors(roll, live) {
  const rows = (roll && roll.rows) || [];
  $("actors-panel").hidden = !rows.length;
  if (!rows.length) return;
  const at = Object.fromEntries(roll.columns.map((name, number) => [name, number]));
  const counts = {};
  for (const row of rows) counts[row[at.state]] = (counts[row[at.state]] || 0) + 1;
  const all = sources.find((one) => one.key === selected).status.actors;
  const told = Object.entries(counts).sort(([a], [b]) => ORDER[a] - ORDER[b]).map(([state, many]) => `${many} ${WORDS[state] || state}`).join(" · ");
  say($("actors-note"), (all > rows.length ? `${rows.length} of ${whole(all)}, those silent for longest: ` : `${whole(all)} ${all === 1 ? "actor" : "actors"}: `) + told + (live ? "" : " (as they were last)"));
  const cells = $("cells");
  while (cells.children.length > rows.length) cells.lastChild.remove();
  while (cells.children.length < rows.length) cells.append(make("i", {}));
  rows.forEach((row, n) => {
    const cell = cells.children[n], kind = row[at.state], title = `${row[at.name]}: ${WORDS[kind] || kind}, lag ${row[at.lag]}`;
    if (cell.className !== kind) cell.className = kind;
    if (cell.title !== title) cell.title = title;
  });
  const table = $("actors");
  if (!table.tHead) {
    const head = table.createTHead().insertRow();
    for (const [name, word, kind] of COLUMNS) head.append(make("th", { class: kind, scope: "col", "data-name": name }, make("button", { type: "button", onclick: () => { sort = { by: name, down: sort.by === name && !sort.down }; soon(); } }, word)));
    table.createTBody();
  }
  for (const head of table.tHead.rows[0].cells) { if (head.dataset.name === sort.by) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending"); else head.removeAttribute("aria-sort"); }
  const place = at[sort.by], way = sort.down ? -1 : 1;
  const value = (row) => (sort.by === "state" ? ORDER[row[place]] : row[place]);
  const sorted = [...rows].sort((a, b) => (value(a) < value(b) ? -way : value(a) > value(b) ? way : a[0] - b[0]));
  const body = table.tBodies[0];
  while (body.rows.length > sorted.length) body.deleteRow(-1);
  while (body.rows.length < sorted.length) {
    const line = body.insertRow();
    for (const [name, , kind] of COLUMNS) line.append(make("td", { class: kind + (name === "name" ? " name" : "") }, ...(name === "state" ? [make("i", { class: "dot", "aria-hidden": "true" }), make("span", {})] : [])));
  }
  sorted.forEach((row, n) => {
    const cells = body.rows[n].cells;
    const texts = { number: String(row[at.number]), name: row[at.name], host: row[at.host] || "here", pid: String(row[at.pid]), lag: row[at.lag] < 0 ? "–" : String(row[at.lag]),
      tasks: String(row[at.tasks]), pace: row[at.pace] < 0 ? "–" : row[at.pace].toFixed(row[at.pace] < 10 ? 3 : 1), restarts: row[at.restarts] ? String(row[at.restarts]) : "–", silence: row[at.silence] < 1.5 ? "now" : ago(row[at.silence]) };
    COLUMNS.forEach(([name], number) => {
      const cell = cells[number];
      if (name === "state") { const kind = row[at.state], dot = "dot " + kind; if (cell.firstChild.className !== dot) cell.firstChild.className = dot; say(cell.lastChild, WORDS[kind] || kind); } else say(cell, texts[name]);
    });
    cells[1].title = row[at.name];
    cells[4].classList.toggle("bad", ORDER[row[at.state]] < 3);
    cells[8].classList.toggle("bad", row[at.restarts] > 0);
  });
}
function log(source) {
  const lines = source.log || [];
  $("log-panel").hidden = !lines.length;
  list($("log"), [...lines].reverse(), (line) => {
    const found = parsed(line);
    return make("li", { class: found.level }, make("time", { title: found.time }, found.time.slice(11, 19) || ""), make("span", { class: found.level }, found.text));
  });
}
function parsed(line) {
  if (line.startsWith("{")) try { const { time = "", level = "", text = "" } = JSON.parse(line); return { time: String(time), level: String(level), text: String(text) }; } catch { /* as text */ }
  const [, time = "", level = "", text = line] = line.match(/^(\d{4}-\S+Z) (?:(info|warning|error): )?(.*)$/) || [];
  return { time, level, text };
}
function about(source) {
  const settings = Object.entries(source.settings || {});
  $("about-panel").hidden = !settings.length;
  say($("about-note"), source.path ? `${source.path}, seed ${source.seed}` : "");
  list($("about"), settings.map(([name, value]) => [name, String(value), (source.differs || []).includes(name)]), ([name, value, differs]) => make("div", { class: differs ? "differs" : "" }, make("dt", {}, name), make("dd", {}, value)));
}

// Serving ------------------------------------------------------------------------------------------------------------------

let latencies = null;
function serving(serve) {
  $("serve-panel").hidden = !serve;
  if (!serve) return;
  const models = serve.models || [];
  say($("serve-note"), [serve.http, serve.zmq, serve.test ? `test ${serve.test}` : ""].filter(Boolean).join(" · "));
  pairs($("serve"), [["requests/s", short(serve.rate)], ["p50", took(serve.p50)], ["p99", took(serve.p99)], ["rows waiting", `${whole(serve.queue)} of ${whole(serve.queue_limit)}`], ["rows a batch", serve.batch === null ? "–" : short(serve.batch)],
    ["answered", whole(serve.requests)], ["late", whole(serve.late), serve.late > 0], ["queue full", whole(serve.full), serve.full > 0], ["failed", whole(serve.failed), serve.failed > 0], ["invalid", whole(serve.invalid)], ["processes", whole((serve.pids || []).length)]]);
  const kept = (sources.find((one) => one.serve === serve) || {}).latencies || [];
  const of = (name) => [kept.map((one) => one.at), kept.map((one) => (one[name] === null ? null : 1000 * one[name]))];
  if (kept.length > 1) {
    if (!latencies) latencies = new Chart("latency, ms, since the page was opened", $("serve-chart"), 150);
    latencies.show([{ label: "p50", colour: colour(0), points: of("p50") }, { label: "p99", colour: colour(1), points: of("p99") }], "time", "serve");
  }
  grid($("serve-models"), [["model", "t"], ["share", ""], ["version", ""], ["swaps", ""], ["refused", ""], ["requests", ""], ["p50", ""], ["p99", ""], ["source", "t less"]], models.map((one) => ({
    cells: [one.model, `${short(one.share)} %`, one.version === null ? "loading" : one.version + (one.pinned !== null && one.pinned !== undefined ? " pinned" : ""), whole(one.swaps), whole(one.refusals), whole(one.requests), took(one.p50), took(one.p99), one.source],
    title: (one.refused || []).map((each) => `version ${each.version} refused: ${each.why}`).join("\n") })));
  list($("serve-notes"), [...(serve.notes || [])].reverse().slice(0, 8), (line) => make("li", {}, make("time", {}), make("span", {}, line)));
}
function grid(table, columns, rows) {
  const shape = JSON.stringify([columns, rows]);
  if (table.dataset.shape === shape) return;
  table.dataset.shape = shape;
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  for (const [word, kind] of columns) head.append(make("th", { class: kind, scope: "col" }, word));
  const body = table.createTBody();
  for (const row of rows) {
    const line = make("tr", { class: row.kind, title: row.title || null });
    row.cells.forEach((cell, at) => line.append(make("td", { class: columns[at][1] }, String(cell))));
    body.append(line);
  }
}

// Sweeps -------------------------------------------------------------------------------------------------------------------

let armCurves = null;
const LOW = [209, 222, 228], HIGH = [11, 110, 143], LOW_DARK = [52, 66, 73], HIGH_DARK = [104, 208, 242];
function shade(share) {
  const [low, high] = dark.matches ? [LOW_DARK, HIGH_DARK] : [LOW, HIGH];
  return `rgb(${low.map((one, at) => Math.round(one + (high[at] - one) * (0.15 + 0.85 * share))).join(",")})`;
}
function sweep(source) {
  const found = source.sweep;
  $("sweep-panel").hidden = !found || !found.arms;
  if (!found || !found.arms) return;
  const shape = JSON.stringify([found, dark.matches, $("parallel").clientWidth]);
  if (source.drawn === shape && $("parallel").dataset.of === String(source.key)) return;
  source.drawn = shape; $("parallel").dataset.of = String(source.key);
  const counts = Object.entries(found.counts).map(([state, many]) => `${many} ${state}`).join(" · ");
  say($("sweep-note"), `${found.goal} · ${counts}`);
  const done = found.arms.filter((arm) => arm.state === "complete" && arm.mean !== null).map((arm) => arm.mean);
  const low = Math.min(...done), high = Math.max(...done);
  const goodness = (arm) => (high > low ? (found.largest ? arm.mean - low : high - arm.mean) / (high - low) : 1);
  const style = getComputedStyle(document.documentElement), grey = style.getPropertyValue("--edge").trim();
  const tone = (arm) => (arm.state === "complete" && arm.mean !== null ? shade(goodness(arm)) : grey);
  const drawn = found.arms.filter((arm) => arm.curve.length).slice(0, 60).reverse();
  const curved = drawn.some((arm) => arm.curve.length > 1);
  $("arm-curves").parentNode.hidden = !curved;
  if (curved) {
    if (!armCurves) armCurves = new Chart("", $("arm-curves"), 300);
    armCurves.title = found.metric;
    say(armCurves.node.querySelector(".what"), found.metric);
    armCurves.show(drawn.map((arm) => ({ label: `arm ${arm.arm}`, colour: tone(arm), width: arm === found.arms[0] ? 2.6 : 1.2, points: [arm.curve.map((p) => p[0]), arm.curve.map((p) => p[1])] })), "count", "arms");
  }
  parallel(found, tone);
  grid($("arms"), [["arm", ""], ["state", "t"], [`mean ${found.metric}`, ""], ["seeds", ""], ["steps", "less"], ...found.names.map((name) => [name, ""])], found.arms.slice(0, 100).map((arm, at) => ({
    kind: at === 0 && arm.state === "complete" ? "best" : arm.state === "complete" ? "" : "grey", title: arm.why,
    cells: [arm.arm, arm.state, arm.mean === null ? "–" : short(arm.mean), arm.seeds, whole(arm.steps), ...arm.params.map((value) => (value === null ? "–" : label(value)))] })));
}
function parallel(found, tone) {
  const box = $("parallel"), width = Math.max(280, box.clientWidth || 600), height = 300, top = 30, bottom = 12, left = 34, right = 46;
  const columns = [...found.names.map((name, at) => scale(found.arms.map((arm) => arm.params[at]), (found.axes.find((axis) => axis.name === name) || {}), name)),
    scale(found.arms.map((arm) => (arm.state === "complete" ? arm.mean : null)), {}, found.metric)];
  const x = (at) => left + ((width - left - right) * at) / Math.max(1, columns.length - 1), y = (share) => height - bottom - (height - top - bottom) * share;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Parallel coordinates of ${found.arms.length} arms; the table below has the same numbers.` });
  const order = found.arms.map((arm, at) => [arm, at]).sort(([a], [b]) => (a.state === "complete") - (b.state === "complete") || found.arms.indexOf(b) - found.arms.indexOf(a));
  for (const [arm, at] of order) {
    const places = columns.map((column, n) => (column.places[at] === null ? null : `${x(n).toFixed(1)},${y(column.places[at]).toFixed(1)}`)).filter(Boolean);
    const best = at === 0 && arm.state === "complete";
    const line = draw("polyline", { points: places.join(" "), fill: "none", stroke: tone(arm), "stroke-width": best ? 3 : 1.3, "stroke-linejoin": "round", opacity: best ? 1 : 0.85 });
    line.append(draw("title", {}, `arm ${arm.arm}, ${arm.state}: ${arm.mean === null ? arm.why || "no value" : short(arm.mean)}`));
    if (arm.state !== "complete") line.setAttribute("stroke-dasharray", "4 3");
    svg.append(line);
  }
  columns.forEach((column, n) => {
    const name = column.name.length > 14 ? column.name.slice(0, 13) + "…" : column.name;
    svg.append(draw("line", { x1: x(n), x2: x(n), y1: top - 4, y2: height - bottom + 4, class: "rule" }),
      draw("text", { x: x(n), y: 14, "text-anchor": n === 0 && columns.length > 1 ? "start" : n === columns.length - 1 ? "end" : "middle", dx: n === 0 ? -left + 2 : n === columns.length - 1 ? right - 2 : 0 }, name));
    for (const [share, text] of column.labels) svg.append(draw("text", { x: x(n) + 4, y: y(share) + 3, class: "tick" }, text.slice(0, 12)));
  });
  box.replaceChildren(svg);
  say($("parallel-note"), "an arm is a line, the better the stronger; broken lines were pruned, failed or are running");
}
function scale(values, axis, name) {
  const known = values.filter((value) => value !== null && value !== undefined), texts = (axis.values || []).map(String);
  if (known.some((value) => typeof value !== "number") || texts.length) {
    const words = [...new Set([...texts, ...known.map(label)])], at = (value) => (words.indexOf(label(value)) + 0.5) / words.length;
    return { name, places: values.map((value) => (value === null || value === undefined ? null : at(value))), labels: words.slice(0, 24).map((word, n) => [(n + 0.5) / words.length, word]) };
  }
  const low = Math.min(...known), high = Math.max(...known), log = axis.log || (low > 0 && high / low > 100), of = log ? Math.log : Number;
  const width = of(high) - of(low) || 1, place = (value) => (of(value) - of(low)) / width;
  const ticks = high > low ? [low, log ? Math.sqrt(low * high) : (low + high) / 2, high] : known.length ? [low] : [];
  return { name, places: values.map((value) => (value === null || value === undefined ? null : place(value))), labels: ticks.map((tick) => [place(tick), String(+tick.toPrecision(3))]) };
}
const label = (value) => (typeof value === "number" ? String(+value.toPrecision(4)) : String(value));

// Events -------------------------------------------------------------------------------------------------------------------

let planned = false, drawnAt = 0, changed = true;
function soon(all = true) {  // all: curves too
  changed = changed || all !== false;
  if (planned || document.hidden) return;
  planned = true;
  setTimeout(() => requestAnimationFrame(() => { planned = false; drawnAt = Date.now(); paint(); }), Math.max(0, 240 - (Date.now() - drawnAt)));
}
function paint() {
  const runs = drawable();
  if (runs.length) axes(runs);
  cards();
  if (changed) { changed = false; curves(); }
  panels();
  document.body.dataset.painted = String(Number(document.body.dataset.painted || 0) + 1);
}
function hello({ sources: told, build: its, first: one, ours: other, now: then }) {
  if (build && build !== its) { location.reload(); return; }
  build = its; first = one; ours = new Set(other); skew = then - Date.now() / 1000;
  const same = told.length === sources.length && told.every((each, at) => each.path === sources[at].path);
  if (!same) {
    for (const source of sources) if (source.card) source.card.node.remove();
    sources.length = 0;
    told.forEach((each, at) => sources.push({ curves: empty(), at, latencies: [] }));
    selected = 0;
  }
  told.forEach((each, at) => Object.assign(sources[at], each));
  const seen = {};
  for (const source of sources) { source.label = source.name || source.path; seen[source.label] = (seen[source.label] || 0) + 1; }
  for (const source of sources) if (seen[source.label] > 1) source.label = source.path;
  const runs = sources.filter((source) => source.kind === "run" && source.settings);
  for (const source of runs) {
    source.told = (name) => (name === "seed" ? source.seed : source.settings[name]);
    const names = ["seed", ...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
    source.differs = names.filter((name) => runs.some((run) => String(name === "seed" ? run.seed : run.settings[name]) !== String(source.told(name))));
  }
  soon();
}
function link(word, kind) { say($("link"), word); $("link").className = kind; }

function begin() {
  const stream = new EventSource("/events");
  const on = (name, act) => stream.addEventListener(name, (event) => {
    const data = JSON.parse(event.data), source = sources[data.key];
    if (data.now) skew = data.now - Date.now() / 1000;
    if (name !== "hello" && !source) return;
    act(source, data);
    soon(name === "rows" || name === "hello");
  });
  on("hello", (_, data) => { lost = false; link("live", "live"); hello(data); });
  on("rows", take);
  on("status", (source, data) => { source.status = data.status; });
  on("log", (source, data) => { source.log = data.lines; });
  on("folder", (source, data) => { source.there = data.there; });
  on("sweep", (source, data) => { source.sweep = data.sweep; source.why = data.sweep.why || source.why; });
  on("serve", (source, data) => {
    source.serve = data.serve;
    if (!data.serve) return;
    source.opened = source.opened || data.serve.written;
    source.latencies.push({ at: data.serve.written - source.opened, p50: data.serve.p50, p99: data.serve.p99 });
    while (source.latencies.length > SPAN) source.latencies.shift();
  });
  stream.addEventListener("bye", () => { lost = true; link("the page's process has ended; it shows what was", "lost"); });
  stream.onerror = () => { if (!lost) { lost = true; link(`connection lost; trying again (shoal watch ${(sources[0] || {}).path || ""} opens it anew)`, "lost"); } soon(false); };
}

smooth = remembered("smooth", "") === "1";
$("smooth").checked = smooth;
$("smooth").addEventListener("change", (event) => { smooth = event.target.checked; remember("smooth", smooth ? "1" : ""); soon(); });
document.addEventListener("click", (event) => { if (!$("pick").contains(event.target)) $("pick").open = false; });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && $("pick").open) { $("pick").open = false; $("pick").firstElementChild.focus(); } });
dark.addEventListener("change", () => { for (const source of sources) source.drawn = ""; soon(); });
document.addEventListener("visibilitychange", soon);
window.addEventListener("resize", soon);
setInterval(() => soon(false), 1000);  // times go on while nothing comes
begin();
})();
