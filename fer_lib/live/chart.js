// The live view's front end: draws what the kernel sends, sends what the reader asks for. talk.js comes before it.
// All data come and go as custom messages: none is widget state, so none is saved with the notebook.

const BLUE = "#0072B2", ORANGE = "#E69F00", RED = "#D55E00", GREY = "#888888", PURPLE = "#CC79A7";
const CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A800"];
const ALL_LINES = 150;              // flips that are drawn through all panels; more would hide what they mark
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

// What the kernel has sent of one run. Parts come with the place they begin at, so repeats do no harm and gaps show.
class Store {
  constructor(columns) {
    this.columns = columns; this.index = Object.fromEntries(columns.map((c, k) => [c, k]));
    this.n = 0; this.stride = 1; this.buckets = new Float32Array(0);
    this.marks = []; this.scores = []; this.events = []; this.facts = {}; this.intervals = [];
    this.versions = {}; this.changes = 0;
  }
  // false: something is missing, ask for all of it
  take(m, buffers) {
    const whole = (part) => this.versions[part] === m.versions[part] || m.from[part] === 0;
    if (m.from.buckets > this.n || m.from.marks > this.marks.length || m.from.scores > this.scores.length
        || m.from.events > this.events.length || !["buckets", "marks", "scores"].every(whole)) return false;
    const k = this.columns.length, rows = floats(buffers[0]);
    const grown = new Float32Array(m.from.buckets * k + rows.length);
    grown.set(this.buckets.subarray(0, m.from.buckets * k)); grown.set(rows, m.from.buckets * k);
    this.buckets = grown; this.n = grown.length / k; this.stride = m.stride;
    const marks = floats(buffers[1]);
    this.marks.length = m.from.marks;
    for (let i = 0; i < marks.length; i += 4) this.marks.push(marks.subarray(i, i + 4));      // step, site, sign, share
    this.everyMark = m.every_mark;
    this.scores = this.scores.slice(0, m.from.scores).concat(m.scores);
    this.events = this.events.slice(0, m.from.events).concat(m.events);
    this.intervals = m.intervals; this.facts = m.facts; this.versions = m.versions; this.changes++;
    return true;
  }
  column(name) {
    const k = this.columns.length, at = this.index[name], out = new Float32Array(this.n);
    for (let i = 0; i < this.n; i++) out[i] = this.buckets[i * k + at];
    return out;
  }
}

// ---- numbers and colours ----

