"""Predicting: weights for one graph, in chunks, with a seeded residual where a decoder repeats itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hypernets.architecture.graph import ArchitectureGraph, Parameter, Role
from hypernets.ghn.layout import grid
from hypernets.ghn.model import Ghn
from hypernets.ghn.scale import scaled
from metainit.checkpoint import finite
from metainit.errors import MismatchError

RESIDUAL = 0.1
"""Standard deviation of the residual, as a share of the predicted tensor's own."""
CHUNK = 64
"""Parameters that are decoded at once, at most."""
CHUNK_ELEMENTS = 1 << 24


def predict(
    ghn: Ghn,
    graph: ArchitectureGraph,
    *,
    seed: int | None = None,
    exact: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    r"""Return weights for all parameters that a graph carries, by name.

    Where the decoder cannot say something different of every neuron (a block that is repeated, factors of a
    low rank), :math:`W + 0.1\,\mathrm{std}(W)\,\epsilon` is returned, with :math:`\epsilon` drawn from
    `seed`: neurons that start alike would stay alike.

    Args:
        ghn: the hypernetwork.
        graph: what to predict for.
        seed: of the residual; drawn from torch's global random state where it is None.
        exact: leave the residual out.
        dtype: of the weights.

    Raises:
        GraphError: the graph has more nodes than attention between all of them has room for.
        MismatchError: a predicted weight is not finite; names the parameters.

    Example:
        >>> from hypernets.architecture.graph import Node, Operation
        >>> from hypernets.ghn.config import GhnConfig
        >>> layer = Node(Operation.LINEAR, (Parameter('weight', (40, 20), Role.WEIGHT),))
        >>> ghn = Ghn(GhnConfig(width=16, heads=2, block=4))
        >>> weight = predict(ghn, ArchitectureGraph((layer,), ()), seed=0)['weight']
        >>> int(torch.linalg.matrix_rank(weight))
        20
    """
    drawn = int(torch.randint(2**62, ())) if seed is None else seed
    (found,) = predict_each(ghn, graph, [None if exact else drawn], dtype=dtype)
    return found


def predict_each(
    ghn: Ghn, graph: ArchitectureGraph, seeds: Sequence[int | None], *, dtype: torch.dtype = torch.float32
) -> Iterator[dict[str, Tensor]]:
    """Yield what `predict` gives for each seed, bit by bit, having asked the hypernetwork once.

    One seed needs no memory beside its weights: the residual is added in place.

    Args:
        ghn: the hypernetwork.
        graph: what to predict for.
        seeds: of the residuals; None leaves it out.
        dtype: of the weights.

    Raises:
        GraphError: the graph has more nodes than attention between all of them has room for.
        MismatchError: a predicted weight is not finite; names the parameters.
    """
    found = _decoded(ghn, graph, dtype)
    repeated = [p.name for p in graph.parameters if repeats(ghn, p)]  # in the graph's order, not the chunks'
    spreads = {name: spread(found[name]) for name in repeated} if any(s is not None for s in seeds) else {}
    for left, seed in zip(reversed(range(len(seeds))), seeds, strict=True):
        own = dict(found)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for name in repeated:
                shared = left > 0 or None in seeds  # with what was yielded, or is to be
                target = torch.empty_like(found[name]) if shared else found[name]
                own[name] = add_residual(found[name], generator, spreads[name], target)
        yield own


def _decoded(ghn: Ghn, graph: ArchitectureGraph, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the hypernetwork says of a graph, by name, in the graph's order."""
    parameters = graph.parameters
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        states = ghn.states([graph])
        for places in chunks(parameters):
            chunk = [parameters[i] for i in places]
            for parameter, raw in zip(chunk, ghn.decoder(states[places], chunk), strict=True):
                value = scaled(raw, parameter).to("cpu", dtype)
                found[parameter.name] = value.contiguous()
    bad = [p.name for p in parameters if not finite(found[p.name])]
    if bad:
        raise MismatchError(
            f"the hypernetwork's weights are not finite for {', '.join(bad[:5])}; nothing was filled: "
            "use another version of it, or another start"
        )
    return {p.name: found[p.name] for p in parameters}


def repeats(ghn: Ghn, parameter: Parameter) -> bool:
    """Return whether a decoder gives a parameter fewer independent rows or columns than it has.

    Example:
        >>> from hypernets.ghn.config import GhnConfig
        >>> ghn = Ghn(GhnConfig(width=16, heads=2, block=4))
        >>> [repeats(ghn, Parameter('w', shape, Role.WEIGHT)) for shape in ((4, 4), (5, 4))]
        [False, True]
    """
    if parameter.role not in (Role.WEIGHT, Role.TABLE):
        return False
    config = ghn.config
    if config.decoder == "low_rank":
        out, inner, height, width = parameter.matrix
        return (
            min(out * height, inner * width) > config.rank
            or max(out * height, inner * width) > config.channels
        )
    out, inner, height, width = grid(parameter)
    return max(out, inner) > config.block or (
        parameter.role is Role.TABLE and max(height, width) > config.kernel
    )


def chunks(parameters: Sequence[Parameter]) -> Iterator[list[int]]:
    """Yield the numbers of parameters that are decoded together: of one kernel size, and not too many.

    Example:
        >>> weight, kernel = Parameter('a', (4, 4), Role.WEIGHT), Parameter('b', (4, 4, 3, 3), Role.WEIGHT)
        >>> list(chunks([weight, kernel, weight]))
        [[0, 2], [1]]
    """
    order = sorted(range(len(parameters)), key=lambda i: (grid(parameters[i])[2:], i))
    chunk: list[int] = []
    size = 0
    for i in order:
        full = len(chunk) == CHUNK or size + parameters[i].numel > CHUNK_ELEMENTS
        other = chunk and grid(parameters[i])[2:] != grid(parameters[chunk[0]])[2:]
        if chunk and (full or other):
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += parameters[i].numel
    if chunk:
        yield chunk


def spread(values: Tensor) -> float:
    """Return the standard deviation of a tensor's numbers, 0 where there is one."""
    return float(values.float().std()) if values.numel() > 1 else 0.0


def add_residual(values: Tensor, generator: torch.Generator, deviation: float, target: Tensor) -> Tensor:
    """Write values with a residual to `target`, which may be the same tensor, and return it.

    That is done piece by piece: all at once would double the memory.

    Example:
        >>> weight = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
        >>> weight = add_residual(weight, torch.Generator().manual_seed(0), spread(weight), weight)
        >>> bool((weight[0] != weight[1]).all())
        True
    """
    pieces = (torch.split(tensor.view(-1), CHUNK_ELEMENTS) for tensor in (values, target))
    for piece, written in zip(*pieces, strict=True):
        if target is values or values.dtype != torch.float32:
            noise = torch.randn(piece.shape, generator=generator)
        else:  # the same numbers, drawn where they are needed
            noise = written.normal_(generator=generator)
        torch.add(piece, noise.to(piece.dtype), alpha=RESIDUAL * deviation, out=written)
    return target
