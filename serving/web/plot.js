// Curves as SVG: ours, the best control, the others in the background; and the headline as a line of two dots.
import { fresh, h, s } from "./dom.js";
import { bare, metric as metricName, value } from "./words.js";

const RIGHT_WIDE = 128;

function ticks(low, high, about) {
  const raw = (high - low) / about;
  const scale = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * scale).find((m) => m >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toFixed(10)));
  return found;
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** Spread labels so that none covers another. */
function dodge(wanted, gap, low, high) {
  const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  let last = low - gap;
  for (const item of order) { item[0] = Math.max(item[0], last + gap); last = item[0]; }
  let next = high + gap;
  for (const item of order.toReversed()) { item[0] = Math.min(item[0], next - gap); next = item[0]; }
  const out = [];
  for (const [y, i] of order) out[i] = y;
  return out;
}

/**
 * Draw curves of a metric against steps.
 *
 * `curves`: {name, role: "ours" | "best" | "other", steps, mean, low, high}; `marks`: steps to point at.
 */
export function curvesPlot({ curves, metric, title, description, width, height, marks = [] }) {
  const narrow = width < 560;
  const box = { left: 46, right: narrow ? 14 : RIGHT_WIDE, top: 14, bottom: 40 };
  const steps = [...new Set(curves.flatMap((c) => c.steps))].sort((a, b) => a - b);
  const shown = curves.flatMap((c) => [...c.mean, ...(c.role === "other" ? [] : [...(c.low ?? []), ...(c.high ?? [])])]);
  let [low, high] = [Math.min(...shown), Math.max(...shown)];
  const pad = Math.max((high - low) * 0.06, metric === "psnr" ? 0.5 : 0.01);
  [low, high] = [low - pad, high + pad];
  const last = Math.max(1, steps.at(-1) ?? 1);
  const x = (step) => box.left + (Math.log1p(step) / Math.log1p(last)) * (width - box.left - box.right);
  const y = (v) => height - box.bottom - ((v - low) / (high - low)) * (height - box.top - box.bottom);
  const [titleId, descriptionId] = [fresh("plot"), fresh("plot")];
  const svg = s("svg", {
    class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-labelledby": titleId, "aria-describedby": descriptionId,
  }, s("title", { id: titleId }, title), s("desc", { id: descriptionId }, description));
  for (const tick of ticks(low, high, height / 60)) {
    svg.append(
      s("line", { class: "grid", x1: box.left, x2: width - box.right, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: box.left - 8, y: y(tick) + 4, "text-anchor": "end" }, metric === "psnr" ? tick : Math.round(tick * 1000) / 10));
  }
  let free = -Infinity;
  for (const step of steps) {
    svg.append(s("line", { class: "tickmark", x1: x(step), x2: x(step), y1: height - box.bottom, y2: height - box.bottom + 4 }));
    if (x(step) < free + 26 && step !== 0) continue;
    free = x(step);
    svg.append(s("text", { class: "tick", x: x(step), y: height - box.bottom + 18, "text-anchor": "middle" }, step));
  }
  svg.append(
    s("text", { class: "axis", x: width - box.right, y: height - 4, "text-anchor": "end" }, "adaptation steps"),
    s("text", { class: "axis", x: 4, y: 11 }, ""),
    s("line", { class: "baseline", x1: box.left, x2: width - box.right, y1: height - box.bottom, y2: height - box.bottom }));
  for (const mark of marks.filter((m) => m > 0 && m <= last)) {
    svg.append(s("line", { class: "own", x1: x(mark), x2: x(mark), y1: box.top, y2: height - box.bottom }));
  }
  const order = { other: 0, best: 1, ours: 2 };
  for (const curve of [...curves].sort((a, b) => order[a.role] - order[b.role])) {
    const group = s("g", { class: `curve ${curve.role}`, "data-curve": curve.name });
    if (curve.low && curve.role !== "other") {
      const up = curve.steps.map((step, i) => [x(step), y(curve.high[i])]);
      const down = curve.steps.map((step, i) => [x(step), y(curve.low[i])]).reverse();
      group.append(s("path", { class: "band", d: `${path([...up, ...down])}Z` }));
    }
    group.append(s("path", { class: "line", d: path(curve.steps.map((step, i) => [x(step), y(curve.mean[i])])) }));
    if (curve.role !== "other") {
      for (const [i, step] of curve.steps.entries()) {
        group.append(curve.role === "ours"
          ? s("circle", { class: "dot", cx: x(step), cy: y(curve.mean[i]), r: 3.5 })
          : s("rect", { class: "dot", x: x(step) - 3, y: y(curve.mean[i]) - 3, width: 6, height: 6 }));
      }
    }
    svg.append(group);
  }
  if (!narrow) {
    const ends = curves.map((c) => y(c.mean.at(-1)));
    const places = dodge(ends, 14, box.top + 4, height - box.bottom - 2);
    curves.forEach((curve, i) => {
      const from = x(curve.steps.at(-1));
      const at = width - box.right;
      svg.append(
        s("path", { class: `leader ${curve.role}`, d: path([[from + 5, ends[i]], [at + 8, places[i]]]), "data-curve": curve.name }),
        s("text", { class: `label ${curve.role}`, x: at + 12, y: places[i] + 4, "data-curve": curve.name }, curve.label ?? curve.name));
    });
  }
  return svg;
}

