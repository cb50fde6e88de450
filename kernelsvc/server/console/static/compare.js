// Two cells, or the cells of two sessions of a family, with the lines in which they differ.

import { button, h, link, open, show } from "./dom.js";
import { get, session } from "./api.js";
import { address, title } from "./sessions.js";
import { still } from "./text.js";

/** Lines of each side that are compared, and pairs of cells that are shown at a time. */
const LINES = 1000;
const PAIRS = 20;

/** A line of a comparison: "-" is only before, "+" only after, " " in both. @typedef {{ sign: string, text: string }} Line */

/**
 * The lines of two texts by their longest common subsequence.
 * @param {string[]} before @param {string[]} after @returns {Line[]}
 */
export function difference(before, after) {
  const width = after.length + 1;
  const common = new Uint16Array((before.length + 1) * width);
  for (let i = before.length - 1; i >= 0; i--) {
    for (let j = after.length - 1; j >= 0; j--) {
      common[i * width + j] = before[i] === after[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const found = /** @type {Line[]} */ ([]);
  let i = 0, j = 0;
  while (i < before.length || j < after.length) {
    if (i < before.length && j < after.length && before[i] === after[j]) { found.push({ sign: " ", text: before[i] }); i++; j++; }
    else if (j === after.length || (i < before.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) found.push({ sign: "-", text: before[i++] });
    else found.push({ sign: "+", text: after[j++] });
  }
  return found;
}

/** Two texts as one. @param {string} name @param {string} one @param {string} other */
function compared(name, one, other) {
  if (one === other) return h("p", { class: "note" }, `${name}: the same in both`);
  const [before, after] = [one, other].map((text) => (text ? still(text).replace(/\n$/, "").split("\n") : []));
  const cut = Math.max(before.length, after.length) > LINES;
  const lines = difference(before.slice(0, LINES), after.slice(0, LINES));
  return [h("pre", { class: "code", tabindex: "0", role: "group", "aria-label": `${name}, compared` },
    lines.map(({ sign, text }) => h("span", { class: sign === "+" ? "added" : sign === "-" ? "removed" : "" }, `${sign} ${text}\n`))),
  cut && h("p", { class: "note" }, `Only the first ${LINES} lines are compared.`)];
}

/** A heading and two cells. Either may be missing. @param {string} heading @param {any} one @param {any} other */
function pair(heading, one, other) {
  const how = (/** @type {any} */ cell) => (cell ? cell.reason ?? cell.state : "no such cell");
  const result = how(one) === how(other) ? `both ${how(one)}` : `${how(one)} and ${how(other)}`;
  return h("section", { "aria-label": heading }, h("h2", {}, heading, " ", h("span", { class: "note" }, result)),
    compared("Code", one?.code ?? "", other?.code ?? ""), compared("Output", one?.text ?? "", other?.text ?? ""));
}

/** @param {string} heading @param {HTMLElement} body */
function showDialog(heading, body) {
  const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { class: "wide", "aria-labelledby": "compare" },
    h("div", { class: "row" }, h("h1", { id: "compare" }, heading), h("span", { class: "grow" }), button("Close", () => dialog.close())), body));
  open(dialog);
}

/** Compare two cells of a session. @param {string} id @param {string} one @param {string} other */
export async function compareCells(id, one, other) {
  const [before, after] = await Promise.all([one, other].map((cell) => get(session(id, `/cells/${encodeURIComponent(cell)}`))));
  showDialog("Two cells", pair(`[${before.execution_count ?? " "}] and [${after.execution_count ?? " "}]`, before, after));
}

/** The cells that a session ran after the moment from which another one branched, by their numbers. @param {any} info @param {any} other */
async function ownCells(info, other) {
  const since = other.parent?.session === info.id ? other.parent.seq : 0;
  const found = new Map();
  for (let offset = 0, total = 1; offset < total;) {
    const page = await get(session(info.id, "/outline"), { offset, limit: 1000 });
    for (const cell of page.cells) if (!cell.undone && cell.execution_count !== null && cell.first > since) found.set(cell.execution_count, cell.id);
    offset += Math.max(1, page.cells.length);
    total = page.total;
  }
  return found;
}

/** Compare two sessions of a family cell by cell. @param {any} info @param {any} other */
export async function compareSessions(info, other) {
  const sides = await Promise.all([ownCells(info, other), ownCells(other, info)]);
  const numbers = [...new Set(sides.flatMap((side) => [...side.keys()]))].sort((a, b) => a - b);
  const place = h("div", {});
  const more = h("p", {});
  let shown = 0;
  const next = async () => {
    const part = numbers.slice(shown, shown + PAIRS);
    shown += part.length;
    const read = (/** @type {any} */ of, /** @type {string | undefined} */ cell) => cell && get(session(of.id, `/cells/${encodeURIComponent(cell)}`));
    for (const number of part) {
      const cells = await Promise.all([read(info, sides[0].get(number)), read(other, sides[1].get(number))]);
      place.append(pair(`Cell ${number}`, cells[0], cells[1]));
    }
    show(more, shown < numbers.length && button(`${numbers.length - shown} more`, next));
  };
  showDialog("Two sessions", h("div", {}, h("p", {}, "Lines with - are of ", link(title(info), address(info.id)), `, lines with + of `, link(title(other), address(other.id)),
    ". Cells before the branch are left out."), numbers.length === 0 && h("p", { class: "note" }, "Neither has run a cell since the branch."), place, more));
  await next();
}
