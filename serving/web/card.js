// One version in full: evidence, use, pictures, network, lineage.
import { address, download, initPath, json, picture } from "./api.js";
import { copyable, fresh, h, problemBox, tabs } from "./dom.js";
import { evidencePlot, evidenceTable } from "./plot.js";
import { graphPicture, graphTable } from "./graph.js";
import { FAMILIES, bytes, gain, interval, measured, method, metric, network, plural, sure, value } from "./words.js";

export async function cardPage(name, version, signal) {
  const [detail, line] = await Promise.all([
    json(initPath(name, version), { signal }),
    // Of the name's other versions; without it the page is still whole.
    json(`v1/inits?limit=1&after=${encodeURIComponent(before(name))}`, { signal }).then((part) => part.items.find((item) => item.name === name)).catch(() => null),
  ]);
  const path = initPath(name, detail.version);
  return h("article", { class: "wrap detail" },
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Initializations"), " / ", name),
    h("header", { class: "detail-head" },
      h("div", {},
        h("h1", {}, name),
        h("p", { class: "what" },
          line ? h("span", { class: `family ${line.family}` }, line.family) : null,
          ` ${method(detail.method)}, ${network(detail.network)}`, detail.card.domain ? `, ${detail.card.domain.name}` : "",
          detail.card.method.paper ? h("span", { class: "quiet" }, ` · ${detail.card.method.paper}`) : null),
        line ? h("p", { class: "quiet" }, FAMILIES[line.family]) : null),
      h("div", { class: "actions" },
        triable(detail) ? h("a", { class: "button primary", href: `#/try?init=${encodeURIComponent(`${name}/${detail.version}`)}` }, "Try it on an image") : null,
        h("a", { class: "button", href: address(`${path}/weights`), download: `${name}-${detail.version}.safetensors`, onclick: (event) => download(event, `${path}/weights`, `${name}-${detail.version}.safetensors`) }, `Download weights, ${bytes(detail.size)}`))),
    verdict(detail.headline),
    evidence(detail),
    h("div", { class: "columns" }, use(detail, path), versions(line, detail)),
    pictures(detail, path),
    architecture(detail, path, signal),
    lineage(detail, path));
}

/** A name that comes right before another in the list's order, and is no name itself. */
const before = (name) => `${name.slice(0, -1)}${String.fromCodePoint(name.codePointAt(name.length - 1) - 1)}~`;

export const triable = (detail) => detail.kind === "prior" && detail.card.domain?.name === "image" && Boolean(detail.card.network);

function section(title, attributes, ...children) {
  const id = fresh("section");
  return h("section", { ...attributes, "aria-labelledby": id }, h("h2", { id }, title), children);
}

function verdict(found) {
  if (!measured(found)) return h("p", { class: "verdict" }, "No evidence was measured for this version.");
  const name = found.metric;
  const against = found.control.replaceAll("_", " ");
  const tasks = `${plural(found.tasks, "held-out task")}, ${plural(found.seeds, "seed")}`;
  return h("p", { class: `verdict ${sure(found) ? "sure" : "unsure"}` },
    h("strong", {}, gain(name, found.gain)), " ",
    `over the best control (${against}) after ${plural(found.steps, "step")}: ${value(name, found.value)} against ${value(name, found.control_value)}. `,
    h("span", { class: "quiet" }, `95 % interval ${interval(name, found.low, found.high)}, ${tasks}.`),
    sure(found) ? null : h("span", { class: "warn" }, " Not surely better."));
}

function evidence(detail) {
  const found = detail.evidence;
  if (!found?.curves?.length) return null;
  const controls = found.curves.filter((c) => c.role !== "candidate");
  const best = detail.headline?.control;
  return section("Evidence", { class: "evidence" },
    h("div", { class: "legend", "aria-hidden": "true" },
      h("span", { class: "ours" }, detail.name),
      best ? h("span", { class: "best" }, `best control: ${best.replaceAll("_", " ")}`) : null,
      controls.length > 1 ? h("span", { class: "other" }, `${controls.length - 1} other controls`) : null,
      h("span", { class: "unit" }, `${metric(found.metric)}, ${found.metric === "psnr" ? "dB" : "%"}`)),
    evidencePlot(found, detail.name),
    h("p", { class: "quiet" }, "Controls take the best optimizer and step size found for each number of steps, on tasks that are neither trained on nor reported. The vertical line is this version's own number of steps."),
    h("details", {}, h("summary", {}, "The same as a table"), evidenceTable(found, detail.name)),
    leftOut(found));
}

function leftOut(found) {
  const entries = Object.entries(found.left_out ?? {});
  return entries.length ? h("details", {}, h("summary", {}, `Left out: ${plural(entries.length, "control")}`), h("dl", { class: "pairs" }, entries.map(([name, why]) => [h("dt", {}, name), h("dd", {}, why)]))) : null;
}

function use(detail, path) {
  const reference = `${detail.name}/${detail.version}`;
  const source = address(path);
  const spec = detail.card.network;
  const python = spec
    ? ["import metainit", "from metainit.card import Spec", "from metainit.networks import build", "",
      `start = metainit.load("${source}")`, "network = build(start.card.network)", "start.init_(network)"]
    : ["import metainit", "", `start = metainit.load("${source}")`, "start.init_(network, example_inputs=inputs)"];
  const lines = spec ? python.filter((text) => !text.includes("import Spec")) : python;
  const server = address("").replace(/\/$/, "");
  const cli = [`metainit pull ${reference} --server ${server} -o ${detail.name}.safetensors`];
  if (detail.card.routine && detail.card.domain) cli.push(`metainit fit PATH --init ${source} -o fitted`);
  if (detail.kind === "ghn") cli.push(`metainit predict MODULE:CALLABLE --from ${source} -o predicted.safetensors`);
  if (detail.kind === "generator") cli.push(`metainit generate ${source} -n 4 --seed 0 -o generated`);
  const curl = `curl -C - -o ${detail.name}.safetensors \\\n  ${address(`${path}/weights`)}\nsha256sum ${detail.name}.safetensors  # ${detail.sha256.slice(0, 12)}…`;
  return section("Use it", { class: "use" }, tabs("How to use it", [
    ["Python", copyable(lines.join("\n"), "Python code")],
    ["Command line", copyable(cli.join("\n"), "commands")],
    ["curl", copyable(curl, "curl command")],
  ]));
}

