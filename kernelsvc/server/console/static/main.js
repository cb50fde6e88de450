// The frame of the page: navigation, signing in, the address as the state, and the keys.

import { announce, button, h, link, open, show } from "./dom.js";
import { me, onUnauthenticated, redeemTicket, signIn, signOut } from "./api.js";
import { address, sessionsScreen } from "./sessions.js";

/** @typedef {{ close?: () => void, search?: () => void, key?: (key: string) => boolean, route?: (parts: string[]) => boolean }} Screen */

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const bar = /** @type {HTMLElement} */ (document.getElementById("bar"));
/** @type {Screen} */
let screen = {};
let openId = "";
const KEYS = "kernelsvc.keys";

const lone = /** @type {Record<string, () => Promise<(main: HTMLElement) => Screen>>} */ ({
  waiting: async () => (await import("./waiting.js")).waitingScreen,
  server: async () => (await import("./server.js")).serverScreen,
});

function drawBar() {
  const [first] = parts();
  const tab = (/** @type {string} */ text, /** @type {string} */ href, /** @type {boolean} */ here) =>
    link(text, href, { "aria-current": here ? "page" : null });
  show(bar, h("strong", {}, "kernelsvc"),
    h("nav", { "aria-label": "Screens" }, tab("Sessions", "#/", !first || first === "s"), tab("Waiting", "#/waiting", first === "waiting"), tab("Server", "#/server", first === "server")),
    h("span", { class: "grow" }),
    me.principal && h("span", { class: "who" }, `${me.principal} · ${me.console === "read-only" ? "read-only" : me.scopes.join(", ")}`),
    button("Keys", help, { title: "Keys (?)" }),
    me.token && button("Sign out", () => { signOut(); route(true); }));
}

/** The parts of the address after #/. */
const parts = () => location.hash.replace(/^#\/?/, "").split("?")[0].split("/").filter(Boolean).map((part) => {
  try { return decodeURIComponent(part); } catch { return part; } // a "%" that somebody typed
});

/** @param {boolean} [anew] */
async function route(anew = false) {
  const [first, ...rest] = parts();
  if (!anew && first === "s" && rest[0] === openId && screen.route?.(rest.slice(1))) return;
  screen.close?.();
  screen = {};
  openId = "";
  banner("");
  try {
    if (!me.scopes.length) await ask("");
    drawBar();
    if (first === "s" && rest[0]) {
      openId = rest[0];
      document.title = `${rest[0]} · kernelsvc`;
      const { sessionScreen } = await import("./session.js");
      if (openId === rest[0]) screen = sessionScreen(main, rest[0], rest.slice(1), banner);
    } else if (first && lone[first]) {
      document.title = `${first} · kernelsvc`;
      screen = (await lone[first]())(main);
    } else if (first) {
      show(main, h("div", { class: "screen" }, h("h1", {}, "There is no such page"), h("p", {}, link("All sessions", "#/"))));
    } else {
      document.title = "Sessions · kernelsvc";
      screen = sessionsScreen(main, new URLSearchParams(location.hash.split("?")[1] ?? ""));
    }
  } catch (error) {
    cannotShow(/** @type {Error} */ (error), () => route(true));
  }
}

/** @param {Error} error @param {() => any} again */
const cannotShow = (error, again) => show(main, h("div", { class: "screen" }, h("h1", {}, "This page can't be shown"),
  h("p", { class: "error", role: "alert" }, error.message), button("Try again", again)));

/** Show a line over the page until the next call. @param {string} text @param {[string, () => any] | null} [act] */
function banner(text, act = null) {
  const place = /** @type {HTMLElement} */ (document.getElementById("banner"));
  place.hidden = !text;
  show(place, text, act && button(act[0], act[1]));
}

