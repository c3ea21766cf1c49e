// Which page an address means, the theme, and the key.
import { key, json } from "./api.js";
import { announce, h, problemBox } from "./dom.js";
import { plural } from "./words.js";
import { galleryPage } from "./gallery.js";
import { cardPage } from "./card.js";
import { tryPage } from "./try.js";

const main = document.getElementById("main");
const THEMES = ["system", "light", "dark"];
let leave = new AbortController();
let first = true;

const ROUTES = [
  [/^\/?$/, "gallery", "Initializations", (_, query, signal) => galleryPage(query, signal)],
  [/^\/inits\/([^/]+)(?:\/versions\/(\d+))?$/, "gallery", null, ([name, version], _, signal) => cardPage(name, version, signal)],
  [/^\/try$/, "try", "Try it", (_, query, signal) => tryPage(query, signal)],
];

async function show() {
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  if (location.hash && !location.hash.startsWith("#/")) return;
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const route = ROUTES.find(([pattern]) => pattern.test(path || "/"));
  for (const link of document.querySelectorAll("nav [data-page]")) {
    if (route && link.dataset.page === route[1]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!route) {
    main.replaceChildren(h("section", { class: "wrap" }, h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "All initializations"))));
    return;
  }
  const [pattern, , title, make] = route;
  const parts = (pattern.exec(path || "/") ?? []).slice(1).map((part) => part && decodeURIComponent(part));
  const slow = setTimeout(() => main.replaceChildren(h("p", { class: "waiting", role: "status" }, "Loading…")), 250);
  try {
    const page = await make(parts, new URLSearchParams(search), signal);
    if (signal.aborted) return;
    main.replaceChildren(page);
    document.title = `${title ?? parts[0]} · metainit`;
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    main.replaceChildren(h("section", { class: "wrap" }, h("h1", { class: "unseen" }, "Something is missing"), problemBox(error, show)));
    document.title = "metainit";
  } finally {
    clearTimeout(slow);
  }
  if (!first) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
    announce(document.title);
  }
  first = false;
}

function theme() {
  const button = document.getElementById("theme");
  const tell = () => {
    const now = document.documentElement.dataset.theme ?? "system";
    button.lastElementChild.textContent = now;
    button.setAttribute("aria-label", `Theme: ${now}`);
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { localStorage.setItem("metainit-theme", next); } catch { /* it lasts as long as the page */ }
    tell();
  });
  tell();
}

function keys() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key-field");
  const open = document.getElementById("key-open");
  const tell = () => { open.textContent = key.get() ? "Key: set" : "Key"; };
  const done = (value) => { key.set(value); tell(); dialog.close(); show(); };
  open.addEventListener("click", () => { field.value = key.get(); dialog.showModal(); field.focus(); });
  document.getElementById("key-form").addEventListener("submit", (event) => { event.preventDefault(); done(field.value.trim()); });
  document.getElementById("key-forget").addEventListener("click", () => done(""));
  document.getElementById("key-close").addEventListener("click", () => dialog.close());
  tell();
}

async function state() {
  const text = document.getElementById("state");
  try {
    const ready = await json("readyz");
    text.textContent = ready.stale ? "The registry is out of reach: this is what was known last." : `${plural(ready.inits, "initialization")}, up to date with the registry.`;
    text.classList.toggle("warn", ready.stale);
  } catch { text.textContent = ""; }
}

document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", show);
theme();
keys();
show();
state();
