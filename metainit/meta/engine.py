"""Run a rule over a batch of tasks: one after another, on threads, or all at once.

Measured on CPUs: few tasks are fastest one after another, with all threads inside each operation; many gain
from a thread a task with one thread inside each operation, the narrower the network the more, and
convolutions with two tasks already; batching with `vmap` is slower than both there, and is what a GPU needs
(see benchmarks/RESULTS.md). `choose` follows from the device, the kind of network and the sizes alone, never
from a timing, so that a run can be repeated byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from metainit.domains.base import Domain, Predict, TaskBatch
from metainit.meta.state import (
    InnerSteps,
    MetaGradient,
    MetaParameters,
    Parameters,
    Rule,
    TaskLosses,
)

Execution = Literal["auto", "loop", "threads", "vmap"]

NARROW_ELEMENTS = 128 * 128
"""Networks whose largest tensor is not larger count as narrow."""
TASKS_FOR_THREADS = {"convolutional": 2, "narrow": 4, "wide": 8}
"""Meta-batches from which on a thread a task is faster on a CPU: with fewer, threads end up waiting."""


def choose(execution: Execution, weights: Parameters, tasks: int) -> Literal["loop", "threads", "vmap"]:
    """Resolve ``auto`` from the device, the kind and size of the largest tensor, and the number of tasks.

    Example:
        >>> choose('auto', {'w': torch.zeros(64, 64)}, tasks=16)
        'threads'
        >>> choose('auto', {'w': torch.zeros(256, 256)}, tasks=4)
        'loop'
        >>> choose('auto', {'kernel': torch.zeros(64, 64, 3, 3)}, tasks=4)
        'threads'
    """
    if execution != "auto":
        return execution
    if any(v.device.type != "cpu" for v in weights.values()):
        return "vmap"
    largest = max(weights.values(), key=lambda v: v.numel())
    if largest.ndim > 2:
        kind = "convolutional"
    else:
        kind = "narrow" if largest.numel() <= NARROW_ELEMENTS else "wide"
    return "threads" if tasks >= TASKS_FOR_THREADS[kind] else "loop"


@contextmanager
def task_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads, each with one thread inside its operations.

    Meanwhile the calling thread has one inside its operations too: idle helpers of its own would spin beside
    the pool, which on a busy machine costs many times what they could give.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def meta_gradient(
    rule: Rule,
    domain: Domain,
    function: Callable[[Mapping[str, Tensor]], Predict],
    meta: MetaParameters,
    batch: TaskBatch,
    inner: InnerSteps,
    execution: Execution = "auto",
    pool: ThreadPoolExecutor | None = None,
) -> MetaGradient:
    """Return the rule's meta-gradient summed over all tasks of the batch.

    `pool` (from `task_threads`) is used where the execution is ``threads``; without one, the tasks run one
    after another.
    """
    how = choose(execution, meta.weights, len(batch))
    if how == "vmap":
        return rule(TaskLosses(domain, function, batch, True, inner.variation), meta, inner)

    def one(task: TaskBatch) -> MetaGradient:
        return rule(TaskLosses(domain, function, task, False, inner.variation), meta, inner)

    results = pool.map(one, batch) if how == "threads" and pool is not None else map(one, batch)
    return add_up(results)


def add_up(results: Iterator[MetaGradient]) -> MetaGradient:
    """Add meta-gradients up in the order they come in (always the order of the tasks)."""
    total = next(results)
    for result in results:
        # Not around the loop: `results` may be computed as it is consumed, with gradients on.
        with torch.no_grad():
            # Not in place: autograd hands out one tensor where two parameters have the same gradient.
            total = MetaGradient(
                {k: v + result.weights[k] for k, v in total.weights.items()},
                {k: v + result.step_sizes[k] for k, v in total.step_sizes.items()},
                total.loss + result.loss,
                total.tasks + result.tasks,
            )
    return total
