addEventListener("message", (event) => {
  if (event.source !== parent || typeof event.data?.html !== "string" || document.body.dataset.shown) return;
  document.body.dataset.shown = "1";
  const parsed = document.createElement("template");
  parsed.innerHTML = event.data.html;
  // The policy of this document refuses all that these elements load. But Chromium may look a name up, or connect, before
  // it asks the policy, and a name can carry data.
  for (const each of parsed.content.querySelectorAll("link, meta, base, iframe, frame, fencedframe, object, embed")) each.remove();
  for (const each of parsed.content.querySelectorAll("a[href], area[href], a[ping]")) {
    const target = each.getAttribute("href") ?? "";
    if (target.startsWith("#")) continue;
    each.removeAttribute("href");
    each.removeAttribute("ping");
    each.setAttribute("title", target);
  }
  document.body.replaceChildren(parsed.content);
  const tell = () => parent.postMessage({ height: document.documentElement.scrollHeight }, "*");
  new ResizeObserver(tell).observe(document.body);
  tell();
});
parent.postMessage({ ready: true }, "*");
