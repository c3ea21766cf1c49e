"""From a network to its architecture graph."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from hypernets.architecture.drafts import Draft
from hypernets.architecture.graph import ArchitectureGraph, SkipReason
from hypernets.architecture.inputs import ExampleInputs, arguments, tensors
from hypernets.architecture.recorded import NoNumbersError, record
from hypernets.architecture.recording import Recording
from hypernets.architecture.serialize import Limits
from hypernets.architecture.simplify import finish, names_used, simplify
from metainit.errors import GraphError, MetainitError, suggestion

Tracer = Literal["auto", "recorded", "exported"]


class Dependence(StrEnum):
    """What a graph depends on beside the network's structure and the shapes of the inputs.

    `integers`: the numbers in tensors of integers and in small buffers, which the forward pass looked at;
    `numbers`: any number, since it was computed.
    """

    SHAPES = "shapes"
    INTEGERS = "integers"
    NUMBERS = "numbers"


class Traced(NamedTuple):
    """A graph, and how it came about."""

    graph: ArchitectureGraph
    tracer: Tracer
    depends_on: Dependence


def trace(
    network: nn.Module,
    example_inputs: ExampleInputs,
    *,
    keep: Collection[str] = (),
    tracer: Tracer = "auto",
) -> ArchitectureGraph:
    """Return the architecture graph of a network. The network is neither run nor changed.

    `example_inputs` are what it is called with: a tensor, a tuple, or a dictionary of keyword arguments; only
    their shapes and types matter, and the numbers in tensors of integers. Networks on the meta device and in
    half precision are fine. Parameters named in `keep` are left out.

    The forward pass is recorded in training mode (which reaches auxiliary heads), and where that fails or
    leaves parameters unreached in evaluation mode; the graph that reaches more is kept. `tracer`:
    ``recorded``, ``exported`` (through `torch.export`, slower), or the first that works.

    Raises:
        GraphError: the forward pass fails on the example inputs, or a name in `keep` is no parameter's.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> [node.operation.value for node in trace(network, torch.zeros(4, 2)).nodes]
        ['input', 'linear', 'relu', 'linear', 'output']
    """
    return trace_fully(network, example_inputs, keep=keep, tracer=tracer).graph


def trace_fully(
    network: nn.Module,
    example_inputs: ExampleInputs,
    *,
    keep: Collection[str] = (),
    tracer: Tracer = "auto",
) -> Traced:
    """Return the architecture graph of a network and how it came about; see `trace`.

    Raises:
        GraphError: as `trace`.
    """
    names = {name for name, _ in network.named_parameters()}
    for name in keep:
        if name not in names:
            raise GraphError(f"keep: {name!r} is no parameter of the network; {suggestion(name, names)}")
    found, used_tracer, depends_on = _best(network, example_inputs, names, tracer)
    limit = Limits().nodes
    if len(found) > limit:
        raise GraphError(
            f"the graph of {type(network).__name__} has {len(found)} nodes, expected at most {limit}. Loops "
            "over time or layers are unrolled: give a shorter example input"
        )
    graph = finish(found, _skipped(network, names_used(found), set(keep)))
    _check_complete(graph, network)
    return Traced(graph, used_tracer, depends_on)


def _skipped(network: nn.Module, used: set[str], keep: set[str]) -> dict[str, SkipReason]:
    reasons = {}
    for name, parameter in network.named_parameters():
        if name in keep:
            reasons[name] = SkipReason.KEPT
        elif not parameter.is_floating_point():
            reasons[name] = SkipReason.NOT_FLOATING
        elif parameter.numel() == 0:
            reasons[name] = SkipReason.EMPTY
        elif name not in used:
            reasons[name] = SkipReason.UNREACHED
    return reasons


def _check_complete(graph: ArchitectureGraph, network: nn.Module) -> None:
    """Raise unless every parameter is carried in its exact shape, or skipped."""
    expected = {name: tuple(p.shape) for name, p in network.named_parameters() if name not in graph.skipped}
    carried = {p.name: p.shape for p in graph.parameters}
    if carried != expected:
        wrong = sorted(n for n in {*carried, *expected} if carried.get(n) != expected.get(n))
        raise GraphError(
            f"the graph of {type(network).__name__} does not carry its parameters as they are: "
            f"{', '.join(wrong[:5])}. This is a defect of the tracer: name them in `keep` to go on"
        )


class _Attempt(NamedTuple):
    tracer: Tracer
    training: bool
    numbers: bool

    def run(self, network: nn.Module, example_inputs: ExampleInputs) -> Recording:
        if self.tracer == "recorded":
            return record(network, example_inputs, training=self.training, numbers=self.numbers)
        from hypernets.architecture.exported import export

        return export(network, example_inputs, training=self.training)


def _best(
    network: nn.Module, example_inputs: ExampleInputs, names: set[str], tracer: Tracer
) -> tuple[list[Draft], Tracer, Dependence]:
    """Return the drafts of the attempt that reaches most parameters; one that reaches all is the last."""
    best: tuple[list[Draft], Tracer] | None = None
    depends_on = Dependence.SHAPES
    errors: list[tuple[_Attempt, Exception]] = []
    failed: set[bool] = set()
    for attempt in _attempts(network, example_inputs, tracer):
        if attempt.numbers and attempt.training not in failed:
            continue
        if best is not None and attempt.tracer != best[1]:
            break
        try:
            recording = attempt.run(network, example_inputs)
        except MetainitError:
            raise
        except Exception as error:  # A forward pass is the user's code: it may raise anything.
            errors.append((attempt, error))
            failed.add(attempt.training)
            continue
        try:
            drafts = simplify(recording)
        except GraphError as error:  # a form of a call that the rules do not know; another tracer's may be
            errors.append((attempt, error))
            continue
        if attempt.numbers:
            depends_on = Dependence.NUMBERS
        elif recording.looked_at_data and depends_on is Dependence.SHAPES:
            depends_on = Dependence.INTEGERS
        if best is None or len(names_used(drafts)) > len(names_used(best[0])):
            best = drafts, attempt.tracer
        if names_used(best[0]) >= names:
            break
    if best is None:
        raise _explained(network, errors)
    return *best, depends_on


def _attempts(network: nn.Module, example_inputs: ExampleInputs, tracer: Tracer) -> Iterator[_Attempt]:
    held = [*network.parameters(), *network.buffers(), *tensors(arguments(example_inputs))]
    has_numbers = not any(tensor.is_meta for tensor in held)
    if tracer != "exported":
        for numbers in (False, True) if has_numbers else (False,):
            yield _Attempt("recorded", True, numbers)
            yield _Attempt("recorded", False, numbers)
    if tracer != "recorded":
        yield _Attempt("exported", True, False)
        yield _Attempt("exported", False, False)


def _explained(network: nn.Module, errors: list[tuple[_Attempt, Exception]]) -> GraphError:
    """Return an error that says where the forward pass of a network failed and why."""
    name = type(network).__name__
    computed = [error for attempt, error in errors if attempt.numbers]
    recorded = [error for attempt, error in errors if attempt.tracer == "recorded"]
    error = (computed or recorded or [error for _, error in errors])[-1]
    if isinstance(error, GraphError):
        return GraphError(f"{name} cannot be traced: {error}")
    if isinstance(error, NoNumbersError):
        message = (
            f"{name} cannot be traced: its control flow depends on data{_place(error)}, and the network or "
            "its example inputs hold no numbers. Give both on a device other than meta"
        )
    else:
        message = (
            f"{name} cannot be traced: its forward pass failed on the example inputs{_place(error)}: "
            f"{type(error).__name__}: {str(error)[:500]}"
        )
    result = GraphError(message)
    result.__cause__ = error
    return result


def _place(error: Exception) -> str:
    """Return the last line of the user's code that an error passed through."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and not frame.filename.startswith("<"):
            return f" at {frame.filename}:{frame.lineno}, in {frame.name} ({frame.line})"
    return ""
