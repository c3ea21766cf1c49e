"""Peers on torch: learn2learn, higher, TorchOpt, and a loop without a library."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import Case, Compute, Gradient
from metainit.meta.learn2learn_engine import import_learn2learn
from metainit.networks import Siren
from metainit.networks.siren import SineLayer


class TextbookSineLayer(nn.Linear):
    """The layer as the SIREN paper's code writes it: the activations are multiplied by the frequency."""

    def __init__(self, layer: SineLayer) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias, self.omega = layer.weight, layer.bias, layer.omega

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer."""
        return torch.sin(self.omega * F.linear(inputs, self.weight, self.bias))


def textbook(network: Siren) -> Siren:
    """Return the same network (the same function and names) with the layers of the paper's code."""
    other = copy.deepcopy(network)
    for index, layer in enumerate(other.layers):
        if isinstance(layer, SineLayer):
            other.layers[index] = TextbookSineLayer(layer)
    return other


def _named(network: nn.Module, values: Iterable[Tensor]) -> Gradient:
    names = [name for name, _ in network.named_parameters()]
    return {name: value.detach() for name, value in zip(names, values, strict=True)}


@contextmanager
def learn2learn(case: Case, network: nn.Module | None = None) -> Iterator[Compute]:
    """Yield learn2learn's MAML with the loop of its examples, on our Siren unless another is given."""
    module = copy.deepcopy(case.network) if network is None else network
    first = case.rule == "fomaml"
    learner = import_learn2learn().algorithms.MAML(module, lr=case.inner.step_size, first_order=first)
    x = case.coordinates

    def compute() -> Gradient:
        learner.zero_grad()
        for y in case.values:
            clone = learner.clone()
            for _ in range(case.inner.steps):
                clone.adapt(F.mse_loss(clone(x), y))
            torch.autograd.backward(F.mse_loss(clone(x), y))
        return _named(module, [value.grad for value in module.parameters() if value.grad is not None])

    yield compute


@contextmanager
def learn2learn_on_textbook(case: Case) -> Iterator[Compute]:
    """Yield learn2learn's MAML on the module that its users would write."""
    with learn2learn(case, textbook(case.network)) as compute:
        yield compute


@contextmanager
def higher(case: Case) -> Iterator[Compute]:
    """Yield higher's inner loop context, on our Siren."""
    import higher as library

    module = copy.deepcopy(case.network)
    second, x = case.rule == "maml", case.coordinates
    optimizer = torch.optim.SGD(module.parameters(), lr=case.inner.step_size)

    def compute() -> Gradient:
        total = [torch.zeros_like(value) for value in module.parameters()]
        for y in case.values:
            with library.innerloop_ctx(
                module, optimizer, copy_initial_weights=False, track_higher_grads=second
            ) as (fast, inner):
                for _ in range(case.inner.steps):
                    inner.step(F.mse_loss(fast(x), y))
                reached = F.mse_loss(fast(x), y)
                leaves = list(module.parameters() if second else fast.parameters())
                slopes = torch.autograd.grad(reached, leaves)
            torch._foreach_add_(total, list(slopes))
        return _named(module, total)

    yield compute


@contextmanager
def torchopt(case: Case) -> Iterator[Compute]:
    """Yield TorchOpt's differentiable SGD (MAML only: it always keeps the graph), on our Siren."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import torchopt as library

    module: Any = copy.deepcopy(case.network)
    x, start = case.coordinates, list(module.parameters())
    inner = library.MetaSGD(module, lr=case.inner.step_size)
    weights = library.extract_state_dict(module, by="reference")
    state = library.extract_state_dict(inner, by="reference")

    def compute() -> Gradient:
        total = [torch.zeros_like(value) for value in start]
        for y in case.values:
            for _ in range(case.inner.steps):
                inner.step(F.mse_loss(module(x), y))
            torch._foreach_add_(total, list(torch.autograd.grad(F.mse_loss(module(x), y), start)))
            library.recover_state_dict(module, weights)
            library.recover_state_dict(inner, state)
        return _named(case.network, total)

    yield compute


@contextmanager
def plain_loop(case: Case) -> Iterator[Compute]:
    """Yield what one writes without a library, with the layers of the paper's code.

    MAML and FOMAML: autograd on lists of tensors. Reptile: a deep copy and `torch.optim.SGD`.
    """
    module = textbook(case.network)
    omegas = [layer.omega if isinstance(layer, TextbookSineLayer) else None for layer in module.layers]
    x, rate = case.coordinates, case.inner.step_size

    def predict(flat: list[Tensor]) -> Tensor:
        hidden = x
        for weight, bias, omega in zip(flat[::2], flat[1::2], omegas, strict=True):
            hidden = hidden @ weight.T + bias
            hidden = hidden + module.offset if omega is None else torch.sin(omega * hidden)
        return hidden

    def gradient_based() -> Gradient:
        second = case.rule == "maml"
        start = [value.detach().requires_grad_() for value in module.parameters()]
        total = [torch.zeros_like(value) for value in start]
        for y in case.values:
            fast = start
            for _ in range(case.inner.steps):
                slopes = torch.autograd.grad(F.mse_loss(predict(fast), y), fast, create_graph=second)
                fast = [w - rate * g for w, g in zip(fast, slopes, strict=True)]
                if not second:
                    fast = [w.detach().requires_grad_() for w in fast]
            reached = F.mse_loss(predict(fast), y)
            torch._foreach_add_(total, list(torch.autograd.grad(reached, start if second else fast)))
        return _named(module, total)

    def reptile() -> Gradient:
        total = [torch.zeros_like(value) for value in module.parameters()]
        for y in case.values:
            fast = copy.deepcopy(module)
            optimizer = torch.optim.SGD(fast.parameters(), lr=rate)
            for _ in range(case.inner.steps):
                optimizer.zero_grad()
                torch.autograd.backward(F.mse_loss(fast(x), y))
                optimizer.step()
            with torch.no_grad():
                for summed, w, moved in zip(total, module.parameters(), fast.parameters(), strict=True):
                    summed += w - moved
        return _named(module, total)

    yield reptile if case.rule == "reptile" else gradient_based
