// What a session is: its limits, its confinement, and its exports.

import { button, h, show, table } from "./dom.js";
import { send, session } from "./api.js";
import { still } from "./text.js";

/** Save an answer of the server as a file of the user. @param {string} path @param {string} name */
export async function download(path, name) {
  const url = URL.createObjectURL(await (await send("GET", path)).blob());
  const made = h("a", { href: url, download: name });
  made.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A value of a table as text. @param {any} value */
export const shown = (value) => (value === null || value === undefined ? "none" : still(typeof value === "object" ? JSON.stringify(value) : String(value)));

/** The report of a sandbox. @param {any} sandbox */
export const sandboxReport = (sandbox) => h("section", { "aria-label": "Sandbox" },
  h("p", {}, `Policy ${sandbox.policy}, isolation ${sandbox.isolation}.`),
  h("h3", {}, "Enforced"), h("ul", {}, (sandbox.enforced ?? []).map((/** @type {string} */ each) => h("li", {}, each))),
  sandbox.not_enforced?.length > 0 && [h("h3", {}, "Not enforced"), table("Layers that are missing", ["layer", "why"], sandbox.not_enforced.map((/** @type {any} */ each) => [each.layer, each.why]))]);

/** @param {HTMLElement} body @param {import("./session.js").Shared} shared @returns {import("./main.js").Screen} */
export function aboutTab(body, shared) {
  const { id, info } = shared;
  const facts = ["id", "name", "template", "principal", "created_at", "last_activity_at", "expires_at", "execution_count", "last_seq", "labels", "parent", "workspace", "mounts"];
  show(body, h("div", { class: "screen" },
    h("h2", {}, "Exports"), h("div", { class: "row" }, ["ipynb", "html", "py"].map((format) => button(`Notebook (.${format})`, () => download(session(id, `/notebook?format=${format}`), `${id}.${format}`))),
      button("Log (.jsonl)", () => download(session(id, "/journal"), `${id}.jsonl`))),
    h("h2", {}, "Session"), table("Session", ["fact", "value"], facts.map((name) => [name, shown(info[name])])),
    h("h2", {}, "Limits"), table("Limits", ["limit", "value", "enforced by"], Object.entries(info.limits).map(([name, value]) => [name, shown(value), info.sandbox.limits?.[name] ?? ""])),
    h("h2", {}, "Sandbox"), sandboxReport(info.sandbox)));
  return {};
}
