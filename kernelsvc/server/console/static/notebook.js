// The cells of a session, as they run. The list knows one line about each cell. Code and outputs are read for the cells
// in sight, and the outputs of running cells grow with the events.

import { announce, button, clock, duration, h, link, open, settled, show, size } from "./dom.js";
import { call, get, may, session } from "./api.js";
import { compareCells } from "./compare.js";
import { bundle, outputElement } from "./outputs.js";
import { address } from "./sessions.js";
import { TextView, codeElement, still } from "./text.js";
import { answerForm, heldForm, questionOf } from "./waiting.js";
import { WindowedList } from "./windowed.js";

/** Cells whose code and outputs are kept, and lines of the outline in the document. */
const KEPT = 200;
const OUTLINED = 300;
const PAGE = 1000;
const TEXT_PAGE = 65536;

/** The outputs of a cell that runs. */
class Live {
  /** @param {any[]} outputs those until entry `last` of the log @param {number} last */
  constructor(outputs, last) {
    this.element = h("div", { class: "outputs" }, outputs.map(outputElement));
    this.last = last;
    this.text = /** @type {{ name: string, view: TextView } | null} */ (null);
    this.clears = false;
    this.characters = 0;
    /** Text that arrived in this turn. @type {string[]} */
    this.pending = [];
  }

  /** @param {any} event */
  feed(event) {
    if (event.seq <= this.last) return;
    this.last = event.seq;
    if (event.type === "output_cleared") {
      this.clears = event.wait;
      if (!event.wait) this.clear();
      return;
    }
    if (!["stream", "display", "result", "error"].includes(event.type)) return;
    if (this.clears) this.clear();
    if (event.type === "stream") {
      this.characters += event.text.length;
      if (this.text?.name !== event.name) {
        this.flush();
        this.text = { name: event.name, view: new TextView(event.name) };
        this.element.append(this.text.view.element);
      }
      this.pending.push(event.text);
      return;
    }
    this.flush();
    this.text = null;
    this.element.append(event.type === "error" ? outputElement({ ...event, output_type: "error" }) : bundle(event.data));
    while (this.element.childElementCount > 500) this.element.firstElementChild?.remove();
  }

  /** Show the text that has arrived. One call for each turn: a cell that prints sends hundreds of events a second. */
  flush() {
    if (!this.pending.length || !this.text) return;
    const { element } = this.text.view.feed(this.pending.join(""));
    this.pending = [];
    // The newest lines stay in sight, unless somebody reads further up.
    if (!element.matches(":hover, :focus")) element.scrollTop = element.scrollHeight;
  }

  clear() {
    this.pending = [];
    this.element.replaceChildren();
    this.text = null;
    this.clears = false;
  }
}

const SIGNS = /** @type {Record<string, string>} */ ({ ok: "✓", error: "✗", running: "●", queued: "·", held: "‖" });
/** @param {any} row */
const status = (row) => (row.state === "finished" ? row.reason : row.state === "queued" && row.held ? "held" : row.state);
/** @param {any} row */
const failed = (row) => row.state === "finished" && row.reason !== "ok";

/**
 * @param {HTMLElement} body @param {import("./session.js").Shared} shared @param {string[]} rest
 * @returns {import("./main.js").Screen}
 */
