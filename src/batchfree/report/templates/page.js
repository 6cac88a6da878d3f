"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const hidden = new Set();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)").matches;

  // Figures name colours and fonts as CSS variables, which Plotly does not read.
  function themed(value, css) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? css.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, css));
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, themed(item, css)]));
    }
    return value;
  }

  function draw(group) {
    const css = getComputedStyle(document.documentElement);
    for (const [id, plot] of Object.entries(plots)) {
      if (group && plot.group !== group) continue;
      const data = themed(plot.data, css);
      for (const trace of data) {
        trace.visible = !hidden.has(JSON.stringify([plot.group, trace.legendgroup]));
      }
      const layout = themed(plot.layout, css);
      // A finger on a plot scrolls the page; a mouse zooms.
      layout.dragmode = fine ? "zoom" : false;
      Plotly.react(id, data, layout, {displayModeBar: false, responsive: true});
    }
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const {group, line} = button.dataset;
      const key = JSON.stringify([group, line]);
      const shown = hidden.has(key);
      if (shown) hidden.delete(key); else hidden.add(key);
      button.setAttribute("aria-pressed", String(shown));
      draw(group);
    });
  }
  dark.addEventListener("change", () => draw());
  draw();
})();
