// A small line chart: one curve a run, a cursor shared by all charts of the page, values at the cursor.
"use strict";

(() => {
  const { h, svg, number } = apiece;
  const W = 320, H = 130, LEFT = 38, RIGHT = 8, TOP = 8, BOTTOM = 20;
  const charts = new Set();

  // Ends of an axis, and a few round numbers between them.
  function ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
    const first = Math.ceil(low / step - 1e-9) * step;
    const out = [];
    for (let v = first; v <= high + step * 1e-6; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return out;
  }

  // Steps are whole numbers: no tick between two of them; one step alone is its own tick.
  function stepTicks([low, high]) {
    if (high - low <= 1) return Number.isInteger(low) ? [low] : [];
    return ticks(low, high, 4).filter(Number.isInteger);
  }

  function range(series, log) {
    const values = series.flatMap((s) => s.values.filter((v) => v !== null && (!log || v > 0)));
    if (!values.length) return log ? [0.1, 1] : [0, 1];
    let low = Math.min(...values), high = Math.max(...values);
    if (log) return high > low ? [low, high] : [low / 2, high * 2];
    if (low > 0 && low < 0.6 * high) low = 0; // a near zero belongs into the picture
    if (high === low && high === 0) return [0, 1];
    if (high === low) return [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
    return [low, high + (high - low) * 0.05];
  }

  // A gap, where a value was not finite, breaks the line.
  function path(series, x, y) {
    let out = "", pen = "M";
    series.steps.forEach((step, i) => {
      const value = series.values[i];
      const at = value === null ? null : y(value);
      if (at === null || !Number.isFinite(at)) pen = "M";
      else {
        out += `${pen}${x(step).toFixed(1)} ${at.toFixed(1)}`;
        pen = "L";
      }
    });
    return out;
  }

  function nearest(series, step) {
    let best = -1;
    series.steps.forEach((s, i) => {
      if (best < 0 || Math.abs(s - step) < Math.abs(series.steps[best] - step)) best = i;
    });
    return best;
  }

  function axes(xs, x, yTicks, y) {
    return [
      ...yTicks.map((v) => svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) })),
      ...yTicks.map((v) => svg("text", { x: LEFT - 5, y: y(v) + 3.5, "text-anchor": "end" }, number(v, 2))),
      ...stepTicks(xs).map((v) => svg("text", { x: x(v), y: H - 5, "text-anchor": "middle" }, short(v))),
    ];
  }

  const short = (step) => (step >= 10000 ? `${number(step / 1000, 1)}k` : String(Math.round(step)));

  function marks(series, x, y) {
    const style = apiece.style.ofRun(series.run);
    const line = svg("path", {
      d: path(series, x, y), fill: "none", stroke: style.colour, "stroke-width": 1.8,
      "stroke-dasharray": style.dash, "stroke-linejoin": "round",
    });
    const dots = series.steps.length > 40 ? [] : series.steps.map((step, i) => [x(step), y(series.values[i] ?? NaN)])
      .filter(([, at]) => Number.isFinite(at))
      .map(([cx, cy]) => svg("circle", { cx, cy, r: 2, fill: style.colour }));
    return svg("g", { "data-run": series.run }, line, ...dots);
  }

  // series: [{run, label, steps, values}]; open(step): what a click does.
  function chart({ title, hint, series, log = false, open }) {
    const steps = series.flatMap((s) => s.steps);
    const xs = [Math.min(...steps), Math.max(...steps)];
    if (xs[0] === xs[1]) xs[1] = xs[0] + 1;
    const ys = range(series, log);
    const scale = log ? Math.log10 : (v) => v;
    const x = (step) => LEFT + ((step - xs[0]) / (xs[1] - xs[0])) * (W - LEFT - RIGHT);
    const y = (v) => TOP + (1 - (scale(v) - scale(ys[0])) / (scale(ys[1]) - scale(ys[0]))) * (H - TOP - BOTTOM);
    const yTicks = log ? logTicks(ys) : ticks(ys[0], ys[1], 4);
    const cursor = svg("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
    const picture = svg("svg", {
      viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: "img", class: "plot",
      "aria-label": `${title}: ${series.map((s) => `${s.label} ends at ${number(lastOf(s))}`).join("; ")}`,
    }, ...axes(xs, x, yTicks, y), ...series.map((s) => marks(s, x, y)), cursor);
    const readout = h("div", { class: "readout", "aria-live": "polite" });
    const element = h("figure", { class: "chart" },
      h("figcaption", { title: hint || null }, title), picture, readout);
    const self = { element, show, all: [...new Set(steps)].sort((a, b) => a - b) };

    function show(step) {
      cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step !== null) {
        cursor.setAttribute("x1", x(step));
        cursor.setAttribute("x2", x(step));
      }
      const rows = series.map((s) => {
        const i = step === null ? s.steps.length - 1 : nearest(s, step);
        return h("span", { "data-run": s.run, title: `${s.label}, step ${s.steps[i]}` },
          apiece.style.runLine(s.run), h("b", {}, number(s.values[i])));
      });
      const at = step === null ? null : h("span", { class: "at" }, `step ${short(step)}`);
      readout.replaceChildren(...rows, ...(at ? [at] : []));
    }

    listen(self, picture, (event) => {
      const box = picture.getBoundingClientRect();
      const share = (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT);
      return xs[0] + Math.min(Math.max(share, 0), 1) * (xs[1] - xs[0]);
    }, open);
    show(null);
    charts.add(self);
    return element;
  }

  const lastOf = (series) => series.values[series.values.length - 1];

  function logTicks([low, high]) {
    const out = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) {
      for (const k of [1, 2, 5]) if (k * 10 ** p >= low && k * 10 ** p <= high) out.push(k * 10 ** p);
    }
    return out.length > 4 ? out.filter((_, i) => i % Math.ceil(out.length / 4) === 0) : out;
  }

  function listen(self, picture, stepAt, open) {
    let here = null;
    const closest = (step) => self.all.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
    const move = (step) => {
      here = step;
      for (const other of charts) other.show(step);
    };
    picture.addEventListener("pointermove", (event) => move(closest(stepAt(event))));
    picture.addEventListener("pointerleave", () => move(null));
    picture.addEventListener("click", (event) => open && open(closest(stepAt(event))));
    picture.addEventListener("blur", () => move(null));
    picture.addEventListener("keydown", (event) => {
      const at = here === null ? self.all.length - 1 : self.all.indexOf(closest(here));
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: self.all.length - 1 }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        move(self.all[Math.min(Math.max(next, 0), self.all.length - 1)]);
      } else if (event.key === "Enter" && here !== null && open) open(here);
    });
  }

  apiece.chart = chart;
  apiece.forgetCharts = () => charts.clear();
})();
