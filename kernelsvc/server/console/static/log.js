// Every event of a session, with its place in the chain, and the verification of the whole log in this page.

import { button, clock, h, settled, show } from "./dom.js";
import { get, send, session } from "./api.js";
import { download } from "./about.js";
import { still } from "./text.js";
import { verifyLog } from "./verify.js";
import { WindowedList } from "./windowed.js";

/** Events that are read at once, and characters of one that a row shows. */
const PAGE = 500;
const SHORT = 160;
const LONG = 200_000;

/** Whether an event is of a type, a cell or a principal. @param {any} event @param {string} wanted */
const fits = (event, wanted) => event.type.includes(wanted) || [event.cell, event.principal, event.by].includes(wanted);

/** What an event says, in one line. @param {any} event */
function summary(event) {
  const { type, session: _, seq, at, prev, cell, frame, ...rest } = event;
  return still(event.text ?? event.code ?? event.message ?? JSON.stringify(rest)).replaceAll("\n", " ↵ ").slice(0, SHORT);
}

/** @param {HTMLElement} body @param {import("./session.js").Shared} shared @returns {import("./main.js").Screen} */
export function logTab(body, shared) {
  const { id } = shared;
  let closed = false;
  /** Events by their place: seq - 1. Those that were not read are missing. @type {any[]} */
  const events = [];
  const reading = new Set();
  let list = /** @type {WindowedList | null} */ (null);
  const open = new Set();

  const scroller = h("div", { class: "cells log" });
  const seq = /** @type {HTMLInputElement} */ (h("input", { id: "seq", type: "text", inputmode: "numeric", size: 8 }));
  const kind = /** @type {HTMLInputElement} */ (h("input", { id: "kind", type: "search", placeholder: "cell_finished", autocomplete: "off" }));
  const count = h("span", { class: "note" });
  const verdict = h("div", { class: "verdict", role: "status" });
  const key = /** @type {HTMLInputElement} */ (h("input", { id: "key", type: "text", size: 34, spellcheck: "false", autocomplete: "off" }));
  const head = /** @type {HTMLInputElement} */ (h("input", { id: "head", type: "text", size: 20, spellcheck: "false", autocomplete: "off" }));
  show(body,
    h("div", { class: "row" }, h("label", { for: "seq" }, "Go to"), seq, h("label", { for: "kind" }, "Type, cell or principal"), kind, count, h("span", { class: "grow" }),
      button("Save the log", () => download(session(id, "/journal"), `${id}.jsonl`))),
    h("form", { class: "row", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); verify(); } },
      h("label", { for: "key" }, "Public key"), key, h("label", { for: "head" }, "A digest that you know"), head, h("button", { type: "submit" }, "Verify in this page")),
    verdict, scroller);
  get("/v1/info").then((info) => {
    // A front answers for all nodes, each with a key of its own. The id of a session begins with its node's name.
    const node = /^s_(\w{6})\w{16}$/.exec(id)?.[1] ?? "";
    key.value ||= info.public_keys?.[node] ?? info.public_key ?? "";
  }).catch(() => {});

  async function verify() {
    const began = performance.now();
    show(verdict, "Reading the log …");
    if (!crypto.subtle) {
      show(verdict, h("p", { class: "error" }, "This page was not loaded over https or from this machine, so the browser has no WebCrypto. Save the log and run ", h("code", {}, "kernelsvc verify"), "."));
      return;
    }
    try {
      const answer = await send("GET", session(id, "/journal"));
      const found = await verifyLog(/** @type {ReadableStream<Uint8Array>} */ (answer.body), { key: key.value.trim(), head: head.value.trim(),
        onProgress: (done) => { verdict.textContent = `${done.toLocaleString()} entries checked …`; } });
      const names = { verified: "Verified", not_proven: "No fault was found, and it is not proven", not_as_written: "Not as it was written" };
      show(verdict, h("p", {}, h("strong", { class: `state ${found.result === "verified" ? "ok" : found.result === "not_proven" ? "interrupted" : "error"}` }, names[found.result]), ` ${found.message}`),
        found.fault && h("p", {}, "Digest of the entry before: ", h("code", {}, found.fault.wanted || "none"), ". It names: ", h("code", {}, still(String(found.fault.found || "none")).slice(0, 80)), "."),
        found.fault && button(`Go to entry ${found.fault.seq}`, () => list?.jump(/** @type {any} */ (found.fault).seq - 1)),
        h("p", { class: "note" }, "Head: ", h("code", {}, found.head), `, checked in ${((performance.now() - began) / 1000).toFixed(2)} s. The key above comes from this server. Compare it with one that you know.`));
    } catch (error) {
      show(verdict, h("p", { class: "error", role: "alert" }, /** @type {Error} */ (error).message));
    }
  }

  /** Read the page of events around a place. @param {number} place */
  async function read(place) {
    const start = Math.floor(place / PAGE) * PAGE;
    if (reading.has(start)) return;
    reading.add(start);
    try {
      let after = start;
      while (after < start + PAGE && after < shared.info.last_seq) {
        const page = await get(session(id, "/events"), { after, limit: start + PAGE - after });
        if (!page.events.length) break;
        for (const event of page.events) events[event.seq - 1] = event;
        after = page.next_after;
      }
    } finally {
      reading.delete(start);
    }
    if (closed || !list) return;
    for (const each of list.shown.keys()) if (each >= start && each < start + PAGE) list.renew(each);
  }

  const readShown = settled(40, () => {
    for (const place of list?.shown.keys() ?? []) if (!events[place]) { read(place); break; }
  });

  /** @param {number} place */
  function row(place) {
    const event = events[place];
    if (!event) { readShown(); return h("div", { class: "event" }, `${place + 1} …`); }
    const wanted = kind.value.trim();
    const element = h("details", { class: `event${wanted && !fits(event, wanted) ? " other" : ""}`, open: open.has(place) },
      h("summary", {}, h("span", { class: "seq" }, event.seq), h("span", { class: "facts" }, clock(event.at)), h("strong", {}, event.type), h("span", { class: "text" }, summary(event))));
    element.addEventListener("toggle", () => {
      if (/** @type {HTMLDetailsElement} */ (element).open) open.add(place); else open.delete(place);
      if (/** @type {HTMLDetailsElement} */ (element).open && element.childElementCount === 1) element.append(raw(event));
    });
    if (open.has(place)) element.append(raw(event));
    return element;
  }

  /** @param {any} event */
  const raw = (event) => h("pre", { class: "code", tabindex: "0", role: "group", "aria-label": "The event as JSON" }, still(JSON.stringify(event, null, 1)).slice(0, LONG));

  /** @param {any} event */
  function onEvent(event) { events[event.seq - 1] = event; }
  function turn() {
    count.textContent = `${events.length.toLocaleString()} events`;
    if (list && events.length > list.heights.count) list.grow(events.length);
  }

  const find = settled(150, async () => {
    // The next event that fits, from the one in sight on.
    if (!list) return;
    for (const place of [...list.shown.keys()]) list.renew(place);
    const wanted = kind.value.trim();
    if (!wanted) return;
    const from = list.heights.at(scroller.scrollTop);
    for (let start = Math.floor(from / PAGE) * PAGE; start < events.length && !closed; start += PAGE) {
      if (!events[start] || !events[Math.min(events.length, start + PAGE) - 1]) await read(start);
      for (let place = Math.max(start, from); place < Math.min(events.length, start + PAGE); place++) {
        if (events[place] && fits(events[place], wanted)) { list.jump(place); return; }
      }
    }
  });
  kind.addEventListener("input", find);
  seq.addEventListener("change", () => list?.jump(Math.min(events.length, Math.max(1, Number(seq.value) || 1)) - 1));

  events.length = shared.info.last_seq;
  shared.listeners.add(onEvent);
  shared.turns.add(turn);
  list = new WindowedList(scroller, { count: events.length, estimate: 30, make: row, moved: readShown });
  list.toEnd();
  turn();
  return { close: () => { closed = true; shared.listeners.delete(onEvent); shared.turns.delete(turn); list?.close(); }, search: () => kind.focus() };
}
