// Colours and lines, as palette.py hands them over in the index.
"use strict";

(() => {
  const { svg } = apiece;
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  let styles = null;

  const read = ([key, word, colour, dash]) => ({ key, word, colour, dash: dash[1] ? dash.join(" ") : "" });

  // Every layer of a scene: predictions first (keys 1 to 9), then labels, then what was never labelled.
  function init(given) {
    const of = (kind, list) => list.map((row) => ({ ...read(row), kind }));
    const predictions = of("prediction", given.prediction).map((style) => ({ ...style, layer: `p.${style.key}` }));
    const labels = of("label", given.label).map((style) => ({ ...style, layer: `l.${style.key}` }));
    const crowd = { ...read(given.crowd), kind: "label", layer: "crowd" };
    const hidden = { ...read(given.hidden), kind: "hidden", layer: "hidden" };
    const other = { ...read(given.other), kind: "prediction", layer: "other", word: "no outcome" };
    styles = { predictions, labels, crowd, hidden, other, runs: given.runs };
    styles.layers = [...predictions, ...labels, crowd, hidden];
  }

  const ofPrediction = (outcome) => styles.predictions[outcome] || styles.other;
  const ofLabel = (label) => (label.crowd ? styles.crowd : styles.labels[label.fate] || styles.crowd);
  const ofRun = (run) => ({
    colour: styles.runs[run % styles.runs.length],
    dash: DASHES[run % DASHES.length],
  });

  // Labels are corners, predictions whole boxes: two signs that also differ without any colour.
  function swatch(style) {
    const shape = style.kind === "prediction"
      ? { d: "M2 2H24V14H2Z" }
      : { d: "M2 5.5V2H7M19 2H24V5.5M24 10.5V14H19M7 14H2V10.5" };
    const line = { ...shape, fill: "none" };
    return svg("svg", { class: "swatch", viewBox: "0 0 26 16", width: 26, height: 16, "aria-hidden": "true" },
      svg("path", { ...line, class: "rim", "stroke-width": 4.5 }),
      svg("path", {
        ...line, stroke: style.colour, "stroke-width": 2.2,
        "stroke-dasharray": style.kind === "prediction" ? style.dash : "",
      }));
  }

  function runLine(run) {
    const { colour, dash } = ofRun(run);
    return svg("svg", { class: "swatch", viewBox: "0 0 26 8", width: 26, height: 8, "aria-hidden": "true" },
      svg("line", { x1: 1, x2: 25, y1: 4, y2: 4, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }));
  }

  apiece.style = { init, ofPrediction, ofLabel, ofRun, swatch, runLine, all: () => styles };
})();
