// All runs at a glance: what they are, and their curves.
"use strict";

(() => {
  const { h, go } = apiece;
  const off = new Set(); // runs switched off in the legend
  let log = false;

  const PROBES = {
    own_mass: ["Mass at the own coordinate", "share of belief within 3 sigma of the label's own coordinate"],
    cross_instance_mass: ["Mass at a neighbour's", "share within 3 sigma of the same coordinate of another instance of the class"],
    exp_argmax_gap: ["Averaging, bins", "distance from the expectation to the most likely bin"],
    entropy: ["Entropy, nats", "of the distribution over bins"],
    modes: ["Modes", "local maxima that hold a tenth of the mass or more"],
  };
  const NAMES = {
    "eval/f1/f1": ["F1, evaluation", "at IoU .5, on the evaluation split"],
    "eval/coco/AP": ["AP, evaluation", "official COCO AP"],
    "eval/coco/AP50": ["AP50, evaluation"],
    "panel/f1": ["F1, panel", "at IoU .5, over the images of the panel"],
    "panel/precision": ["Precision, panel"],
    "panel/recall": ["Recall, panel"],
    "panel/boxes_per_label": ["Boxes per label", "predictions / labels on the panel"],
    "shape/near_duplicate": ["Near-duplicates", "predictions with an earlier one of the class at IoU .9 or more"],
    "shape/strip": ["Strips", "longer side / shorter side over 8, area over 1 % of the image"],
    "answer/unclosed": ["Answers not closed", "share of the panel's answers"],
    "probes/drift": ["Drift A1 to last, bins"],
    "probes/flip": ["Flips", "objects whose believed x1, y1 is nearer to another instance"],
    "probes/chimera": ["Chimeras", "context boxes of two or more instances"],
    "probes/follow/near_neighbour": ["Follows the neighbour", "mass of x2, y2 near the neighbour's once its x1, y1 stand in the input"],
    "probes/follow/near_own": ["Stays with its own", "mass of x2, y2 near the object's own, the same way"],
    "probes/follow/elsewhere": ["Goes elsewhere", "the rest, the same way"],
  };

  function named(key) {
    const pass = key.match(/^probes\/(a1|last)\/(\w+)$/);
    if (pass && PROBES[pass[2]]) {
      const [title, hint] = PROBES[pass[2]];
      return [`${title} (${pass[1] === "a1" ? "A1" : "last"})`, hint];
    }
    const rate = key.match(/^(rates|misses)\/(\w+)$/);
    if (rate) {
      const list = rate[1] === "rates" ? apiece.style.all().predictions : apiece.style.all().labels;
      const style = list.find((one) => one.key === rate[2]);
      if (style) return [style.word, rate[1] === "rates" ? "share of all predictions" : "share of all labels", style];
    }
    return NAMES[key] || [key.replace(/^loss\//, "")];
  }

  const starts = (...beginnings) => (key) => beginnings.some((b) => key.startsWith(b));
  const GROUPS = [
    ["How good", starts("eval/f1/f1", "eval/coco/AP", "panel/"), "F1 and AP of the evaluations, and of the panel itself."],
    ["What predictions are", starts("rates/", "shape/"), "Share of the panel's predictions, by outcome. A click leads to the images of that step."],
    ["What became of labels that were missed", starts("misses/"), "Share of the panel's labels."],
    ["What the model believes", starts("probes/"), "At the labels' own slots: teacher-forced (A1), and in the last pass, on the model's own beliefs."],
    ["Losses", starts("loss/"), "Weighted atoms; they add up to the total."],
    ["All other figures", () => true, "Everything else in metrics.jsonl."],
  ];

  async function draw(main) {
    const { index } = apiece;
    apiece.forgetCharts();
    const curves = await Promise.all(index.runs.map((_, run) => apiece.load(`run${run}/curves`)));
    const figures = new Map(); // key -> one curve a run
    curves.forEach((value, run) => {
      for (const [key, steps, values] of value.series) {
        if (!figures.has(key)) figures.set(key, []);
        figures.get(key).push({ run, label: index.runs[run].name, steps, values });
      }
    });
    const taken = new Set();
    const sections = GROUPS.map(([title, fits, hint]) => {
      const keys = [...figures.keys()].filter((key) => !taken.has(key) && fits(key)).sort(byUse);
      keys.forEach((key) => taken.add(key));
      return keys.length ? section(title, hint, keys, figures) : null;
    });
    // replaceChildren would write a null as a word.
    main.replaceChildren(...[
      h("h1", { class: "sr" }, "Overview"), cards(index), differences(index), legend(main, index),
      ...sections, gaps(index)].filter(Boolean));
    fade(main);
  }

  // Known figures first, in the order of NAMES and of the palette; then by name. Outcomes keep the legend's order.
  function byUse(a, b) {
    const known = [...Object.keys(PROBES).flatMap((key) => [`probes/a1/${key}`, `probes/last/${key}`]), ...Object.keys(NAMES)];
    const styles = apiece.style.all();
    const order = [...styles.predictions.map((s) => `rates/${s.key}`), ...styles.labels.map((s) => `misses/${s.key}`), "loss/total", ...known];
    const place = (key) => (order.indexOf(key) < 0 ? order.length : order.indexOf(key));
    return place(a) - place(b) || a.localeCompare(b);
  }

  function section(title, hint, keys, figures) {
    const grid = h("div", { class: "charts" });
    const fill = () => grid.replaceChildren(...keys.map((key) => one(key, figures.get(key))));
    const head = [h("h2", {}, title), h("p", { class: "hint" }, hint)];
    if (title.startsWith("All other")) {
      const details = h("details", { class: "section" }, h("summary", {}, `${title} (${keys.length})`), h("p", { class: "hint" }, hint), grid);
      details.addEventListener("toggle", () => { fill(); fade(grid); }, { once: true });
      return details;
    }
    fill();
    if (title === "Losses") head.push(logSwitch(() => { fill(); fade(grid); }));
    return h("section", { class: "section" }, ...head, grid);
  }

  function one(key, series) {
    const [title, hint, style] = named(key);
    const mark = style ? apiece.style.swatch(style) : null;
    const chart = apiece.chart({
      title, hint: hint ? `${hint} (${key})` : key, series,
      log: log && key.startsWith("loss/"),
      open: key.startsWith("loss/") ? null : (step) => open(key, step),
    });
    if (mark) chart.querySelector("figcaption").prepend(mark);
    return chart;
  }

  // From a rate to the images that it is made of.
  function open(key, step) {
    const rate = key.match(/^(rates|misses)\/(\w+)$/);
    const kind = rate && (rate[1] === "rates" ? "p" : "l");
    go("panel", { step, outcome: rate ? `${kind}.${rate[2]}` : null }, { quiet: false });
  }

  function logSwitch(redraw) {
    const button = h("button", { type: "button", class: "chip", "aria-pressed": String(log) }, "logarithmic");
    button.addEventListener("click", () => {
      log = !log;
      button.setAttribute("aria-pressed", String(log));
      redraw();
    });
    return button;
  }

  function cards(index) {
    return h("div", { class: "cards" }, ...index.runs.map((run, i) => h("section", { class: "card" },
      h("h2", {}, apiece.style.runLine(i), " ", apiece.name(run.name)),
      h("p", {}, run.steps.length
        ? `${run.steps.length} dumps, steps ${run.steps[0]} to ${run.steps[run.steps.length - 1]}`
        : "no dumps: curves only"),
      h("dl", {}, ...Object.entries(run.facts).filter(([, v]) => v !== null && v !== undefined && v !== "")
        .map(([key, v]) => h("div", {}, h("dt", {}, key), h("dd", {}, String(v))))))));
  }

  function differences(index) {
    if (!index.differences.length) return null;
    return h("details", { class: "section", open: index.differences.length <= 8 },
      h("summary", {}, `Settings in which the runs differ (${index.differences.length})`),
      h("div", { class: "scroll" }, h("table", {},
        h("thead", {}, h("tr", {}, h("th", {}, "setting"), ...index.runs.map((run) => h("th", {}, apiece.name(run.name, 30))))),
        h("tbody", {}, ...index.differences.map(([key, ...values]) =>
          h("tr", {}, h("th", { scope: "row" }, h("code", {}, key)), ...values.map((v) => h("td", {}, apiece.name(v, 80)))))))));
  }

  function legend(main, index) {
    return h("div", { class: "legend", role: "group", "aria-label": "Runs shown" }, ...index.runs.map((run, i) => {
      const button = h("button", { type: "button", class: "chip", "aria-pressed": String(!off.has(i)) },
        apiece.style.runLine(i), " ", apiece.name(run.name, 40));
      button.addEventListener("click", () => {
        if (!off.delete(i)) off.add(i);
        button.setAttribute("aria-pressed", String(!off.has(i)));
        fade(main);
      });
      return button;
    }));
  }

  function fade(root) {
    for (const part of root.querySelectorAll(".chart [data-run]")) {
      part.classList.toggle("gone", off.has(Number(part.dataset.run)));
    }
  }

  function gaps(index) {
    const all = [...index.runs.flatMap((run) => run.gaps.map((gap) => [run.name, gap])), ...index.gaps.map((gap) => ["", gap])];
    if (!all.length) return null;
    return h("section", { class: "section gaps" }, h("h2", {}, `Gaps (${all.length})`),
      h("p", { class: "hint" }, "What could not be read is left out; the rest is shown."),
      h("ul", {}, ...all.map(([run, gap]) => h("li", {}, run ? h("b", {}, `${run}: `) : null, apiece.name(gap, 400)))));
  }

  apiece.views.overview = { draw };
})();
