"""The engine `learn2learn`: the same rules through learn2learn's own MAML, MetaSGD and GBML.

For those who build on its algorithms and transforms; `metainit.meta.engine` is the default. The rules map to
its classes as follows, and give the same meta-gradients (in float64 to rounding):

====================================  ======================================================================
``maml``, ``fomaml``                  `MAML`, with ``first_order`` for the latter
``meta_sgd``, a step size a parameter `MetaSGD`, which holds one step size for each parameter and not one for
                                      each inner step as well: before each step it is handed that step's
``meta_sgd``, a step size a tensor    `GBML`, with a transform that multiplies each gradient by its number
``reptile``                           refused: learn2learn has no such class
====================================  ======================================================================

Source: Arnold et al. 2020, "learn2learn: A Library for Meta-Learning Research", arXiv:2008.12284.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metainit.domains.base import Domain, Predict, TaskBatch
from metainit.errors import RecipeError
from metainit.meta.engine import Execution, add_up, choose
from metainit.meta.maml import fomaml, maml
from metainit.meta.meta_sgd import first_order_meta_sgd
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Parameters, Rule

FIRST_ORDER: Mapping[Rule, bool] = MappingProxyType({maml: False, fomaml: True, first_order_meta_sgd: True})
"""The rules that learn2learn has -> whether they leave second derivatives out."""

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_stubs: list[torch.library.Library] = []


def import_learn2learn() -> Any:
    """Return the package learn2learn, imported without its dependencies' complaints.

    Raises:
        RecipeError: it, or something that it needs, is not installed.
    """
    try:
        with _without_gym_notice():
            _define_missing_operators()
            import learn2learn
    except ImportError as error:
        raise RecipeError(
            f"algorithm.engine=learn2learn needs packages that are not installed ({error}): "
            "pip install 'metainit[learn2learn]', then scripts/learn2learn.sh to compile learn2learn itself "
            "(it needs a C compiler); or set algorithm.engine to metainit"
        ) from error
    return learn2learn


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
    """Return the rule's meta-gradient summed over all tasks, as `metainit.meta.engine.meta_gradient` does.

    learn2learn sees one task at a time, so tasks run one after another or on the threads of `pool`, never
    batched: ``auto`` on a GPU is a loop.

    Raises:
        RecipeError: learn2learn is not installed, has no such rule, or is asked to batch the tasks.
    """
    if rule not in FIRST_ORDER:
        raise RecipeError(
            f"learn2learn has no rule {getattr(rule, '__name__', rule)!r}, only maml, fomaml and meta_sgd; "
            "choose one of these, or set algorithm.engine to metainit"
        )
    if inner.adapts or inner.variation.active:
        raise RecipeError(
            "learn2learn adapts all tensors, to the whole support in each step: set algorithm.adapts to all, "
            "augmentation to 0 and leave minibatch out, or set algorithm.engine to metainit"
        )
    if execution == "vmap":
        raise RecipeError(
            "learn2learn runs one task at a time: set algorithm.execution to loop, threads or auto, "
            "or algorithm.engine to metainit"
        )
    start = Start(function, meta.weights)
    step_sizes = {k: nn.Parameter(v.detach()) for k, v in meta.step_sizes.items()}
    learner = _learner(import_learn2learn(), start, step_sizes, inner, FIRST_ORDER[rule])

    def one(task: TaskBatch) -> MetaGradient:
        clone = learner.clone()
        support, query = ({k: v[0] for k, v in part.items()} for part in (task.support, task.query))
        for step in range(inner.steps):
            if hasattr(clone, "lrs"):
                clone.lrs = [_at(sizes, step) for sizes in step_sizes.values()]
            clone.adapt(domain.support_loss(clone, support, task.shared))
        reached = domain.query_loss(clone, query, task.shared)
        leaves = [*start.values, *step_sizes.values()]
        slopes = torch.autograd.grad(reached, leaves, materialize_grads=True)
        weights = dict(zip(meta.weights, slopes[: len(start.names)], strict=True))
        sizes = dict(zip(step_sizes, slopes[len(start.names) :], strict=True))
        return MetaGradient(weights, sizes, reached.detach(), 1)

    threaded = pool is not None and choose(execution, meta.weights, len(batch)) == "threads"
    return add_up(pool.map(one, batch) if pool is not None and threaded else map(one, batch))


class Start(nn.Module):
    """The start as the module that learn2learn wraps, clones and updates.

    Shapes: whatever the function's.

    Example:
        >>> double = Start(lambda weights: lambda x: weights['w'] * x, {'w': torch.tensor(2.0)})
        >>> float(double(torch.tensor(3.0)).detach())
        6.0
    """

    def __init__(self, function: Callable[[Mapping[str, Tensor]], Predict], weights: Parameters) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(weights)
        self.values = nn.ParameterList(v.detach() for v in weights.values())

    def forward(self, inputs: Tensor) -> Tensor:
        """Evaluate the network with the weights as they are now."""
        return self.function(dict(zip(self.names, self.values, strict=True)))(inputs)


class StepSizes(nn.Module):
    """A transform for learn2learn's `GBML`: multiply a tensor's gradient by the step size of the step.

    It counts its calls to know the step; learn2learn clones it, count and all, for every task.

    Shapes: step sizes ``(steps,)``; any gradient -> the same shape.

    Example:
        >>> transform = StepSizes(nn.Parameter(torch.tensor([1.0, 2.0])))
        >>> [float(transform(torch.tensor(3.0)).detach()) for _ in range(3)]
        [3.0, 6.0, 6.0]
    """

    def __init__(self, sizes: nn.Parameter) -> None:
        super().__init__()
        self.sizes = sizes
        self.step = 0

    def forward(self, gradient: Tensor) -> Tensor:
        """Return the update of one step."""
        self.step += 1
        return _at(self.sizes, self.step - 1) * gradient


def _learner(
    learn2learn: Any, start: Start, step_sizes: Mapping[str, nn.Parameter], inner: InnerSteps, first: bool
) -> Any:
    """Return learn2learn's own class around the start."""
    algorithms = learn2learn.algorithms
    if not step_sizes:
        return algorithms.MAML(start, lr=inner.step_size, first_order=first, allow_unused=True)
    values = dict(zip(start.names, start.values, strict=True))
    if all(sizes.shape[1:] == values[name].shape for name, sizes in step_sizes.items()):
        return algorithms.MetaSGD(start, lrs=[v[0] for v in step_sizes.values()], first_order=first)
    sizes_of = {id(value): step_sizes[name] for name, value in values.items()}
    return algorithms.GBML(
        start, lambda value: StepSizes(sizes_of[id(value)]), lr=1.0, first_order=first, allow_unused=True
    )


def _at(sizes: Tensor, step: int) -> Tensor:
    """Return the sizes of one step; the last repeats."""
    return sizes[min(step, len(sizes) - 1)]


@contextmanager
def _without_gym_notice() -> Iterator[None]:
    """Keep gym, which learn2learn imports, from printing that it is no longer maintained."""
    try:
        notices = importlib.import_module("gym_notices.notices").notices
    except ImportError:
        yield
        return
    kept = dict(notices)
    notices.clear()
    try:
        yield
    finally:
        notices.update(kept)


def _define_missing_operators() -> None:
    """Declare the two operators without which torchvision, which learn2learn imports, does not import.

    It ships them compiled for one build of torch and registers their shapes on import; beside another build
    its library does not load and that fails. Nothing here ever calls them.
    """
    if hasattr(torch.ops.torchvision, _OPERATORS[0]) or _torchvision_library_loads():
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(operator + _SIGNATURE)  # type: ignore[no-untyped-call]
    _stubs.append(library)  # the declarations live as long as the object does


def _torchvision_library_loads() -> bool:
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations if found else None) or ():
        for path in sorted(Path(folder).glob("_C*")):
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            except OSError:
                continue
            return True
    return False