const MINUS = "\u2212";
const number = (v, digits = 3) => {
  if (v === null || v === undefined || Number.isNaN(v)) return "–";
  const size = Math.abs(v);
  const text = size && (size < 1e-3 || size >= 1e5) ? size.toExponential(2) : size.toLocaleString("en", { maximumFractionDigits: digits });
  return (v < 0 ? MINUS : "") + text;
};
const bytes = (n) => n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GB` : `${Math.round(n / 2 ** 20)} MB`;
const time = (s) => s >= 5400 ? `${(s / 3600).toFixed(1)} h` : s >= 100 ? `${Math.round(s / 60)} min` : `${Math.round(s)} s`;
const power = (v) => v === 0 ? "0" : `${v < 0 ? MINUS : ""}10<sup>${Math.round(Math.log10(Math.abs(v)))}</sup>`;

// w lives near 1e-4 and crosses 0: an asinh axis is linear within ±lin and logarithmic outside
function symlogTicks(lin, low, high) {
  const values = [0];
  const top = Math.max(Math.abs(low), Math.abs(high)), first = Math.round(Math.log10(lin));
  for (let k = first + 1; k <= first + 14 && 10 ** k <= 10 * lin * Math.sinh(top + .5); k++) values.push(10 ** k, -(10 ** k));
  return { tickvals: values.map((v) => Math.asinh(v / lin)), ticktext: values.map(power) };
}

// ---- one run's picture ----

function panels(cfg, store) {
  const found = [["loss", 2.1], ["f1", 1.9]];
  if (cfg.has_w) found.push(["w", 2.6]);
  if (cfg.steers || store.marks.length) found.push(["signs", .7 + .14 * cfg.sites.length]);
  const gap = .035, total = found.reduce((sum, [, h]) => sum + h, 0);
  let top = 1;
  const domains = {};
  for (const [name, h] of found) {
    const height = (1 - gap * (found.length - 1)) * h / total;
    domains[name] = [Math.max(0, top - height), top];
    top -= height + gap;
  }
  return domains;
}

function traces(cfg, store, chosen) {
  const x = store.column("step"), found = [];
  const line = (name, y, axis, color, more = {}) => found.push({ type: "scatter", mode: "lines", name, x, y, yaxis: axis, hoverinfo: "none",
    line: { color, width: 1.4 }, ...more });
  const band = (low, high, axis, color, group) => {
    line("", low, axis, color, { line: { width: 0 }, showlegend: false, hoverinfo: "skip", legendgroup: group, kind: "band" });
    line("", high, axis, color, { line: { width: 0 }, fill: "tonexty", fillcolor: color, showlegend: false, hoverinfo: "skip",
      legendgroup: group, kind: "band" });
  };
  if (store.stride > 1) band(store.column("loss_low"), store.column("loss_high"), "y", "rgba(128,128,128,.28)", "loss");
  line(store.stride > 1 ? `loss, mean of ${store.stride} steps` : "loss", store.column("loss"), "y", GREY, { legendgroup: "loss", kind: "loss" });
  const scores = (name, k, color, symbol, dash) => found.push({ type: "scatter", mode: "lines+markers", name, yaxis: "y2", hoverinfo: "none",
    kind: "f1", x: store.scores.map((s) => s[0]), y: store.scores.map((s) => s[k]), line: { color, width: 1.6, dash },
    marker: { symbol, size: 6, color } });
  if (cfg.scores) {
    scores("macro-F1 as trained", 1, BLUE, "circle", "solid");
    scores("macro-F1 clean (sign +)", 2, ORANGE, "square", "dash");
    const probes = store.events.filter((e) => e.kind === "evaluate" && e.site === "val trained");
    if (probes.length) found.push({ type: "scatter", mode: "markers", name: "evaluated by hand", yaxis: "y2", hoverinfo: "none", kind: "f1",
      x: probes.map((e) => e.step), y: probes.map((e) => e.value), marker: { symbol: "star-open", size: 11, color: BLUE } });
  }
  if (cfg.has_w) {
    const scale = (values) => values.map((v) => Math.asinh(v / cfg.lin));
    band(scale(store.column(`w_low/${chosen}`)), scale(store.column(`w_high/${chosen}`)), "y3", "rgba(0,114,178,.22)", "chosen");
    cfg.sites.forEach((site, k) => line(`w ${site}`, scale(store.column(`w/${site}`)), "y3", CYCLE[k % CYCLE.length], { kind: "w",
      line: { color: CYCLE[k % CYCLE.length], width: site === chosen ? 2.6 : 1.2 } }));
    line(`channel ${store.facts.channel ?? 0} of ${chosen}`, scale(store.column(`w_channel/${chosen}`)), "y3", GREY,
      { kind: "w", line: { color: GREY, width: 1.2, dash: "dot" } });
  }
  return found;
}

// sites by buckets, as a raster of the share of signs that are -, and the flips' exact steps on it
function signTraces(cfg, store) {
  const rows = [...cfg.sites].reverse(), x = store.column("step");
  const z = rows.map((site) => store.column(`negative/${site}`));
  if (cfg.flag) { rows.push("flag"); z.push(store.column("flag")); }
  const found = [{ type: "heatmap", x, y: rows, z, yaxis: "y4", zmin: 0, zmax: 1, showscale: false, hoverinfo: "none", kind: "signs",
    colorscale: [[0, "rgba(0,114,178,.10)"], [1, RED]] }];
  for (const [sign, symbol, name] of [[-1, "triangle-down", "turns −"], [1, "triangle-up", "turns +"]]) {
    const own = store.marks.filter((m) => m[2] === sign);
    found.push({ type: "scatter", mode: "markers", name: store.everyMark > 1 ? `${name} (1 of ${store.everyMark})` : name, x: own.map((m) => m[0]), y: own.map((m) => cfg.sites[m[1]]),
      yaxis: "y4", hoverinfo: "none", kind: "mark", marker: { symbol, size: 6, color: sign < 0 ? RED : BLUE, line: { width: .5, color: "#fff" } } });
  }
  return found;
}

const byHand = (store) => store.events.filter((e) => ["flip", "lr", "weight_decay"].includes(e.kind));

// lines through all panels, one shape for all of a kind; the legend switches them
function lineShapes(store) {
  const through = (name, steps, color, dash) => ({ type: "path", xref: "x", yref: "paper", layer: "below", opacity: .6, showlegend: true, name,
    path: steps.map((step) => `M ${step},0 L ${step},1`).join(" ") || "M 0,0", line: { color, width: 1, dash } });
  const steps = [...new Set(store.marks.map((m) => m[0]))], hand = byHand(store).map((e) => e.step);
  return [...(steps.length && steps.length <= ALL_LINES ? [through("sign flips", steps, RED, "solid")] : []),
    ...(hand.length ? [through("by your hand", hand, PURPLE, "dash")] : [])];
}

// the top axis counts epochs: plotly draws an axis only where a trace is
function epochTrace(store, top) {
  const hand = byHand(store);
  return { type: "scatter", mode: "markers", showlegend: false, xaxis: "x2", yaxis: "y", hoverinfo: "none", kind: "event", events: hand, x: hand.length ? hand.map((e) => e.step) : [null],
    y: hand.length ? hand.map(() => .96 * top) : [null], marker: { symbol: "diamond", size: 8, color: PURPLE } };
}

function lossTop(store) {
  const losses = [...store.column(store.stride > 1 ? "loss_high" : "loss")].filter(Number.isFinite).sort((a, b) => a - b);
  return losses.length ? 1.12 * losses[Math.min(losses.length - 1, Math.floor(.995 * losses.length))] || 1 : 1;
}

function intervalTrace(cfg, store) {
  const last = store.intervals.findLastIndex((n) => n > 0);
  return { type: "bar", x: cfg.interval_labels.slice(0, last + 1).map((text) => text.split("–").pop()), y: store.intervals.slice(0, last + 1), xaxis: "x5", yaxis: "y5", showlegend: false,
    marker: { color: RED }, hoverinfo: "none", kind: "interval" };
}

// kept: ranges that the reader zoomed to, by axis
function layout(cfg, store, domains, kept, top) {
  const t = theme();
  const axis = (more) => ({ gridcolor: t.grid, zerolinecolor: t.grid, showline: false, tickfont: { size: 11 }, ...more });
  const last = store.n ? store.buckets[(store.n - 1) * store.columns.length] : 1;
  const [from, to] = kept.xaxis ?? [0, Math.max(2, last)];
  const first = Math.ceil(from / cfg.steps_per_epoch), every = Math.max(1, Math.ceil((to - from) / cfg.steps_per_epoch / 10));
  const epochs = cfg.steps_per_epoch ? Array.from({ length: 14 }, (_, k) => (Math.ceil(first / every) + k) * every).filter((e) => e > 0 && e * cfg.steps_per_epoch <= to) : [];
  const hasSigns = "signs" in domains, wRange = cfg.has_w ? extent(cfg, store) : [0, 1];
  const found = {
    uirevision: "keep", datarevision: store.changes, height: cfg.height ?? (cfg.has_w ? 640 : hasSigns ? 520 : 400), hovermode: "closest", dragmode: "zoom",
    margin: { l: 92, r: 14, t: 30, b: 40 }, paper_bgcolor: t.paper, plot_bgcolor: t.paper, font: { color: t.ink, size: 12 },
    legend: { x: 1.01, y: 1, font: { size: 11 }, bgcolor: "rgba(0,0,0,0)", tracegroupgap: 2 },
    xaxis: axis({ type: "linear", domain: [0, .8], anchor: hasSigns ? "y4" : cfg.has_w ? "y3" : "y2", title: { text: "training step", standoff: 4 }, range: [from, to],
      showspikes: true, spikemode: "across", spikesnap: "cursor", spikethickness: 1, spikedash: "dot", spikecolor: t.ink }),
    xaxis2: axis({ type: "linear", domain: [0, .8], overlaying: "x", matches: "x", range: [from, to], side: "top", anchor: "y", showgrid: false, tickmode: "array", ticklen: 3,
      tickvals: epochs.map((e) => e * cfg.steps_per_epoch), ticktext: epochs.map((e, k) => k ? String(e) : `epoch ${e}`) }),
    yaxis: axis({ domain: domains.loss, title: { text: cfg.loss_label ?? "cross-entropy" }, range: [0, top] }),
    yaxis2: axis({ domain: domains.f1, title: { text: "val macro-F1" }, range: [0, 1] }),
    shapes: lineShapes(store),
  };
  if (cfg.has_w) found.yaxis3 = axis({ domain: domains.w, title: { text: "w" }, tickmode: "array", range: wRange, ...symlogTicks(cfg.lin, ...wRange),
    zeroline: true, zerolinecolor: t.ink });
  if (hasSigns) {
    found.yaxis4 = axis({ domain: domains.signs, type: "category", tickfont: { size: 9 }, showgrid: false, fixedrange: true });
  }
  if (hasSigns && store.intervals.some((n) => n)) {
    found.xaxis5 = axis({ domain: [.86, 1], anchor: "y5", type: "category", tickfont: { size: 9 }, title: { text: "steps between flips, up to", standoff: 4, font: { size: 10 } }, tickangle: -60, fixedrange: true });
    found.yaxis5 = axis({ domain: [domains.signs[0], domains.signs[1] - .02], anchor: "x5", tickfont: { size: 9 }, fixedrange: true, rangemode: "tozero", nticks: 4, title: { text: "count", font: { size: 10 }, standoff: 2 } });
  }
  for (const [axis, range] of Object.entries(kept)) if (found[axis]) found[axis].range = range;
  return found;
}

function extent(cfg, store) {
  let low = 0, high = 0;
  for (const site of cfg.sites) {
    for (const v of store.column(`w/${site}`)) { if (v < low) low = v; if (v > high) high = v; }
  }
  const pad = .4;
  return [Math.asinh(low / cfg.lin) - pad, Math.asinh(high / cfg.lin) + pad];
}

function tipText(cfg, store, point) {
  const trace = point.data, step = Math.round(point.x);
  const at = cfg.steps_per_epoch ? `step ${step.toLocaleString("en")}, epoch ${Math.max(1, Math.ceil(step / cfg.steps_per_epoch))}` : `step ${step.toLocaleString("en")}`;
  switch (trace.kind) {
    case "w": return `${trace.name}\n${at}\nw = ${number(cfg.lin * Math.sinh(point.y))}`;
    case "loss": return `${at}\n${trace.name} = ${number(point.y)}`;
    case "f1": return `${at}\n${trace.name} = ${number(point.y)}`;
    case "signs": return `${point.y}\n${at}\n${point.y === "flag" ? (point.z > .5 ? "flag set" : "flag not set") : `${Math.round(100 * point.z)} % of signs ${MINUS}`}`;
    case "mark": return `${point.y} ${trace.name.slice(0, 7)}\n${at}`;
    case "interval": return `${counted(cfg.interval_labels[point.pointIndex], "step")} between flips: ${counted(point.y, "time")}`;
    case "event": { const e = trace.events[point.pointIndex]; return `${at}\n${e.kind.replace("_", " ")} ${e.kind === "flip" ? e.site : number(e.value)}`; }
  }
  return at;
}

// Draws the store into `el` whenever it changed: one drawing at a time, never more than an eighth of the browser's time.
function drawRun(model, el, store, cfg) {
  const plot = el.appendChild(document.createElement("div"));
  plot.className = "plot"; plot.style.width = "100%";
  const tip = el.appendChild(document.createElement("div"));
  tip.className = "tip";
  const view = { chosen: cfg.sites[0], draws: 0, ms: 0, last: 0, alive: true, dirty: true, zoomed: new Set() };
  let drawn = -1, next = 0, busy = false, Plotly;
  const draw = async () => {
    const domains = panels(cfg, store), top = lossTop(store);
    const data = [...traces(cfg, store, view.chosen), ...("signs" in domains ? signTraces(cfg, store) : []), ...(store.intervals.some((n) => n) ? [intervalTrace(cfg, store)] : []), epochTrace(store, top)];
    const kept = Object.fromEntries([...view.zoomed].map((axis) => [axis, plot.layout[axis].range]));
    await Plotly.react(plot, data, layout(cfg, store, domains, kept, top), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["resetScale2d", "select2d", "lasso2d"],
      toImageButtonOptions: { filename: cfg.title.replace(/[^\w.+-]+/g, "_"), scale: 2 } });
  };
  const tick = async () => {
    if (!view.alive) return;
    const t = now();
    if (!busy && store.n && t >= next && (store.changes !== drawn || view.dirty) && plot.offsetParent !== null && !document.hidden) {
      busy = true; drawn = store.changes; view.dirty = false;
      try { await draw(); if (++view.draws === 1) listen(); } catch (error) { console.error("fer_lib.live:", error); }
      view.last = now() - t; view.ms += view.last;
      next = now() + Math.max(cfg.refresh * 1000, 7 * view.last);
      Object.assign(plot.dataset, { draws: view.draws, steps: store.facts.step, last: view.last.toFixed(1), points: store.n });
      busy = false;
    }
    requestAnimationFrame(tick);
  };
  const listen = () => {
    plot.on("plotly_hover", (e) => {
      tip.textContent = tipText(cfg, store, e.points[0]);
      Object.assign(tip.style, { display: "block", left: `${Math.min(e.event.clientX + 14, innerWidth - 260)}px`, top: `${e.event.clientY + 10}px` });
    });
    plot.on("plotly_unhover", () => { tip.style.display = "none"; });
    // what the reader zoomed stays while the run grows; a double click, or the button, shows all again
    plot.on("plotly_relayout", (e) => {
      for (const key of Object.keys(e)) {
        const [, axis, what] = /^([xy]axis\d*)\.(range|autorange)/.exec(key) ?? [];
        if (what === "range") view.zoomed.add(axis === "xaxis2" ? "xaxis" : axis);
        if (what === "autorange") view.zoomed.delete(axis === "xaxis2" ? "xaxis" : axis);
      }
      view.redraw();
    });
    plot.on("plotly_doubleclick", () => setTimeout(() => { view.zoomed.clear(); view.redraw(); }, 50));
  };
  plotly(model).then((found) => { Plotly = found; tick(); })
    .catch((error) => { plot.textContent = `The chart's library did not come: ${error}`; });
  const watchTheme = new MutationObserver(() => { view.dirty = true; next = 0; });
  watchTheme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  view.end = () => { view.alive = false; watchTheme.disconnect(); tip.remove(); Plotly?.purge(plot); };
  view.redraw = () => { view.dirty = true; next = 0; };
  return view;
}

