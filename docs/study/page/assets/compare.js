// The comparison of two runs: every figure with its difference, interval and verdict.
"use strict";

(() => {
  const { h, svg, link, number } = apiece;
  const SIGNS = { better: "▲", worse: "▼", higher: "↑", lower: "↓", same: "=" };

  const finite = (value) => typeof value === "number" && Number.isFinite(value);

  // Zero in the middle, the ends are the larger of both values: so rows of any size can be held against each other.
  function interval(row) {
    const most = Math.max(Math.abs(row.a), Math.abs(row.b));
    if (![row.difference, row.lo, row.hi, most].every(finite) || !most) return "";
    const x = (v) => 60 + (Math.min(Math.max(v / most, -1), 1)) * 56;
    return svg("svg", { viewBox: "0 0 120 14", class: `interval ${kind(row)}`, role: "img", "aria-label": `from ${number(row.lo)} to ${number(row.hi)}` },
      svg("line", { x1: 60, x2: 60, y1: 0, y2: 14, class: "zero" }),
      svg("line", { x1: x(row.lo), x2: Math.max(x(row.hi), x(row.lo) + 0.5), y1: 7, y2: 7, class: "bar" }),
      svg("circle", { cx: x(row.difference), cy: 7, r: 3 }));
  }

  const kind = (row) => (["better", "worse"].includes(row.verdict) ? row.verdict : ["higher", "lower"].includes(row.verdict) ? "told" : "unsure");
  const group = (row) => row.group || String(row.key).split("/")[0];
  const nothing = (row) => row.a === 0 && row.b === 0;

  function line(row) {
    const sign = (value) => (finite(value) && value > 0 ? "+" : "");
    const verdict = row.verdict || "";
    const more = finite(row.more_images) ? `${row.more_images} more images would tell` : "";
    return h("tr", {},
      h("th", { scope: "row", title: row.key }, apiece.name(String(row.label || row.key), 60)),
      h("td", { class: "num" }, number(row.a)), h("td", { class: "num" }, number(row.b)),
      h("td", { class: "num" }, sign(row.difference), number(row.difference)),
      h("td", { class: "num wide" }, finite(row.lo) ? `${sign(row.lo)}${number(row.lo)} … ${sign(row.hi)}${number(row.hi)}` : ""),
      h("td", { class: "wide" }, interval(row)),
      h("td", { class: `verdict ${kind(row)}` }, SIGNS[verdict] ? `${SIGNS[verdict]} ` : "", verdict, more ? h("span", { class: "hint" }, more) : null));
  }

  function rows(comparison) {
    const groups = new Map();
    for (const row of (comparison.rows || []).filter((one) => !nothing(one))) {
      if (!groups.has(group(row))) groups.set(group(row), []);
      groups.get(group(row)).push(row);
    }
    return [...groups].map(([name, list]) =>
      h("tbody", {}, h("tr", { class: "group" }, h("th", { colspan: 7, scope: "rowgroup" }, name)), ...list.map(line)));
  }

  function nameOf(run) {
    return apiece.name(typeof run === "string" ? run : String(run?.name ?? JSON.stringify(run)), 40);
  }

  function changed(list) {
    const known = new Set(apiece.index.samples.map((sample) => sample.id));
    const item = ({ id, difference }) => h("li", {},
      known.has(String(id)) ? h("a", { href: link("sample", { id }) }, apiece.name(String(id), 40)) : apiece.name(String(id), 40),
      h("span", { class: "num" }, ` ${difference > 0 ? "+" : ""}${number(difference)}`));
    const by = (sign) => list.filter((one) => sign * one.difference > 0).sort((a, b) => sign * (b.difference - a.difference)).slice(0, 20);
    const column = (title, found) => h("div", {}, h("h3", {}, title), found.length ? h("ol", {}, ...found.map(item)) : h("p", { class: "hint" }, "none"));
    return h("section", { class: "section changed" }, h("h2", {}, "Images that changed most"), h("div", { class: "columns" }, column("Higher F1 in B", by(1)), column("Lower F1 in B", by(-1))));
  }

  // Keys that no other part shows, as they are.
  function rest(comparison) {
    const shown = new Set(["runs", "rows", "changed", "schema", "a", "b", "remarks", "pairs"]);
    const left = Object.entries(comparison).filter(([key]) => !shown.has(key));
    const text = (value) => (typeof value === "object" ? JSON.stringify(value, null, 1) : String(value));
    return left.length ? h("details", { class: "section" }, h("summary", {}, "How it was compared"),
      ...left.map(([key, value]) => h("div", {}, h("h3", {}, apiece.name(key, 60)), h("pre", { class: "answer" }, text(value))))) : null;
  }

  // The steps that were compared, when the runs say them.
  function steps(comparison, arm) {
    const found = new Set((comparison.runs || []).filter((run) => run?.arm === arm && Number.isInteger(run.step)).map((run) => run.step));
    return found.size ? h("span", { class: "hint" }, ` step ${[...found].join(", ")}`) : "";
  }

  function one(comparison) {
    const [first, second] = comparison.runs || [];
    const a = comparison.a ?? first, b = comparison.b ?? second;
    const zeros = (comparison.rows || []).filter(nothing).length;
    const head = (text, cls) => h("th", { class: cls || "" }, text);
    return [
      h("h2", { class: "versus" }, "B ", nameOf(b), steps(comparison, b), h("span", { class: "hint" }, " against "), "A ", nameOf(a), steps(comparison, a)),
      h("div", { class: "scroll" }, h("table", { class: "comparison" },
        h("thead", {}, h("tr", {}, head(""), head("A", "num"), head("B", "num"), head("B − A", "num"), head("interval", "num wide"), head("", "wide"), head("verdict"))),
        ...rows(comparison))),
      zeros ? h("p", { class: "hint" }, `Figures that are 0 in both are left out: ${zeros}.`) : null,
      comparison.remarks?.length ? h("ul", { class: "hint" }, ...comparison.remarks.map((text) => h("li", {}, apiece.name(String(text), 600)))) : null,
      comparison.changed?.length ? changed(comparison.changed) : null,
      rest(comparison),
    ].filter(Boolean);
  }

  async function draw(main) {
    const { comparison, comparison_note: note, runs } = apiece.index;
    if (!comparison) {
      main.replaceChildren(h("h1", { class: "sr" }, "Compare"), h("div", { class: "empty" },
        h("p", {}, note || (runs.length > 1 ? "This report was written without a comparison." : "One run: nothing to compare it with.")),
        h("p", { class: "hint" }, "Runs are compared on identical images, with intervals: ", h("code", {}, "apiece report RUN_A RUN_B --out DIR"))));
      return;
    }
    main.replaceChildren(
      h("h1", {}, "Comparison"),
      h("p", { class: "hint" }, "Paired on identical images. The bar is the interval of the difference, from −100 % to +100 % of the larger value; where it crosses zero, this many images cannot tell."),
      ...(comparison.pairs || [comparison]).flatMap(one));
  }

  apiece.views.compare = { draw };
})();
