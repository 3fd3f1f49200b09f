// What is known of one box: outcome, scores, what it matched or covers, and the beliefs at its four slots.
"use strict";

(() => {
  const { h, number } = apiece;
  let close = false; // distributions: whole axis, or close up

  // side: {frame, details, at, bins}; act: {pick(mark), guide(coordinate, share), redraw()}
  function draw(box, mark, side, act) {
    if (!mark) return box.replaceChildren(h("p", { class: "hint" }, "Point at a box, or tap it, to see what it is. A tap holds it through the steps."));
    const style = apiece.scene.styleOf(mark);
    const title = h("h3", {}, apiece.style.swatch(style), " ", apiece.name(mark.desc, 120));
    const lines = mark.kind === "prediction" ? ofPrediction(mark, side, act) : ofLabel(mark, side, act);
    return box.replaceChildren(
      h("div", { class: "detailhead" }, title, h("button", { type: "button", class: "quiet", "aria-label": "Let go of the box", onclick: () => act.pick(null) }, "×")),
      h("p", { class: "what" }, h("b", {}, style.word), ` · ${word(mark, side)}`, side.name ? [" · ", apiece.name(side.name, 30)] : null),
      ...lines.filter(Boolean));
  }

  function word(mark, { frame }) {
    if (mark.kind === "prediction") return `prediction ${mark.index + 1} of ${frame.predictions.length}`;
    if (mark.kind === "hidden") return "there, but not labelled";
    return mark.crowd ? "a region that counts neither way" : `label ${mark.index + 1} of ${frame.labels.length}`;
  }

  function ofPrediction(mark, side, act) {
    const { frame } = side;
    const verbs = { tp: "matched", duplicate: "finds again", fragment: "lies in", mislocalised: "nearest", wrong_class: "is really" };
    const key = apiece.scene.styleOf(mark).key;
    const target = mark.target >= 0 ? frame.labels[mark.target] : null;
    const flags = [mark.twin && "near-duplicate of an earlier one", mark.strip && "strip"].filter(Boolean);
    return [
      scores(mark, side),
      target && h("p", {}, `${verbs[key] || "speaks of"} `, jump(target, act), ` at IoU ${number(mark.iou, 2)}`),
      mark.covers.length > 0 && h("p", {}, `covers ${mark.covers.length}: `, ...mark.covers.flatMap((i) => [jump(frame.labels[i], act), " "])),
      flags.length > 0 && h("p", {}, flags.join(", ")),
      slots(mark, side, act, target),
    ];
  }

  function ofLabel(mark, side, act) {
    const { frame } = side;
    if (mark.kind !== "label" || mark.crowd) return [];
    const by = frame.predictions.filter((p) => p.target === mark.index || p.covers.includes(mark.index));
    return [
      by.length > 0 && h("p", {}, "spoken of by ", ...by.slice(0, 12).flatMap((p) => [jump(p, act), " "])),
      beliefs(mark, side),
      slots(mark, side, act, mark),
    ];
  }

  function jump(mark, act) {
    const words = mark.kind === "prediction" ? `${apiece.scene.styleOf(mark).word} ${mark.index + 1}` : `label ${mark.index + 1}`;
    return h("button", { type: "button", class: "link", onclick: () => act.pick(mark) },
      apiece.style.swatch(apiece.scene.styleOf(mark)), words);
  }

  function scores(mark, { details }) {
    const rows = details ? details.policies.map((policy, i) => [policy, details.scores[i][mark.index]]) : [];
    const shown = rows.length ? rows : [["score", mark.score]];
    return h("dl", { class: "scores" }, ...shown.map(([policy, value]) =>
      h("div", {}, h("dt", {}, apiece.name(policy.replace(/_/g, " "), 30)), h("dd", {}, number(value)))));
  }

  // Flip and chimera of the object, and where its mass goes behind a neighbour's x1, y1.
  function beliefs(mark, { details }) {
    const probes = details?.probes;
    const at = probes ? probes.objects.indexOf(mark.index) : -1;
    if (at < 0) return null;
    const signs = [probes.flip[at] && "flip: the believed x1, y1 is nearer to another instance", probes.chimera[at] && "chimera: the believed box is of two or more instances"].filter(Boolean);
    const follow = probes.follow.filter(([object]) => object === mark.index);
    return h("div", {},
      ...signs.map((text) => h("p", { class: "sign" }, text)),
      ...follow.map(([, neighbour, coordinate, near, own, elsewhere]) => h("p", {},
        `behind label ${neighbour + 1}'s x1, y1, ${apiece.index.coordinates[coordinate]} is near the neighbour's ${number(near, 2)}, its own ${number(own, 2)}, elsewhere ${number(elsewhere, 2)}`)));
  }

  function slots(mark, side, act, own) {
    const { details, frame, bins } = side;
    if (!details) return h("p", { class: "hint" }, "Loading the distributions…");
    const kept = (mark.kind === "prediction" ? details.curves : details.label_curves)[mark.index];
    if (!kept) return h("p", { class: "hint" }, "No distributions were kept for this box.");
    const written = mark.kind === "prediction" ? details.bins[mark.index] : null;
    const others = frame.labels.filter((label) => !label.crowd && label.desc === mark.desc && label !== own);
    const { unpacked } = apiece.slots;
    const toggle = h("button", { type: "button", class: "chip", "aria-pressed": String(close), onclick: () => { close = !close; act.redraw(); } }, "close up");
    const rows = apiece.index.coordinates.map((title, c) => apiece.slots.plot({
      title, bins, close, colour: apiece.scene.styleOf(mark).colour,
      sources: written ? { filled: unpacked(kept[c]) } : { filled: unpacked(kept.a1[c]), line: unpacked(kept.last[c]) },
      marks: { written: written ? written[c] : -1, own: own ? own.bins[c] : -1, others: others.map((label) => label.bins[c]) },
      note: written ? `bin ${written[c]}` : probeNote(details.probes, mark.index, c),
      read: (share) => act.guide(share === null ? null : c, share),
    }));
    const key = written
      ? "Area: belief as it wrote the box. Triangle: what it wrote. "
      : "Area: A1. Line: last pass. ";
    return h("div", { class: "slots" },
      h("div", { class: "slotshead" }, h("h4", {}, "Belief over the bins"), toggle), ...rows,
      h("p", { class: "hint" }, `${key}Blue: own coordinate. Short grey: other instances of the class. Height: square root of the mass a bin.`));
  }

  function probeNote(probes, object, coordinate) {
    if (!probes) return "";
    const i = probes.object.findIndex((o, k) => o === object && probes.coordinate[k] === coordinate);
    if (i < 0) return "";
    const pair = (key, digits) => `${number(probes.a1[key][i], digits)}→${number(probes.last[key][i], digits)}`;
    return `own ${pair("own_mass", 2)} · others ${pair("cross_instance_mass", 2)} · gap ${pair("exp_argmax_gap", 0)}`;
  }

  apiece.detail = { draw };
})();