// ---- the reader's hands ----

function controls(model, el, store, cfg, view, run) {
  const can = (kind) => cfg.controls.includes(kind);
  const said = () => el.querySelector(".said");
  const delays = [];
  // a command is answered by an "ack" when it has acted, between two steps
  const command = (kind, more = {}) => {
    const id = crypto.randomUUID(), sent = now();
    let got = false;
    const listen = (m) => {
      if (m.id !== id) return;
      got = true;
      if (m.t !== "ack") return;
      model.off("msg:custom", listen);
      delays.push([kind, now() - sent]);
      el.dataset.delays = JSON.stringify(delays);
      said().textContent = m.text; said().classList.toggle("wrong", !!m.wrong);
    };
    model.on("msg:custom", listen);
    ask(model, { t: "command", run, command: { kind, id, ...more } }, () => got);
  };
  const row = make(el, "div", "row controls");
  const button = (kind, text, title, act) => can(kind) && make(row, "button", kind, text, { title, onclick: act ?? (() => command(kind)) });
  const pause = button("pause", "Pause", "Wait after this step; all else here still works", () => command(store.facts.paused ? "resume" : "pause"));
  button("stop", "Stop", "Stop after this step; record and checkpoint are kept");
  let place;
  if (can("flip")) {
    button("flip", "Flip now", "Multiply the features there by −1 from the next step on, until you flip them again. Steers the run.",
      () => command("flip", { site: place.value }));
    place = make(row, "select", "flip-site", "", { title: "where" });
    make(place, "option", "", "all sites", { value: "all" });
    for (const site of cfg.all_sites) make(place, "option", "", site, { value: site });
    place.setAttribute("aria-label", "site to flip");
  }
  button("evaluate", "Evaluate now", "Macro-F1 on the validation images, as trained and clean");
  button("checkpoint", "Save checkpoint", "Write the run's checkpoint now");
  const second = make(el, "div", "row");
  const slider = (kind, text, value) => {
    if (!can(kind)) return;
    const label = make(second, "label", "", `${text} `), none = -9;
    const range = make(label, "input", kind, "", { type: "range", min: none, max: 0, step: .05, value: value > 0 ? Math.log10(value) : none,
      title: `${text}, from the next step on. Steers the run.` });
    const box = make(label, "input", `${kind}-value`, "", { type: "text", value: number(value) });
    range.setAttribute("aria-label", text); box.setAttribute("aria-label", `${text}, as a number`);
    const from = (v) => v <= none ? 0 : Number((10 ** v).toPrecision(2));
    range.oninput = () => { box.value = from(Number(range.value)).toPrecision(2); };
    range.onchange = () => command(kind, { value: from(Number(range.value)) });
    box.onchange = () => {
      const v = Number(box.value.replace(MINUS, "-"));
      if (!(v >= 0)) { said().textContent = `${text} is a number of at least 0, not '${box.value}'`; said().classList.add("wrong"); return; }
      range.value = v > 0 ? Math.log10(v) : none;
      command(kind, { value: v });
    };
  };
  slider("lr", "learning rate", cfg.lr);
  slider("weight_decay", "weight decay", cfg.weight_decay);
  if (cfg.has_w) {
    const label = make(second, "label", "", "site "), pick = make(label, "select", "chosen", "", { title: "whose range of w and channel are drawn" });
    for (const site of cfg.sites) make(pick, "option", "", site, { value: site });
    pick.onchange = () => { view.chosen = pick.value; view.redraw(); };
    if (can("watch_channel")) {
      const channel = make(make(second, "label", "", "channel "), "input", "channel", "", { type: "number", min: 0, max: 4095, value: cfg.channel,
        title: "the channel whose own w is drawn and recorded from the next step on" });
      channel.onchange = () => command("watch_channel", { value: Math.max(0, Math.round(Number(channel.value))) });
    }
  }
  if (!second.children.length) second.remove();
  make(make(el, "div", "bar"), "div");
  make(el, "div", "facts").setAttribute("aria-live", "off");
  make(el, "div", "said").setAttribute("role", "status");
  const follow = () => {
    if (!el.isConnected && el.dataset.shown) return;
    el.dataset.shown = "1";
    const f = store.facts;
    if (pause) { pause.textContent = f.paused ? "Resume" : "Pause"; }
    for (const b of row.querySelectorAll("button")) b.disabled = f.status !== undefined && f.status !== "running";
    el.querySelector(".bar > div").style.width = `${100 * (f.step ?? 0) / (f.steps || Infinity)}%`;
    el.querySelector(".facts").textContent = facts(f);
    el.dataset.status = f.status ?? ""; el.dataset.step = f.step ?? 0; el.dataset.paused = f.paused ? "1" : "";
    setTimeout(follow, 200);
  };
  follow();
}

