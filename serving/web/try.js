// A live fit: one image, two starts, side by side.
import { address, ask, download, events, json, picture } from "./api.js";
import { announce, fresh, h, problemBox } from "./dom.js";
import { curvesPlot } from "./plot.js";
import { bytes, method, network, plural } from "./words.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const STEPS = [10, 50, 100, 200];
const TITLES = { prior: "From the prior", ordinary: "From the ordinary start" };

export async function tryPage(query, signal) {
  const [options, priors] = await Promise.all([json("v1/try", { signal }), json("v1/inits?family=learned&domain=image&limit=200", { signal })]);
  const wanted = query.get("init") ?? "";
  const state = { init: wanted || foremost(priors.items)?.name || "", sample: options.samples[0].name, file: null, steps: 100, running: null };
  const head = h("div", { class: "lead" }, h("h1", {}, "Try it on an image"),
    h("p", {}, "One network is fitted to your image twice: from a learned prior, and from the ordinary start with an optimizer tuned for it. Watch both."));
  if (!priors.items.length && !wanted) {
    return h("section", { class: "wrap" }, head, h("div", { class: "notice" }, h("h2", {}, "No prior for images is registered"),
      h("p", {}, "Live fits start from learned priors of the domain image, such as ", h("code", {}, "image-photos"), ".")));
  }
  const results = h("div", { class: "results" });
  const start = h("button", { type: "submit", class: "primary" }, "Fit");
  const stop = h("button", { type: "button", hidden: true, onclick: () => state.running?.abort() }, "Stop");
  const form = h("form", { class: "try-form", onsubmit: (event) => { event.preventDefault(); run(); } },
    imageField(options, state), priorField(priors.items, state, wanted), stepsField(options, state),
    h("p", { class: "buttons" }, start, stop));
  signal.addEventListener("abort", () => state.running?.abort());

  async function run() {
    if (state.running) return;
    state.running = new AbortController();
    start.disabled = true;
    stop.hidden = false;
    const view = resultView();
    results.replaceChildren(view.element);
    announce("The fit has begun");
    try {
      const asked = new URLSearchParams({ init: state.init, steps: String(state.steps) });
      if (!state.file) asked.set("sample", state.sample);
      const answer = await ask(`v1/try?${asked}`, {
        method: "POST", signal: state.running.signal, body: state.file,
        headers: { accept: "text/event-stream", ...(state.file ? { "content-type": state.file.type || "application/octet-stream" } : {}) },
      });
      for await (const { event, data } of events(answer)) {
        if (event === "problem") throw Object.assign(new Error(data.detail), data);
        view[event]?.(data);
      }
    } catch (error) {
      if (error.name === "AbortError") view.stopped();
      else results.append(problemBox(error));
    } finally {
      state.running = null;
      start.disabled = false;
      stop.hidden = true;
    }
  }
  return h("section", { class: "wrap try" }, head, form, results);
}

function imageField(options, state) {
  const name = fresh("sample");
  const chosen = h("p", { class: "chosen", role: "status" });
  const radios = [];
  const samples = options.samples.map((sample, i) => {
    const id = fresh("sample");
    const image = h("img", { alt: "", width: 72, height: 72 });
    picture(image, `v1/try/samples/${encodeURIComponent(sample.name)}`);
    const radio = h("input", { type: "radio", name, id, value: sample.name, checked: i === 0, onchange: () => { state.file = null; state.sample = sample.name; file.value = ""; chosen.textContent = ""; } });
    radios.push(radio);
    return h("span", { class: "sample" }, radio, h("label", { for: id }, image, h("span", {}, sample.shows)));
  });
  const own = fresh("file");
  const take = (found) => {
    if (!found) return;
    if (!TYPES.includes(found.type) || found.size > options.limits.body_bytes) {
      chosen.textContent = TYPES.includes(found.type) ? `${found.name} has ${bytes(found.size)}, at most ${bytes(options.limits.body_bytes)} are taken.` : `${found.name} is no PNG, JPEG or WebP.`;
      chosen.classList.add("warn");
      return;
    }
    state.file = found;
    radios.forEach((radio) => { radio.checked = false; });
    chosen.classList.remove("warn");
    chosen.textContent = `Your image: ${found.name}`;
  };
  const file = h("input", { type: "file", id: own, accept: TYPES.join(","), class: "unseen", onchange: () => take(file.files[0]) });
  const drop = h("span", { class: "drop" }, file, h("label", { for: own }, h("strong", {}, "Your own"), h("span", {}, "choose or drop a file")));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  return h("fieldset", { class: "image-field" }, h("legend", {}, "Image"), h("div", { class: "samples" }, samples, drop), chosen);
}

/** The prior to begin with: the one that was measured to gain most. */
function foremost(items) {
  const gained = (item) => item.versions.find((v) => v.version === item.default)?.headline?.gain ?? -Infinity;
  return [...items].sort((a, b) => gained(b) - gained(a))[0];
}

function priorField(items, state, wanted) {
  const id = fresh("prior");
  const known = items.some((item) => item.name === wanted);
  return h("div", { class: "field" }, h("label", { for: id }, "Prior"),
    h("select", { id, onchange: (event) => { state.init = event.target.value; } },
      wanted && !known ? h("option", { value: wanted, selected: true }, wanted) : null,
      items.map((item) => {
        const version = item.versions.find((v) => v.version === item.default);
        return h("option", { value: item.name, selected: item.name === state.init }, `${item.name}: ${method(version.method)}, ${network(version.network)}`);
      })));
}

function stepsField(options, state) {
  const id = fresh("steps");
  const offered = STEPS.filter((steps) => steps <= options.limits.steps);
  return h("div", { class: "field" }, h("label", { for: id }, "Steps"),
    h("select", { id, onchange: (event) => { state.steps = Number(event.target.value); } },
      offered.map((steps) => h("option", { value: steps, selected: steps === state.steps }, steps))));
}

