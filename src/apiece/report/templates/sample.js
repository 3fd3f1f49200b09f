// One image through training: two runs side by side on one slider, layers by outcome, and what each box is.
"use strict";

(() => {
  const { h, go, link, number } = apiece;
  let sight = null; // {key, panes, ...}: kept while the same image and runs are in sight

  const padded = (n) => String(n).padStart(4, "0");

  // The images that the grid shows in this order would be nicer still; the panel's order is always known.
  function neighbours(index, at) {
    const { samples } = index, set = samples[at].panel;
    const same = samples.map((sample, i) => i).filter((i) => samples[i].panel === set);
    const place = same.indexOf(at);
    return { before: same[place - 1], after: same[place + 1], place: place + 1, total: same.length };
  }

  async function draw(main) {
    const { index } = apiece, { query } = apiece.route();
    const at = index.samples.findIndex((sample) => sample.id === query.get("id"));
    if (at < 0) {
      sight = null;
      main.replaceChildren(h("p", { class: "empty" }, "This report has no such image. ", h("a", { href: link("panel", { id: null }) }, "All images")));
      return;
    }
    const runs = [apiece.runOf("a"), apiece.runOf("b")].filter((run) => run !== null);
    const key = [at, ...runs].join();
    if (sight?.key !== key || !main.contains(sight.element)) {
      sight = await build(index, at, runs, key);
      main.replaceChildren(sight.element);
    }
    update();
  }

  async function build(index, at, runs, key) {
    const sample = index.samples[at];
    const held = sight && sight.at === at ? sight.held : null;
    const made = { key, at, sample, held, hovered: null, ...neighbours(index, at) };
    made.panes = await Promise.all(runs.map((run, i) => pane(made, run, i)));
    made.layers = h("div", { class: "layers", role: "group", "aria-label": "Layers" });
    made.detail = h("section", { class: "detail", "aria-label": "The box", "aria-live": "polite" });
    const columns = (cls, part) => h("div", { class: `${cls} count${runs.length}` }, ...made.panes.map(part));
    made.element = h("div", { class: "sample" }, bar(made),
      h("div", { class: "left" }, columns("panes", (one) => one.element), made.layers, columns("mores", (one) => one.more)),
      h("aside", { class: "side" }, made.detail));
    return made;
  }

  function bar({ sample, before, after, place, total }) {
    const to = (i, sign, label) => h("a", {
      class: "quiet", "aria-label": label, href: i === undefined ? null : link("sample", { id: apiece.index.samples[i].id }),
      "aria-disabled": i === undefined ? "true" : null,
    }, sign);
    const zoom = (label, sign, act) => h("button", { type: "button", class: "quiet", "aria-label": label, onclick: act }, sign);
    return h("div", { class: "bar" },
      to(before, "‹", "Image before"), h("h1", {}, apiece.name(sample.id, 40)), to(after, "›", "Image after"),
      h("span", { class: "hint" }, `${place} of ${total}${sample.panel ? "" : ", outside the panel"} · ${sample.objects} labels · ${sample.size.join(" × ")}`),
      h("span", { class: "spring" }),
      zoom("Zoom out", "−", () => zoomAll(1.5)), zoom("Whole photo", "⤢", () => setView(null)), zoom("Zoom in", "+", () => zoomAll(1 / 1.5)));
  }

  async function pane(made, run, side) {
    const { index } = apiece, { sample } = made;
    const has = sample.runs.includes(run);
    const data = has ? await apiece.load(`run${run}/boxes_${padded(made.at)}`) : null;
    const one = { run, side, sample, data, frame: null, at: -1, details: null, name: index.runs[run].name, bins: index.runs[run].num_bins };
    one.tip = h("div", { class: "tip", hidden: true });
    one.scene = apiece.scene.scene(sample, `${sample.id}, run ${one.name}`, {
      hover: (mark, event) => hover(one, mark, event), pick: (mark) => hold(one, mark), zoom: setView,
    });
    one.head = h("p", { class: "counts" });
    one.notes = h("p", { class: "gapnote", role: "status" });
    one.parts = apiece.extras.make(one, {
      pick: (mark) => hold(one, mark),
      open: () => {
        one.wanted = true;
        fetchDetails(one);
      },
    });
    const frame = h("div", { class: "frame" }, one.scene.element, one.tip, one.notes);
    frame.style.aspectRatio = `${sample.size[0]} / ${sample.size[1]}`;
    one.element = h("section", { class: "pane", "aria-label": `Run ${one.name}` },
      h("div", { class: "panehead" }, picker(one, side), one.head), frame);
    one.more = h("section", { class: "more", "aria-label": `More of run ${one.name}` },
      h("h3", {}, apiece.style.runLine(run), " ", apiece.name(one.name, 40)), ...one.parts.map((part) => part.details));
    one.scene.element.addEventListener("keydown", (event) => walk(one, event));
    return one;
  }

  function picker(one, side) {
    const { runs } = apiece.index;
    const key = side ? "b" : "a";
    const options = runs.map((run, i) => h("option", { value: i, selected: i === one.run, disabled: !run.steps.length }, run.name));
    if (side) options.push(h("option", { value: "none" }, "(one run only)"));
    return h("label", { class: "run" }, apiece.style.runLine(one.run),
      h("select", { "aria-label": side ? "Run on the right" : "Run on the left", "data-filter": key, onchange: (event) => go("sample", { [key]: event.target.value }) }, ...options));
  }

  // ----- one step -----

  function update() {
    const step = apiece.currentStep();
    for (const one of sight.panes) {
      const run = apiece.index.runs[one.run];
      const at = apiece.stepIndex(run, step);
      const old = one.frame;
      one.at = at;
      one.frame = one.data && apiece.scene.frame(one.data, at);
      if (one.loaded) useDetails(one);
      one.head.replaceChildren(...head(one, run, step));
      one.notes.textContent = note(one, run, step, at);
      if (sight.held?.pane === one && old !== one.frame) sight.held = follow(sight.held, one);
    }
    for (const one of sight.panes) if (sight.held?.pane === one || one.wanted) fetchDetails(one);
    paint();
  }

  function note(one, run, step, at) {
    if (!one.data) return "not among the images of this run";
    if (at < 0) return `no dump yet at step ${step}`;
    return one.frame ? "" : `no record of this image at step ${run.steps[at]}`;
  }

  function head(one, run, step) {
    if (!one.frame) return [];
    const c = one.frame.counts, actual = run.steps[one.at];
    const figure = (name, value) => [`${name} `, h("b", {}, value), "  "];
    return [
      ...figure("gt", c.gt), ...figure("pred", c.pred), ...figure("matched", c.matched), ...(c.ignored ? figure("ignored", c.ignored) : []),
      ...figure("p", number(c.precision)), ...figure("r", number(c.recall)), ...figure("f1", number(c.f1)),
      ...(c.f1True === null ? [] : figure("true f1", number(c.f1True))),
      actual === step ? "" : h("span", { class: "late" }, `dump of step ${actual}`),
    ];
  }

  // A label stays itself from step to step; a prediction is followed to the one that lies where it lay.
  function follow(held, one) {
    if (!one.frame) return null;
    const { mark } = held;
    if (mark.kind !== "prediction") {
      const list = mark.kind === "label" ? one.frame.labels : one.frame.hidden;
      return list[mark.index] ? { pane: one, mark: list[mark.index] } : null;
    }
    const near = one.frame.predictions.filter((p) => p.desc === mark.desc)
      .map((p) => ({ p, iou: apiece.scene.iou(p.box, mark.box) })).sort((a, b) => b.iou - a.iou)[0];
    return near && near.iou >= 0.5 ? { pane: one, mark: near.p } : null;
  }

  function paint() {
    const off = apiece.layersOff();
    for (const one of sight.panes) {
      const all = one.frame ? apiece.scene.marksOf(one.frame) : [];
      const shown = all.filter((mark) => !off.has(apiece.scene.styleOf(mark).layer));
      const mark = sight.held ? twin(sight.held, one) : null;
      one.scene.draw(shown, mark, mark && one.frame ? related(mark, one.frame) : []);
      for (const part of one.parts) part.update();
    }
    drawLayers(off);
    drawDetail();
  }

  // The held box in its own pane; in the other, the same label.
  function twin({ pane: own, mark }, one) {
    if (own === one) return mark;
    const other = mark.kind === "label" && one.frame ? one.frame.labels[mark.index] : null;
    return other && other.desc === mark.desc && other.box.join() === mark.box.join() ? other : null;
  }

  function related(mark, frame) {
    if (mark.kind === "prediction") return [mark.target, ...mark.covers].filter((i) => i >= 0).map((i) => frame.labels[i]);
    return mark.kind === "label" ? frame.predictions.filter((p) => p.target === mark.index || p.covers.includes(mark.index)) : [];
  }

  function drawDetail() {
    const now = sight.held || sight.hovered;
    sight.element.classList.toggle("held", Boolean(sight.held));
    apiece.detail.draw(sight.detail, now?.mark, now?.pane || {}, {
      pick: (mark) => hold(now.pane, mark), redraw: drawDetail,
      guide: (coordinate, share) => now.pane.scene.guideAt(coordinate, share),
    });
  }

  function drawLayers(off) {
    const counts = sight.panes.map(({ frame }) => {
      const found = new Map();
      for (const mark of frame ? apiece.scene.marksOf(frame) : []) {
        const { layer } = apiece.scene.styleOf(mark);
        found.set(layer, (found.get(layer) || 0) + 1);
      }
      return found;
    });
    apiece.layerList(sight.layers, off, counts);
  }

  // ----- pointing and holding -----

  function hover(one, mark, event) {
    one.tip.hidden = !mark;
    if (mark) {
      const box = one.scene.element.getBoundingClientRect();
      one.tip.replaceChildren(apiece.style.swatch(apiece.scene.styleOf(mark)), apiece.name(mark.desc, 40),
        h("span", {}, apiece.scene.styleOf(mark).word), mark.kind === "prediction" ? h("b", {}, number(mark.score, 2)) : "");
      one.tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - 150)}px`;
      one.tip.style.top = `${event.clientY - box.top + 18}px`;
    }
    one.scene.element.classList.toggle("pointing", Boolean(mark));
    if (!mark || sight.held || sight.hovered?.mark === mark) return;
    sight.hovered = { pane: one, mark }; // stays until the next one: what was read does not vanish
    fetchDetails(one);
    drawDetail();
  }

  function hold(one, mark) {
    sight.held = mark ? { pane: one, mark } : null;
    sight.hovered = null;
    if (mark) fetchDetails(one);
    paint();
  }

  async function fetchDetails(one) {
    if (one.loaded || one.loading || !one.data) return;
    one.loading = true;
    one.loaded = await apiece.load(`run${one.run}/details_${padded(sight.at)}`);
    useDetails(one);
    if (sight.panes.includes(one)) paint();
  }

  function useDetails(one) {
    one.details = one.loaded.steps[one.at] || null;
  }

  // ----- zoom and keys -----

  function setView(view) {
    for (const one of sight.panes) one.scene.setView(view || [0, 0, ...sight.sample.size]);
  }
  const zoomAll = (factor) => setView(apiece.zoomed(sight.panes[0].scene, factor));

  function walk(one, event) {
    if (!["n", "p"].includes(event.key) || !one.scene.shown.length) return;
    const list = [...one.scene.shown].sort((a, b) => (a.kind === b.kind ? a.index - b.index : a.kind < b.kind ? 1 : -1));
    const at = sight.held?.pane === one ? list.indexOf(sight.held.mark) : -1;
    const next = (at + (event.key === "n" ? 1 : at < 0 ? 0 : -1) + list.length) % list.length;
    hold(one, list[next]);
    event.preventDefault();
  }

  function key(event) {
    if (!sight) return false;
    const to = { ArrowUp: sight.before, k: sight.before, ArrowDown: sight.after, j: sight.after };
    if (event.key in to) {
      if (to[event.key] !== undefined) go("sample", { id: apiece.index.samples[to[event.key]].id }, { quiet: false });
    } else if (event.key === "Escape") hold(sight.panes[0], null);
    else if (event.key === "+" || event.key === "=") zoomAll(1 / 1.5);
    else if (event.key === "-") zoomAll(1.5);
    else if (event.key === "0") setView(null);
    else return apiece.layerKey(event);
    return true;
  }

  apiece.views.sample = { draw, key, stepped: true };
})();
