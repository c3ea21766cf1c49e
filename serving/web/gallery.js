// All initializations: filters, cards, and the rules that need no checkpoint.
import { initPath, json, picture } from "./api.js";
import { announce, copyable, fresh, h, problemBox, s } from "./dom.js";
import { dumbbell } from "./plot.js";
import { FAMILIES, bytes, gain, interval, measured, method, network, plural, sure, value } from "./words.js";

const LIMIT = 24;

export async function galleryPage(query, signal) {
  const state = { family: query.get("family") ?? "", domain: query.get("domain") ?? "", q: query.get("q") ?? "" };
  const [overview, part] = await Promise.all([json("v1/overview", { signal }), json(listPath(state), { signal })]);
  const list = h("ul", { class: "cards", role: "list" });
  const status = h("p", { class: "found", role: "status" });
  const more = h("div", { class: "more" });
  const rules = rulesSection(overview.rules);

  const fill = (found, append) => {
    const cards = found.items.map(card);
    if (append) list.append(...cards); else list.replaceChildren(...cards);
    const shown = list.children.length;
    status.textContent = found.total === shown ? plural(found.total, "initialization") : `${shown} of ${plural(found.total, "initialization")}`;
    more.replaceChildren();
    if (found.next) more.append(h("button", { type: "button", onclick: () => load(found.next, true) }, "Show more"));
    if (!found.total) more.append(empty(state, overview.total));
    rules.hidden = !(state.family === "" || state.family === "computed") || state.q !== "" || state.domain !== "";
    if (append) cards[0]?.querySelector("a")?.focus();
  };

  let latest = 0;
  const load = async (next, append) => {
    const mine = latest += 1;
    list.setAttribute("aria-busy", "true");
    try {
      const path = next ? `v1/inits?${next.split("?")[1]}` : listPath(state);
      const found = await json(path, { signal });
      if (mine === latest) fill(found, append);
    } catch (error) {
      if (error.name !== "AbortError" && mine === latest) more.replaceChildren(problemBox(error, () => load(next, append)));
    } finally {
      list.removeAttribute("aria-busy");
    }
  };
  const change = (values) => {
    Object.assign(state, values);
    const kept = new URLSearchParams(Object.entries(state).filter(([, v]) => v));
    history.replaceState(null, "", `#/${kept.size ? `?${kept}` : ""}`);
    load(null, false).then(() => announce(status.textContent));
  };
  fill(part, false);
  return h("section", { class: "wrap" },
    h("div", { class: "lead" },
      h("h1", {}, "Better initial weights than random ones"),
      h("p", {}, "Learned, predicted, generated or computed. Each with what it gains over its best control, on tasks that it never saw.")),
    filters(state, overview, change), status, list, more, rules);
}

function listPath(state) {
  const asked = Object.entries({ ...state, limit: String(LIMIT) }).filter(([, v]) => v);
  return `v1/inits?${new URLSearchParams(asked)}`;
}

function filters(state, overview, change) {
  const choices = [["", "All", overview.total], ...Object.keys(FAMILIES).map((f) => [f, f, overview.families[f] ?? 0])];
  let timer = 0;
  const search = fresh("search");
  const domain = fresh("domain");
  return h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    h("fieldset", {}, h("legend", {}, "Family"), h("div", { class: "segments" }, choices.map(([id, label, count]) => {
      const own = fresh("family");
      return h("span", {},
        h("input", { type: "radio", name: "family", id: own, value: id, checked: state.family === id, onchange: () => change({ family: id }) }),
        h("label", { for: own, title: FAMILIES[id] }, label, " ", h("span", { class: "count" }, count)));
    }))),
    h("div", { class: "field" }, h("label", { for: domain }, "Domain"),
      h("select", { id: domain, onchange: (event) => change({ domain: event.target.value }) },
        h("option", { value: "" }, "any"),
        Object.entries(overview.domains).map(([name, n]) => h("option", { value: name, selected: name === state.domain }, `${name} (${n})`)))),
    h("div", { class: "field grow" }, h("label", { for: search }, "Search"),
      h("input", { type: "search", id: search, value: state.q, placeholder: "name, method, network", autocomplete: "off", oninput: (event) => {
        clearTimeout(timer);
        timer = setTimeout(() => change({ q: event.target.value.trim() }), 180);
      } })));
}

