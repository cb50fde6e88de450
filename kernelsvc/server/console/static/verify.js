// Verification of a log in the page, without trust in the server: the chain of digests (SHA-256), and the signatures
// (Ed25519) by WebCrypto. It follows kernelsvc/model/hash_chain.py and kernelsvc/store/verify.py.

import { sha256 } from "./sha256.js";

const NEWLINE = 10;
/** Lines after which the progress is reported. */
const BATCH = 500;

/** @param {string} text */
const base64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

/**
 * @typedef {object} Verdict
 * @property {"verified" | "not_proven" | "not_as_written"} result
 * @property {number} entries whole entries before the fault
 * @property {string} head digest of the last of them
 * @property {{ seq: number, message: string, wanted?: string, found?: string } | null} fault the first fault
 * @property {number} signed entries that the last good signature covers
 * @property {string} key who signed, base64
 * @property {string} message the verdict in words
 */

/** The lines of a stream of bytes, in batches. @param {ReadableStream<Uint8Array>} stream @param {{ torn: number }} state */
async function* batches(stream, state) {
  const reader = stream.getReader();
  /** @type {Uint8Array[]} */
  let parts = [];
  /** @type {Uint8Array[]} */
  let lines = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    let from = 0;
    for (let at = value.indexOf(NEWLINE); at >= 0; at = value.indexOf(NEWLINE, from)) {
      const end = value.subarray(from, at);
      if (parts.length) {
        const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, end.length));
        let position = 0;
        for (const part of [...parts, end]) { whole.set(part, position); position += part.length; }
        parts = [];
        lines.push(whole);
      } else lines.push(end);
      from = at + 1;
      if (lines.length >= BATCH) { yield lines; lines = []; }
    }
    if (from < value.length) parts.push(value.slice(from));
  }
  state.torn = parts.reduce((sum, part) => sum + part.length, 0);
  if (lines.length) yield lines;
}

/** The fields of a line that the chain and its signatures need. @param {Uint8Array} line @param {TextDecoder} decoder */
function envelope(line, decoder) {
  try {
    const { type, session, seq, prev, head, key, signature } = JSON.parse(decoder.decode(line));
    return { type, session, seq, prev, head, key, signature };
  } catch {
    return null;
  }
}

const OF_SIGNATURE = ["type", "session", "seq", "at", "prev", "head", "key", "signature"];

/** Whether the line of a signature, which it does not cover itself, has nothing else. @param {Uint8Array} line @param {TextDecoder} decoder */
function plain(line, decoder) {
  const text = decoder.decode(line);
  const fields = JSON.parse(text);
  // A name that is there twice would make another text.
  return Object.keys(fields).every((name) => OF_SIGNATURE.includes(name)) && JSON.stringify(fields) === text;
}

/**
 * Verify a log.
 * @param {ReadableStream<Uint8Array>} stream the log, one JSON object a line
 * @param {{ key?: string, head?: string, onProgress?: (entries: number) => void }} [options] key: the key that must have signed, base64. head: a digest
 *   from elsewhere that some entry must have
 * @returns {Promise<Verdict>}
 */
export async function verifyLog(stream, { key = "", head = "", onProgress } = {}) {
  const { subtle } = crypto;
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const state = { torn: 0 };
  const found = /** @type {Verdict} */ ({ result: "not_proven", entries: 0, head: "", fault: null, signed: 0, key: "", message: "" });
  let session = "";
  let headSeen = !head;
  let badSignature = 0;
  /** Signatures and the digest that each is about. @type {{ seq: number, event: any, before: string }[]} */
  const signatures = [];

  reading: for await (const lines of batches(stream, state)) {
    for (const line of lines) {
      const wanted = found.entries + 1;
      const event = envelope(line, decoder);
      session ||= event?.session ?? "";
      const fault = event === null || typeof event !== "object" ? "can't be read"
        : event.seq !== wanted ? `has the number ${event.seq}. Entries were removed, added or moved`
        : event.session !== session ? "is of another session"
        : event.prev !== found.head ? "does not continue the one before. One of the two was changed" : "";
      if (fault || !event) {
        found.fault = { seq: wanted, message: `Entry ${wanted} ${fault}.`, wanted: found.head, found: event?.prev ?? "" };
        break reading;
      }
      if (event.type === "journal_signed" && plain(line, decoder)) signatures.push({ seq: event.seq, event, before: found.head });
      found.entries = wanted;
      found.head = sha256(line);
      if (found.head === head) headSeen = true;
    }
    onProgress?.(found.entries);
  }

  for (const { seq, event, before } of signatures) {
    // kernelsvc/model/audit.py: the signed statement of a log's head.
    const statement = new TextEncoder().encode(`kernelsvc journal 1\n${event.session}\n${seq - 1} ${event.head}\n`);
    let good = false;
    try {
      const signer = await subtle.importKey("raw", base64(event.key), { name: "Ed25519" }, false, ["verify"]);
      good = event.head === before && (await subtle.verify("Ed25519", signer, base64(event.signature), statement));
    } catch {
      good = false;
    }
    if (!good) badSignature ||= seq;
    else if (!key || key === event.key) { found.signed = seq - 1; found.key = event.key; }
    else found.key ||= event.key;
  }

  const covered = found.signed > 0 && found.signed + 1 >= found.entries;
  const said = [`${found.entries.toLocaleString()} entries, chain unbroken.`];
  if (found.fault) said[0] = found.fault.message;
  else if (!found.entries) said[0] = "It holds no entry. Every session's log begins with one.";
  if (state.torn) said.push(`${state.torn} bytes at the end are not a whole entry.`);
  if (badSignature) said.push(`The signature in entry ${badSignature} is not good: the entries before it are not those signed.`);
  else if (!found.fault) {
    if (!found.key) said.push("It is not signed yet: entries may be missing from its end. A closed session's log is signed.");
    else if (key && !found.signed) said.push(`It is signed by ${found.key}. That is not the key you named.`);
    else said.push(`Signed up to entry ${found.signed.toLocaleString()} by ${found.key}.${covered ? "" : " The entries after it may be forged."}`);
    if (!headSeen) said.push("No entry has the digest that you gave.");
  }
  if (found.fault || badSignature || state.torn || !found.entries || !headSeen) found.result = "not_as_written";
  else found.result = covered && key && key === found.key ? "verified" : "not_proven";
  found.message = said.join(" ");
  return found;
}
