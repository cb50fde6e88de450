// The list of sessions, with a search over names, labels and code.

import { ago, button, h, link, settled, show, size, table } from "./dom.js";
import { call, get, may, me, session } from "./api.js";
import { still } from "./text.js";

const REFRESH = 3000;

/** @param {any} info */
export const title = (info) => still(info.name || info.id);

/** @param {string} id @param {string} [tab] */
export const address = (id, tab = "notebook") => `#/s/${encodeURIComponent(id)}/${tab}`;

/** Whose sessions the page shows: everybody's if the token may read them. */
const whose = () => (me.scopes.includes("audit") ? "*" : undefined);

/** All sessions, at most `most`. @param {number} [most] @returns {Promise<any[]>} */
export async function allSessions(most = 1000, query = {}) {
  const found = [];
  let page;
  do {
    const answer = await get("/v1/sessions", { limit: Math.min(most, 1000), principal: whose(), page, ...query });
    found.push(...answer.sessions);
    page = answer.next_page;
  } while (page && found.length < most);
  return found;
}

/** @param {HTMLElement} main @param {URLSearchParams} query */
export function sessionsScreen(main, query) {
  let closed = false;
  let infos = /** @type {any[]} */ ([]);
  const chosen = new Set();
  const list = h("div", { "aria-busy": "true" }, h("p", { class: "note" }, "Loading …"));
  const matches = h("section", { "aria-label": "Cells that match", hidden: true });
  const search = /** @type {HTMLInputElement} */ (h("input", { type: "search", id: "search", value: query.get("q") ?? "", placeholder: "name, label, or words of code", autocomplete: "off" }));
  const state = /** @type {HTMLSelectElement} */ (h("select", { id: "state" },
    ["", "idle", "busy", "paused", "hibernated", "dead", "closed"].map((each) => h("option", { value: each, selected: (query.get("state") ?? "") === each }, each || "any state"))));
  const acts = h("div", { class: "row" });

  const bulk = async (/** @type {string} */ verb) => {
    const done = await Promise.allSettled([...chosen].map((id) => (verb === "close" ? call("DELETE", session(id)) : call("POST", session(id, "/interrupt"), {}))));
    chosen.clear();
    await refresh();
    const refused = done.find((each) => each.status === "rejected");
    if (refused) throw /** @type {PromiseRejectedResult} */ (refused).reason;
  };

  const draw = () => {
    const words = search.value.toLowerCase();
    const shown = infos.filter((info) => !words || [info.id, info.name, info.principal, JSON.stringify(info.labels)].some((text) => text?.toLowerCase().includes(words)));
    list.setAttribute("aria-busy", "false");
    if (!infos.length) {
      show(list, h("div", { class: "empty" }, h("p", {}, "No sessions yet. Start one on the command line:"), h("pre", { tabindex: "0", role: "group", "aria-label": "Command" }, "echo 'print(6 * 7)' | kernelsvc run --keep -")));
    } else {
      show(list, table("Sessions", ["choose", "session", "state", "runs", "memory", "checkpoints", "owner", "created", "labels"], shown.map((info) => [
        info.state === "closed" ? "" : h("input", { type: "checkbox", "aria-label": `Choose ${title(info)}`, checked: chosen.has(info.id),
          onchange: (/** @type {any} */ event) => { event.target.checked ? chosen.add(info.id) : chosen.delete(info.id); draw(); } }),
        link(title(info), address(info.id)),
        h("span", { class: `state ${info.state}` }, info.state, info.input_cell || info.approvals_pending ? " · waits for a person" : ""),
        info.running ? `a cell${info.queued ? ` and ${info.queued} queued` : ""}` : "",
        info.usage?.memory_bytes ? size(info.usage.memory_bytes) : "",
        info.checkpoints.length || "",
        still(info.principal),
        ago(info.created_at),
        still(Object.entries(info.labels).map(([name, value]) => `${name}=${value}`).join(" ")).slice(0, 80),
      ])), h("p", { class: "note" }, `${shown.length} of ${infos.length} sessions`));
    }
    show(acts, may("run") && chosen.size > 0 && [button(`Interrupt ${chosen.size}`, () => bulk("interrupt")), button(`Close ${chosen.size}`, () => bulk("close"), { class: "danger" })]);
  };

  const refresh = async () => {
    if (closed) return;
    try {
      infos = await allSessions(1000, { state: state.value });
      const focus = /** @type {HTMLElement | null} */ (document.activeElement);
      if (!list.contains(focus)) draw();
    } catch (error) {
      show(list, h("p", { class: "error", role: "alert" }, /** @type {Error} */ (error).message));
    }
  };

  const searchCode = settled(250, async () => {
    const text = search.value.trim();
    history.replaceState(null, "", `#/?${new URLSearchParams(Object.entries({ q: text, state: state.value }).filter(([, value]) => value))}`);
    matches.hidden = !text;
    if (!text || closed) return;
    const found = await get("/v1/search", { text, limit: 50, principal: whose() }).catch((error) => { matches.hidden = true; throw error; });
    if (search.value.trim() !== text) return; // the answer is about words that were typed before
    show(matches, h("h2", {}, `Cells with “${text}”`), found.length
      ? h("ul", { class: "matches" }, found.map((/** @type {any} */ each) => h("li", {}, link(`${each.session} · cell ${each.cell}`, address(each.session, `c/${encodeURIComponent(each.cell)}`)), h("code", {}, still(each.snippet)))))
      : h("p", { class: "note" }, "No cell has these words."));
  });
  search.addEventListener("input", () => { draw(); searchCode(); });
  state.addEventListener("change", () => { refresh(); searchCode(); });

  show(main, h("div", { class: "screen" }, h("h1", {}, "Sessions"),
    h("div", { class: "row" }, h("label", { for: "search" }, "Search"), search, h("label", { for: "state" }, "State"), state, acts), matches, list));
  const timer = setInterval(() => { if (!document.hidden) refresh(); }, REFRESH);
  refresh().then(() => { if (search.value) searchCode(); });
  return { close: () => { closed = true; clearInterval(timer); }, search: () => search.focus() };
}
