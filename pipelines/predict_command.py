"""The subcommand that predicts weights for a user's network."""

from __future__ import annotations

import fnmatch
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer

from metainit.errors import EndpointError, GraphError, SourceError, suggestion
from metainit.references import Reference

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hypernets.architecture.graph import ArchitectureGraph
    from metainit.card import Card
    from metainit.checkpoint import Checkpoint

SHOWN = 10
"""Skipped parameters that are named without ``--json``."""


@runtime_checkable
class Predicts(Protocol):
    """A start that has weights for graphs."""

    @property
    def card(self) -> Card:
        """Its own card."""
        ...

    def weights_for(self, graph: ArchitectureGraph, *, seed: int | None, exact: bool) -> Checkpoint:
        """Return weights for a graph."""
        ...


def predict(
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:CALLABLE", help="what returns the network, imported from this folder"),
    ],
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="a registered hypernetwork, a file, or a URL")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the checkpoint to write, *.safetensors")],
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="of each input, as 1,1,28,28 or 1,16:int64; two of the hypernetwork's images unless given",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the residual that keeps neurons from being alike")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="leave the residual out")] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="parameters to leave as they are, such as 'head.*'"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Predict weights for a network of yours that nobody has trained; the network is not run."""
    from hypernets.architecture.trace import trace
    from metainit import checkpoint
    from metainit.initialization import load

    if out.suffix != checkpoint.SUFFIX:
        raise typer.BadParameter(f"--out {out}: expected a name that ends in {checkpoint.SUFFIX}")
    shapes = [_shaped(text) for text in input_shape or ()]
    network = _built(target)
    start = load(source_of(source))
    if not isinstance(start, Predicts):
        raise SourceError(_why_not(source, start.card))
    inputs = tuple(shapes) if shapes else (_images(start.card),)
    names = [name for name, _ in network.named_parameters()]
    began = time.monotonic()
    graph = trace(network, inputs, keep=_matching(keep or (), names))
    traced = time.monotonic()
    stored = start.weights_for(graph, seed=seed, exact=exact)
    seconds = {"trace": round(traced - began, 3), "predict": round(time.monotonic() - traced, 3)}
    written = checkpoint.save(out, stored.tensors, stored.card)
    answer = {
        "path": str(out),
        "hypernetwork": start.card.name,
        "graph": graph.hash,
        "seed": None if exact else seed,
        "predicted": len(graph.parameters),
        "elements": graph.numel,
        "skipped": dict(written.card.skipped),
        "seconds": seconds,
        "digest": written.card.digest,
    }
    typer.echo(json.dumps(answer, indent=2) if as_json else _in_words(answer))


def _why_not(source: str, card: Card) -> str:
    """Return why a start has no weights for a graph, and what to do."""
    if card.kind == "ghn":
        return (
            f"{source!r} is a hypernetwork of method {card.method.name!r}, which reads the network itself "
            f"and not its graph: in Python, metainit.init_(network, {source!r}, example_inputs=inputs)"
        )
    return f"{source!r} is a {card.kind}, which predicts nothing: name a hypernetwork (kind ghn)"


def _in_words(answer: dict[str, Any]) -> str:
    """Return what was done, and how to use it."""
    skipped = answer["skipped"]
    lines = [
        f"{answer['hypernetwork']} predicted {answer['predicted']} parameters, {answer['elements']} numbers, "
        f"in {answer['seconds']['predict']:.3g} s (tracing: {answer['seconds']['trace']:.3g} s)"
    ]
    lines += [f"skipped: {name}: {reason}" for name, reason in list(skipped.items())[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"skipped: {len(skipped) - SHOWN} more; --json names them all")
    lines.append(f"written to {answer['path']}; use it: metainit.init_(network, {answer['path']!r})")
    return "\n".join(lines)


def _built(target: str) -> nn.Module:
    """Import what the user names, from the working folder first, and call it.

    Raises:
        typer.BadParameter: there is no such module or name.
        SourceError: it fails, or gives no module.
    """
    from torch import nn

    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise typer.BadParameter(f"{target!r}: expected MODULE:CALLABLE, such as networks:small")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise typer.BadParameter(f"{target!r}: there is no module {error.name!r} in {folder}") from error
        raise SourceError(f"{module_name!r} cannot be imported: {error}") from error
    except Exception as error:  # the module is the user's code: it may raise anything
        raise SourceError(f"{module_name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in vars(found) if not name.startswith("_")]
            raise typer.BadParameter(f"{target!r}: {part!r} is not there; {suggestion(part, known)}")
        found = getattr(found, part)
    try:
        network = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # so may the callable
        raise SourceError(f"{target} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise SourceError(f"{target} returned a {type(network).__name__}, expected a torch.nn.Module")
    return network


def source_of(text: str) -> str:
    """Return what `metainit.load` takes: a registered name may be written without its scheme."""
    if Path(text).is_file():
        return text
    try:
        return f"models:/{Reference.parse(text)}"
    except EndpointError:
        return text


def _shaped(text: str) -> Tensor:
    """Return zeros of a shape ``1,3,32,32``, or of a type too, ``1,16:int64``."""
    import torch

    sizes, _, name = text.partition(":")
    kind = getattr(torch, name or "float32", None)
    try:
        shape = [int(size) for size in sizes.split(",")]
        if not isinstance(kind, torch.dtype) or min(shape) < 1:
            raise ValueError
        return torch.zeros(shape, dtype=kind, device="meta" if kind.is_floating_point else "cpu")
    except ValueError as error:
        raise typer.BadParameter(
            f"--input-shape {text!r}: expected sizes such as 1,3,32,32, or with a type 1,16:int64"
        ) from error


def _images(card: Card) -> Tensor:
    """Return two images of the kind that a hypernetwork was trained on."""
    import torch

    domain = card.provenance.recipe.get("domain") or {}
    channels, size = domain.get("channels"), domain.get("size")
    if type(channels) is not int or type(size) is not int:
        raise typer.BadParameter(
            f"--input-shape is needed: the card of {card.name!r} does not say what it was trained on"
        )
    return torch.zeros(2, channels, size, size)


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that a pattern fits.

    Raises:
        GraphError: a pattern fits none.
    """
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise GraphError(f"--keep {pattern!r} fits no parameter; {suggestion(pattern, names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
