// Elements without HTML: every text becomes a text node, and no attribute can hold a script.

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * Make an element. Properties that begin with "on" are listeners, the others attributes. null and false are left out.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  fill(made, children);
  return made;
}

/** Append children to an element. @param {Element} parent @param {(Child | Child[])[]} children */
function fill(parent, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/** Replace the content of an element. @param {Element} parent @param {...(Child | Child[])} children */
export function show(parent, ...children) {
  parent.replaceChildren();
  fill(parent, children);
  return parent;
}

/** @param {string} label @param {() => any} act @param {Record<string, any>} [props] */
export const button = (label, act, props = {}) => h("button", { type: "button", onclick: act, ...props }, label);

/** @param {string} text @param {string} href @param {Record<string, any>} [props] */
export const link = (text, href, props = {}) => h("a", { href, ...props }, text);

/** Return a table. @param {string} caption @param {string[]} heads @param {(Child | Child[])[][]} rows */
export const table = (caption, heads, rows) =>
  h("table", {}, h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, ...(Array.isArray(cell) ? cell : [cell])))))));

/** Show a dialog over the page, which it leaves when it is closed. @param {HTMLDialogElement} dialog */
export function open(dialog) {
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

let saidAt = 0;
let waiting = /** @type {any} */ (0);
/** Announce a text to screen readers, at most one a second. @param {string} text */
export function announce(text) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    saidAt = Date.now();
    const place = document.getElementById("announce");
    if (place) place.textContent = text;
  }, Math.max(0, saidAt + 1000 - Date.now()));
}

/** @param {number | null | undefined} bytes */
export function size(bytes) {
  let value = bytes ?? 0;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} GiB`;
}

/** @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1000) return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  return ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60000)} min ${Math.round(ms / 1000) % 60} s`;
}

/** Return how long ago a time was. @param {string} at */
export function ago(at) {
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  if (!(seconds >= 0)) return "";
  const steps = /** @type {[number, string][]} */ ([[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]);
  const [unit, name] = steps.find(([each]) => seconds >= each) ?? [1, "s"];
  return `${Math.floor(seconds / unit)} ${name} ago`;
}

/** Return the time of the day of an event. @param {string} at */
export const clock = (at) => at.slice(11, 19);

/** Call a function when there was no further call for some milliseconds. @param {number} ms @param {() => any} act */
export function settled(ms, act) {
  let timer = /** @type {any} */ (0);
  return () => { clearTimeout(timer); timer = setTimeout(act, ms); };
}
