// Keeps the changing part of a view up to date while somebody looks at it. Without it, Reload does.
"use strict";

(() => {
  const live = document.querySelector("[data-live]");
  const pulse = document.getElementById("pulse");
  if (!live || !pulse) return;
  const interval = 5000;
  let shown = null; // the text that stands in the page; unknown at first
  let timer = 0;

  // What somebody is doing in there is not taken from under them.
  const busy = () => {
    const selection = getSelection();
    return live.contains(document.activeElement) ||
      (selection && !selection.isCollapsed && live.contains(selection.anchorNode));
  };

  const tell = (text, lost) => {
    pulse.textContent = text;
    pulse.classList.toggle("lost", lost);
    pulse.classList.toggle("on", !lost);
  };

  const replace = (text) => {
    const open = new Set([...live.querySelectorAll("details[open]")].map((d) => d.id));
    live.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
    for (const d of live.querySelectorAll("details")) d.open = open.has(d.id);
  };

  const refresh = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const res = await fetch(location.href, {
        headers: { "Vragent-Fragment": "live" },
        signal: AbortSignal.timeout(2 * interval),
      });
      if (res.status === 401) {
        location.reload(); // which leads to the login
        return;
      }
      if (res.status >= 500) throw new Error(res.statusText);
      const text = await res.text();
      if (!busy() && text !== shown) {
        replace(text);
        shown = text;
      }
      tell("Live, as of " + new Date().toLocaleTimeString() + ".", false);
    } catch {
      tell("The router does not answer; trying again.", true);
    }
    timer = setTimeout(refresh, interval);
  };

  document.addEventListener("visibilitychange", refresh);
  timer = setTimeout(refresh, interval);
  tell("Live, as of " + new Date().toLocaleTimeString() + ".", false);
})();