function card(item) {
  const version = item.versions.find((v) => v.version === item.default) ?? item.versions[0];
  const title = fresh("card");
  return h("li", {}, h("article", { class: "card", "aria-labelledby": title },
    plate(item),
    h("div", { class: "card-text" },
      h("h2", { id: title }, h("a", { href: `#/inits/${encodeURIComponent(item.name)}` }, item.name)),
      h("p", { class: "what" }, h("span", { class: `family ${item.family}` }, item.family), ` ${method(version.method)}, ${network(version.network)}`, item.domain ? `, ${item.domain}` : ""),
      headline(version.headline),
      h("p", { class: "facts" }, `version ${version.version}`, version.aliases.length ? ` · ${version.aliases.join(", ")}` : "", item.versions.length > 1 ? ` · ${plural(item.versions.length, "version")}` : "", ` · ${bytes(version.size)}`))));
}

function headline(found) {
  if (!measured(found)) return h("p", { class: "headline none" }, "No evidence yet.");
  const after = `after ${plural(found.steps, "step")}`;
  return h("div", { class: `headline ${sure(found) ? "sure" : "unsure"}` },
    h("p", { class: "gain" }, h("span", {}, h("strong", {}, gain(found.metric, found.gain)), ` ${after}`),
      h("span", { class: "interval-text", title: "95 % interval" }, interval(found.metric, found.low, found.high))),
    dumbbell(found),
    h("p", { class: "versus" }, h("span", { class: "theirs" }, `${found.control.replaceAll("_", " ")} ${value(found.metric, found.control_value)}`), h("span", { class: "ours" }, value(found.metric, found.value))));
}

/** The picture of the first steps, else of whatever there is; a sketch of the family where there is none. */
function plate(item) {
  const found = item.pictures.find((p) => p.id.startsWith("reconstructions")) ?? item.pictures.find((p) => !p.id.startsWith("evidence"));
  if (!found) return h("div", { class: "plate sketch", "aria-hidden": "true" }, sketch(item.name));
  const image = h("img", { alt: "", loading: "lazy", decoding: "async" });
  const frame = h("div", { class: "plate" }, image);
  image.addEventListener("load", () => image.classList.toggle("tall", image.naturalHeight > image.naturalWidth));
  image.addEventListener("error", () => { frame.replaceChildren(sketch(item.name)); frame.classList.add("sketch"); }, { once: true });
  picture(image, `${initPath(item.name, item.default)}/pictures/${encodeURIComponent(found.id)}`);
  return frame;
}

/** Contours that follow from a name, so that a card without a picture is still told from another. */
function sketch(name) {
  let seed = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 9973, 7);
  const next = () => { seed = (seed * 137 + 71) % 9973; return seed / 9973; };
  const [x, y, tilt] = [90 + 140 * next(), 55 + 70 * next(), 180 * next()];
  return s("svg", { viewBox: "0 0 320 180", preserveAspectRatio: "xMidYMid slice" },
    Array.from({ length: 11 }, (_, i) => s("ellipse", { class: "contour", cx: x + i * 3, cy: y + i * 2, rx: 10 + i * 22, ry: 6 + i * 14, transform: `rotate(${tilt} ${x} ${y})` })));
}

function empty(state, total) {
  if (!total) {
    return h("div", { class: "notice" }, h("h2", {}, "Nothing is registered yet"), h("p", {}, "Train a prior and register it; it appears here a moment later."), copyable("metainit train image-photos", "command"));
  }
  const computed = state.family === "computed" && !state.q && !state.domain;
  return h("div", { class: "notice" }, h("h2", {}, computed ? "No stored weights are computed ones" : "Nothing matches"), h("p", {}, computed ? "The rules below need none." : "Leave a filter out, or search for less."));
}

function rulesSection(rules) {
  return h("section", { class: "rules", "aria-labelledby": "rules-title" },
    h("h2", { id: "rules-title" }, "Computed on the spot"),
    h("p", {}, "Rules that need no checkpoint; every initialization above is measured beside the ones that fit its network."),
    h("ul", { role: "list" }, rules.map((rule) => h("li", {}, h("code", {}, rule.name), h("span", {}, rule.paper)))),
    copyable('import metainit\n\nmetainit.init_(network, "siren", seed=0)', "Python for a computed start"));
}
