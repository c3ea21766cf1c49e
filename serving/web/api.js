// The endpoint, by addresses relative to the page: it may lie below any path of a proxy.

const KEY = "metainit-key";
const BASE = new URL("./", location.href.split("#")[0]);

export const key = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } },
  set: (value) => { try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* no storage: no key */ } },
};

export class Problem extends Error {
  constructor(value, status) {
    super(value.detail ?? value.title ?? `status ${status}`);
    Object.assign(this, { title: value.title, detail: value.detail, status });
  }
}

export function address(path) {
  return new URL(path, BASE).href;
}

/** The path of a version, which the API lists under its name. */
export function initPath(name, version) {
  return `v1/inits/${encodeURIComponent(name)}${version ? `/versions/${version}` : ""}`;
}

export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("authorization", `Bearer ${key.get()}`);
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The endpoint cannot be reached", detail: "The connection failed; it may be restarting." }, 0);
  }
  if (!answer.ok) throw new Problem(await answer.json().catch(() => ({ title: answer.statusText })), answer.status);
  return answer;
}

export async function json(path, options) {
  return (await ask(path, { ...options, headers: { accept: "application/json" } })).json();
}

/** Show a picture; with a key it has to be fetched, since an image element sends none. */
export async function picture(image, path) {
  if (!key.get()) {
    image.src = address(path);
    return;
  }
  try {
    const blob = await (await ask(path)).blob();
    image.src = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

/** Let a link download with the key, which a plain link cannot send. */
export async function download(event, path, name) {
  if (!key.get()) return;
  event.preventDefault();
  const blob = await (await ask(path)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Read server-sent events from an answer; EventSource can send neither a body nor a key. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value.replace(/\r\n?/g, "\n");
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const found = { event: "message", data: "" };
      for (const line of rest.slice(0, end).split("\n")) {
        if (line.startsWith("event:")) found.event = line.slice(6).trim();
        if (line.startsWith("data:")) found.data += line.slice(5).trimStart();
      }
      rest = rest.slice(end + 2);
      if (found.data) yield { event: found.event, data: JSON.parse(found.data) };
    }
  }
}
