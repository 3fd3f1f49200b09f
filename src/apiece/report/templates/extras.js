// Under a photo: the boxes as a list, beliefs at the labels' slots, the answer itself, and the files.
"use strict";

(() => {
  const { h, number } = apiece;

  // A part is made once and filled while it is open, so that a step never closes it or takes the focus from it.
  function fold(one, act, title, content) {
    const summary = h("summary"), body = h("div");
    const details = h("details", {}, summary, body);
    const part = {
      details,
      update() {
        summary.textContent = typeof title === "string" ? title : title(one);
        if (!details.open) return;
        body.replaceChildren(...(one.frame ? content(one, act).filter(Boolean) : [h("p", { class: "hint" }, "Nothing at this step.")]));
      },
    };
    details.addEventListener("toggle", () => {
      part.update();
      if (details.open) act.open();
    });
    return part;
  }

  const table = (heads, rows) => h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col", title: head[1] || null }, head[0])))), h("tbody", {}, ...rows)));

  function boxes(one, act) {
    const row = (p) => h("tr", {},
      h("td", {}, p.index + 1),
      h("td", {}, h("button", { type: "button", class: "link", onclick: () => act.pick(p) }, apiece.style.swatch(apiece.scene.styleOf(p)), apiece.name(p.desc, 24))),
      h("td", {}, apiece.scene.styleOf(p).word), h("td", { class: "num" }, number(p.score, 2)), h("td", { class: "num" }, p.target >= 0 ? number(p.iou, 2) : ""));
    return [table([["#", "as written"], ["name"], ["outcome"], ["score"], ["IoU", "with the label it speaks of"]], one.frame.predictions.map(row))];
  }

  // One row a label: the worst of its four slots, which is what spoils a box.
  function beliefs(one, act) {
    const probes = one.details?.probes;
    if (!one.details) return [h("p", { class: "hint" }, "Loading…")];
    if (!probes) return [h("p", { class: "hint" }, "No probes were run at this step.")];
    const worst = (pass, key, object, pick) => {
      const values = probes.object.map((o, i) => (o === object ? probes[pass][key][i] : null)).filter((v) => v !== null);
      return values.length ? pick(...values) : null;
    };
    const row = (object, i) => {
      const label = one.frame.labels[object];
      const cell = (key, pick, digits) => h("td", { class: "num" }, `${number(worst("a1", key, object, pick), digits)} → ${number(worst("last", key, object, pick), digits)}`);
      return label && h("tr", {},
        h("td", {}, h("button", { type: "button", class: "link", onclick: () => act.pick(label) }, apiece.style.swatch(apiece.scene.styleOf(label)), `${object + 1} `, apiece.name(label.desc, 18))),
        cell("own_mass", Math.min, 2), cell("cross_instance_mass", Math.max, 2), cell("exp_argmax_gap", Math.max, 0), cell("entropy", Math.max, 1),
        h("td", {}, [probes.flip[i] && "flip", probes.chimera[i] && "chimera"].filter(Boolean).join(", ")));
    };
    return [h("p", { class: "hint" }, "Of each label's four slots the worst; A1 → last pass."),
      table([["label"], ["own", "least mass at its own coordinate"], ["others", "most mass at another instance's coordinate"], ["gap", "farthest from expectation to mode, bins"], ["entropy", "highest, nats"], ["", ""]],
        probes.objects.map(row).filter(Boolean))];
  }

  function answer(one) {
    const { frame, details } = one;
    const dropped = frame.dropped.map(([reason, n]) => `${n} ${reason.replace(/_/g, " ")}`).join(", ");
    return [
      h("p", {}, `ended by ${frame.end.replace(/_/g, " ")}, ${frame.closed ? "closed" : "never closed"}${dropped ? `; dropped: ${dropped}` : ""}`),
      details ? h("pre", { class: "answer", dir: "auto", tabindex: 0 }, details.text) : h("p", { class: "hint" }, "Loading…"),
    ];
  }

  // Links to the run's own files work from disk, as long as report and run stay where they are.
  function files(one) {
    const run = apiece.index.runs[one.run], { details } = one;
    if (!details) return [h("p", { class: "hint" }, "Loading…")];
    const folder = `${run.path}/dumps/step_${String(run.steps[one.at]).padStart(6, "0")}`;
    const records = one.sample.panel ? "records.jsonl" : "elsewhere.jsonl";
    const item = (file, text) => h("li", {}, location.protocol === "file:"
      ? h("a", { href: file.split("/").map(encodeURIComponent).join("/") }, text) : h("code", {}, text));
    return [h("ul", {},
      item(`${folder}/${records}`, `${folder}/${records}, line ${details.line}`),
      details.picture ? item(`${folder}/${details.picture}`, `${folder}/${details.picture}`) : null,
      item(`${folder}/protocol.json`, `${folder}/protocol.json`)),
    location.protocol === "file:" ? null : h("p", { class: "hint" }, "Beside the report's folder; links work when it is opened from disk.")];
  }

  function make(one, act) {
    return [
      fold(one, act, ({ frame }) => `Boxes as written (${frame ? frame.predictions.length : 0})`, boxes),
      fold(one, act, "Beliefs at the labels", beliefs),
      fold(one, act, "Answer", answer),
      fold(one, act, "Files", files),
    ];
  }

  apiece.extras = { make };
})();