function versions(line, detail) {
  if (!line) return null;
  return section("Versions", { class: "versions" }, h("ol", { role: "list" }, line.versions.map((one) => h("li", {},
    h("a", { href: `#/inits/${encodeURIComponent(line.name)}/versions/${one.version}`, "aria-current": one.version === detail.version ? "true" : null }, `version ${one.version}`),
    one.aliases.map((alias) => h("span", { class: "alias" }, alias)),
    h("span", { class: "quiet" }, measured(one.headline) ? `${gain(one.headline.metric, one.headline.gain)} after ${plural(one.headline.steps, "step")}` : "no evidence")))));
}

function pictures(detail, path) {
  const shown = detail.pictures.filter((one) => !one.id.startsWith("evidence"));
  if (!shown.length) return null;
  return section("Pictures", { class: "pictures" }, shown.map((one) => {
    const title = one.id.replace(/\.[a-z]+$/, "").replaceAll(/[-_]/g, " ");
    const image = h("img", { alt: title === "reconstructions" ? "A typical held-out task: the target, and what the prior (upper row) and the best control (lower row) make of it, step by step" : title, loading: "lazy" });
    picture(image, `${path}/pictures/${encodeURIComponent(one.id)}`);
    return h("figure", {}, h("div", { class: "plate" }, image), h("figcaption", {}, title === "reconstructions" ? "A typical held-out task, step by step: this version above, its best control below." : title));
  }));
}

const GRAPH_TITLES = { network: "The network that it fills", predicted: "The network that these weights were predicted for", example: "An architecture that it was tested on" };

function architecture(detail, path, signal) {
  const place = h("div", {}, h("p", { class: "quiet", role: "status" }, "Tracing the architecture…"));
  const spec = detail.card.network;
  json(`${path}/graph`, { signal }).then((drawing) => {
    place.replaceChildren(
      h("p", {}, `${GRAPH_TITLES[drawing.of]}: `, h("code", {}, drawing.name), `, ${plural(drawing.nodes.length, "operation")}, ${drawing.elements.toLocaleString("en")} numbers.`),
      graphPicture(drawing),
      h("details", {}, h("summary", {}, "Parameters as a table"), graphTable(drawing)));
  }).catch((error) => {
    if (error.name !== "AbortError") place.replaceChildren(error.status === 404 ? h("p", { class: "quiet" }, error.detail) : problemBox(error));
  });
  return section("Architecture", { class: "architecture" },
    spec ? h("dl", { class: "pairs" }, h("dt", {}, "network"), h("dd", {}, h("code", {}, spec.name)),
      Object.entries(spec.arguments).map(([name, v]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, h("code", {}, JSON.stringify(v)))])) : null,
    place);
}

function lineage(detail, path) {
  const { provenance, routine, digest } = detail.card;
  const data = provenance.data;
  const rows = [
    ["MLflow run", detail.run_id ? h("code", {}, detail.run_id) : "none"],
    ["data", data.description || "not described"],
    ["licence", data.licence],
    ["data fingerprint", data.fingerprint ? h("code", {}, data.fingerprint) : "none"],
    ["seeds", provenance.seeds.length ? provenance.seeds.join(", ") : "none"],
    ["gradient evaluations", provenance.gradient_evaluations ? provenance.gradient_evaluations.toLocaleString("en") : "not known"],
    ["code", provenance.code_version || "not known"],
    ["adaptation", routine ? routineText(routine) : "none"],
    ["SHA-256 of the file", h("code", {}, detail.sha256)],
    ["digest of the tensors", h("code", {}, digest)],
  ];
  const tags = Object.entries(detail.tags);
  return section("Lineage", { class: "lineage" },
    h("dl", { class: "pairs" }, rows.map(([name, v]) => [h("dt", {}, name), h("dd", {}, v)])),
    detail.recipe ? h("details", {}, h("summary", {}, "Recipe"), copyable(detail.recipe.trim(), "recipe")) : null,
    tags.length ? h("details", {}, h("summary", {}, `Tags of the registered version (${tags.length})`), h("dl", { class: "pairs" }, tags.map(([name, v]) => [h("dt", {}, name), h("dd", {}, h("code", {}, v))]))) : null,
    h("p", { class: "links" },
      h("a", { href: address(path), onclick: (event) => download(event, path, `${detail.name}-${detail.version}.json`) }, "Everything as JSON"), " · ",
      h("a", { href: address(`v1/blobs/${detail.sha256}`), onclick: (event) => download(event, `v1/blobs/${detail.sha256}`, `${detail.name}.safetensors`) }, "Immutable blob")));
}

function routineText(routine) {
  const sizes = routine.per_parameter ? "a learned step size for each parameter" : Object.keys(routine.per_tensor ?? {}).length ? "a learned step size for each tensor" : `step size ${routine.step_size}`;
  const then = routine.continuation ? `, then ${routine.continuation.optimizer} ${routine.continuation.step_size}` : "";
  return `${plural(routine.steps, "step")} of ${routine.optimizer}, ${sizes}${then}`;
}
