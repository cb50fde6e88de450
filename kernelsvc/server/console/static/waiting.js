// All that waits for a person: questions of cells, held cells, and calls that need an approval, of all sessions, the oldest
// first.

import { ago, button, h, link, show } from "./dom.js";
import { call, get, may, session } from "./api.js";
import { address, allSessions, title } from "./sessions.js";
import { codeElement, still } from "./text.js";

const REFRESH = 2000;
/** Held cells of one session that are shown at a time. */
const HELD = 20;

/** The question of the cell that waits in a session. @param {any} info */
export async function questionOf(info) {
  const page = await get(session(info.id, "/events"), { after: Math.max(0, info.last_seq - 200), limit: 500 });
  return page.events.findLast((/** @type {any} */ each) => each.type === "input_requested" && each.cell === info.input_cell)
    // Older than these events. The answer may be a password, so it is hidden.
    ?? { cell: info.input_cell, prompt: "", password: true, at: info.last_activity_at, seq: 0 };
}

/** A form that answers a question. @param {string} id of the session @param {any} event @param {(act: () => Promise<any>) => any} attempt */
export function answerForm(id, event, attempt) {
  if (!may("run")) return h("p", { class: "note" }, `Waits for input: ${still(event.prompt)}`);
  const name = `answer-${id}-${event.seq}`;
  const field = /** @type {HTMLInputElement} */ (h("input", { id: name, type: event.password ? "password" : "text", autocomplete: "off" }));
  return h("form", { class: "row", onsubmit: (/** @type {Event} */ submit) => {
    submit.preventDefault();
    attempt(() => call("POST", session(id, `/cells/${encodeURIComponent(event.cell)}/input`), { text: field.value }));
  } }, h("label", { for: name }, still(event.prompt) || "The cell asks for a line of input"), field, h("button", { type: "submit" }, "Answer"));
}

/**
 * Buttons and a reason with which a person decides.
 * @param {string} name unique in the page @param {[string, string]} labels of yes and no
 * @param {(yes: boolean, reason: string | null) => any} decide
 */
function decision(name, [yes, no], decide) {
  const reason = /** @type {HTMLInputElement} */ (h("input", { id: name, type: "text", autocomplete: "off", maxlength: 1000, placeholder: "shown to the code's client" }));
  return may("approve") && h("div", { class: "row" }, button(yes, () => decide(true, reason.value || null)),
    button(no, () => decide(false, reason.value || null), { class: "danger" }), h("label", { for: name }, "Reason"), reason);
}

/** A form that decides about a held cell. @param {string} id of the session @param {string} cell @param {(act: () => Promise<any>) => any} attempt */
export const heldForm = (id, cell, attempt) => decision(`held-${id}-${cell}`, ["Approve", "Refuse"], (yes, reason) =>
  attempt(() => call("POST", session(id, "/hold/decisions"), { cells: [cell], decision: yes ? "approve" : "refuse", reason })))
  || h("p", { class: "note" }, "Waits for a person who may approve it.");

/** @param {HTMLElement} main @returns {import("./main.js").Screen} */
export function waitingScreen(main) {
  let closed = false;
  const place = h("div", { "aria-busy": "true" }, h("p", { class: "note" }, "Loading …"));
  const fault = h("p", { class: "error", role: "alert" });
  show(main, h("div", { class: "screen" }, h("h1", {}, "Waiting for a person"), fault, place));

  /** @type {Map<string, HTMLElement>} */
  const shown = new Map();

  /** @param {() => Promise<any>} act */
  async function attempt(act) {
    fault.textContent = "";
    try { await act(); await draw(); } catch (error) { fault.textContent = /** @type {Error} */ (error).message; }
  }

  /** @param {any} info @param {any} event */
  function question(info, event) {
    return h("article", { class: "question", "aria-label": `Question in ${title(info)}` }, h("p", {}, link(title(info), address(info.id)), ` asks, ${ago(event.at)}`),
      answerForm(info.id, event, attempt));
  }

  /** @param {any} info @param {any} each */
  function approval(info, each) {
    return h("article", { class: "question", "aria-label": `Approval in ${title(info)}` }, h("p", {}, link(title(info), address(info.id)), " wants to call ", h("strong", {}, still(each.tool)), `, ${ago(each.called_at)}`),
      h("pre", { class: "code", tabindex: "0", role: "group", "aria-label": "Arguments" }, still(JSON.stringify(each.arguments, null, 1) ?? "").slice(0, 20000)),
      decision(`reason-${each.call}`, ["Approve", "Deny"], (yes, reason) => attempt(() =>
        call("POST", session(info.id, "/calls"), { calls: [each.call], decision: yes ? "approve" : "deny", reason }))));
  }

  /** @param {any} info @param {any} cell */
  function held(info, cell) {
    return h("article", { class: "question", "aria-label": `Held cell in ${title(info)}` },
      h("p", {}, still(cell.principal), " wants to run a cell in ", link(title(info), address(info.id, `c/${encodeURIComponent(cell.id)}`)), `, ${ago(cell.at)}. Held by ${still(info.hold.by)}`),
      codeElement(cell.code), heldForm(info.id, cell.id, attempt));
  }

  async function find() {
    const found = /** @type {{ at: string, key: string, make: () => HTMLElement }[]} */ ([]);
    const infos = (await allSessions(2000)).filter((info) => info.input_cell || info.approvals_pending || info.hold?.cells.length);
    await Promise.all(infos.map(async (info) => {
      if (info.input_cell) {
        const event = await questionOf(info);
        found.push({ at: event.at, key: `${info.id} ${event.seq}`, make: () => question(info, event) });
      }
      if (info.approvals_pending) {
        const page = await get(session(info.id, "/calls"), { state: "pending", limit: 100 });
        for (const each of page.calls) found.push({ at: each.called_at, key: `${info.id} ${each.call}`, make: () => approval(info, each) });
      }
      for (const id of info.hold?.cells.slice(0, HELD) ?? []) {
        const key = `${info.id} ${id}`;
        if (shown.has(key)) { found.push({ at: shown.get(key)?.dataset.at ?? "", key, make: () => h("p") }); continue; }
        const { seq, code } = await get(session(info.id, `/cells/${encodeURIComponent(id)}`));
        const [event] = (await get(session(info.id, "/events"), { after: seq.first - 1, limit: 1 })).events;
        const cell = { id, code, at: event.at, principal: event.principal };
        found.push({ at: event.at, key, make: () => held(info, cell) });
      }
    }));
    return found.sort((a, b) => a.at.localeCompare(b.at));
  }

  async function draw() {
    const found = await find();
    if (closed) return;
    place.setAttribute("aria-busy", "false");
    document.title = found.length ? `(${found.length}) waiting · kernelsvc` : "Waiting · kernelsvc";
    const keys = new Set(found.map((each) => each.key));
    for (const [key, element] of shown) if (!keys.has(key)) { element.remove(); shown.delete(key); }
    if (!found.length) { show(place, h("p", { class: "note" }, "Nothing waits for a person.")); return; }
    if (!shown.size) show(place);
    // What is there stays, with what was typed into it.
    for (const { key, at, make } of found) if (!shown.has(key)) { const made = make(); made.dataset.at = at; shown.set(key, made); place.append(made); }
  }
  const report = (/** @type {Error} */ error) => {
    if (closed) return;
    fault.textContent = error.message;
    if (!shown.size) show(place);
  };
  draw().catch(report);
  const timer = setInterval(() => { if (!document.hidden) draw().catch(report); }, REFRESH);
  return { close: () => { closed = true; clearInterval(timer); } };
}