function resultView() {
  const panels = { prior: panel("prior"), ordinary: panel("ordinary") };
  const target = h("img", { class: "pixels", alt: "The image as the network is to reproduce it" });
  const seen = { prior: { steps: [], mean: [] }, ordinary: { steps: [], mean: [] } };
  const frames = { prior: [], ordinary: [] };
  const scrub = scrubber((at) => { for (const side of Object.keys(panels)) panels[side].show(frames[side][Math.min(at, frames[side].length - 1)]); });
  const place = h("div", { class: "live-plot" });
  const said = h("p", { class: "verdict", role: "status" }, "Waiting for the server…");
  const links = h("p", { class: "links" });
  const facts = h("dl", { class: "pairs" });
  let begun = null;
  let told = -1;
  let drawn = false;
  const redraw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      const width = Math.floor(place.clientWidth);
      const curves = Object.entries(seen).filter(([, c]) => c.steps.length).map(([side, c]) => ({
        name: side, label: side === "prior" ? "prior" : "ordinary start", role: side === "prior" ? "ours" : "best", steps: [...c.steps], mean: [...c.mean],
      }));
      if (!curves.length || width < 40) return;
      place.replaceChildren(curvesPlot({ curves, metric: "psnr", width, height: 260, marks: begun ? [begun.own_steps] : [], title: "PSNR of both fits against steps",
        description: curves.map((c) => `${c.label}: ${c.mean.at(-1).toFixed(1)} dB after ${plural(c.steps.at(-1), "step")}.`).join(" ") }));
    });
  };
  new ResizeObserver(redraw).observe(place);
  const element = h("section", { class: "live", "aria-label": "The fit" }, said,
    h("div", { class: "panels" }, h("figure", { class: "target" }, target, h("figcaption", {}, h("strong", {}, "Target"))), panels.prior.element, panels.ordinary.element),
    scrub.element,
    h("div", { class: "legend", "aria-hidden": "true" }, h("span", { class: "ours" }, "prior"), h("span", { class: "best" }, "ordinary start"), h("span", { class: "unit" }, "PSNR, dB")),
    place, links, facts);
  return {
    element,
    begin(data) {
      begun = data;
      target.src = data.target;
      said.textContent = `Fitting ${data.size.join(" × ")} pixels for ${plural(data.steps, "step")}.`;
      facts.append(...[["prior", `${data.init}: ${data.routines.prior}`], ["ordinary start", `${data.starts.ordinary}: ${data.routines.ordinary}`]].flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
    },
    frame(data) {
      panels[data.side].show(data);
      frames[data.side].push(data);
      seen[data.side].steps.push(data.step);
      seen[data.side].mean.push(data.psnr);
      redraw();
      if (data.side === "ordinary" && data.step >= 2 * told + 2) {
        told = data.step;
        announce(`After ${plural(data.step, "step")}: prior ${seen.prior.mean.at(-1).toFixed(1)} decibels, ordinary start ${data.psnr.toFixed(1)}`);
      }
    },
    end(data) {
      said.textContent = verdict(data, begun);
      for (const [side, kept] of Object.entries(data.weights)) {
        const path = `v1/blobs/${kept.sha256}`;
        const name = `fit-from-${side}.safetensors`;
        links.append(h("a", { class: "button", href: address(path), download: name, onclick: (event) => download(event, path, name) }, `${side === "prior" ? "Weights fitted from the prior" : "Weights fitted from the ordinary start"}, ${bytes(kept.size)}`));
      }
      // The prior's own steps are where the two differ most.
      scrub.open(seen.prior.steps, seen.prior.steps.indexOf(begun.own_steps));
      element.classList.add("ended");
    },
    stopped() {
      said.textContent = "Stopped.";
      announce("The fit was stopped");
    },
  };
}

/** Goes back and forth among the steps that were shown. */
function scrubber(show) {
  const id = fresh("scrub");
  const told = h("output", { for: id }, "");
  const range = h("input", { type: "range", id, min: 0, max: 0, step: 1 });
  const element = h("div", { class: "scrub", hidden: true }, h("label", { for: id }, "Look back"), range, told);
  return {
    element,
    open(steps, at) {
      const tell = () => {
        const text = plural(steps[range.value], "step");
        told.textContent = text;
        range.setAttribute("aria-valuetext", text);
        show(Number(range.value));
      };
      range.max = String(steps.length - 1);
      range.value = String(at < 0 ? steps.length - 1 : at);
      range.addEventListener("input", tell);
      element.hidden = false;
      tell();
    },
  };
}

function panel(side) {
  const image = h("img", { class: "pixels", alt: "" });
  const number = h("strong", { class: "number" }, "–");
  const step = h("span", { class: "quiet" }, "");
  return {
    element: h("figure", { class: side }, image, h("figcaption", {}, h("span", {}, TITLES[side]), number, step)),
    show(data) {
      image.src = data.picture;
      image.alt = `${TITLES[side]}, after ${plural(data.step, "step")}`;
      number.textContent = `${data.psnr.toFixed(1)} dB`;
      step.textContent = plural(data.step, "step");
    },
  };
}

function verdict(data, begun) {
  const own = plural(begun?.own_steps ?? 0, "step");
  const first = `The prior reached ${data.own_psnr.toFixed(1)} dB after its own ${own}. `;
  const level = data.level_at === null
    ? `The ordinary start had not got there after ${plural(data.steps, "step")} (${data.psnr.ordinary.toFixed(1)} dB).`
    : `The ordinary start got there after ${plural(data.level_at, "step")}.`;
  return `${first}${level}${data.said ? ` ${data.said}` : ""}`;
}
