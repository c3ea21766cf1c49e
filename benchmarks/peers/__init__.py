"""Other implementations of the same meta-gradients, each as its own documentation writes the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from metainit.domains.base import Domain, TaskBatch
from metainit.meta.compiled import CompiledRule
from metainit.meta.engine import choose, meta_gradient, task_threads
from metainit.meta.registry import RULES
from metainit.meta.state import InnerSteps, MetaParameters, Rule
from metainit.networks import Siren, function_of

Gradient = dict[str, Tensor]
ORDERS = {"maml": 2, "fomaml": 1, "reptile": 1}


@dataclass(frozen=True)
class Case:
    """What every contender computes: the meta-gradient of one rule, summed over the tasks of one batch.

    Support and query are the same pixels, ``values (tasks, points, 3)`` at ``coordinates (points, 2)``.
    """

    rule: str
    network: Siren
    domain: Domain
    batch: TaskBatch
    inner: InnerSteps = InnerSteps(2, 1e-2)

    @property
    def coordinates(self) -> Tensor:
        """Where the values are."""
        return self.batch.shared["support_coordinates"]

    @property
    def values(self) -> Tensor:
        """What each task's network is fitted to."""
        return self.batch.support["values"]

    @property
    def weights(self) -> Gradient:
        """The start, by state-dict name."""
        return {k: v.detach() for k, v in self.network.named_parameters()}

    def settled(self) -> None:
        """Wait until the device has done what it was asked."""
        if self.coordinates.is_cuda:
            torch.cuda.synchronize()


class Unavailable(Exception):
    """A contender cannot run on this machine."""


Compute = Callable[[], Gradient]
Contender = Callable[[Case], AbstractContextManager[Compute]]
"""Set up once, outside the measurement; what it yields is measured."""


@contextmanager
def ours(case: Case) -> Iterator[Compute]:
    """Yield the default engine, with the threads that training gives it."""
    rule: Rule = RULES[case.rule].orders[ORDERS[case.rule]]
    function, meta = function_of(case.network), MetaParameters(case.weights, {})
    threaded = choose("auto", case.weights, len(case.batch)) == "threads"

    def compute() -> Gradient:
        # The pool is opened for each call, as it takes the other contenders' threads away while it is open.
        pool = task_threads(torch.get_num_threads()) if threaded else nullcontext()
        with pool as lent:
            found = meta_gradient(rule, case.domain, function, meta, case.batch, case.inner, "auto", lent)
        return found.weights

    yield compute


@contextmanager
def ours_compiled(case: Case) -> Iterator[Compute]:
    """Yield the default engine with a compiled rule; setting it up is the compilation."""
    rule = CompiledRule(RULES[case.rule].orders[ORDERS[case.rule]])
    function, meta = function_of(case.network), MetaParameters(case.weights, {})

    def compute() -> Gradient:
        return meta_gradient(rule, case.domain, function, meta, case.batch, case.inner).weights

    compute()
    yield compute


def contenders() -> Mapping[str, tuple[Contender, tuple[str, ...]]]:
    """Return the contenders by name, and the rules that each one has; ours is the first."""
    from benchmarks.peers import jax_peer, torch_peers

    both, every = ("maml", "fomaml"), ("maml", "fomaml", "reptile")
    return MappingProxyType(
        {
            "metainit": (ours, every),
            "metainit, compiled": (ours_compiled, every),
            "learn2learn": (torch_peers.learn2learn, both),
            "learn2learn, textbook": (torch_peers.learn2learn_on_textbook, both),
            "higher": (torch_peers.higher, both),
            "TorchOpt": (torch_peers.torchopt, ("maml",)),
            "plain loop, textbook": (torch_peers.plain_loop, every),
            "JAX": (jax_peer.jitted, every),
        }
    )
