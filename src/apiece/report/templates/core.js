// Loading data files, making elements, and where the reader is. Text is only ever set as text, never as HTML.
"use strict";

window.apiece = (() => {
  const arrived = new Map(); // name -> base64 of a script that has run
  const promised = new Map(); // name -> promise of the value

  // Called by every data file.
  const put = (name, text) => arrived.set(name, text);

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  // Data by name, once; a page from disk may load scripts but nothing else.
  function load(name) {
    if (!promised.has(name)) {
      promised.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => {
          const text = arrived.get(name);
          arrived.delete(name);
          script.remove();
          if (text) unpack(text).then(resolve, reject);
          else reject(new Error(`data/${name}.js holds no data`));
        };
        script.onerror = () => reject(new Error(`data/${name}.js is missing`));
        document.head.append(script);
      }));
    }
    return promised.get(name);
  }

  function fill(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // A name from the model: isolated, so that right-to-left text cannot turn what stands around it.
  function name(text, most = 60) {
    const letters = [...text];
    const shown = letters.length > most ? `${letters.slice(0, most).join("")}…` : text;
    return h("bdi", { class: "name", title: text.length > most ? text.slice(0, 500) : null }, shown || "(empty)");
  }

  // .167, 1.0, 21.3: as the pictures have it; a dash for what is not known.
  function number(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (digits > 2 && size < 10 ** -digits) return value.toExponential(1);
    const text = value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : digits);
    return text.replace(/^(-?)0\./, "$1.");
  }

  // The hash is the whole state, so that a link leads to the same sight.
  function route() {
    const [view, query] = location.hash.replace(/^#\/?/, "").split("?");
    return { view: view || "overview", query: new URLSearchParams(query || "") };
  }

  function link(view, changes) {
    const query = new URLSearchParams(route().query);
    for (const [key, value] of Object.entries(changes || {})) {
      if (value === null || value === undefined || value === "") query.delete(key);
      else query.set(key, value);
    }
    const text = query.toString();
    return `#/${view}${text ? `?${text}` : ""}`;
  }

  // Small steps (a slider, a filter) replace the entry of the history; going to another sight adds one.
  function go(view, changes, { quiet = true } = {}) {
    const target = link(view, changes);
    if (target === location.hash) return;
    if (quiet) {
      history.replaceState(null, "", target);
      window.dispatchEvent(new Event("moved"));
    } else {
      location.hash = target;
    }
  }

  return { put, load, h, svg, name, number, route, link, go, views: {}, index: null };
})();