const counted = (n, word) => `${n} ${word}${String(n) === "1" ? "" : "s"}`;

function facts(f) {
  if (f.step === undefined) return "waiting for the first steps …";
  const parts = [f.status === "running" ? (f.paused ? "paused" : "") : f.status, `step ${f.step.toLocaleString("en")}${f.steps ? ` of ${f.steps.toLocaleString("en")}` : ""}`,
    f.epochs ? `epoch ${f.epoch} of ${f.epochs}` : "", `loss ${number(f.loss)}`, f.f1 !== null && f.f1 !== undefined ? `val macro-F1 ${number(f.f1)}` : "",
    f.flips !== null && f.flips !== undefined ? `${counted(f.flips.toLocaleString("en"), "step")} with a flip` : "", f.rate ? `${Math.round(f.rate).toLocaleString("en")} ${f.unit ?? "images"}/s` : "",
    f.left !== null && f.left !== undefined && f.status === "running" ? `${time(f.left)} left` : "", f.device ?? "", f.memory ? `${bytes(f.memory)} at peak` : "", f.silent ? `no sign of life for ${time(f.silent)}` : ""];
  return parts.filter(Boolean).join(" · ");
}

// Feature maps of one validation image at one site: before and after the activation, and after it had the signs been flipped.
function maps(model, el, cfg, run) {
  const box = make(el, "details", "look");
  make(box, "summary", "", "Feature maps: what one face looks like inside the network");
  const row = make(box, "div", "row");
  const image = make(make(row, "label", "", "validation image "), "input", "image", "", { type: "number", min: 0, max: cfg.images - 1, value: 0 });
  const site = make(make(row, "label", "", "site "), "select", "site");
  for (const name of cfg.all_sites) make(site, "option", "", name, { value: name, selected: name === cfg.sites[0] });
  const text = make(box, "div", "facts"), place = make(box, "div", "maps");
  const tell = () => {
    let got = false;
    const wanted = { open: box.open, image: Number(image.value), site: site.value };
    const listen = (m) => { if (m.t === "looking" && JSON.stringify(m.wanted) === JSON.stringify(wanted)) { got = true; model.off("msg:custom", listen); } };
    model.on("msg:custom", listen);
    ask(model, { t: "look", run, wanted }, () => got);
  };
  box.ontoggle = tell; image.onchange = tell; site.onchange = tell;
  model.on("msg:custom", (m, buffers) => {
    if (m.t !== "maps" || !box.open) return;
    text.textContent = m.text;
    place.replaceChildren();
    m.parts.forEach((part, k) => {
      const figure = make(place, "figure"), caption = make(figure, "figcaption", "", part.name);
      caption.title = part.help;
      tiles(make(figure, "canvas"), new Uint8Array(buffers[k].buffer, buffers[k].byteOffset, buffers[k].byteLength), part);
    });
    el.dataset.maps = Number(el.dataset.maps ?? 0) + 1;
    el.dataset.mapStep = m.step;
  });
}

