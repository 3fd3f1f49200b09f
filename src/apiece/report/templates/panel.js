// The images of the panel as a grid, at one step, with filters.
"use strict";

(() => {
  const { h, go, link, number } = apiece;
  let watcher = null;

  function wanted() {
    const { query } = apiece.route();
    return {
      run: apiece.runOf("a"), other: apiece.runOf("b"),
      outcome: query.get("outcome") || "", desc: query.get("class") || "", crowding: query.get("crowding") || "",
      sort: query.get("sort") || "panel", elsewhere: query.get("set") === "elsewhere",
    };
  }

  const triples = (flat) => Array.from({ length: flat.length / 3 }, (_, i) => flat.slice(3 * i, 3 * i + 3));

  // How many predictions or labels of a sample a filter is about; -1 where there is no record.
  function hits(row, classes, want) {
    if (!row) return -1;
    const [kind, key] = want.outcome ? want.outcome.split(".") : ["", ""];
    const styles = apiece.style.all();
    const list = kind === "l" ? styles.labels : styles.predictions;
    const wantedStyle = list.findIndex((style) => style.key === key);
    const rows = kind === "l" ? triples(row[2]) : kind === "p" ? triples(row[1]) : [...triples(row[1]), ...triples(row[2])];
    return rows.filter(([style, desc]) => (!kind || style === wantedStyle) && (!want.desc || classes[desc] === want.desc))
      .reduce((sum, [, , n]) => sum + n, 0);
  }

  function chosen(samples, grid, other, want, at) {
    const rows = grid.steps[at] || {};
    const others = other ? other.grid.steps[other.at] || {} : {};
    const filtered = Boolean(want.outcome || want.desc);
    const list = samples.map((sample, number) => ({
      sample, number, f1: rows[number] ? rows[number][0] : null, hits: hits(rows[number], grid.classes, want),
      otherF1: others[number] ? others[number][0] : null,
    })).filter(({ sample, hits: n }) =>
      sample.panel !== want.elsewhere && (sample.panel || n >= 0) && (!filtered || n > 0) &&
      (!want.crowding || apiece.index.crowding[sample.crowding] === want.crowding));
    const value = {
      panel: (one) => one.number, worst: (one) => one.f1 ?? 2, best: (one) => -(one.f1 ?? -1),
      most: (one) => -one.hits, crowded: (one) => -one.sample.objects,
      apart: (one) => -Math.abs((one.f1 ?? 0) - (one.otherF1 ?? 0)),
    }[want.sort] || ((one) => one.number);
    return list.sort((a, b) => value(a) - value(b) || a.number - b.number);
  }

  async function draw(main) {
    const { index } = apiece;
    if (watcher) watcher.disconnect();
    const want = wanted(), run = index.runs[want.run];
    const grids = await Promise.all([want.run, want.other].map((r) => (r === null ? null : apiece.load(`run${r}/grid`))));
    const step = apiece.currentStep();
    const at = apiece.stepIndex(run, step);
    const other = grids[1] && want.other !== want.run
      ? { grid: grids[1], at: apiece.stepIndex(index.runs[want.other], step) } : null;
    const list = chosen(index.samples, grids[0], other, want, at);
    const total = index.samples.filter((sample) => sample.panel !== want.elsewhere).length;
    main.replaceChildren(
      h("h1", { class: "sr" }, "Images"),
      filters(want, index, other),
      h("p", { class: "hint count", role: "status" },
        `${list.length} of ${total} images${want.elsewhere ? " outside the panel" : ""}, ${run.name}, `,
        at < 0 ? `no dump at step ${step}` : `step ${run.steps[at]}`,
        other ? `; f1 of ${run.name} | ${index.runs[want.other].name}` : ""),
      list.length ? tiles(list, want, at, other) : h("p", { class: "empty" }, "No image fits these filters at this step."));
  }

  function filters(want, index, other) {
    const styles = apiece.style.all();
    const option = (value, text, now) => h("option", { value, selected: value === now }, text);
    const select = (label, key, now, options) => h("label", { class: "field" }, h("span", {}, label),
      h("select", { "data-filter": key, onchange: (event) => go("panel", { [key]: event.target.value }) }, ...options));
    const group = (label, kind, list) => h("optgroup", { label }, ...list.map((s) => option(`${kind}.${s.key}`, s.word, want.outcome)));
    const classes = [...new Set(index.samples.flatMap((sample) => sample.classes))].sort();
    const runs = index.runs.map((run, i) => option(String(i), run.name, String(want.run)));
    return h("div", { class: "filters" },
      index.runs.length > 1 && select("run", "a", String(want.run), runs),
      select("outcome", "outcome", want.outcome, [option("", "any", want.outcome), group("predictions", "p", styles.predictions), group("labels", "l", styles.labels)]),
      select("class", "class", want.desc, [option("", "any", want.desc), ...classes.map((c) => option(c, c.slice(0, 60), want.desc))]),
      select("labels", "crowding", want.crowding, [option("", "any number", want.crowding), ...index.crowding.map((c) => option(c, c, want.crowding))]),
      select("order", "sort", want.sort, [
        option("panel", "of the panel", want.sort), option("worst", "lowest F1 first", want.sort), option("best", "highest F1 first", want.sort),
        option("most", "most of this outcome", want.sort), option("crowded", "most labels", want.sort),
        other && option("apart", "runs farthest apart", want.sort)].filter(Boolean)),
      index.samples.some((sample) => !sample.panel) && select("set", "set", want.elsewhere ? "elsewhere" : "", [
        option("", "panel", want.elsewhere ? "elsewhere" : ""), option("elsewhere", "failures elsewhere", want.elsewhere ? "elsewhere" : "")]),
      (want.outcome || want.desc || want.crowding) && h("button", { type: "button", class: "chip", onclick: () => go("panel", { outcome: null, class: null, crowding: null }) }, "clear"));
  }

  const made = new Map(); // sample number -> its tile, kept so that scrubbing never blanks a picture

  // Boxes are fetched only for what comes into sight.
  function tiles(list, want, at, other) {
    const grid = h("div", { class: "tiles" });
    watcher = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watcher.unobserve(entry.target);
        entry.target.paint();
      }
    }, { rootMargin: "300px" });
    for (const one of list) {
      if (!made.has(one.number)) made.set(one.number, tile(one.sample));
      update(made.get(one.number), one, want, at, other);
      grid.append(made.get(one.number));
    }
    return grid;
  }

  function tile(sample) {
    const picture = h("div", { class: "picture" }, apiece.scene.thumbnail(sample, []));
    picture.style.aspectRatio = `${sample.size[0]} / ${sample.size[1]}`;
    return h("a", { class: "tile", "data-id": sample.id }, picture, h("span", { class: "caption" }));
  }

  function update(element, { sample, number: n, f1, otherF1, hits: found }, want, at, other) {
    const [picture, caption] = element.children;
    const gap = at < 0 || found < 0;
    const figure = (cls, ...text) => h("span", { class: `figures ${cls}` }, ...text);
    element.classList.toggle("gap", gap);
    element.href = link("sample", { id: sample.id });
    caption.replaceChildren(
      apiece.name(sample.id, 24), figure("", `gt ${sample.objects}`),
      figure("", gap ? "no record" : `f1 ${number(f1)}`, other ? ` | ${number(otherF1)}` : ""),
      ...(want.outcome || want.desc ? [figure("hit", `×${found}`)] : []));
    picture.paint = async () => {
      if (gap || !sample.runs.includes(want.run)) return picture.replaceChildren(apiece.scene.thumbnail(sample, []));
      const value = await apiece.load(`run${want.run}/boxes_${String(n).padStart(4, "0")}`);
      const frame = apiece.scene.frame(value, at);
      return picture.replaceChildren(apiece.scene.thumbnail(sample, frame ? marks(frame, want) : []));
    };
    watcher.observe(picture);
  }

  // With a filter, only what it is about; else predictions, and the labels that were missed.
  function marks(frame, want) {
    const all = apiece.scene.marksOf(frame);
    const style = (mark) => apiece.scene.styleOf(mark).layer;
    const fits = (mark) => !want.desc || mark.desc.slice(0, 200) === want.desc;
    if (want.outcome) return all.filter((mark) => style(mark) === want.outcome && fits(mark));
    return all.filter((mark) => !apiece.layersOff().has(style(mark)) && fits(mark));
  }

  apiece.views.panel = { draw, stepped: true };
})();
