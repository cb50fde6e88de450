// The outputs of a cell. Nothing of them is parsed as HTML, SVG or script in this document: text becomes text nodes,
// pictures come as blobs into <img>, where SVG runs no script and loads nothing, and HTML goes into a frame of its own
// origin. There is no sanitizer, because a list of allowed names in the page's own origin has failed others.

import { button, h, size } from "./dom.js";
import { me } from "./api.js";
import { TextView, still } from "./text.js";

/** Pictures with more pixels or bytes are shown on request only. */
const MAX_PIXELS = 50_000_000;
const MAX_PICTURE = 16 * 1024 * 1024;
const MAX_NODES = 5000;
const MAX_HEIGHT = () => 40 * innerHeight;

/** @param {any} value */
const text = (value) => (Array.isArray(value) ? value.map(String).join("") : typeof value === "string" ? value : JSON.stringify(value));

/** The HTML of each frame, and the window that got it. @type {WeakMap<HTMLIFrameElement, { html: string, sentTo: MessageEventSource | null }>} */
const frames = new WeakMap();

addEventListener("message", (event) => {
  // The frame's origin is opaque, so its window identifies it.
  const frame = [...document.querySelectorAll("iframe")].find((each) => each.contentWindow === event.source);
  const known = frame && frames.get(frame);
  if (!known || !event.source) return;
  // A window gets the HTML once: a frame that navigated itself to the document that runs scripts gets nothing. An
  // element that was moved in the page has a new window.
  if (event.data?.ready === true && known.sentTo !== event.source) {
    known.sentTo = event.source;
    /** @type {Window} */ (event.source).postMessage({ html: known.html }, "*");
  } else if (typeof event.data?.height === "number") {
    frame.dataset.shown = "yes";
    frame.height = String(Math.min(Math.max(20, Math.ceil(event.data.height)), MAX_HEIGHT()));
  }
});

/** @param {"still" | "run"} kind @param {string} html */
function frameOf(kind, html) {
  const frame = /** @type {HTMLIFrameElement} */ (h("iframe", { src: `frame/${kind}`, sandbox: "allow-scripts", title: "HTML output", height: "24", "data-kind": kind }));
  frames.set(frame, { html, sentTo: null });
  return frame;
}

/** @param {string} html */
function htmlElement(html) {
  const place = h("div", {}, frameOf("still", html));
  if (me.scripts && /<script/i.test(html)) {
    const ask = button("Run scripts", () => {
      place.querySelector("iframe")?.remove();
      place.prepend(frameOf("run", html));
      ask.remove();
    }, { title: "Runs this output's scripts in a frame without network. They could try to send what the output holds." });
    place.append(ask);
  }
  return place;
}

/** Width and height by the header of a PNG, GIF, JPEG or WebP file. null if it has none. @param {Uint8Array} data */
export function pixels(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (data.length > 24 && view.getUint32(0) === 0x89504e47) return view.getUint32(16) * view.getUint32(20);
  if (data.length > 10 && view.getUint32(0) === 0x47494638) return view.getUint16(6, true) * view.getUint16(8, true);
  if (data.length > 30 && view.getUint32(0) === 0x52494646) {
    const kind = view.getUint32(12);
    if (kind === 0x56503858) return (1 + view.getUint16(24, true) + (data[26] << 16)) * (1 + view.getUint16(27, true) + (data[29] << 16));
    if (kind === 0x56503820) return (view.getUint16(26, true) & 0x3fff) * (view.getUint16(28, true) & 0x3fff);
    if (kind === 0x5650384c) { const bits = view.getUint32(21, true); return ((bits & 0x3fff) + 1) * (((bits >> 14) & 0x3fff) + 1); }
  }
  if (data.length > 4 && view.getUint16(0) === 0xffd8) {
    for (let at = 2; at + 9 < data.length;) {
      if (data[at] !== 0xff) return null;
      const kind = data[at + 1];
      if (kind >= 0xc0 && kind <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(kind)) return view.getUint16(at + 5) * view.getUint16(at + 7);
      at += 2 + view.getUint16(at + 2);
    }
  }
  return null;
}

