// What the front ends share: questions to the kernel, plotly.js from it, JupyterLab's colours, elements.

const now = () => performance.now();

// The first message of a busy cell can wait behind the cell itself, so a question is repeated until it is answered;
// the kernel answers each id once.
function ask(model, message, answered) {
  const id = crypto.randomUUID();
  let tries = 0;
  const go = () => {
    if (answered()) return;
    model.send({ ...message, rid: id });
    setTimeout(go, ++tries < 12 ? 250 : 2000);
  };
  go();
}

// plotly.js comes from the kernel's installed plotly, once a page; JupyterLab's own renderer may have loaded it before.
function plotly(model) {
  window.__ferPlotly ??= (async () => {
    if (window.Plotly?.react) return window.Plotly;
    let bytes;
    const take = (m, buffers) => { if (m.t === "library") bytes = buffers[0]; };
    model.on("msg:custom", take);
    await new Promise((done) => ask(model, { t: "library?" }, () => bytes && (done(), true)));
    model.off("msg:custom", take);
    const url = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
    await import(url);
    URL.revokeObjectURL(url);
    return window.Plotly;
  })().catch((error) => { window.__ferPlotly = undefined; throw error; });
  return window.__ferPlotly;
}

function theme() {
  const style = getComputedStyle(document.body), read = (name, other) => style.getPropertyValue(name).trim() || other;
  const light = document.body.dataset.jpThemeLight !== "false";
  return { light, paper: read("--jp-layout-color0", light ? "#fff" : "#111"), ink: read("--jp-ui-font-color1", light ? "#222" : "#ddd"),
    grid: light ? "#e4e4e4" : "#3a3a3a" };
}

const make = (parent, tag, name, text, more = {}) => {
  const el = parent.appendChild(document.createElement(tag));
  if (name) el.className = name;
  if (text) el.textContent = text;
  if (["input", "select", "button", "summary"].includes(tag)) el.dataset.lmSuppressShortcuts = "true";     // keys on it are not JupyterLab's
  if (tag === "input") el.addEventListener("keydown", (e) => e.key === "Enter" && el.blur());     // Enter takes what was typed
  return Object.assign(el, more);
};