// part: count maps of height x width in bytes; "signed": 0..255 is -limit..+limit, else 0..+limit
function tiles(canvas, data, part) {
  const { count, height, width, signed } = part, columns = Math.min(count, part.columns), lines = Math.ceil(count / columns);
  const scale = Math.max(1, Math.floor(part.side / Math.max(height, width))), step = [width * scale + 2, height * scale + 2];
  canvas.width = columns * step[0]; canvas.height = lines * step[1];
  const ctx = canvas.getContext("2d"), light = theme().light;
  for (let k = 0; k < count; k++) {
    const picture = new ImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      const v = data[k * height * width + i];
      picture.data.set([...(signed ? diverging((v - 128) / 127, light) : [v, v, v]), 255], 4 * i);
    }
    const small = new OffscreenCanvas(width, height);
    small.getContext("2d").putImageData(picture, 0, 0);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(small, (k % columns) * step[0], Math.floor(k / columns) * step[1], width * scale, height * scale);
  }
}

function diverging(v, light) {
  const end = v < 0 ? [0, 114, 178] : [213, 94, 0], zero = light ? [245, 245, 245] : [30, 30, 30], a = Math.min(1, Math.abs(v));
  return end.map((c, k) => Math.round(zero[k] + a * (c - zero[k])));
}

