// The distributions at the four slots of a box: unpacked from the blob and drawn over the bins.
"use strict";

(() => {
  const { h, svg, number } = apiece;
  const HEAD = 7, LEVELS = 31; // as in payload.py
  const HIGH = 46;

  // All curves of the blob in order; `cells` are masses.
  function unpackBlob(blob, counts) {
    const view = new DataView(blob);
    let at = 0;
    return counts.map((count) => {
      const heads = Array.from({ length: count }, (_, i) => ({
        start: view.getUint16(at + i * HEAD, true), step: view.getUint16(at + i * HEAD + 2, true),
        length: view.getUint8(at + i * HEAD + 4), peak: view.getUint16(at + i * HEAD + 5, true) / 65535,
      }));
      at += count * HEAD;
      return heads.map(({ start, step, length, peak }) => {
        const levels = new Uint8Array(blob, at, length);
        at += length;
        return length ? { start, step, cells: Array.from(levels, (v) => (v / LEVELS) ** 2 * peak) } : null;
      });
    });
  }

  // Curves by box: {predictions: [[4]|null], labels: [{a1: [4], last: [4]}|null]} for every step.
  function curves({ value, blob }) {
    const count = (step) => (step ? 4 * sum(step.curves) + 8 * sum(step.label_curves) : 0);
    const lists = unpackBlob(blob, value.steps.map(count));
    return value.steps.map((step, i) => {
      if (!step) return null;
      let at = 0;
      const four = () => lists[i].slice(at, (at += 4));
      return {
        predictions: step.curves.map((has) => (has ? four() : null)),
        labels: step.label_curves.map((has) => (has ? { a1: four(), last: four() } : null)),
      };
    });
  }

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const end = (curve) => curve.start + curve.step * curve.cells.length;

  function domain(sources, marks, bins, close) {
    const found = sources.filter(Boolean);
    if (!close || !found.length) return [0, bins];
    // What holds nearly all of the mass, and the coordinates that are marked.
    const points = [...found.flatMap((c) => [c.start, end(c)]), ...marks];
    const low = Math.min(...points), high = Math.max(...points);
    const slack = Math.max((high - low) * 0.06, (40 - (high - low)) / 2, 2);
    return [Math.max(low - slack, 0), Math.min(high + slack, bins)];
  }

  // Steps as high as the square root of the mass a bin, so that a second mode beside a sharp one can be seen.
  function area(curve, x, most) {
    let d = `M${x(curve.start)} ${HIGH}`;
    curve.cells.forEach((mass, i) => {
      const y = (HIGH - (HIGH - 6) * Math.sqrt(mass / curve.step / most)).toFixed(1);
      d += `V${y}H${x(curve.start + (i + 1) * curve.step).toFixed(1)}`;
    });
    return `${d}V${HIGH}`;
  }

  function massAt(curve, bin) {
    if (!curve) return null;
    const i = Math.floor((bin - curve.start) / curve.step);
    return i >= 0 && i < curve.cells.length ? curve.cells[i] / curve.step : 0;
  }

  // sources: {filled, line}; marks: {written, own, others}; read(share or null) moves the line on the photo.
  function plot({ title, bins, sources, marks, close, colour, note, read }) {
    const wide = 300;
    const ends = domain([sources.filled, sources.line], [marks.written, marks.own].filter((v) => v >= 0), bins, close);
    const x = (bin) => ((bin - ends[0]) / (ends[1] - ends[0])) * wide;
    const both = [sources.filled, sources.line].filter(Boolean);
    const most = Math.max(1e-9, ...both.flatMap((c) => c.cells.map((mass) => mass / c.step)));
    const tick = (bin, from, cls, to = HIGH) => svg("line", { x1: x(bin + 0.5), x2: x(bin + 0.5), y1: from, y2: to, class: cls });
    const picture = svg("svg", {
      viewBox: `0 0 ${wide} ${HIGH + 6}`, preserveAspectRatio: "none", class: "slot", role: "img",
      "aria-label": `${title}: ${both.length ? `mode at bin ${mode(sources.line || sources.filled)}` : "no distribution kept"}`,
    },
    svg("line", { x1: 0, x2: wide, y1: HIGH, y2: HIGH, class: "base" }),
    sources.filled && svg("path", { d: area(sources.filled, x, most), class: "mass" }),
    sources.line && svg("path", { d: area(sources.line, x, most), class: "mass2" }),
    ...marks.others.map((bin) => tick(bin, HIGH - 9, "theirs", HIGH + 6)),
    marks.own >= 0 && tick(marks.own, 2, "own", HIGH + 6),
    marks.written >= 0 && svg("path", { d: `M${x(marks.written + 0.5) - 4} 0h8l-4 6z`, fill: colour, class: "written" }));
    const value = h("span", { class: "value" }, note);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const bin = Math.floor(ends[0] + ((event.clientX - box.left) / box.width) * (ends[1] - ends[0]));
      const masses = both.map((c) => number(massAt(c, bin))).join(" | ");
      value.textContent = `bin ${bin}: ${masses}`;
      read((bin + 0.5) / bins);
    });
    picture.addEventListener("pointerleave", () => {
      value.textContent = note;
      read(null);
    });
    return h("div", { class: "slotrow" }, h("div", { class: "slothead" }, h("b", {}, title), value), picture);
  }

  function mode(curve) {
    const best = curve.cells.indexOf(Math.max(...curve.cells));
    return Math.round(curve.start + (best + 0.5) * curve.step - 0.5);
  }

  apiece.slots = { curves, plot, mode };
})();
