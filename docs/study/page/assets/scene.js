// A photo with boxes as data over it: what the grid shows small and the sample view large.
"use strict";

(() => {
  const { h, svg } = apiece;
  const style = () => apiece.style;

  // One step of a sample as rows. A label is `null`-free even where the step has no record.
  function frame(data, at) {
    const step = at < 0 ? null : data.steps[at];
    if (!step) return null;
    const labels = data.labels[step.l].map((row, index) => ({
      kind: "label", index, desc: data.descs[row[0]], box: row.slice(1, 5), crowd: row[5] === 1,
      fate: step.fate[index], bins: data.bins[step.l][index],
    }));
    const predictions = step.desc.map((desc, index) => ({
      kind: "prediction", index, desc: data.descs[desc], box: step.box[index], score: step.score[index],
      outcome: step.outcome[index], target: step.target[index], iou: step.iou[index], covers: [],
      twin: step.twin.includes(index), strip: step.strip.includes(index),
    }));
    for (const [index, covered] of step.covers) predictions[index].covers = covered;
    const hidden = data.hidden[step.h];
    const [gt, pred, matched, ignored, precision, recall, f1, f1True] = step.counts;
    return {
      labels, predictions, knowsHidden: hidden !== null,
      hidden: (hidden || []).map((row, index) => ({ kind: "hidden", index, desc: data.descs[row[0]], box: row.slice(1) })),
      counts: { gt, pred, matched, ignored, precision, recall, f1, f1True },
      end: step.end, closed: step.closed, dropped: step.dropped,
    };
  }

  function styleOf(mark) {
    if (mark.kind === "prediction") return style().ofPrediction(mark.outcome);
    if (mark.kind === "label") return style().ofLabel(mark);
    return style().all().hidden;
  }

  const marksOf = (frame) => [...frame.labels, ...frame.hidden, ...frame.predictions];
  const area = ([x1, y1, x2, y2]) => Math.abs(x2 - x1) * Math.abs(y2 - y1);

  function iou(a, b) {
    const w = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
    const t = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    return w > 0 && t > 0 ? (w * t) / (area(a) + area(b) - w * t) : 0;
  }

  // Whole boxes for what was predicted, corners for what is there.
  function outline(mark) {
    const [x1, y1, x2, y2] = mark.box;
    if (mark.kind === "prediction") return `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;
    const dx = (x2 - x1) * 0.28, dy = (y2 - y1) * 0.28;
    return `M${x1} ${y1 + dy}V${y1}H${x1 + dx}M${x2 - dx} ${y1}H${x2}V${y1 + dy}` +
      `M${x2} ${y2 - dy}V${y2}H${x2 - dx}M${x1 + dx} ${y2}H${x1}V${y2 - dy}`;
  }

  // One path a layer, large boxes first, so that a scene of hundreds is drawn at once.
  function paths(marks, width, rim = 2) {
    const layers = new Map();
    for (const mark of [...marks].sort((a, b) => area(b.box) - area(a.box))) {
      const look = styleOf(mark);
      if (!layers.has(look)) layers.set(look, { look, d: "", kind: mark.kind });
      layers.get(look).d += outline(mark);
    }
    const order = { hidden: 0, label: 1, prediction: 2 };
    const sorted = [...layers.values()].sort((a, b) => order[a.kind] - order[b.kind]);
    const line = (d, attributes) => svg("path", { d, fill: "none", "vector-effect": "non-scaling-stroke", ...attributes });
    return [
      ...sorted.map(({ d }) => line(d, { class: "rim", "stroke-width": width + rim })),
      ...sorted.map(({ d, look, kind }) => line(d, {
        stroke: look.colour, "stroke-width": kind === "prediction" ? width : width + 0.4,
        "stroke-dasharray": kind === "prediction" ? look.dash : "", "data-layer": look.layer || "other",
      })),
    ];
  }

  function photo(sample) {
    const [width, height] = sample.size;
    if (sample.photo) {
      return svg("image", { href: sample.photo, width, height, preserveAspectRatio: "none", class: width < 400 ? "crisp" : null });
    }
    return svg("g", { class: "nophoto" },
      svg("rect", { width, height }),
      svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle", "font-size": width / 18 }, "photo missing"));
  }

  // The same photo small, with the boxes that a filter is about.
  function thumbnail(sample, marks) {
    const [width, height] = sample.size;
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "thumb", "aria-hidden": "true" },
      photo(sample), ...paths(marks, 1.3, 1.1));
  }

  // A large scene that can be zoomed and pointed at. `on` has hover(mark, event), pick(mark), zoom(view).
  function scene(sample, label, on) {
    const [width, height] = sample.size;
    const boxes = svg("g", { class: "boxes" }), focus = svg("g", { class: "focus" }), guide = svg("g");
    const root = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "scene", tabindex: 0, role: "application",
      "aria-label": `${label}. Keys n and p go from box to box, plus and minus zoom.`,
    }, photo(sample), boxes, focus, guide);
    const self = { element: root, draw, guideAt, setView, shown: [], size: sample.size, view: [0, 0, width, height] };

    function draw(marks, chosen, related) {
      self.shown = marks;
      boxes.replaceChildren(...paths(marks, marks.length > 60 ? 1.1 : 1.6));
      boxes.classList.toggle("dim", Boolean(chosen));
      boxes.classList.toggle("many", marks.length > 30);
      focus.replaceChildren(...(chosen ? [...paths(related, 2.2), ...paths([chosen], 3), filled(chosen)] : []));
    }

    function filled(mark) {
      const [x1, y1, x2, y2] = mark.box;
      return svg("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), class: "fill", fill: styleOf(mark).colour });
    }

    // A line across the photo where a distribution is being read. share: 0 to 1 of the side.
    function guideAt(coordinate, share) {
      if (coordinate === null) return guide.replaceChildren();
      const at = share * (coordinate % 2 ? height : width);
      const ends = coordinate % 2 ? { x1: 0, x2: width, y1: at, y2: at } : { x1: at, x2: at, y1: 0, y2: height };
      const line = (cls) => svg("line", { ...ends, class: cls, "vector-effect": "non-scaling-stroke" });
      return guide.replaceChildren(line("guide rim"), line("guide"));
    }

    function setView(view) {
      self.view = view;
      root.setAttribute("viewBox", view.join(" "));
      root.classList.toggle("zoomed", view[2] < width);
    }

    apiece.point(self, on);
    return self;
  }

  // Boxes under a place, the smallest first; those whose line is near count as well.
  function under(marks, [x, y], slack) {
    const inside = marks.filter(({ box: [x1, y1, x2, y2] }) =>
      x >= x1 - slack && x <= x2 + slack && y >= y1 - slack && y <= y2 + slack);
    return inside.sort((a, b) => area(a.box) - area(b.box));
  }

  apiece.scene = { frame, marksOf, styleOf, thumbnail, scene, under, iou };
})();
