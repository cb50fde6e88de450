// The files of a session's directory: list, preview, upload, download.

import { button, h, show, size, table } from "./dom.js";
import { call, get, may, send, session } from "./api.js";
import { download } from "./about.js";
import { bundle } from "./outputs.js";
import { TextView, still } from "./text.js";

/** Bytes of a file that a preview reads. */
const PREVIEW = 256 * 1024;
const PICTURES = /** @type {Record<string, string>} */ ({ png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", svg: "image/svg+xml" });

/** @param {HTMLElement} body @param {import("./session.js").Shared} shared @returns {import("./main.js").Screen} */
export function filesTab(body, shared) {
  const { id } = shared;
  let closed = false;
  let folder = ""; // percent-encoded, as the server gives it
  const path = (/** @type {string} */ url) => session(id, `/files/${url}`);
  const place = h("div", { class: "scroll" });
  const preview = h("section", { "aria-label": "Preview", hidden: true });
  const fault = h("p", { class: "error", role: "alert" });
  const upload = /** @type {HTMLInputElement} */ (h("input", { type: "file", multiple: true, id: "upload" }));
  upload.addEventListener("change", () => attempt(async () => {
    for (const file of upload.files ?? []) await send("PUT", path(`${folder ? `${folder}/` : ""}${encodeURIComponent(file.name)}`), file);
    upload.value = "";
    await draw();
  }));
  show(body, h("div", { class: "screen" }, may("run") && shared.info.state !== "closed" && h("div", { class: "row" }, h("label", { for: "upload" }, "Upload"), upload), fault, place, preview));

  /** @param {() => Promise<any>} act */
  async function attempt(act) {
    fault.textContent = "";
    try { await act(); } catch (error) { fault.textContent = /** @type {Error} */ (error).message; }
  }

  async function draw() {
    const found = await get(path(folder), { limit: 1000 });
    if (closed) return;
    const up = folder.split("/").slice(0, -1).join("/");
    show(place, h("p", { class: "row" }, `/${still(decodeURIComponent(folder))}`, folder && button("Up", () => attempt(() => { folder = up; return draw(); }))),
      found.files.length ? table("Files", ["name", "kind", "size", "changed", "actions"], found.files.map((/** @type {any} */ file) => {
        const name = still(file.path.split("/").at(-1));
        const open = file.kind === "directory" ? () => attempt(() => { folder = file.url.replace(/\/$/, ""); return draw(); }) : () => attempt(() => look(file));
        return [file.kind === "directory" || file.kind === "file" ? button(name, open, { class: "quiet" }) : name, file.kind, file.kind === "file" ? size(file.size) : "", file.modified.slice(0, 19).replace("T", " "),
          file.kind === "file" ? [button("Download", () => attempt(() => download(path(file.url), file.path.split("/").at(-1)))), " ",
            may("run") && shared.info.state !== "closed" && button("Delete", () => confirm(`Delete ${name}?`) && attempt(async () => { await call("DELETE", path(file.url)); await draw(); }), { class: "danger" })] : ""];
      })) : h("p", { class: "note" }, "The directory is empty."), found.truncated && h("p", { class: "note" }, "Only the first 1,000 are listed."));
  }

  /** @param {any} file */
  async function look(file) {
    const mime = PICTURES[file.path.split(".").at(-1).toLowerCase()];
    preview.hidden = false;
    const answer = await send("GET", path(file.url));
    const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
    const most = mime ? 16 * 1024 * 1024 : PREVIEW;
    const parts = [];
    let bytes = 0;
    for (let next = await reader.read(); !next.done && bytes < most; next = await reader.read()) { parts.push(next.value); bytes += next.value.length; }
    reader.cancel();
    const data = new Uint8Array(await new Blob(/** @type {BlobPart[]} */ (parts)).arrayBuffer());
    let shown;
    if (mime === "image/svg+xml") shown = bundle({ [mime]: new TextDecoder().decode(data) });
    else if (mime) shown = bundle({ [mime]: btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join("")), "text/plain": file.path });
    else if (data.subarray(0, 4096).includes(0)) shown = h("p", { class: "note" }, "A binary file. Download it.");
    else shown = new TextView("file").feed(new TextDecoder().decode(data)).element;
    show(preview, h("h2", {}, still(file.path)), shown, file.size > bytes && h("p", { class: "note" }, `The first ${size(bytes)} of ${size(file.size)}.`));
  }

  const onEvent = (/** @type {any} */ event) => { if (event.type === "files_changed" || event.type === "cell_finished") attempt(draw); };
  shared.listeners.add(onEvent);
  attempt(draw);
  return { close: () => { closed = true; shared.listeners.delete(onEvent); } };
}
