// What a session has used over its life, with its limits.

import { h, show, size, table } from "./dom.js";
import { get, session } from "./api.js";

const WIDTH = 900;
const HEIGHT = 120;
const SVG = "http://www.w3.org/2000/svg";

/** @param {string} tag @param {Record<string, string | number>} attributes */
function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/** @param {string} name @param {[number, number][]} points time and value @param {(value: number) => string} format @param {number | null} [limit] */
function chart(name, points, format, limit = null) {
  const from = points[0]?.[0] ?? 0;
  const span = Math.max(1, (points.at(-1)?.[0] ?? 0) - from);
  const most = Math.max(1e-9, ...points.map(([, value]) => value), limit !== null && limit < 2 * Math.max(...points.map(([, value]) => value)) ? limit : 0);
  const now = points.at(-1)?.[1] ?? 0;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name}: now ${format(now)}, at most ${format(Math.max(...points.map(([, value]) => value)))}`, class: "chart", preserveAspectRatio: "none" });
  const line = points.map(([at, value]) => `${((at - from) / span) * WIDTH},${HEIGHT - (value / most) * (HEIGHT - 8)}`);
  picture.append(svg("polyline", { points: line.length > 1 ? line.join(" ") : `0,${line[0]?.split(",")[1]} ${WIDTH},${line[0]?.split(",")[1]}`, class: "line" }));
  if (limit !== null && limit <= most) picture.append(svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - (limit / most) * (HEIGHT - 8), y2: HEIGHT - (limit / most) * (HEIGHT - 8), class: "limit" }));
  return h("section", { "aria-label": name }, h("h2", {}, name), h("p", { class: "note" }, `now ${format(now)}${limit === null ? "" : ` · limit ${format(limit)}`}`), picture);
}

/** @param {HTMLElement} body @param {import("./session.js").Shared} shared @returns {import("./main.js").Screen} */
export function resourcesTab(body, shared) {
  const { id } = shared;
  let closed = false;
  const place = h("div", { class: "screen" }, h("p", { class: "note" }, "Loading …"));
  show(body, place);

  async function draw() {
    const samples = await get(session(id, "/usage"));
    if (closed) return;
    if (!samples.length) {
      show(place, h("p", { class: "note" }, "No sample yet. The server takes one every few seconds while the session has a kernel."));
      return;
    }
    const { info } = shared;
    const cpu = samples.map((/** @type {any} */ each, /** @type {number} */ at) => [each.at, at ? Math.max(0, each.cpu_seconds - samples[at - 1].cpu_seconds) / Math.max(0.5, each.at - samples[at - 1].at) : 0]);
    show(place,
      chart("Memory", samples.map((/** @type {any} */ each) => [each.at, each.memory_bytes]), size, info.limits.memory_bytes),
      chart("Processor", cpu, (value) => `${value.toFixed(2)} cores`, info.limits.cpu_cores),
      chart("Disk", samples.map((/** @type {any} */ each) => [each.at, each.disk_bytes]), size, info.limits.disk_bytes),
      h("h2", {}, "Samples"), h("details", {}, h("summary", {}, `${samples.length} samples as a table`), table("Samples", ["time", "memory", "processor", "disk"], samples.map((/** @type {any} */ each) => [
        new Date(each.at * 1000).toLocaleTimeString(), size(each.memory_bytes), `${each.cpu_seconds.toFixed(2)} s`, size(each.disk_bytes)]))),
      h("p", { class: "note" }, `${info.queued} cells are queued. ${info.usage.processes ?? 0} processes run.`));
  }
  const report = (/** @type {Error} */ error) => { if (!closed) show(place, h("p", { class: "error", role: "alert" }, error.message)); };
  draw().catch(report);
  const timer = setInterval(() => { if (!document.hidden && !place.querySelector("details[open]")) draw().catch(report); }, 3000);
  return { close: () => { closed = true; clearInterval(timer); } };
}
