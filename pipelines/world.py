"""The workers of a run: who they are, what each one's share is, and how they add up."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class World(Protocol):
    """Some workers that run the same steps on different tasks."""

    rank: int
    size: int

    def add_up(self, flat: Tensor) -> Tensor:
        """Return the sum of every worker's vector, the same bytes on each of them."""
        ...

    def from_first(self, content: bytes | None) -> bytes | None:
        """Return what the first worker holds, on all of them."""
        ...


class Alone:
    """A world of one process.

    Example:
        >>> Alone().add_up(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    rank = 0
    size = 1

    def add_up(self, flat: Tensor) -> Tensor:
        """Return the vector itself."""
        return flat

    def from_first(self, content: bytes | None) -> bytes | None:
        """Return the content itself."""
        return content


class Distributed:
    """The processes of torch's default process group (gloo or nccl), which must be set up."""

    def __init__(self) -> None:
        """Read rank and size from the process group."""
        import torch.distributed as dist

        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def add_up(self, flat: Tensor) -> Tensor:
        """Return the sum over all workers."""
        import torch.distributed as dist

        dist.all_reduce(flat)
        return flat

    def from_first(self, content: bytes | None) -> bytes | None:
        """Return the first worker's bytes, or None where it has none."""
        import torch.distributed as dist

        length = torch.tensor([-1 if content is None else len(content)], device=self._device)
        dist.broadcast(length, src=0)
        count = int(length)
        if count < 0:
            return None
        buffer = torch.empty(count, dtype=torch.uint8, device=self._device)
        if self.rank == 0 and content is not None:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, src=0)
        return bytes(buffer.cpu().numpy().tobytes())


def share(tasks: int, rank: int, size: int) -> slice:
    """Return which tasks of a batch are a worker's: contiguous, and as even as can be.

    Example:
        >>> [share(5, rank, 2) for rank in range(2)]
        [slice(0, 3, None), slice(3, 5, None)]
        >>> share(1, 1, 2)
        slice(1, 1, None)
    """
    each, more = divmod(tasks, size)
    first = rank * each + min(rank, more)
    return slice(first, first + each + (rank < more))