// ---- many runs ----

function sparkline(canvas, run) {
  const ratio = devicePixelRatio || 1, [w, h] = [190, 74], t = theme();
  canvas.width = w * ratio; canvas.height = h * ratio;
  canvas.style.width = `${w}px`; canvas.style.height = `${h}px`;
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio); ctx.clearRect(0, 0, w, h);
  const x = (step) => w * step / Math.max(1, run.steps), path = (points, y, color) => {
    ctx.strokeStyle = color; ctx.lineWidth = 1.4; ctx.beginPath();
    points.forEach(([s, v], k) => ctx[k ? "lineTo" : "moveTo"](x(s), y(v)));
    ctx.stroke();
  };
  ctx.strokeStyle = t.grid; ctx.strokeRect(.5, .5, w - 1, h - 1);
  const top = Math.max(1e-9, run.loss_top);
  ctx.fillStyle = RED;
  for (const step of run.flips) ctx.fillRect(x(step), h - 7, 1, 7);
  path(run.loss, (v) => h - 2 - (h - 8) * Math.min(1, v / top), GREY);
  path(run.f1, (v) => h - 2 - (h - 8) * v, BLUE);
}

function board(model, el, cfg) {
  make(el, "div", "facts");
  const legend = make(el, "div", "said", "Each card: training loss (grey), validation macro-F1 from 0 to 1 (blue), steps with a sign flip (red). Click one to see all of it.");
  legend.removeAttribute("role");
  const cards = make(el, "div", "cards"), opened = make(el, "div", "opened"), table = make(el, "table"), known = new Map();
  const head = make(make(table, "thead"), "tr");
  for (const name of ["run", "status", "step", "loss", "val macro-F1", "best", "flips", "images/s", "left"]) make(head, "th", "", name);
  const body = make(table, "tbody");
  let view, chosen;
  const open = (name) => ask(model, { t: "open", run: name }, () => chosen === name);
  const show = (m) => {
    if (chosen === m.run) return;
    chosen = m.run; view?.end(); opened.replaceChildren();
    for (const [name, row] of known) row.card.classList.toggle("chosen", name === chosen);
    make(opened, "h4", "", m.cfg.title);
    view = oneRun(model, make(opened, "div", "fer"), m.cfg, m.run);
  };
  model.on("msg:custom", (m) => {
    if (m.t === "opened") return show(m);
    if (m.t !== "board") return;
    el.querySelector(".facts").textContent = m.text;
    el.dataset.runs = m.runs.length; el.dataset.updates = Number(el.dataset.updates ?? 0) + 1;
    for (const [name, row] of known) if (!m.names.includes(name)) { row.end(); known.delete(name); }
    for (const run of m.runs) {
      let row = known.get(run.name);
      if (!row) {
        const card = make(cards, "div", "card", "", { tabIndex: 0, title: run.name, onclick: () => open(run.name), onkeydown: (e) => e.key === "Enter" && open(run.name) });
        make(card, "div", "name", run.label);
        row = { card, canvas: make(card, "canvas"), note: make(card, "div", "said"), cells: Array.from({ length: 9 }, () => 0) };
        const tr = make(body, "tr");
        row.cells = row.cells.map(() => make(tr, "td"));
        row.end = () => { card.remove(); tr.remove(); };
        known.set(run.name, row);
      }
      sparkline(row.canvas, run);
      row.note.textContent = run.note;
      row.card.dataset.status = run.status;
      [run.label, run.silent ? `${run.status}?` : run.status, `${run.step.toLocaleString("en")} / ${run.steps.toLocaleString("en")}`, number(run.last_loss), number(run.last_f1), number(run.best_f1),
        run.flip_count.toLocaleString("en"), run.rate ? Math.round(run.rate).toLocaleString("en") : "–", run.left !== null && run.status === "running" ? time(run.left) : "–"]
        .forEach((text, k) => { if (row.cells[k].textContent !== text) row.cells[k].textContent = text; });
    }
  });
  return { end: () => view?.end() };
}

