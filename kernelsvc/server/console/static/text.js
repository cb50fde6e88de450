// A kernel's text as lines of spans. Colours become classes, carriage return and backspace act in their line, and every
// other control character or escape sequence becomes visible, by the rules of the command line's filter
// (kernelsvc/cli/terminal/filter.py). tests/console/test_hostile_outputs.py compares both.

/** Most lines of one output in the page, and most characters of one line. */
const MAX_LINES = 2000;
const MAX_LINE = 16384;

// Sequences that never become visible: colours, erasing and movement of the cursor (ECMA-48).
const KNOWN = /\x1b\[([0-9;:]*)([mKJABCDG])/g;
const CONTROL = /[\x00-\x06\x07\x0b\x0c\x0e-\x1b\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
const hex = (/** @type {number} */ code, /** @type {number} */ width) => code.toString(16).padStart(width, "0");

/** Replace control characters and direction overrides (CVE-2021-42574) by visible text. @param {string} text */
export const visible = (text) => text.replace(CONTROL, (found) => {
  const code = found.charCodeAt(0);
  if (code === 7) return "";
  return code > 255 ? `\\u${hex(code, 4)}` : `\\x${hex(code, 2)}`;
});

/** Return a text in which nothing moves the cursor: code, names, labels. @param {string} text */
export const still = (text) =>
  visible(text.replaceAll("\r\n", "\n")).replaceAll("\r", "\\x0d").replaceAll("\b", "\\x08");

/** @typedef {{ text: string, style: string }} Span */

/** The style after a sequence of codes (SGR). @param {string} style classes @param {string} codes */
function restyle(style, codes) {
  let set = new Set(style.split(" ").filter(Boolean));
  const drop = (/** @type {RegExp} */ kind) => { set = new Set([...set].filter((each) => !kind.test(each))); };
  const given = codes.split(/[;:]/).map(Number);
  for (let n = 0; n < given.length; n++) {
    const code = given[n];
    if (code === 0) set.clear();
    else if (code === 1) set.add("bold");
    else if (code === 3) set.add("italic");
    else if (code === 4) set.add("under");
    else if (code === 22) drop(/^bold$/);
    else if (code === 24) drop(/^under$/);
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) { drop(/^f\d/); set.add(`f${code % 10}`); }
    else if (code === 39) drop(/^f\d/);
    else if (code === 38 || code === 48) n += given[n + 1] === 5 ? 2 : 4; // 256 colours and RGB: not shown
  }
  return [...set].join(" ");
}

/** A text that arrives in pieces, as lines of spans. A sequence may span two pieces. */
export class Lines {
  constructor() {
    this.style = "";
    this.rest = "";
    /** The unfinished line: characters and their styles. @type {{ char: string, style: string }[]} */
    this.line = [];
    this.at = 0;
    /** The same, as long as it is one piece. @type {Span | null} */
    this.whole = null;
  }

  /** Take a piece. Returns the lines that it finished. @param {string} piece @returns {Span[][]} */
  feed(piece) {
    let text = this.rest + piece;
    this.rest = "";
    const open = /\x1b(\[[0-9;:]{0,60})?$/.exec(text);
    if (open) { this.rest = open[0]; text = text.slice(0, open.index); }
    else if (text.endsWith("\r")) { this.rest = "\r"; text = text.slice(0, -1); }
    const done = /** @type {Span[][]} */ ([]);
    let position = 0;
    for (const found of text.matchAll(KNOWN)) {
      this.plain(text.slice(position, found.index), done);
      if (found[2] === "m") this.style = restyle(this.style, found[1]);
      else if (found[2] === "K" && !this.whole) this.line.length = Math.min(this.line.length, this.at);
      position = (found.index ?? 0) + found[0].length;
    }
    this.plain(text.slice(position), done);
    return done;
  }

  /** @param {string} text @param {Span[][]} done */
  plain(text, done) {
    if (!text) return;
    for (const part of text.split(/(\r?\n|\r|\x08)/)) {
      if (part === "\n" || part === "\r\n") {
        done.push(this.whole ? [this.whole] : this.unfinished());
        this.line = []; this.at = 0; this.whole = null;
        continue;
      }
      if (part === "") continue;
      if (!this.at && !this.line.length && !this.whole && part.length < MAX_LINE && part !== "\r" && part !== "\x08") {
        this.whole = { text: visible(part), style: this.style }; // most lines: one piece, one style, no movement
        continue;
      }
      if (this.whole) {
        const { text: before, style } = this.whole;
        this.whole = null;
        for (const char of before) this.line[this.at++] = { char, style };
      }
      if (part === "\r") this.at = 0;
      else if (part === "\x08") this.at = Math.max(0, this.at - 1);
      else for (const char of visible(part)) {
        this.line[this.at++] = { char, style: this.style };
        if (this.at >= MAX_LINE) { done.push(this.unfinished()); this.line = []; this.at = 0; }
      }
    }
  }

  /** The line that has no end yet. @returns {Span[]} */
  unfinished() {
    if (this.whole) return [this.whole];
    const spans = /** @type {Span[]} */ ([]);
    for (const { char, style } of this.line) {
      const last = spans[spans.length - 1];
      if (last && last.style === style) last.text += char;
      else spans.push({ text: char, style });
    }
    return spans;
  }
}

/** @param {Span[]} spans */
function lineElement(spans) {
  const made = document.createElement("div");
  for (const { text, style } of spans) {
    if (!style) made.append(text);
    else {
      const span = document.createElement("span");
      span.className = style;
      span.append(text);
      made.append(span);
    }
  }
  if (!spans.length) made.append("\n");
  return made;
}

/** An element that shows a growing text, with at most MAX_LINES lines. A new line replaces the first one. */
export class TextView {
  /** @param {string} kind "stdout", "stderr" or "error" */
  constructor(kind) {
    this.element = document.createElement("pre");
    this.element.className = `text ${kind}`;
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", kind === "error" ? "Traceback" : `Output on ${kind}`);
    this.lines = new Lines();
    this.count = 0; // of finished lines in the element: childElementCount walks over all of them
    this.open = /** @type {HTMLElement | null} */ (null);
  }

  /** @param {string} text */
  feed(text) {
    // Of a piece that is longer than all that can be shown, only the last lines are shown.
    const done = this.lines.feed(text).slice(-MAX_LINES);
    this.open?.remove();
    const fresh = document.createDocumentFragment();
    for (const line of done) fresh.append(lineElement(line));
    this.count += done.length;
    if (done.length >= MAX_LINES) this.element.replaceChildren(fresh);
    else {
      for (let over = this.count - MAX_LINES; over > 0; over--) this.element.firstElementChild?.remove();
      this.element.append(fresh);
    }
    this.count = Math.min(this.count, MAX_LINES);
    const rest = this.lines.unfinished();
    this.open = rest.length ? lineElement(rest) : null;
    if (this.open) this.element.append(this.open);
    return this;
  }
}

const PYTHON = new RegExp([
  /(?<comment>#[^\n]*)/, /(?<string>[rbfuRBFU]{0,2}(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))/,
  /(?<number>\b\d[\w.]*)/,
  /(?<keyword>\b(?:False|None|True|and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield)\b)/,
].map((each) => each.source).join("|"), "g");

/** Python code with a span for each comment, string, number and keyword. @param {string} code */
export function codeElement(code) {
  const made = document.createElement("pre");
  made.className = "code";
  made.tabIndex = 0;
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", "Code");
  const text = still(code);
  let position = 0;
  if (text.length < 100000) for (const found of text.matchAll(PYTHON)) {
    const kind = Object.entries(found.groups ?? {}).find(([, value]) => value !== undefined)?.[0];
    made.append(text.slice(position, found.index));
    const span = document.createElement("span");
    span.className = kind ?? "";
    span.append(found[0]);
    made.append(span);
    position = (found.index ?? 0) + found[0].length;
  }
  made.append(text.slice(position));
  return made;
}