let asking = /** @type {Promise<void> | null} */ (null);
/** Ask for a token over the page, which stays as it is. @param {string} why */
function ask(why) {
  asking ??= new Promise((done) => {
    const token = /** @type {HTMLInputElement} */ (h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true }));
    const fault = h("p", { class: "error", role: "alert" }, why);
    const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-labelledby": "sign-in" },
      h("h1", { id: "sign-in" }, "Sign in"),
      h("p", {}, "Paste a token of this server, or run ", h("code", {}, "kernelsvc console"), " on its machine, which opens this page signed in."),
      fault,
      h("form", { onsubmit: async (/** @type {Event} */ event) => {
        event.preventDefault();
        fault.textContent = "";
        try {
          await signIn(token.value.trim());
        } catch (error) {
          fault.textContent = /** @type {Error} */ (error).message;
          token.focus();
          return;
        }
        asking = null;
        dialog.close();
        dialog.remove();
        drawBar();
        done();
      } }, h("label", { for: "token" }, "Token"), token, h("button", { type: "submit" }, "Sign in"))));
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
    token.focus();
  });
  return asking;
}

const HELP = [
  ["j / k", "next or previous cell"], ["Enter / Esc", "into the outputs of a cell, and out of them"], ["e", "next cell that failed"],
  ["f", "follow the end, or hold"], ["/", "search"], ["g s, g w, g v", "sessions, waiting, server"],
  ["g n, g t, g l, g r, g f", "notebook, tree, log, resources, files of the session"], ["Ctrl+Enter", "run the cell in the box"],
  ["Ctrl+.", "interrupt the running cell"], ["?", "this list"],
];

function help() {
  const keys = localStorage.getItem(KEYS) !== "off";
  const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-labelledby": "help" }, h("h1", { id: "help" }, "Keys"),
    h("dl", {}, HELP.flatMap(([key, text]) => [h("dt", {}, key), h("dd", {}, text)])),
    h("label", {}, h("input", { type: "checkbox", checked: keys, onchange: (/** @type {any} */ event) => localStorage.setItem(KEYS, event.target.checked ? "on" : "off") }), " Keys of one letter"),
    h("p", {}, button("Close", () => dialog.close()))));
  open(dialog);
}

const GO = /** @type {Record<string, string>} */ ({ s: "#/", w: "#/waiting", v: "#/server" });
const TABS = /** @type {Record<string, string>} */ ({ n: "notebook", t: "tree", l: "log", r: "resources", f: "files" });
let going = 0;
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const { key } = event;
  if ((event.ctrlKey || event.metaKey) && (key === "." || key === "Enter")) {
    if (screen.key?.(`ctrl ${key}`)) event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.matches("input, textarea, select")) {
    if (key === "Escape") target.blur();
    return;
  }
  if (localStorage.getItem(KEYS) === "off" && key.length === 1) return;
  if (Date.now() - going < 1500 && (GO[key] || (openId && TABS[key]))) {
    location.hash = GO[key] ?? address(openId, TABS[key]);
    going = 0;
  } else if (key === "g") going = Date.now();
  else if (key === "?") help();
  else if (key === "/" && screen.search) screen.search();
  else if (!screen.key?.(key)) return;
  event.preventDefault();
});

onUnauthenticated(ask);
// Nothing awaits the actions of buttons and fields. If one fails, its error stands over the page.
addEventListener("unhandledrejection", (event) => banner(event.reason?.message ?? String(event.reason), ["Close", () => banner("")]));
addEventListener("hashchange", async () => { await ticket(); route(); });

async function ticket() {
  try {
    await redeemTicket();
  } catch (error) {
    await ask(/** @type {Error} */ (error).message);
  }
}

async function begin() {
  drawBar();
  await ticket();
  if (me.token && !me.scopes.length) {
    try {
      await signIn(me.token);
    } catch (error) {
      if (/** @type {any} */ (error).code !== "unauthenticated") {
        cannotShow(/** @type {Error} */ (error), begin);
        return;
      }
      await ask(/** @type {Error} */ (error).message);
    }
  }
  await route(true);
  announce("");
}
begin();
