// An architecture graph as layers of boxes, inputs on top.
import { fresh, h, s } from "./dom.js";
import { count } from "./words.js";

const [BOX, HIGH, LANE, ROW] = [168, 26, 190, 44];
const LONG = 60;

const sortClass = (sort) => `sort-${sort.split(/[^a-z]/)[0]}`;

export function graphPicture(drawing) {
  const width = drawing.lanes * LANE + 20;
  const height = drawing.rows * ROW + 12;
  const centre = (node) => [10 + node.lane * LANE + BOX / 2, 8 + node.row * ROW + HIGH / 2];
  const [titleId, descriptionId] = [fresh("graph"), fresh("graph")];
  const svg = s("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": titleId, "aria-describedby": descriptionId },
    s("title", { id: titleId }, `Architecture of ${drawing.name}`),
    s("desc", { id: descriptionId }, `${drawing.nodes.length} operations in ${drawing.rows} layers: ${drawing.nodes.slice(0, LONG).map((n) => n.label).join(", ")}`));
  for (const [from, to] of drawing.edges) svg.append(edge(drawing.nodes[from], drawing.nodes[to], centre));
  for (const node of drawing.nodes) {
    const [x, y] = centre(node);
    svg.append(s("g", { class: `node ${sortClass(node.sort)}` },
      s("title", {}, node.parameters.length ? `${node.label}: ${node.parameters.join(", ")}` : node.label),
      s("rect", { x: x - BOX / 2, y: y - HIGH / 2, width: BOX, height: HIGH, rx: 4 }),
      s("text", { x: x - BOX / 2 + 9, y: y + 4 }, node.label),
      node.elements ? s("text", { class: "elements", x: x + BOX / 2 - 8, y: y + 4, "text-anchor": "end" }, count(node.elements)) : null));
  }
  return h("div", { class: "graph-frame", tabindex: "0", role: "region", "aria-label": `Architecture of ${drawing.name}, scrollable` }, svg);
}

function edge(from, to, centre) {
  const [x1, y1] = centre(from);
  const [x2, y2] = centre(to);
  const [start, end] = [y1 + HIGH / 2, y2 - HIGH / 2];
  const far = to.row - from.row > 1 && from.lane === to.lane;
  if (!far) return s("path", { class: "edge", d: `M${x1} ${start}C${x1} ${start + 12} ${x2} ${end - 12} ${x2} ${end}` });
  // A way past other boxes of the lane runs beside them.
  const side = x1 + BOX / 2 + 8;
  return s("path", { class: "edge skip", d: `M${x1 + BOX / 4} ${start}C${side} ${start + 8} ${side} ${start + 8} ${side} ${start + 18}L${side} ${end - 18}C${side} ${end - 8} ${side} ${end - 8} ${x2 + BOX / 4} ${end}` });
}

export function graphTable(drawing) {
  const rows = drawing.nodes.filter((node) => node.parameters.length);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parameters" }, h("table", {},
    h("caption", {}, "Operations that have parameters"),
    h("thead", {}, h("tr", {}, ["operation", "parameters", "numbers"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((node) => h("tr", {}, h("th", { scope: "row" }, node.label), h("td", {}, node.parameters.join(", ")), h("td", {}, node.elements.toLocaleString("en")))))));
}