/** Keep a plot as wide as its container. */
export function fluid(draw, height) {
  const frame = h("div", { class: "plot-frame" });
  let before = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width === before || width < 40) return;
    before = width;
    frame.replaceChildren(draw(width, height));
  }).observe(frame);
  return frame;
}

export function evidencePlot(evidence, name) {
  const headline = evidence.headline;
  const curves = evidence.curves.map((curve) => ({
    name: curve.source,
    label: curve.role === "candidate" ? name : curve.source.replaceAll("_", " "),
    role: curve.role === "candidate" ? "ours" : curve.source === headline?.control ? "best" : "other",
    steps: evidence.steps, mean: curve.mean, low: curve.low, high: curve.high,
  }));
  const ours = curves.find((c) => c.role === "ours");
  const description = [ours, ...curves.filter((c) => c !== ours)].filter(Boolean).map((c) =>
    `${c.label}: ${c.steps.map((step, i) => `${value(evidence.metric, c.mean[i])} after ${step}`).join(", ")}.`).join(" ");
  const marks = headline ? [headline.steps] : [];
  return fluid((width, height) => curvesPlot({
    curves, metric: evidence.metric, width, height, marks, description,
    title: `${metricName(evidence.metric)} of ${name} and its controls against adaptation steps`,
  }), 340);
}

export function evidenceTable(evidence, name) {
  const sorted = [...evidence.curves].sort((a, b) => (b.role === "candidate") - (a.role === "candidate") || b.mean.at(-1) - a.mean.at(-1));
  const unit = evidence.metric === "psnr" ? "dB" : "%";
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Evidence as a table" }, h("table", {},
    h("caption", {}, `${metricName(evidence.metric)} in ${unit} after each number of steps: mean, and 95 % interval`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "start"), evidence.steps.map((step) => h("th", { scope: "col" }, step)))),
    h("tbody", {}, sorted.map((curve) => h("tr", { class: curve.role === "candidate" ? "ours" : null },
      h("th", { scope: "row" }, curve.role === "candidate" ? name : curve.source.replaceAll("_", " ")),
      curve.mean.map((mean, i) => h("td", {}, bare(evidence.metric, mean),
        h("small", {}, ` ${bare(evidence.metric, curve.low[i])}–${bare(evidence.metric, curve.high[i])}`))))))));
}

const RANGES = { psnr: [0, 50] };

/** The headline: where the best control is, where ours is, on a scale that all of a metric share. */
export function dumbbell(headline) {
  const [low, high] = RANGES[headline.metric] ?? [0, 1];
  const x = (v) => 8 + (Math.min(high, Math.max(low, v)) - low) / (high - low) * 284;
  const [from, to] = [x(headline.control_value), x(headline.value)];
  const ci = [x(headline.control_value + headline.low), x(headline.control_value + headline.high)];
  const away = Math.abs(to - from) > 12;
  return s("svg", { class: `dumbbell ${headline.gain < 0 ? "behind" : ""}`, viewBox: "0 0 300 22", "aria-hidden": "true", focusable: "false" },
    s("line", { class: "rail", x1: 4, x2: 296, y1: 11, y2: 11 }),
    [0, 0.2, 0.4, 0.6, 0.8, 1].map((part) => s("line", { class: "rail", x1: 8 + part * 284, x2: 8 + part * 284, y1: 8, y2: 14 })),
    s("line", { class: "interval", x1: ci[0], x2: ci[1], y1: 11, y2: 11 }),
    away ? s("line", { class: "reach", x1: from, x2: to, y1: 11, y2: 11 }) : null,
    s("rect", { class: "theirs", x: from - 4, y: 7, width: 8, height: 8 }),
    s("circle", { class: "ours", cx: to, cy: 11, r: 5.5 }));
}