/** @param {string} mime @param {any} value @param {string} alt */
function picture(mime, value, alt) {
  let data;
  try {
    data = mime === "image/svg+xml" ? new TextEncoder().encode(text(value))
      : Uint8Array.from(atob(text(value).replace(/\s/g, "")), (char) => char.charCodeAt(0));
  } catch {
    return h("p", { class: "note" }, `A picture (${mime}) whose data is not base64.`);
  }
  const area = mime === "image/svg+xml" ? 0 : pixels(data);
  const make = () => {
    const url = URL.createObjectURL(new Blob([data], { type: mime }));
    const done = () => URL.revokeObjectURL(url);
    return h("img", { src: url, alt: still(alt).slice(0, 200) || `Picture (${mime})`, onload: done, onerror: done });
  };
  if (area !== null && area <= MAX_PIXELS && data.length <= MAX_PICTURE) return make();
  const ask = button(`Show a large picture (${size(data.length)}, ${area === null ? "unknown" : area.toLocaleString()} pixels)`, () => ask.replaceWith(make()));
  return ask;
}

/** @param {any} value */
function tree(value) {
  let left = MAX_NODES;
  /** @param {string} name @param {any} each @param {number} depth @returns {HTMLElement} */
  const node = (name, each, depth) => {
    left--;
    if (each === null || typeof each !== "object") return h("div", {}, name && `${name}: `, still(JSON.stringify(each) ?? ""));
    const entries = Object.entries(each);
    const inner = [];
    for (const [key, below] of entries) {
      if (left <= 0) { inner.push(h("div", { class: "note" }, "more is not shown")); break; }
      inner.push(node(still(key), below, depth + 1));
    }
    return h("details", { open: depth < 2 }, h("summary", {}, `${name} ${Array.isArray(each) ? `[${entries.length}]` : `{${entries.length}}`}`), inner);
  };
  return h("div", { class: "json" }, node("", value, 0));
}

const RASTER = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/** One MIME bundle, in the richest form that is safe. @param {Record<string, any>} data */
export function bundle(data) {
  const plain = data["text/plain"] === undefined ? "" : text(data["text/plain"]);
  if ("application/vnd.jupyter.widget-view+json" in data) {
    return h("div", {}, h("p", { class: "note" }, "An interactive widget. Open the session in JupyterLab to use it."), new TextView("result").feed(plain).element);
  }
  if (data["text/html"] !== undefined) return htmlElement(text(data["text/html"]));
  if (data["image/svg+xml"] !== undefined) return picture("image/svg+xml", data["image/svg+xml"], plain);
  const raster = RASTER.find((mime) => data[mime] !== undefined);
  if (raster) return picture(raster, data[raster], plain);
  for (const mime of ["text/markdown", "text/latex"]) if (data[mime] !== undefined) return new TextView("result").feed(text(data[mime])).element;
  if (data["application/json"] !== undefined) return tree(data["application/json"]);
  if (data["application/javascript"] !== undefined) {
    return h("div", {}, h("p", { class: "note" }, "A script, which is not run:"), new TextView("result").feed(text(data["application/javascript"])).element);
  }
  if (plain) return new TextView("result").feed(plain).element;
  return h("p", { class: "note" }, `An output of type ${still(Object.keys(data).join(", ").slice(0, 200)) || "none"}.`);
}

/** One output in nbformat's form. @param {any} output */
export function outputElement(output) {
  if (output.output_type === "stream") return new TextView(output.name === "stderr" ? "stderr" : "stdout").feed(text(output.text)).element;
  if (output.output_type === "error") {
    const lines = (output.traceback ?? []).join("\n") || `${output.ename}: ${output.evalue}`;
    return new TextView("error").feed(lines).element;
  }
  return bundle(output.data ?? {});
}
