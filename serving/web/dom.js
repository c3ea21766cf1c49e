// Elements without markup in strings: nothing that a server says is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

let count = 0;

/** Return an id that no other element has. */
export function fresh(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}

/** Tell screen readers. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

export function copyable(text, label) {
  const button = h("button", { type: "button", class: "copy", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    const copied = await copy(text);
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    announce(copied ? `${label} copied` : "The browser does not allow copying: the text is selected");
    if (!copied) select(button.parentElement.querySelector("code"));
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return h("div", { class: "code" }, h("pre", { tabindex: "0", role: "region", "aria-label": label }, h("code", {}, text)), button);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function select(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

/** Tabs with the keyboard's arrows; `parts` are [label, element]. */
export function tabs(name, parts) {
  const ids = parts.map(() => fresh("tab"));
  const buttons = parts.map(([label], i) =>
    h("button", { type: "button", role: "tab", id: ids[i], "aria-controls": `${ids[i]}-panel` }, label));
  const panels = parts.map(([, element], i) =>
    h("div", { role: "tabpanel", id: `${ids[i]}-panel`, "aria-labelledby": ids[i] }, element));
  const show = (at, focus) => {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", String(i === at));
      button.tabIndex = i === at ? 0 : -1;
      panels[i].hidden = i !== at;
    });
    if (focus) buttons[at].focus();
  };
  buttons.forEach((button, i) => {
    button.addEventListener("click", () => show(i, false));
    button.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: i + 1, ArrowLeft: i - 1 + parts.length, Home: 0, End: parts.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key] % parts.length, true);
    });
  });
  show(0, false);
  return h("div", { class: "tabs" }, h("div", { role: "tablist", "aria-label": name }, buttons), panels);
}

export function problemBox(error, retry) {
  return h("div", { class: "notice bad", role: "alert" },
    h("h2", {}, error.title ?? "The endpoint cannot be reached"),
    h("p", {}, error.detail ?? error.message),
    error.status === 401 || error.status === 403
      ? h("p", {}, h("button", { type: "button", onclick: () => document.getElementById("key-open").click() }, "Enter an API key"))
      : null,
    retry ? h("p", {}, h("button", { type: "button", onclick: retry }, "Try again")) : null);
}
