"""Which networks can be traced, how long it takes, which parameters a graph carries, and which get a value.

    pip install --target ZOO --no-deps -c constraints.txt -c constraints-bench.txt timm transformers \
        tokenizers huggingface_hub httpx2 httpcore2 truststore hf-xet regex
    PYTHONPATH=$PYTHONPATH:ZOO python -m benchmarks.coverage run [NAME ...]
    python -m benchmarks.coverage table

The libraries go into a folder of their own, behind everything else on the path, so that no version that
metainit is tested with changes. All networks have random weights. Seconds are CPU time on one thread, the
least of three runs (wall-clock time is stored beside it); `exported` is one run of `torch.export` with the
same steps after it. A tracer that fails says why. `predicted`: what two small hypernetworks with random
weights, one for each decoder, give for the graph.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cells, machine
from benchmarks.coverage_networks import NETWORKS, Case
from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.trace import Traced, Tracer, trace, trace_fully
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import DECODERS, Ghn
from hypernets.ghn.prediction import predict
from metainit.errors import GraphError, MismatchError

REPEATS = 3
SMALL = GhnConfig(width=16, heads=2, layers=1, block=8, kernel=3, rank=8, channels=256)
"""Smaller than most layers both ways: blocks are repeated, kernels interpolated, and tables begin again."""
ROOT = Path(__file__).resolve().parent.parent


def measure(case: Case) -> dict[str, Any]:
    """Trace a network and count what its graph carries."""
    sizes = {name: p.numel() for name, p in case.network.named_parameters()}
    result: dict[str, Any] = {"parameters": len(sizes), "elements": sum(sizes.values())}
    used, traced = timed(case, "auto")
    assert isinstance(traced, Traced)
    graph = traced.graph
    result |= counts(graph, sizes)
    result |= {"tracer": traced.tracer, "depends_on": traced.depends_on.value, **used}
    return result


def compare(case: Case) -> dict[str, Any]:
    """Trace a network through `torch.export` and compare the graph with the recorded one."""
    used, exported = timed(case, "exported")
    if isinstance(exported, str):
        return {"error": exported}
    graph = trace(case.network, case.inputs)
    same = {"same_operations": kinds(exported.graph) == kinds(graph), "same_graph": exported.graph == graph}
    return used | same


def predict_for(case: Case) -> dict[str, Any]:
    """Predict a network's weights with each decoder, and count those that are finite and of their shape."""
    graph = trace(case.network, case.inputs)
    shapes = {name: tuple(p.shape) for name, p in case.network.named_parameters()}
    return {decoder: _predicted(graph, shapes, decoder) for decoder in DECODERS}


def _predicted(graph: ArchitectureGraph, shapes: dict[str, tuple[int, ...]], decoder: str) -> dict[str, Any]:
    torch.manual_seed(0)
    ghn = Ghn(GhnConfig.model_validate({**SMALL.model_dump(), "decoder": decoder}))
    begin = time.process_time()
    try:
        weights = predict(ghn, graph, seed=0)
    except MismatchError as error:
        return {"error": str(error)[:300]}
    seconds = time.process_time() - begin
    sound = [n for n, w in weights.items() if tuple(w.shape) == shapes[n] and bool(torch.isfinite(w).all())]
    missing = sorted(shapes.keys() - set(sound) - set(graph.skipped))
    return {"predicted": len(sound), "missing": missing, "seconds": round(seconds, 3)}


def timed(case: Case, tracer: Tracer) -> tuple[dict[str, float], Traced | str]:
    """Return the least seconds of three runs and what came out, or why nothing did."""
    cpu = wall = float("inf")
    for _ in range(REPEATS if tracer == "auto" else 1):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        try:
            traced = trace_fully(case.network, case.inputs, tracer=tracer)
        except GraphError as error:
            # Where the checkout lies says nothing of the network.
            return {}, str(error).replace(f"{ROOT}/", "")[:300]
        wall, cpu = min(wall, time.perf_counter() - begin), min(cpu, time.process_time() - cpu_begin)
    return {"seconds": round(cpu, 4), "wall_seconds": round(wall, 4)}, traced


def kinds(graph: ArchitectureGraph) -> Counter[str]:
    """Count a graph's operations."""
    return Counter(node.operation.value for node in graph.nodes)


def counts(graph: ArchitectureGraph, sizes: dict[str, int]) -> dict[str, Any]:
    """Count a graph's nodes, and the parameters and elements that it carries and skips."""
    skipped = Counter(reason.name.lower() for reason in graph.skipped.values())
    return {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "operations": dict(kinds(graph)),
        "carried": len(graph.parameters),
        "skipped": dict(skipped),
        "elements_skipped": sum(sizes[name] for name in graph.skipped),
        "raw_parameter_nodes": kinds(graph)["parameter"],
    }


def run(names: Sequence[str]) -> None:
    """Measure the networks that are not measured yet."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cells = Cells("coverage")
    cells.cell("machine", machine)
    for name in names or NETWORKS:
        torch.manual_seed(0)
        cells.cell(name, lambda name=name: measure(NETWORKS[name]()))
    for name in names or NETWORKS:
        torch.manual_seed(0)
        cells.cell(f"{name}, exported", lambda name=name: compare(NETWORKS[name]()))
    for name in names or NETWORKS:
        torch.manual_seed(0)
        cells.cell(f"predicted/{name}", lambda name=name: predict_for(NETWORKS[name]()))


def table() -> str:
    """Return the results as a Markdown table."""
    values = Cells("coverage").values
    lines = [
        "| network | carried | predicted, tiled / low_rank | skipped | elements skipped | nodes | "
        "recorded s | exported s | same graph |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    measured = {name: values[name] for name in NETWORKS if name in values}
    for name, cell in measured.items():
        skipped = ", ".join(f"{count} {reason}" for reason, count in cell["skipped"].items()) or "0"
        peer = values.get(f"{name}, exported", {})
        found = values.get(f"predicted/{name}", {})
        exported = f"{peer['seconds']:.2f}" if "seconds" in peer else "fails" if peer else "not measured"
        same = {True: "yes", False: "no", None: ""}[peer.get("same_graph")]
        lines.append(
            f"| {name} | {cell['carried']}/{cell['parameters']} | "
            f"{' / '.join(str(found[decoder].get('predicted', 'fails')) for decoder in found)} | {skipped} | "
            f"{cell['elements_skipped'] / cell['elements']:.2%} | {cell['nodes']} | {cell['seconds']:.3f} | "
            f"{exported} | {same} |"
        )
    carried, parameters, left_out, elements = (
        sum(cell[key] for cell in measured.values())
        for key in ("carried", "parameters", "elements_skipped", "elements")
    )
    share = left_out / elements
    predicted = " / ".join(
        str(sum(values.get(f"predicted/{name}", {}).get(d, {}).get("predicted", 0) for name in measured))
        for d in DECODERS
    )
    lines.append(
        f"| all {len(measured)} | {carried}/{parameters} | {predicted} | {parameters - carried} | "
        f"{share:.4%} | | | | |"
    )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("names", nargs="*")
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "run":
        run(options.names)
    else:
        sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()
