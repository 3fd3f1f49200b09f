// Which sight is shown, the step that all sights share, keys, dark and light.
"use strict";

(() => {
  const { h, go, route } = apiece;
  const main = document.getElementById("main");
  const DEFAULT_OFF = ["l.matched", "hidden", "crowd"];
  let drawing = 0, playing = null;

  const KEYS = [
    ["← →", "step back, step on (also with the slider)"], ["Home End", "first step, last step"],
    ["↑ ↓ or k j", "image before, image after"], ["space", "play the steps"],
    ["1 … 9", "predictions of an outcome, on or off, in the order of the list (with Shift: only those)"],
    ["l", "labels, on or off"], ["h", "what is there but not labelled"], ["a", "everything on, or back to errors"],
    ["n p", "next box, previous box, on the photo in focus"], ["Esc", "let go of the box"],
    ["+ − 0", "zoom in, out, whole photo (also Ctrl and wheel; drag to move)"],
    ["o i c", "overview, images, compare"], ["d", "dark or light"], ["?", "this list"],
  ];

  // ----- what several sights share -----

  apiece.layersOff = () => {
    const { query } = route();
    return new Set(query.has("off") ? query.get("off").split(",").filter(Boolean) : DEFAULT_OFF);
  };
  apiece.setLayersOff = (off) => {
    const usual = off.size === DEFAULT_OFF.length && DEFAULT_OFF.every((layer) => off.has(layer));
    go(route().view, { off: usual ? null : [...off].join(",") || "," });
  };
  // Run of a side: `b` may be none.
  apiece.runOf = (side) => {
    const { query } = route(), { runs } = apiece.index;
    const given = query.get(side);
    const shown = runs.map((_, i) => i).filter((i) => runs[i].steps.length);
    if (given !== null && runs[Number(given)]) return Number(given);
    if (side === "a") return shown[0];
    return given === "none" || shown.length < 2 ? null : shown.find((i) => i !== apiece.runOf("a")) ?? null;
  };
  // Steps of the slider: all at which one of the runs in sight was dumped.
  apiece.steps = () => {
    const runs = [apiece.runOf("a"), apiece.runOf("b")].filter((run) => run !== null);
    return [...new Set(runs.flatMap((run) => apiece.index.runs[run].steps))].sort((a, b) => a - b);
  };
  apiece.nearestStep = (steps, step) =>
    (step === null ? steps[steps.length - 1] : steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a)));
  // The dump of a run that is shown at a step: that one, else the last before it.
  apiece.stepIndex = (run, step) => run.steps.filter((s) => s <= step).length - 1;
  apiece.currentStep = () => {
    const { query } = route();
    return apiece.nearestStep(apiece.steps(), query.has("step") ? Number(query.get("step")) : null);
  };

  // The slider stands outside of the sights, so that redrawing one never takes it from the hand.
  const dock = document.getElementById("dock");
  let docked = null; // {steps, range, out}

  function showSlider(wanted) {
    const steps = wanted ? apiece.steps() : [];
    dock.hidden = steps.length === 0;
    if (!steps.length) return;
    if (docked?.steps.join() !== steps.join()) docked = makeSlider(steps);
    docked.range.value = steps.indexOf(apiece.currentStep());
    say(docked);
  }

  function say({ steps, range, out }) {
    const text = `step ${steps[Number(range.value)]}`;
    out.textContent = text;
    range.setAttribute("aria-valuetext", text);
  }

  function makeSlider(steps) {
    const range = h("input", {
      type: "range", min: 0, max: steps.length - 1, id: "step", "aria-label": "Training step",
      oninput: () => {
        say(docked);
        go(route().view, { step: steps[Number(range.value)] });
      },
    });
    const out = h("output", { for: "step" });
    const button = (label, sign, act, cls) =>
      h("button", { type: "button", class: `quiet ${cls || ""}`, "aria-label": label, onclick: act }, sign);
    dock.replaceChildren(
      button("Step back", "‹", () => setStep(Number(range.value) - 1)),
      button("Play the steps", "▶", play, "play"),
      button("Step on", "›", () => setStep(Number(range.value) + 1)),
      h("span", { class: "end", "aria-hidden": "true" }, steps[0]), range,
      h("span", { class: "end", "aria-hidden": "true" }, steps[steps.length - 1]), out);
    return { steps, range, out };
  }

  function play() {
    const button = dock.querySelector(".play");
    if (playing || !button) {
      clearInterval(playing);
      playing = null;
      if (button) button.textContent = "▶";
      return;
    }
    const range = () => document.getElementById("step");
    if (Number(range().value) >= Number(range().max)) setStep(0);
    playing = setInterval(() => {
      const now = range();
      if (!now || Number(now.value) >= Number(now.max)) play();
      else setStep(Number(now.value) + 1);
    }, 350);
    button.textContent = "❚❚";
  }

  function setStep(at) {
    const range = document.getElementById("step");
    if (!range) return;
    range.value = at;
    range.dispatchEvent(new Event("input"));
  }

  // ----- routing -----

  async function show(jumped) {
    const turn = ++drawing;
    const { view } = route();
    const chosen = apiece.views[view] ? view : "overview";
    for (const tab of document.querySelectorAll("#tabs a")) {
      const here = tab.dataset.view === chosen || (chosen === "sample" && tab.dataset.view === "panel");
      if (here) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
      tab.setAttribute("href", apiece.link(tab.dataset.view, {}));
    }
    document.body.dataset.view = chosen;
    const stay = jumped ? null : focusKey();
    try {
      await apiece.views[chosen].draw(main, { jumped });
    } catch (error) {
      if (turn === drawing) main.replaceChildren(h("p", { class: "empty" }, `This sight cannot be shown: ${error.message}`));
      console.warn(error);
      return;
    }
    if (turn !== drawing) return;
    showSlider(Boolean(apiece.views[chosen].stepped));
    if (jumped) window.scrollTo(0, 0);
    else if (stay) document.querySelector(stay)?.focus({ preventScroll: true });
  }

  // Redrawing must not take the focus from the control that is being used.
  function focusKey() {
    const active = document.activeElement;
    if (active?.id) return `#${CSS.escape(active.id)}`;
    if (active?.dataset?.filter) return `[data-filter="${CSS.escape(active.dataset.filter)}"]`;
    return active?.dataset?.layerKey ? `[data-layer-key="${CSS.escape(active.dataset.layerKey)}"]` : null;
  }

  // ----- keys -----

  function onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const tag = event.target.tagName;
    if (["SELECT", "TEXTAREA"].includes(tag) || (tag === "INPUT" && event.target.type !== "range")) return;
    if ([" ", "Enter"].includes(event.key) && ["BUTTON", "SUMMARY", "A"].includes(tag)) return;
    if (document.getElementById("keys").open) return;
    const range = document.getElementById("step");
    const view = apiece.views[route().view];
    const used = view?.key?.(event) || simple(event, range);
    if (used) event.preventDefault();
  }

  function simple({ key }, range) {
    const at = range ? Number(range.value) : 0;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: Number(range?.max) };
    if (range && key in moves) setStep(moves[key]);
    else if (range && key === " ") play();
    else if (key === "?") openHelp();
    else if (key === "d") turn();
    else if ("oic".includes(key)) go({ o: "overview", i: "panel", c: "compare" }[key], {}, { quiet: false });
    else return false;
    return true;
  }

  // ----- dark and light, help -----

  function turn() {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("apiece-theme", document.documentElement.dataset.theme);
    } catch {
      // A page from disk may be refused storage; then the choice lasts as long as the page.
    }
  }

  function openHelp() {
    const dialog = document.getElementById("keys");
    const { predictions, labels, crowd, hidden } = apiece.style.all();
    const sign = (style) => h("li", {}, apiece.style.swatch(style), style.layer.startsWith("l.") ? " label: " : " ", style.word);
    dialog.replaceChildren(
      h("h2", {}, "Keys"), h("dl", { class: "keys" }, ...KEYS.flatMap(([keys, what]) => [h("dt", {}, keys), h("dd", {}, what)])),
      h("h2", {}, "Signs"), h("p", { class: "hint" }, "Predictions are whole boxes, labels are corners in the colour of what became of them."),
      h("ul", { class: "signs" }, ...predictions.map(sign), ...labels.map(sign), sign(crowd), sign(hidden)),
      h("button", { type: "button", class: "chip", onclick: () => dialog.close() }, "Close"));
    dialog.showModal();
  }

  async function start() {
    try {
      const kept = localStorage.getItem("apiece-theme");
      if (kept) document.documentElement.dataset.theme = kept;
    } catch {
      // as above
    }
    apiece.index = await apiece.load("index");
    apiece.style.init(apiece.index.styles);
    document.getElementById("theme").addEventListener("click", turn);
    document.getElementById("help").addEventListener("click", openHelp);
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", () => show(true));
    window.addEventListener("moved", () => show(false));
    await show(true);
  }

  start().catch((error) => main.replaceChildren(h("p", { class: "empty" }, `The report cannot be read: ${error.message}`)));
})();
