// The family of a session: its parent, its branches, and its checkpoints, with what a rollback would undo.

import { button, clock, h, link, open, show, size, table } from "./dom.js";
import { call, get, may, session } from "./api.js";
import { compareSessions } from "./compare.js";
import { address, allSessions, title } from "./sessions.js";
import { still } from "./text.js";

/** @param {HTMLElement} body @param {import("./session.js").Shared} shared @returns {import("./main.js").Screen} */
export function treeTab(body, shared) {
  const { id } = shared;
  let closed = false;
  const place = h("div", { class: "screen" }, h("p", { class: "note" }, "Loading …"));
  show(body, place);

  /** All sessions of the family, as a tree below its oldest member. @param {any[]} all */
  function family(all) {
    const byId = new Map(all.map((info) => [info.id, info]));
    let root = byId.get(id) ?? shared.info;
    const seen = new Set();
    while (root.parent?.session && byId.has(root.parent.session) && !seen.has(root.id)) { seen.add(root.id); root = byId.get(root.parent.session); }
    /** @type {(info: any, depth: number) => HTMLElement} */
    const below = (/** @type {any} */ info, /** @type {number} */ depth) => {
      const children = depth < 40 ? all.filter((each) => each.parent?.session === info.id) : [];
      return h("li", {}, link(title(info), address(info.id, "tree"), { "aria-current": info.id === id ? "true" : null }), " ",
        h("span", { class: `state ${info.state}` }, info.state), h("span", { class: "facts" }, ` ${info.parent ? `branched at entry ${info.parent.seq} · ` : ""}${info.execution_count} cells`),
        info.id !== id && [" ", button("Compare", () => compareSessions(shared.info, info), { class: "quiet", "aria-label": `Compare with ${title(info)}` })],
        children.length > 0 && h("ul", {}, children.reverse().map((each) => below(each, depth + 1))));
    };
    return h("ul", { class: "family" }, below(root, 0));
  }

  /** Ask before an action, with what it does. @param {string} heading @param {(string | Node)[]} text @param {() => Promise<any>} act */
  function confirmed(heading, text, act) {
    const fault = h("p", { class: "error", role: "alert" });
    const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-labelledby": "confirm" }, h("h1", { id: "confirm" }, heading), ...text, fault,
      h("p", {}, button(heading, async () => {
        try { await act(); dialog.close(); await shared.refresh(); await draw(); } catch (error) { fault.textContent = /** @type {Error} */ (error).message; }
      }), " ", button("Cancel", () => dialog.close()))));
    open(dialog);
  }

  async function draw() {
    const [cells, all] = await Promise.all([allCells(), allSessions(2000)]);
    if (closed) return;
    const { info } = shared;
    const order = new Map(cells.map((cell, at) => [cell.id, at]));
    const acts = may("run") && info.state !== "closed";
    const after = (/** @type {any} */ point) => cells.slice(point.after_cell === null ? 0 : (order.get(point.after_cell) ?? -1) + 1).filter((cell) => !cell.undone);
    const list = (/** @type {any[]} */ found) => h("ul", {}, found.slice(0, 30).map((cell) => h("li", {}, `[${cell.execution_count ?? " "}] ${still(cell.first_line)}`)), found.length > 30 && h("li", {}, `and ${found.length - 30} more`));
    const rollback = (/** @type {any} */ point) => confirmed("Roll back", [
      h("p", {}, after(point).length ? "The variables will be those before these cells:" : "No cell is undone."), list(after(point)),
      h("p", { class: "note" }, "The log keeps them, marked as undone. Files, databases, and what went over the network are not undone.")],
    () => call("POST", session(id, "/rollback"), { to: point.id }));
    const branch = (/** @type {any} */ point) => confirmed("Branch here", [h("p", {}, `A new session with the variables ${point ? "of this checkpoint" : "as they are now"} and a copy of the files.`)],
      async () => { const [made] = await call("POST", session(id, "/branches"), point ? { at: point.id } : {}); location.hash = address(made.id); });
    show(place, h("h2", {}, "Sessions of this family"), family(all), all.length >= 2000 && h("p", { class: "note" }, "Only the newest 2,000 sessions were looked at."),
      h("h2", {}, "Checkpoints"),
      acts && h("div", { class: "row" }, button("Make a checkpoint", () => confirmed("Make a checkpoint", [h("p", {}, "It keeps the present variables in memory, as a fork of the kernel.")], () => call("POST", session(id, "/checkpoints"), {}))),
        button("Branch from now", () => branch(null))),
      info.checkpoints.length ? table("Checkpoints", ["checkpoint", "after cell", "memory", "undoes", "actions"], [...info.checkpoints].reverse().map((/** @type {any} */ point) => [
        still(point.name ?? (point.auto ? "automatic" : point.id)), point.after_cell === null ? "the start" : `[${cells[order.get(point.after_cell) ?? -1]?.execution_count ?? "?"}]`,
        point.private_bytes === null ? "" : size(point.private_bytes), `${after(point).length} cells`,
        acts ? [button("Roll back", () => rollback(point)), " ", button("Branch", () => branch(point)), " ", button("Drop", () => confirmed("Drop", [h("p", {}, "The session can't return to it any more.")],
          () => call("DELETE", session(id, `/checkpoints/${encodeURIComponent(point.id)}`))))] : "",
      ])) : h("p", { class: "note" }, "None now."),
      h("h2", {}, "Cells"), h("ol", { class: "dots" }, cells.slice(-200).map((cell) => h("li", { class: cell.undone ? "undone" : "" },
        link(`[${cell.execution_count ?? " "}] ${still(cell.first_line).slice(0, 70)}`, address(id, `c/${encodeURIComponent(cell.id)}`)),
        h("span", { class: "facts" }, ` ${clock(cell.at)}${cell.undone ? " · undone" : ""}`),
        info.checkpoints.filter((/** @type {any} */ point) => point.after_cell === cell.id).map((/** @type {any} */ point) => h("span", { class: "state idle" }, ` ◆ ${still(point.name ?? "checkpoint")}`))))));
  }

  async function allCells() {
    const found = [];
    for (;;) {
      const page = await get(session(id, "/outline"), { offset: found.length });
      found.push(...page.cells);
      if (!page.cells.length || found.length >= page.total) return found;
    }
  }

  const onEvent = (/** @type {any} */ event) => { if (/^(rolled_back|branched|checkpoint_|cell_finished)/.test(event.type)) setTimeout(() => { if (!closed && !document.querySelector("dialog[open]")) shared.refresh().then(draw).catch(() => {}); }, 300); };
  shared.listeners.add(onEvent);
  draw().catch((error) => show(place, h("p", { class: "error", role: "alert" }, error.message)));
  return { close: () => { closed = true; shared.listeners.delete(onEvent); } };
}