// ---- putting it together ----

// store: kept where the kernel's messages come before the picture is there, or go on when it is shown a second time
function oneRun(model, el, cfg, run, store = new Store(cfg.columns)) {
  const listen = (m, buffers) => {
    if (m.t !== "data" || m.run !== run) return;
    if (!store.take(m, buffers) && !store.asked) {
      store.asked = true;
      const before = store.changes;
      ask(model, { t: "all?", run }, () => store.changes > before && ((store.asked = false), true));
    }
  };
  if (!store.listening) {
    store.listening = true;
    model.on("msg:custom", listen);
    ask(model, { t: "all?", run }, () => store.changes > 0);
  }
  if (!el) return { store };
  const view = { chosen: cfg.sites[0], redraw: () => {} };
  controls(model, el, store, cfg, { set chosen(v) { view.drawing.chosen = v; }, redraw: () => view.drawing.redraw() }, run);
  view.drawing = drawRun(model, el, store, cfg);
  if (cfg.images) maps(model, el, cfg, run);
  view.end = () => view.drawing.end();
  return view;
}

export default () => {
  let store;
  return {
    initialize({ model }) {
      const cfg = model.get("cfg");
      if (cfg.kind === "run") store = oneRun(model, null, cfg, "").store;
      // a page that is left says so: messages to it would only fill the console of the next one
      const bye = () => model.send({ t: "bye" }), here = setInterval(() => model.send({ t: "here" }), 4000);
      for (const leaving of ["beforeunload", "pagehide"]) addEventListener(leaving, bye);
      return () => { clearInterval(here); for (const leaving of ["beforeunload", "pagehide"]) removeEventListener(leaving, bye); };
    },
    render({ model, el }) {
      const cfg = model.get("cfg");
      const place = make(el, "div", "fer");
      const view = cfg.kind === "run" ? oneRun(model, place, cfg, "", store) : board(model, place, cfg);
      if (cfg.kind !== "run") ask(model, { t: "board?" }, () => Number(place.dataset.updates ?? 0) > 0);
      return () => view.end();
    },
  };
};
