(() => {
  // CSP has no directive for WebRTC that Chromium obeys, and its packets would leave without connect-src.
  for (const name of ["RTCPeerConnection", "webkitRTCPeerConnection", "RTCDataChannel", "RTCIceTransport", "WebTransport"]) {
    delete window[name];
    Object.defineProperty(window, name, { value: undefined, configurable: false, writable: false });
  }
  const top = parent;
  const run = eval; // called by another name, it evaluates in the global scope, as a script element would
  let shown = false;
  addEventListener("message", (event) => {
    if (event.source !== top || typeof event.data?.html !== "string" || shown) return;
    shown = true;
    const parsed = new DOMParser().parseFromString(event.data.html, "text/html");
    // Chromium may look up the names in these before it asks the policy.
    for (const each of parsed.querySelectorAll("link, meta, base, iframe, frame, fencedframe, object, embed")) each.remove();
    document.body.replaceChildren(...parsed.head.childNodes, ...parsed.body.childNodes);
    const tell = () => top.postMessage({ height: document.documentElement.scrollHeight }, "*");
    new ResizeObserver(tell).observe(document.body);
    tell();
    for (const script of document.body.querySelectorAll("script")) {
      if (!/^(text|application)\/(java|ecma)script$|^$/.test(script.type)) continue;
      try {
        run(script.textContent);
      } catch (error) {
        console.warn("a script of this output failed:", error);
      }
    }
    tell();
  });
  top.postMessage({ ready: true }, "*");
})();
