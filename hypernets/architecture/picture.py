"""Pictures of architecture graphs: operations from top to bottom, in as many columns as it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypernets.architecture.graph import ArchitectureGraph, Edge, Node, Operation, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES: Mapping[str, tuple[str, set[Operation]]] = {
    "convolution": ("#9ecae1", {Operation.CONV, Operation.DEPTHWISE_CONV, Operation.TRANSPOSED_CONV}),
    "linear, recurrent": ("#a1d99b", {Operation.LINEAR, Operation.RECURRENT}),
    "table": ("#fdd0a2", {Operation.EMBEDDING, Operation.PARAMETER}),
    "norm": ("#dadaeb", {
        Operation.BATCH_NORM, Operation.LAYER_NORM, Operation.GROUP_NORM, Operation.RMS_NORM,
    }),
    "activation": ("#fff7bc", {
        Operation.RELU, Operation.LEAKY_RELU, Operation.GELU, Operation.SILU, Operation.SIGMOID,
        Operation.TANH, Operation.SINE, Operation.ACTIVATION, Operation.SOFTMAX,
    }),
    "attention, product": ("#fbb4b9", {Operation.ATTENTION, Operation.MATMUL}),
    "add, multiply, join": ("#f0f0f0", {Operation.ADD, Operation.MULTIPLY, Operation.CONCAT}),
    "pool, resize": ("#bcdcd5", {
        Operation.MAX_POOL, Operation.AVERAGE_POOL, Operation.MEAN, Operation.UPSAMPLE,
    }),
    "scatter, gather": ("#d9c7b0", {Operation.SCATTER, Operation.GATHER}),
    "input, output": ("#d0d0d0", {Operation.INPUT, Operation.OUTPUT}),
    "other": ("#ffffff", {Operation.OTHER}),
}  # fmt: skip
COLOURS = {operation: colour for colour, operations in FAMILIES.values() for operation in sorted(operations)}
BOX_WIDTH, BOX_HEIGHT = 1.9, 0.30
LANE, ROW, GAP = 2.35, 0.46, 0.5
"""Inches: from lane to lane, from row to row, and more between columns."""
HEAD = 0.8
MAX_INCHES = 60


@dataclass(frozen=True)
class Layout:
    """Where each node lies: its column, its row there, and its lane. `lanes`: how many each column has."""

    places: Sequence[tuple[int, int, int]]
    lanes: Sequence[int]
    rows: int


def draw(graph: ArchitectureGraph, path: str | Path) -> Path:
    """Draw a graph to a file, in the format that its name ends with, and return the path.

    A node says its operation, its kernel and stride where they are not 1, its input and output width and how
    many parameters it carries. Same graph, same bytes.

    Example:
        >>> import tempfile
        >>> graph = ArchitectureGraph((Node(Operation.INPUT), Node(Operation.OUTPUT)), (Edge(0, 1),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw(graph, Path(folder) / 'graph.png').stat().st_size > 0
        True
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plan = layout(graph)
    lefts = [sum(n * LANE + GAP for n in plan.lanes[:i]) for i in range(len(plan.lanes) + 1)]
    width, height = max(lefts[-1], 3.0), plan.rows * ROW + HEAD
    scale = min(1.0, MAX_INCHES / max(width, height))
    figure = Figure(figsize=(width * scale, height * scale), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.3, width - 0.3), ylim=(plan.rows * ROW + 0.1, 0.1 - HEAD))
    axes.axis("off")
    centres = [
        (lefts[column] + lane * LANE + BOX_WIDTH / 2, row * ROW + ROW / 2)
        for column, row, lane in plan.places
    ]
    _draw_edges(axes, graph, plan, centres, scale)
    for node, centre in zip(graph.nodes, centres, strict=True):
        _draw_node(axes, node, centre, scale)
    _draw_legend(axes, graph, scale)
    path = Path(path)
    with rc_context({"svg.hashsalt": "metainit"}):
        figure.savefig(path, metadata=_reproducible(path))
    return path


def layout(graph: ArchitectureGraph) -> Layout:
    """Place nodes: a row is the longest way from an input, long graphs are cut into columns.

    A node takes the lane of its latest source where that is free, so that chains are straight.
    """
    sources: list[list[int]] = [[] for _ in graph.nodes]
    for edge in graph.edges:
        sources[edge.target].append(edge.source)
    depths: list[int] = []
    for own in sources:
        depths.append(1 + max((depths[s] for s in own), default=-1))
    depths = _pulled_down(graph, depths)
    total = max(depths, default=0) + 1
    lanes: list[int] = []
    taken: list[set[int]] = [set() for _ in range(total)]
    for number, depth in enumerate(depths):
        latest = max(sources[number], key=lambda s: (depths[s], -lanes[s]), default=None)
        wanted = lanes[latest] if latest is not None else 0
        free = (lane for lane in (wanted, *range(len(graph.nodes))) if lane not in taken[depth])
        lanes.append(next(free))
        taken[depth].add(lanes[-1])
    columns, rows = _cut(total, max(lanes, default=0) + 1)
    widths = [0] * columns
    for depth, lane in zip(depths, lanes, strict=True):
        widths[depth // rows] = max(widths[depth // rows], lane + 1)
    places = [(depth // rows, depth % rows, lane) for depth, lane in zip(depths, lanes, strict=True)]
    return Layout(places, widths, rows)


def _pulled_down(graph: ArchitectureGraph, depths: list[int]) -> list[int]:
    """Move nodes without sources right above what they lead to, such as parameters and tables."""
    targets: list[list[int]] = [[] for _ in graph.nodes]
    has_source = {edge.target for edge in graph.edges}
    for edge in graph.edges:
        targets[edge.source].append(edge.target)
    return [
        min(depths[t] for t in targets[i]) - 1
        if i not in has_source and targets[i] and graph.nodes[i].operation is not Operation.INPUT
        else depth
        for i, depth in enumerate(depths)
    ]


def _cut(total: int, lanes: int) -> tuple[int, int]:
    """Return the number of columns and of rows in each, for a picture about as wide as it is high."""
    columns = max(1, round(math.sqrt(total * ROW / (lanes * LANE + GAP)))) if total > 40 else 1
    rows = math.ceil(total / columns)
    return math.ceil(total / rows), rows


def _draw_edges(
    axes: Axes, graph: ArchitectureGraph, plan: Layout, centres: Sequence[tuple[float, float]], scale: float
) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Way

    occupied = set(plan.places)
    for number, edge in enumerate(graph.edges):
        points, curved, colour = _way(plan, occupied, centres, edge, number)
        codes = [Way.MOVETO] + [Way.CURVE4 if curved else Way.LINETO] * (len(points) - 1)
        axes.add_patch(
            FancyArrowPatch(
                path=Way(points, codes), arrowstyle="-|>", color=colour, linewidth=0.7 * scale,
                mutation_scale=6 * scale, shrinkA=0, shrinkB=0, zorder=1,
            )
        )  # fmt: skip


def _way(
    plan: Layout,
    occupied: AbstractSet[tuple[int, int, int]],
    centres: Sequence[tuple[float, float]],
    edge: Edge,
    number: int,
) -> tuple[list[tuple[float, float]], bool, str]:
    """Return the points of an edge's way, whether they are a curve's, and its colour."""
    (from_column, from_row, from_lane), (to_column, to_row, to_lane) = (
        plan.places[i] for i in (edge.source, edge.target)
    )
    (x, y), (u, v) = centres[edge.source], centres[edge.target]
    right, left, top = x + BOX_WIDTH / 2, u - BOX_WIDTH / 2, v - BOX_HEIGHT / 2
    if from_column != to_column:
        # Along the left side of the target's column, each a little apart from the one before.
        turn = centres[edge.target][0] - to_lane * LANE - BOX_WIDTH / 2 - 0.2 - 0.06 * (number % 8)
        return [(right, y), (turn, y), (turn, v), (left, v)], False, "#9a9a9a"
    if to_row - from_row == 1:
        return [(x, y + BOX_HEIGHT / 2), (u, top)], False, "#444444"
    if from_lane == to_lane:
        out = right + min(0.12 + 0.03 * (to_row - from_row), 0.5)
        return [(right, y), (out, y), (out, v), (right, v)], True, "#444444"
    # Down the source's lane where it is free, else beside it, and into the target's side.
    below = {(from_column, row, from_lane) for row in range(from_row + 1, to_row + 1)}
    turn = right + 0.15 if below & occupied else x
    return [(x, y), (turn, y), (turn, v), (u + BOX_WIDTH / 2 if turn > u else left, v)], False, "#444444"


def _draw_node(axes: Axes, node: Node, centre: tuple[float, float], scale: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = centre
    axes.add_patch(
        FancyBboxPatch(
            (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06", facecolor=COLOURS[node.operation], edgecolor="#444444",
            linewidth=0.6 * scale, zorder=2,
        )
    )  # fmt: skip
    axes.text(x - BOX_WIDTH / 2 + 0.07, y, describe(node), fontsize=6.4 * scale, va="center", zorder=3)
    count = sum(p.numel for p in node.parameters)
    if count:
        axes.text(
            x + BOX_WIDTH / 2 - 0.07, y, short(count), fontsize=6.0 * scale, va="center", ha="right",
            color="#333333", zorder=3,
        )  # fmt: skip


def describe(node: Node) -> str:
    """Return a node's line of text.

    Example:
        >>> from hypernets.architecture.graph import Parameter
        >>> describe(Node(Operation.CONV, (Parameter('w', (8, 3, 5, 5), Role.WEIGHT),), stride=2))
        'conv 5x5/2 3→8'
    """
    words = [node.operation.value.replace("_", " ")]
    weight = node.parameters[0] if node.parameters else None
    kernel = "x".join(map(str, weight.shape[2:])) if weight and len(weight.shape) > 2 else ""
    if not kernel and node.kernel > 1:
        kernel = str(node.kernel)
    if kernel or node.stride > 1:
        words.append(kernel + (f"/{node.stride}" if node.stride > 1 else ""))
    if weight and len(weight.shape) > 1 and weight.role is Role.WEIGHT:
        # Of a grouped convolution the weight shows the share of one group.
        groups = node.groups, 1
        outer, inner = weight.matrix[:2]
        out_groups, in_groups = groups if weight.transposed else groups[::-1]
        over_map = "".join(f"x{side}" for side in weight.spatial) if weight.spatial != (1, 1) else ""
        words.append(f"{inner * in_groups}{over_map}→{outer * out_groups}")
    elif weight and weight.role is Role.TABLE:
        words.append("x".join(map(str, weight.shape)))
    return " ".join(word for word in words if word)


def short(count: int) -> str:
    """Return a count in four characters or so.

    Example:
        >>> short(999), short(2_359_296), short(589_824)
        ('999', '2.36M', '590k')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _draw_legend(axes: Axes, graph: ArchitectureGraph, scale: float) -> None:
    from matplotlib.patches import Patch

    present = {node.operation for node in graph.nodes}
    patches = [
        Patch(facecolor=colour, edgecolor="#444444", linewidth=0.6, label=family)
        for family, (colour, operations) in FAMILIES.items()
        if operations & present
    ]
    title = f"{len(graph.nodes)} operations, {short(graph.numel)} parameters"
    columns = min(len(patches), max(3, int(axes.get_xlim()[1] / 1.5)))
    legend = axes.legend(
        handles=patches, ncols=columns, loc="upper left", fontsize=6.2 * scale, frameon=False, title=title,
        title_fontsize=7.5 * scale, handlelength=1.2, columnspacing=0.8, borderaxespad=0.3,
    )  # fmt: skip
    legend._legend_box.align = "left"  # type: ignore[attr-defined]


def _reproducible(path: Path) -> dict[str, None]:
    """Return what keeps the time and the version out of a file."""
    return {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(
        path.suffix.lower(), {}
    )
