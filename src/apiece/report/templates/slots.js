// The distributions at the four slots of a box: drawn over the bins.
"use strict";

(() => {
  const { h, svg, number } = apiece;
  const HIGH = 46;

  // A curve as page_curve() in payload.py writes it; `cells` are masses.
  function unpacked(curve) {
    if (!curve) return null;
    const [start, step, peak, digits] = curve;
    return { start, step, cells: Array.from(digits, (digit) => (parseInt(digit, 32) / 31) ** 2 * peak) };
  }

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

  apiece.slots = { unpacked, plot, mode };
})();