export function notebookTab(body, shared, rest) {
  const { id } = shared;
  let closed = false;
  /** @type {any[]} */
  const rows = [];
  /** @type {Map<string, number>} */
  const places = new Map();
  /** @type {Map<string, any>} */
  const details = new Map();
  /** @type {Map<string, Live>} */
  const lives = new Map();
  const loading = new Set();
  const again = new Set();
  /** Questions of cells, by the cell, each with the form that a person may be filling in. @type {Map<string, any>} */
  const questions = new Map();
  const dirty = new Set();
  let list = /** @type {WindowedList | null} */ (null);
  let wanted = rest[0] ?? "";
  let runNow = /** @type {null | (() => void)} */ (null);

  const scroller = h("div", { class: "cells" });
  const filter = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": "Which cells" }, ["all", "errors", "running", "undone"].map((each) => h("option", {}, each))));
  const words = /** @type {HTMLInputElement} */ (h("input", { type: "search", "aria-label": "Filter cells", placeholder: "filter", autocomplete: "off" }));
  const outline = h("ul", { class: "outline" });
  const count = h("p", { class: "note" });
  const follow = button("Follow", () => setFollow(!list?.follow), { "aria-pressed": "false", title: "f" });
  const seq = /** @type {HTMLInputElement} */ (h("input", { type: "text", inputmode: "numeric", size: 6, "aria-label": "Number of an event or a cell", placeholder: "seq" }));
  const aside = h("aside", { "aria-label": "Outline" }, h("div", { class: "row" }, filter, words, follow,
    h("form", { onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); toSeq(Number(seq.value)); } }, seq)), outline, count);
  show(body, h("div", { class: "notebook" }, scroller, aside), runBox());

  /** @param {boolean} on */
  function setFollow(on) {
    if (!list) return;
    list.follow = on;
    follow.setAttribute("aria-pressed", String(on));
    if (on) list.toEnd();
  }

  /** @param {any} cell */
  function add(cell) {
    const known = places.get(cell.id);
    if (known !== undefined) { Object.assign(rows[known], cell); return rows[known]; }
    places.set(cell.id, rows.length);
    rows.push(cell);
    return cell;
  }

  /** Keep a cell as the server has it. @param {any} found */
  function take(found) {
    const cell = found.id;
    const place = places.get(cell);
    // The event of its end may arrive before the answer about an earlier state of it.
    if (place === undefined || closed || (rows[place].state === "finished" && found.state !== "finished")) return;
    details.delete(cell);
    details.set(cell, found);
    while (details.size > KEPT) details.delete(details.keys().next().value ?? "");
    Object.assign(rows[place], { state: found.state, reason: found.reason, execution_count: found.execution_count, last: found.seq.last });
    if (found.state === "finished") { rows[place].wall_ms = found.usage.wall_ms; lives.delete(cell); questions.delete(cell); }
    else if (!lives.has(cell)) lives.set(cell, new Live(found.outputs, found.seq.last));
  }

  /** Read the cell again. @param {string} cell */
  async function load(cell) {
    if (loading.has(cell)) { again.add(cell); return; }
    loading.add(cell);
    try {
      take(await get(session(id, `/cells/${encodeURIComponent(cell)}`)));
      list?.renew(places.get(cell) ?? -1);
    } catch (error) {
      if (!closed) {
        details.set(cell, { failure: /** @type {Error} */ (error).message });
        list?.renew(places.get(cell) ?? -1);
      }
    } finally {
      loading.delete(cell);
      // It ended while an earlier state of it was being read.
      if (again.delete(cell) && !closed) load(cell);
    }
  }

  /** Read the cells of a range of places in one request. @param {number} first @param {number} last */
  async function loadRange(first, last) {
    const asked = rows.slice(first, last + 1).map((row) => row.id);
    for (const cell of asked) loading.add(cell);
    /** @type {any[]} */
    let found = [];
    try {
      found = (await get(session(id, "/cells"), { offset: first, limit: last - first + 1 })).cells;
    } catch (error) {
      for (const cell of asked) details.set(cell, { failure: /** @type {Error} */ (error).message });
    }
    for (const cell of asked) loading.delete(cell);
    if (closed) return;
    // A page of large cells ends early. The rest is read when those are shown.
    found.forEach(take);
    list?.renew(...asked.filter((cell) => details.has(cell)).map((cell) => places.get(cell) ?? -1));
    for (const cell of asked) if (again.delete(cell)) load(cell);
    if (found.length < asked.length && details.has(asked[0])) loadShown();
  }

  const loadShown = settled(16, () => {
    const missing = [...(list?.shown.keys() ?? [])].filter((place) => rows[place] && !details.has(rows[place].id) && !loading.has(rows[place].id)).sort((a, b) => a - b);
    for (let from = 0, at = 0; at < missing.length; at++) {
      if (missing[at + 1] !== missing[at] + 1) { loadRange(missing[from], missing[at]); from = at + 1; }
    }
  });

  /** @param {number} place */
  function article(place) {
    const row = rows[place];
    const detail = details.get(row.id);
    const state = status(row);
    const number = row.execution_count ?? " ";
    const element = h("article", {
      tabindex: "0", "aria-posinset": place + 1, "aria-setsize": rows.length, class: `cell ${state}${row.undone ? " undone" : ""}`,
      "aria-label": `Cell ${place + 1}, ${state}${row.undone ? ", undone by a rollback" : ""}`, "data-cell": row.id,
    });
    element.append(h("header", {},
      link(`[${number}]`, address(id, `c/${encodeURIComponent(row.id)}`), { "aria-label": `Link to cell ${place + 1}` }),
      h("span", { class: `state ${state}` }, `${SIGNS[state] ?? "!"} ${state}`), row.undone && h("span", { class: "state" }, "undone"),
      h("span", { class: "facts" }, [duration(row.wall_ms), still(row.principal), clock(row.at), `seq ${row.first}–${row.last}`].filter(Boolean).join(" · ")),
      h("span", { class: "grow" }), compareButton(row.id), button("Copy code", () => copy(row.id), { class: "quiet" })));
    element.append(detail?.code !== undefined ? codeElement(detail.code)
      : h("pre", { class: "code", tabindex: "0", role: "group", "aria-label": "Code" }, still(row.first_line), row.lines > 1 ? `\n… ${row.lines - 1} more lines` : ""));
    const running = lives.get(row.id);
    if (running) element.append(running.element);
    else if (detail?.outputs) element.append(h("div", { class: "outputs" }, detail.outputs.map(outputElement)));
    if (detail?.failure) element.append(h("p", { class: "error" }, detail.failure, " ", button("Try again", () => { details.delete(row.id); load(row.id); })));
    if (detail?.message) element.append(h("p", { class: "note" }, still(detail.message)));
    const bytes = detail?.usage?.output_bytes ?? running?.characters ?? 0;
    if (bytes > 1000 && detail?.outputs?.some((/** @type {any} */ each) => each.output_type === "stream")) {
      element.append(button(`All of the text (${size(bytes)})`, () => fullText(row.id), { class: "quiet" }));
    }
    if (state === "held") {
      row.form ??= h("div", { class: "question" }, heldForm(id, row.id, attempt));
      element.append(row.form, button("Edit a copy", () => edit(row.id), { class: "quiet" }));
    }
    const question = questions.get(row.id);
    if (question && state === "running") element.append(question.form ??= h("div", { class: "question" }, answerForm(id, question, attempt)));
    if (!detail) loadShown();
    return element;
  }

  /** @param {() => Promise<any>} act */
  async function attempt(act) {
    try { await act(); } catch (error) { shared.banner(/** @type {Error} */ (error).message, ["Close", () => shared.banner("")]); }
  }

  /** Put the code of a cell into the box for cells by hand. @param {string} cell */
  async function edit(cell) {
    const box = /** @type {HTMLTextAreaElement | null} */ (body.querySelector("#code"));
    if (!box) return;
    box.value = (await get(session(id, `/cells/${encodeURIComponent(cell)}`))).code;
    box.dispatchEvent(new Event("input"));
    box.focus();
  }

  /** @param {string} cell */
  async function copy(cell) {
    if (!navigator.clipboard) throw new Error("The browser lets a page copy only if it came over https or from this machine. Select the code and copy it.");
    // The details of a cell that could not be read hold only the failure.
    const code = details.get(cell)?.code ?? (await get(session(id, `/cells/${encodeURIComponent(cell)}`))).code;
    await navigator.clipboard.writeText(code);
    announce("The code is copied.");
  }

  let chosen = "";
  /** The first press chooses a cell, the second one compares it with another. @param {string} cell */
  function compareButton(cell) {
    const press = async () => {
      const other = chosen;
      chosen = other ? "" : cell;
      list?.renew(...list.shown.keys());
      if (other && other !== cell) await compareCells(id, other, cell);
      else if (chosen) announce("Choose a second cell to compare with.");
    };
    return button(!chosen ? "Compare" : chosen === cell ? "Compare with …" : "Compare with this", press, { class: "quiet", "aria-pressed": String(chosen === cell) });
  }

  /** Page through all text of a cell, which the log has. @param {string} cell */
  function fullText(cell) {
    let offset = 0;
    let name = "stdout";
    const place = h("div", { class: "page" });
    const where = h("span", { class: "note", role: "status" });
    const turn = async (/** @type {number} */ to) => {
      const page = await get(session(id, `/cells/${encodeURIComponent(cell)}/output`), { name, offset: to, limit: TEXT_PAGE });
      offset = page.offset;
      show(place, new TextView(name).feed(page.text).element);
      where.textContent = page.total ? `${name}: characters ${(offset + 1).toLocaleString()} to ${(offset + page.text.length).toLocaleString()} of ${page.total.toLocaleString()}` : `${name} is empty`;
      before.toggleAttribute("disabled", offset === 0);
      after.toggleAttribute("disabled", page.next_offset === null);
      last = page.total;
    };
    let last = 0;
    const before = button("Previous", () => turn(Math.max(0, offset - TEXT_PAGE)));
    const after = button("Next", () => turn(offset + TEXT_PAGE));
    const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { class: "wide", "aria-label": "All of the text" },
      h("div", { class: "row" }, button("First", () => turn(0)), before, after, button("Last", () => turn(Math.max(0, last - TEXT_PAGE))),
        button("stdout / stderr", () => { name = name === "stdout" ? "stderr" : "stdout"; turn(0); }), where, h("span", { class: "grow" }), button("Close", () => dialog.close())), place));
    open(dialog);
    turn(0);
  }

  function runBox() {
    if (!may("run") || shared.info.state === "closed") return null;
    const code = /** @type {HTMLTextAreaElement} */ (h("textarea", { id: "code", rows: 2, spellcheck: "false", autocapitalize: "off", placeholder: "Ctrl+Enter runs it. It is recorded as yours." }));
    code.addEventListener("input", () => { code.rows = Math.min(12, Math.max(2, code.value.split("\n").length)); });
    const fault = h("p", { class: "error", role: "alert" });
    const run = async () => {
      if (!code.value.trim()) return;
      const sent = code.value;
      fault.textContent = "";
      try {
        const cell = await call("POST", session(id, "/cells?wait=queued"), { code: sent, allow_stdin: true });
        // While the session is held, the cell of the person who runs it by hand needs no second person.
        const { hold } = await shared.refresh();
        if (hold?.cells.includes(cell.id) && may("approve")) await call("POST", session(id, "/hold/decisions"), { cells: [cell.id], decision: "approve" });
        if (code.value === sent) code.value = "";
        setFollow(true);
      } catch (error) {
        fault.textContent = /** @type {Error} */ (error).message;
      }
    };
    runNow = run;
    return h("form", { class: "run", "aria-label": "Run a cell", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); run(); } },
      h("label", { for: "code" }, "Run a cell by hand"), code, h("button", { type: "submit" }, "Run"), fault);
  }

  const drawOutline = settled(60, () => {
    const text = words.value.toLowerCase();
    const kind = filter.value;
    const fits = rows.filter((row) => (!text || row.first_line.toLowerCase().includes(text)) &&
      (kind === "all" || (kind === "errors" && failed(row)) || (kind === "running" && row.state !== "finished") || (kind === "undone" && row.undone)));
    show(outline, fits.slice(-OUTLINED).map((row) => h("li", {}, h("a", { href: address(id, `c/${encodeURIComponent(row.id)}`), class: row.undone ? "undone" : "" },
      h("span", { class: `state ${status(row)}` }, SIGNS[status(row)] ?? "!"), ` ${row.execution_count ?? ""} ${still(row.first_line).slice(0, 60)}`))));
    count.textContent = `${rows.length.toLocaleString()} cells · ${rows.filter(failed).length} failed · ${rows.filter((row) => row.undone).length} undone` +
      (fits.length > OUTLINED ? ` · the last ${OUTLINED} are listed` : "");
  });
  filter.addEventListener("change", drawOutline);
  words.addEventListener("input", drawOutline);

  /** @param {string} cell */
  function jump(cell) {
    const place = places.get(cell);
    if (place === undefined || !list) return;
    setFollow(false);
    list.jump(place);
    list.shown.get(place)?.focus({ preventScroll: true });
  }

  /** @param {number} number of an event */
  function toSeq(number) {
    const found = rows.find((row) => row.last >= number);
    if (found) jump(found.id);
  }

  /** @param {any} event */
  function onEvent(event) {
    const { cell } = event;
    if (event.type === "cell_queued") {
      const lines = event.code.trim().split("\n");
      add({ id: cell, state: "queued", reason: null, execution_count: null, first_line: lines[0].slice(0, 200), lines: lines.length, at: event.at,
        principal: event.principal, wall_ms: null, undone: false, first: event.seq, last: event.seq });
      return;
    }
    if (event.type === "rolled_back") {
      for (const [ids, undone] of /** @type {[string[], boolean][]} */ ([[event.undone, true], [event.redone, false], [event.replayed, false]])) {
        for (const each of ids) { const place = places.get(each); if (place !== undefined) { rows[place].undone = undone; dirty.add(each); } }
      }
      return;
    }
    const place = cell === undefined ? undefined : places.get(cell);
    if (place === undefined) return;
    const row = rows[place];
    row.last = event.seq;
    if (event.type === "cell_held" || event.type === "cell_decided") {
      row.held = event.type === "cell_held";
      dirty.add(cell);
      if (row.held) announce(`Cell ${place + 1} waits for a person`);
    } else if (event.type === "cell_started") {
      row.state = "running";
      row.execution_count = event.execution_count ?? row.execution_count;
      lives.set(cell, new Live([], event.seq));
      dirty.add(cell);
    } else if (event.type === "cell_finished") {
      Object.assign(row, { state: "finished", reason: event.reason, wall_ms: event.usage.wall_ms, execution_count: event.execution_count ?? row.execution_count });
      questions.delete(cell);
      // The folded cell of the server replaces the outputs that grew here.
      details.delete(cell);
      if (list?.shown.has(place)) load(cell); else lives.delete(cell);
      announce(`Cell ${place + 1} ended: ${event.reason}`);
    } else if (event.type === "input_requested") {
      questions.set(cell, event);
      dirty.add(cell);
      announce(`Cell ${place + 1} asks: ${still(event.prompt)}`);
    } else if (event.type === "input_given") {
      questions.delete(cell);
      dirty.add(cell);
    } else lives.get(cell)?.feed(event);
  }

  function turn() {
    if (!list) return;
    for (const live of lives.values()) live.flush();
    const before = list.heights.count;
    if (rows.length !== before) { show(empty); list.grow(rows.length); feed(); loadShown(); }
    for (const cell of dirty) { const place = places.get(cell); if (place !== undefined) list.renew(place); }
    dirty.clear();
    if (list.follow) list.toEnd();
    drawOutline();
  }

  const empty = h("div", { class: "empty" });

  /** A feed must hold an article (WAI-ARIA 1.2), so an empty list is none. */
  function feed() {
    if (!list || !rows.length) return;
    list.space.setAttribute("role", "feed");
    list.space.setAttribute("aria-label", "Cells");
  }

  // Events that come while the cells are read. A second try reads the cells with them.
  const early = /** @type {any[]} */ ([]);
  const keep = (/** @type {any} */ event) => early.push(event);
  async function begin() {
    early.length = 0;
    shared.listeners.add(keep);
    const path = session(id, "/outline");
    const first = await get(path, { limit: PAGE });
    const pages = [];
    for (let offset = PAGE; offset < first.total; offset += PAGE) pages.push(get(path, { limit: PAGE, offset }));
    for (const page of [first, ...(await Promise.all(pages))]) page.cells.forEach(add);
    for (const cell of shared.info.hold?.cells ?? []) { const place = places.get(cell); if (place !== undefined) rows[place].held = true; }
    if (closed) return;
    shared.listeners.delete(keep);
    early.forEach(onEvent);
    shared.listeners.add(onEvent);
    shared.turns.add(turn);
    performance.mark("cells-known");
    list = new WindowedList(scroller, { count: rows.length, estimate: 96, make: article, moved: () => { loadShown(); atEnd(); } });
    feed();
    scroller.prepend(empty);
    if (!rows.length) show(empty, h("p", {}, "No cell has run yet."), h("pre", { tabindex: "0", role: "group", "aria-label": "Command" }, `echo 'print(6 * 7)' | kernelsvc run --session ${id} -`));
    if (wanted) jump(wanted);
    else setFollow(true);
    loadShown();
    drawOutline();
    performance.mark("cells-shown");
    if (shared.info.input_cell) await findQuestion(shared.info.input_cell);
  }

  /** Find the question of a cell that waited before this page was opened. @param {string} cell */
  async function findQuestion(cell) {
    questions.set(cell, await questionOf(shared.info));
    const place = places.get(cell);
    if (place !== undefined) list?.renew(place);
  }

  /** A reader who scrolls up ends the following. */
  function atEnd() {
    if (!list) return;
    const end = scroller.scrollTop + scroller.clientHeight >= list.heights.total - 40;
    if (!end && list.follow && scroller.matches(":hover, :focus-within")) setFollow(false);
  }

  /** @param {number} step */
  function move(step) {
    if (!list || !rows.length) return;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("article"));
    const from = focused ? Number(focused.dataset.index) : list.heights.at(scroller.scrollTop) - (step > 0 ? 1 : 0);
    jump(rows[Math.min(rows.length - 1, Math.max(0, from + step))].id);
  }

  /** Load the cells. What a person has typed stays if it has to be tried again. */
  function start() {
    show(scroller);
    begin().catch((error) => { if (!closed) show(scroller, h("p", { class: "error", role: "alert" }, error.message, " ", button("Try again", start))); });
  }
  start();

  return {
    close: () => { closed = true; shared.listeners.delete(keep); shared.listeners.delete(onEvent); shared.turns.delete(turn); list?.close(); },
    route: ([cell]) => { wanted = cell ?? ""; if (cell) jump(cell); return true; },
    search: () => words.focus(),
    key: (key) => {
      const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("article"));
      if (key === "j") move(1);
      else if (key === "k") move(-1);
      else if (key === "f") setFollow(!list?.follow);
      else if (key === "e") {
        const from = focused ? Number(focused.dataset.index) : -1;
        const next = rows.findIndex((row, place) => place > from && failed(row));
        const found = next >= 0 ? next : rows.findIndex(failed);
        if (found >= 0) jump(rows[found].id);
      } else if (key === "Enter" && focused && document.activeElement === focused) {
        /** @type {HTMLElement | null} */ (focused.querySelector(".outputs [tabindex], .outputs iframe, .outputs button") ?? focused.querySelector("[tabindex]"))?.focus();
      } else if (key === "Escape" && focused) focused.focus();
      else if (key === "ctrl Enter") runNow?.();
      else return false;
      return true;
    },
  };
}
