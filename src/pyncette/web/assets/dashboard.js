// What the pages need besides htmx: the zone of the viewer, and when not to read again.
// Without it, and without htmx, every page shows and acts all the same.
(() => {
  "use strict";
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
  const kept = document.cookie.split("; ").find((one) => one.startsWith("pyncette_zone="));
  const known = kept === `pyncette_zone=${encodeURIComponent(zone)}`;
  if (!known) {
    document.cookie = `pyncette_zone=${encodeURIComponent(zone)}; SameSite=Strict; Max-Age=31536000`;
  }

  const live = document.getElementById("live");
  const say = (text, kind) => {
    if (live) {
      live.hidden = false;
      live.textContent = text;
      live.className = `live ${kind}`;
    }
  };

  // Whether ticks come: else a page that was read once, for example for its zone, is not live.
  let connected = false;

  // A page that is being used stays as it is: what is selected, typed or open would be lost.
  const inUse = () => {
    const content = document.getElementById("content");
    if (!content) return false;
    if (content.querySelector("input[type=checkbox]:checked, details[open]")) return true;
    const active = document.activeElement;
    return content.contains(active) && active.matches("input:not([type=checkbox]), select, textarea");
  };

  document.addEventListener("htmx:before:request", (event) => {
    const source = event.detail.ctx.sourceElement;
    if (source && source.id === "content" && inUse()) {
      event.preventDefault();
      say("held while you select", "held");
    }
  });
  document.addEventListener("htmx:before:response", (event) => {
    const { ctx } = event.detail;
    if (!ctx.sourceElement || ctx.sourceElement.id !== "content") return;
    if (inUse()) {
      // It has begun to be used since the page was asked for.
      event.preventDefault();
      say("held while you select", "held");
    } else if (ctx.response.status === 200 && !ctx.response.raw.redirected) {
      if (connected) say("live", "on");
    } else {
      event.preventDefault();
      say(ctx.response.status === 404 ? "gone" : "not live", "off");
    }
  });
  document.addEventListener("htmx:sse:after:connection", () => {
    connected = true;
    say("live", "on");
  });
  document.addEventListener("htmx:sse:error", () => {
    connected = false;
    say("not live", "off");
  });
  document.addEventListener("htmx:error", () => say("not live", "off"));

  // The first page of a browser was rendered without its zone.
  if (!known) {
    addEventListener("load", () => {
      const content = document.getElementById("content");
      if (content && content.hasAttribute("hx-get")) window.htmx.trigger(document.body, "tick");
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
})();
