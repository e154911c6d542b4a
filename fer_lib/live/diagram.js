// A diagram to click; each click asks the kernel, which answers with a picture and a sentence. talk.js comes before it.

// the reader's last word is asked for; what was overtaken while the kernel drew is not
function wishes(model, el, values, take) {
  let asked = false, wanted = 0, answered = 0, since = 0;
  const go = () => {
    asked = true;
    const mine = wanted, id = crypto.randomUUID();
    let drawn = false;
    const listen = async (m) => {
      if (m.t !== "picture" || m.id !== id || drawn) return;
      drawn = true;
      model.off("msg:custom", listen);
      await take(m);
      answered = mine; asked = false;
      el.dataset.draws = Number(el.dataset.draws ?? 0) + 1;
      el.dataset.last = Math.round(now() - since);
      if (wanted > answered) go();
    };
    model.on("msg:custom", listen);
    since = now();
    ask(model, { t: "draw?", id, values: { ...values } }, () => drawn);
  };
  return () => { wanted++; if (!asked) go(); };
}

const svg = (parent, tag, attributes, text) => {
  const e = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  if (text) e.textContent = text;
  return e;
};

const UNIT = 50;                    // pixels of a grid unit before the picture is fitted: fonts below 1 px are not reliable

// boxes in grid units; those with a name can be chosen by click, by Enter, and with the arrow keys
function diagram(el, cfg, values, changed) {
  const d = cfg.diagram, place = svg(el, "svg", { class: "diagram", viewBox: `0 0 ${UNIT * d.width} ${UNIT * d.height}`, role: "group", "aria-label": d.alt });
  for (const wire of d.wires) svg(place, "polyline", { points: wire.map((p) => p.map((v) => UNIT * v).join(",")).join(" "), class: "wire" });
  for (const t of d.texts) svg(place, "text", { x: UNIT * t.x, y: UNIT * t.y, class: "word" }, t.text);
  const chosen = d.boxes.filter((b) => b.name), marks = new Map();
  const choose = (name) => {
    values.chosen = name;
    for (const [other, g] of marks) { g.classList.toggle("chosen", other === name); g.setAttribute("aria-pressed", other === name); }
  };
  for (const b of d.boxes) {
    const g = svg(place, "g", b.name ? { class: "box site", tabindex: 0, role: "button", "aria-label": b.help, "data-site": b.name } : { class: "box" });
    svg(g, "title", {}, b.help);
    svg(g, "rect", { x: UNIT * b.x, y: UNIT * b.y, width: UNIT * b.w, height: UNIT * b.h, rx: 6, fill: b.color });
    svg(g, "text", { x: UNIT * (b.x + b.w / 2), y: UNIT * (b.y + b.h / 2), class: "label" }, b.label);
    if (!b.name) continue;
    marks.set(b.name, g);
    g.dataset.lmSuppressShortcuts = "true";
    const pick = () => { choose(b.name); changed(); };
    g.onclick = pick;
    g.onkeydown = (e) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
      if (e.key === "Enter" || e.key === " ") pick();
      else if (step) marks.get(chosen[(chosen.indexOf(b) + step + chosen.length) % chosen.length].name).focus();
      else return;
      e.preventDefault(); e.stopPropagation();
    };
  }
  choose(d.chosen);
}

function themed(layout) {
  const t = theme(), found = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12, color: t.ink }, autosize: true };
  for (const key of Object.keys(found).filter((k) => /^[xy]axis/.test(k))) found[key] = { gridcolor: t.grid, zerolinecolor: t.grid, ...found[key] };
  return found;
}

export default {
  render({ model, el }) {
    const cfg = model.get("cfg"), place = make(el, "div", "fer clickable"), values = {};
    place.dataset.draws = 0;
    let changed = () => {};
    const change = () => changed();
    diagram(place, cfg, values, change);
    const said = make(place, "div", "facts", "the kernel draws …", { ariaLive: "polite" });
    const plot = make(place, "div", "plot");
    plot.style.height = `${cfg.height}px`;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", cfg.alt);
    changed = wishes(model, place, values, async (m) => {
      said.textContent = m.text;
      const library = await plotly(model);
      await library.react(plot, m.traces, themed(m.layout), { displaylogo: false, responsive: true, displayModeBar: false });
    });
    changed();
    const bye = () => model.send({ t: "bye" });
    addEventListener("pagehide", bye);
    return () => { removeEventListener("pagehide", bye); window.Plotly?.purge?.(plot); };
  },
};
