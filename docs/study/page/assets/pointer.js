// Pointing at boxes and zooming a scene: mouse, touch with one finger or two, and keys.
"use strict";

(() => {
  const MOST = 12; // times as large

  function place(scene, event) {
    const box = scene.element.getBoundingClientRect();
    const [x, y, w, h] = scene.view;
    const scale = Math.max(w / box.width, h / box.height);
    const left = (box.width - w / scale) / 2, top = (box.height - h / scale) / 2;
    return [x + (event.clientX - box.left - left) * scale, y + (event.clientY - box.top - top) * scale, scale];
  }

  // The view that shows `factor` times less, with the place under the pointer kept where it is.
  function zoomed(scene, factor, [px, py]) {
    const [width, height] = scene.size, [x, y, w] = scene.view;
    const wide = Math.min(Math.max(w * factor, width / MOST), width);
    const high = (wide * height) / width;
    return clamped(scene, [px - ((px - x) / w) * wide, py - ((py - y) / w) * wide, wide, high]);
  }

  function clamped(scene, [x, y, w, h]) {
    const [width, height] = scene.size;
    return [Math.min(Math.max(x, 0), width - w), Math.min(Math.max(y, 0), height - h), w, h];
  }

  function centre(scene) {
    const [x, y, w, h] = scene.view;
    return [x + w / 2, y + h / 2];
  }

  apiece.point = (scene, on) => {
    const root = scene.element, fingers = new Map();
    let start = null, last = { found: [], index: 0 };

    // Tapping the same crowd again takes the next box under the finger.
    function pick(event) {
      const [x, y, scale] = place(scene, event);
      const found = apiece.scene.under(scene.shown, [x, y], 4 * scale);
      const same = found.length === last.found.length && found.every((mark, i) => mark === last.found[i]);
      last = { found, index: same ? last.index + 1 : 0 };
      on.pick(last.index < found.length ? found[last.index] : null);
      if (last.index >= found.length) last = { found: [], index: 0 };
    }

    function drag(event) {
      const before = fingers.get(event.pointerId);
      fingers.set(event.pointerId, event);
      const [x, y, scale] = place(scene, event);
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()];
        const other = a.pointerId === event.pointerId ? b : a;
        const spread = (p, q) => Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY) || 1;
        on.zoom(zoomed(scene, spread(before, other) / spread(event, other), [x, y]));
      } else if (scene.view[2] < scene.size[0]) {
        const [vx, vy, w, h] = scene.view;
        const dx = (event.clientX - before.clientX) * scale, dy = (event.clientY - before.clientY) * scale;
        on.zoom(clamped(scene, [vx - dx, vy - dy, w, h]));
      }
    }

    root.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      start = fingers.size === 1 ? event : null;
    });
    root.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) return drag(event);
      const [x, y, scale] = place(scene, event);
      return on.hover(apiece.scene.under(scene.shown, [x, y], 3 * scale)[0] || null, event);
    });
    root.addEventListener("pointerup", (event) => {
      const still = start && Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) < 6;
      fingers.delete(event.pointerId);
      start = null;
      if (still) pick(event);
    });
    for (const gone of ["pointercancel", "pointerleave"]) {
      root.addEventListener(gone, (event) => {
        fingers.delete(event.pointerId);
        on.hover(null, event);
      });
    }
    // A wheel alone scrolls the page; with Ctrl, as pinching on a touchpad, it zooms.
    root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      on.zoom(zoomed(scene, event.deltaY > 0 ? 1.2 : 1 / 1.2, place(scene, event)));
    }, { passive: false });
  };

  apiece.zoomed = (scene, factor) => zoomed(scene, factor, centre(scene));
})();
