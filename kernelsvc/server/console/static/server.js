// The server: versions, limits, templates, and how it confines sessions on its machine.

import { h, show, table } from "./dom.js";
import { get } from "./api.js";
import { sandboxReport, shown } from "./about.js";
import { allSessions } from "./sessions.js";
import { still } from "./text.js";

/** @param {HTMLElement} main @returns {import("./main.js").Screen} */
export function serverScreen(main) {
  let closed = false;
  const place = h("div", {}, h("p", { class: "note" }, "Loading …"));
  show(main, h("div", { class: "screen" }, h("h1", {}, "Server"), place));
  (async () => {
    const [info, templates, sessions] = await Promise.all([get("/v1/info"), get("/v1/templates"), allSessions(2000)]);
    if (closed) return;
    const states = /** @type {Record<string, number>} */ ({});
    for (const each of sessions) states[each.state] = (states[each.state] ?? 0) + 1;
    show(place,
      h("h2", {}, "Sessions"), table("Sessions by state", ["state", "sessions"], Object.entries(states)),
      h("h2", {}, "Sandbox"), sandboxReport(info.sandbox),
      info.sandbox.not_enforced?.length > 0 && h("p", { class: "note" }, "Run ", h("code", {}, "kernelsvc doctor"), " on its machine: it prints the command that would enable each layer."),
      h("h2", {}, "Templates"), table("Templates", ["name", "state", "message"], templates.map((/** @type {any} */ each) => [still(each.name), still(String(each.state ?? "")), still(String(each.message ?? ""))])),
      h("h2", {}, "Limits of a session"), table("Limits", ["limit", "value"], Object.entries(info.limits).map(([name, value]) => [name, shown(value)])),
      h("h2", {}, "Versions"), table("Versions", ["part", "version"], Object.entries(info.versions).map(([name, value]) => [name, shown(value)])),
      h("h2", {}, "Key of the logs' signatures"), info.public_keys ? table("Keys", ["node", "key"], Object.entries(info.public_keys).map(([name, value]) => [name, shown(value)]))
        : h("p", {}, h("code", {}, shown(info.public_key))));
  })().catch((error) => show(place, h("p", { class: "error", role: "alert" }, error.message)));
  return { close: () => { closed = true; } };
}
