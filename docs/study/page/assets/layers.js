// Layers of a scene: a list of switches with counts, which is the legend at the same time.
"use strict";

(() => {
  const { h } = apiece;

  function toggled(off, layers, on) {
    const next = new Set(off);
    for (const layer of layers) {
      if (on) next.delete(layer);
      else next.add(layer);
    }
    return next;
  }

  function only(layer) {
    return new Set(apiece.style.all().layers.map((style) => style.layer).filter((other) => other !== layer));
  }

  // counts: one map a pane, layer -> boxes.
  function list(box, off, counts) {
    const { predictions, labels, crowd, hidden } = apiece.style.all();
    const row = (style, key) => {
      const button = h("button", {
        type: "button", class: "layer", "aria-pressed": String(!off.has(style.layer)), "data-layer-key": style.layer,
        title: "click: on or off; double click: only these",
      }, apiece.style.swatch(style), h("span", { class: "word" }, style.word),
      key ? h("kbd", {}, key) : null,
      ...counts.map((found, i) => h("span", { class: `n n${i}` }, found.get(style.layer) || "·")));
      button.addEventListener("click", () => apiece.setLayersOff(toggled(off, [style.layer], off.has(style.layer))));
      button.addEventListener("dblclick", () => apiece.setLayersOff(only(style.layer)));
      return button;
    };
    const group = (title, rows) => h("div", { class: "layergroup" }, h("h3", {}, title), h("div", { class: "layerrows" }, ...rows));
    box.replaceChildren(
      group("Predictions", predictions.map((style, i) => row(style, String(i + 1)))),
      group("Labels", [...labels.map((style) => row(style, null)), row(crowd, null), row(hidden, "h")]));
  }

  function key(event) {
    const { predictions, labels, crowd, layers } = apiece.style.all();
    const off = apiece.layersOff();
    const digit = /^Digit([1-9])$/.exec(event.code || "");
    const style = digit && predictions[Number(digit[1]) - 1];
    if (style && event.shiftKey) apiece.setLayersOff(only(style.layer));
    else if (style) apiece.setLayersOff(toggled(off, [style.layer], off.has(style.layer)));
    else if (event.key === "h") apiece.setLayersOff(toggled(off, ["hidden"], off.has("hidden")));
    else if (event.key === "l") {
      const all = [...labels, crowd].map((one) => one.layer);
      apiece.setLayersOff(toggled(off, all, all.every((layer) => off.has(layer))));
    } else if (event.key === "a") {
      const all = layers.map((one) => one.layer);
      apiece.setLayersOff(off.size ? toggled(off, all, true) : toggled(new Set(), ["l.matched", "hidden", "crowd"], false));
    } else return false;
    return true;
  }

  apiece.layerList = list;
  apiece.layerKey = key;
})();
