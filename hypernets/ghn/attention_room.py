"""How much memory attention between all pairs of operations takes: asked before any of it is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from metainit.errors import GraphError

MAX_BIAS_BYTES = 4 << 30


def require_room(
    nodes: Sequence[int], heads: int, *, bytes_each: int = 4, limit: int = MAX_BIAS_BYTES
) -> None:
    """Raise where the bias of attention between all pairs of nodes takes more than `limit` bytes.

    It holds ``B H N^2`` numbers: B graphs, H heads, N nodes of the largest graph, up to which the others are
    padded. What is allocated beside it is of the same order.

    Args:
        nodes: of each graph.
        heads: of the encoder.
        bytes_each: of a number.
        limit: in bytes.

    Raises:
        GraphError: it does; says for how many nodes, and what to do.

    Example:
        >>> require_room([4_000], heads=8)
        >>> require_room([20_000], heads=8)
        Traceback (most recent call last):
        ...
        metainit.errors.GraphError: a graph of 20000 nodes takes 12,800,000,000 bytes for attention between \
all pairs of them (8 heads), expected at most 4,294,967,296. Loops over time or layers are unrolled: give a \
shorter example input, predict for parts of the network one by one, or use a hypernetwork with fewer heads
    """
    largest = max(nodes, default=0)
    needed = len(nodes) * heads * largest**2 * bytes_each
    if needed <= limit:
        return
    what = f"a graph of {largest} nodes" if len(nodes) == 1 else f"{len(nodes)} graphs of {largest} nodes"
    fewer = "" if len(nodes) == 1 else "fewer graphs at once, "
    takes = "takes" if len(nodes) == 1 else "take"
    raise GraphError(
        f"{what} {takes} {needed:,} bytes for attention between all pairs of them ({heads} heads), expected "
        f"at most {limit:,}. Loops over time or layers are unrolled: give {fewer}a shorter example input, "
        "predict for parts of the network one by one, or use a hypernetwork with fewer heads"
    )
