// One session: its heading, its tabs, and the one stream of events that they share.

import { button, duration, h, link, show, size } from "./dom.js";
import { EventStream, call, get, may, session } from "./api.js";
import { address, title } from "./sessions.js";
import { still } from "./text.js";

/** @typedef {import("./main.js").Screen} Screen */
/**
 * @typedef {object} Shared What a tab gets.
 * @property {string} id
 * @property {any} info the session, as it was last read
 * @property {() => Promise<any>} refresh read it again
 * @property {Set<(event: any) => void>} listeners called with each new event
 * @property {Set<() => void>} turns called after the events of one turn
 * @property {(text: string, act?: [string, () => any] | null) => void} banner
 */

const TABS = /** @type {Record<string, [string, () => Promise<(main: HTMLElement, shared: Shared, rest: string[]) => Screen>]>} */ ({
  notebook: ["Notebook", async () => (await import("./notebook.js")).notebookTab],
  tree: ["Tree", async () => (await import("./tree.js")).treeTab],
  log: ["Log", async () => (await import("./log.js")).logTab],
  resources: ["Resources", async () => (await import("./resources.js")).resourcesTab],
  files: ["Files", async () => (await import("./files.js")).filesTab],
  about: ["About", async () => (await import("./about.js")).aboutTab],
});

/** States whose name does not say what to do. */
const MEANS = /** @type {Record<string, string>} */ ({
  hibernated: "its variables are on disk, the next cell wakes it", paused: "its owner has paused it", dead: "it has no kernel and could not get one",
  restoring: "its variables are being restored", starting: "its kernel starts", closed: "its log and its notebook stay",
});

/** Events after which the session's own description has changed. */
const CHANGES = /^(cell_(queued|started|finished|held|decided)|kernel_|checkpoint_(made|dropped)|rolled_back|branched|session_|hibernated|woken|input_|tool_(called|decided|returned)|leased)/;

/**
 * @param {HTMLElement} main @param {string} id @param {string[]} rest
 * @param {(text: string, act?: [string, () => any] | null) => void} banner @returns {Screen}
 */
export function sessionScreen(main, id, rest, banner) {
  let closed = false;
  let tab = /** @type {Screen} */ ({});
  let open = "";
  const heading = h("div", { class: "heading" });
  const live = h("span", { class: "live", role: "status" });
  const nav = h("nav", { class: "tabs", "aria-label": "Session" });
  const body = h("div", { class: "tab" });
  const stream = { now: /** @type {EventStream | null} */ (null) };
  const shared = /** @type {Shared} */ ({ id, info: null, listeners: new Set(), turns: new Set(), banner, refresh: async () => {
    shared.info = await get(session(id));
    drawHeading();
    return shared.info;
  } });

  const act = (/** @type {() => Promise<any>} */ what) => async () => {
    try {
      await what();
      await shared.refresh();
    } catch (error) {
      banner(/** @type {Error} */ (error).message, ["Close", () => banner("")]);
    }
  };
  const interrupt = act(() => call("POST", session(id, "/interrupt"), {}));
  const hold = act(() => call("POST", session(id, "/hold"), { mode: shared.info.hold ? "off" : "ask" }));
  const branch = act(async () => {
    const [made] = await call("POST", session(id, "/branches"), {});
    location.hash = address(made.id);
  });

  function drawHeading() {
    const { info } = shared;
    if (!info) return;
    const opened = info.state !== "closed";
    show(heading, h("h1", {}, title(info)),
      h("span", { class: `state ${info.state}` }, info.state), live,
      h("span", { class: "facts" }, [`owner ${info.principal}`, info.kernel?.kind, info.sandbox.isolation, info.usage.memory_bytes ? size(info.usage.memory_bytes) : "",
        info.parent ? "a branch" : "", MEANS[info.state]].filter(Boolean).join(" · ")),
      h("span", { class: "grow" }),
      info.hold && h("span", { class: "state held" }, `held by ${still(info.hold.by)}`),
      may("approve") && opened && button(info.hold ? "Let go" : "Take over", hold, { title: info.hold ? "The cells that wait run." : "Cells of every client wait until a person approves them. You can run your own." }),
      may("run") && opened && button("Interrupt", interrupt, { disabled: !info.running, title: "Ctrl+." }),
      may("run") && opened && info.kernel?.kind !== "cold" && button("Branch", branch),
      may("run") && opened && button("Close session", act(() => call("DELETE", session(id))), { class: "danger" }));
    document.title = `${title(info)} · kernelsvc`;
  }

  let due = /** @type {any} */ (0);
  const soon = () => { due ||= setTimeout(() => { due = 0; if (!closed) shared.refresh().catch(() => {}); }, 250); };

  /** @param {import("./api.js").LinkState} state */
  function onState(state) {
    if (closed) return;
    live.textContent = state.state === "live" ? (shared.info?.state === "closed" ? "" : "● live") : "○ not live";
    const last = `Last event: ${stream.now?.last ?? 0}.`;
    if (state.state === "live") banner("");
    else if (state.state === "lost") banner(`The connection is lost. ${last} Next try in ${duration(state.retry)}.`, ["Try now", () => stream.now?.again()]);
    else if (state.state === "recovering") banner(`The server is reading this session's log. ${state.message ?? ""} ${last}`, ["Try now", () => stream.now?.again()]);
    else if (state.state === "forbidden") banner(state.message ?? "Forbidden.");
    else banner(`${state.message ?? ""} ${last}`, ["Load again", () => location.reload()]);
  }

  async function openTab(/** @type {string[]} */ [name = "notebook", ...more]) {
    const chosen = name === "c" ? "notebook" : name in TABS ? name : "notebook";
    if (chosen !== open) {
      tab.close?.();
      tab = {};
      open = chosen;
      show(nav, Object.entries(TABS).map(([each, [text]]) => link(text, address(id, each), { "aria-current": each === chosen ? "page" : null })));
      const make = await TABS[chosen][1]();
      if (closed || open !== chosen) return;
      show(body);
      body.dataset.tab = chosen;
      tab = make(body, shared, more);
    } else tab.route?.(more);
  }

  async function begin() {
    show(heading, h("h1", {}, id), h("span", { class: "note" }, "Loading …"));
    show(main, h("div", { class: "session" }, heading, nav, body));
    try {
      await shared.refresh();
    } catch (error) {
      const { code, message } = /** @type {any} */ (error);
      show(main, h("div", { class: "screen" }, h("h1", {}, code === "not_found" ? "There is no such session" : code === "forbidden" ? "This token may not read it" : "This session can't be read"),
        h("p", { class: "error", role: "alert" }, message), h("p", {}, link("All sessions", "#/"), " ", button("Try again", () => begin()))));
      return;
    }
    if (closed) return;
    stream.now = new EventStream(id, shared.info.last_seq, (events) => {
      for (const event of events) for (const listener of shared.listeners) listener(event);
      for (const turn of shared.turns) turn();
      if (events.some((event) => CHANGES.test(event.type))) soon();
    }, onState);
    await openTab(rest);
  }
  begin();

  return {
    close: () => { closed = true; clearTimeout(due); tab.close?.(); stream.now?.close(); },
    route: (more) => { openTab(more); return true; },
    search: () => tab.search?.(),
    key: (key) => {
      if (key === "ctrl .") { if (shared.info?.running && may("run") && confirm("Interrupt the running cell?")) interrupt(); return true; }
      return tab.key?.(key) ?? false;
    },
  };
}
