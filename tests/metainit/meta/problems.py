"""Small domains whose answers are known, and the table of outer rules that every test here runs over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.seeding import generator_of
from metainit.meta.engine import Execution, meta_gradient, task_threads
from metainit.meta.outer import AlgorithmConfig, initial_meta_parameters
from metainit.meta.registry import rule_for
from metainit.meta.state import MetaGradient, MetaParameters
from metainit.networks import Siren, function_of

RULES: dict[str, dict[str, Any]] = {
    "reptile": {"rule": "reptile", "step_sizes": "fixed"},
    "fomaml": {"rule": "fomaml", "step_sizes": "fixed"},
    "fomaml_tail": {"rule": "fomaml_tail", "step_sizes": "fixed", "tail": 6},
    "fomaml-varied": {"rule": "fomaml", "step_sizes": "fixed", "minibatch": 12, "augmentation": 0.5},
    "fomaml-head": {"rule": "fomaml", "step_sizes": "fixed", "adapts": "head"},
    "maml": {"rule": "maml", "step_sizes": "fixed"},
    "maml-head": {"rule": "maml", "step_sizes": "fixed", "adapts": "head"},
    "meta_sgd-1-tensor": {"rule": "meta_sgd", "order": 1, "step_sizes": "tensor"},
    "meta_sgd-1-parameter": {"rule": "meta_sgd", "order": 1, "step_sizes": "parameter"},
    "meta_sgd-1-head-tensor": {"rule": "meta_sgd", "order": 1, "step_sizes": "tensor", "adapts": "head"},
    "meta_sgd-2-tensor": {"rule": "meta_sgd", "order": 2, "step_sizes": "tensor"},
    "meta_sgd-2-parameter": {"rule": "meta_sgd", "order": 2, "step_sizes": "parameter"},
}
"""One row a rule: a new one adds its row and gets every test of `test_rules.py`."""


def algorithm(row: str, **changes: Any) -> AlgorithmConfig:
    return AlgorithmConfig(**{"inner_steps": 3, "inner_step_size": 0.05, **RULES[row], **changes})


class ToyDomain:
    """Sines of random height and phase, seen at random points: the regression task of the MAML paper."""

    metric = "psnr"
    controls = ("default", "siren")
    network_arguments: Mapping[str, int] = MappingProxyType({"in_features": 1, "out_features": 1})

    def __init__(self, points: int = 16, dtype: torch.dtype = torch.float64) -> None:
        self.points = points
        self.dtype = dtype

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        parts: dict[str, list[Tensor]] = {"x": [], "y": [], "qx": [], "qy": []}
        for number in range(index * count, (index + 1) * count):
            generator = generator_of("sine", seed, number, split)
            height, phase = torch.rand(2, generator=generator, dtype=torch.float64)
            x, qx = 2 * torch.rand(2, self.points, 1, generator=generator, dtype=torch.float64) - 1
            for name, value in (("x", x), ("qx", qx)):
                parts[name].append(value.to(self.dtype))
                y = (0.5 + height) * torch.sin(3 * value + 2 * phase)
                parts[name.replace("x", "y")].append(y.to(self.dtype))
        stacked = {k: torch.stack(v) for k, v in parts.items()}
        return TaskBatch(
            {"x": stacked["x"], "y": stacked["y"]},
            {"x": stacked["qx"], "y": stacked["qy"]},
            {},
            tuple(f"{index}.{i}" for i in range(count)),
        )

    def size(self, split: Split) -> int | None:
        return None

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        return (predict(support["x"]) - support["y"]).square().mean()

    query_loss = support_loss

    def example_inputs(self) -> Tensor:
        return torch.linspace(-1, 1, 32, dtype=self.dtype)[:, None]

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        return predict(self.example_inputs())[None]

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        return rendered

    def target(self, query: Tensors) -> Tensor:
        return query["y"][None]

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        return {}

    def fingerprint(self) -> str:
        return "sine"


class SineDomain(ToyDomain):
    """The sines, whose points are examples."""

    def augmented(self, support: Tensors, generator: torch.Generator, probability: float) -> Tensors:
        """Shift points, each with some probability, along with their values."""
        chosen = torch.rand(support["x"].shape, generator=generator, dtype=torch.float64) < probability
        noise = 0.01 * torch.randn(support["y"].shape, generator=generator, dtype=torch.float64)
        return {**support, "y": support["y"] + (noise * chosen).to(support["y"])}


class QuadraticDomain(ToyDomain):
    r"""Losses :math:`\frac12 (w - c)^T A (w - c)` of the weights w of a linear map; A and c differ by task.

    `flat` makes the support loss linear in the weights: its Hessian is zero.
    """

    def __init__(self, size: int = 4, flat: bool = False) -> None:
        super().__init__()
        self.network_arguments = {"in_features": size, "out_features": 1}
        self.flat = flat

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        generator = generator_of("quadratic", seed, index, split)
        n = self.network_arguments["in_features"]
        halves = torch.randn(2, count, n, n, generator=generator, dtype=torch.float64)
        forms = halves @ halves.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
        centres = torch.randn(2, count, n, 1, generator=generator, dtype=torch.float64)
        support, query = ({"A": a, "c": c} for a, c in zip(forms, centres, strict=True))
        eye = {"eye": torch.eye(n, dtype=torch.float64)}
        return TaskBatch(support, query, eye, tuple(str(i) for i in range(count)))

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        if self.flat:
            return (support["c"] * predict(shared["eye"])).sum()
        return self.query_loss(predict, support, shared)

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        away = predict(shared["eye"]) - query["c"]
        return 0.5 * (away.mT @ query["A"] @ away).squeeze()


def small_siren(seed: int = 0, dtype: torch.dtype = torch.float64) -> Siren:
    network = Siren(1, 1, width=16, depth=3, omega=3.0, omega_first=3.0, offset=0.0).to(dtype)
    network.reset_sine_parameters(torch.Generator().manual_seed(seed))
    return network


def linear_map(size: int = 4, seed: int = 0) -> nn.Linear:
    network = nn.Linear(size, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return network


def start_of(network: nn.Module, config: AlgorithmConfig, spread: float = 0.0) -> MetaParameters:
    """The starting point; `spread` makes every learned step size another one."""
    meta = initial_meta_parameters(network, config)
    generator = torch.Generator().manual_seed(1)
    for value in meta.step_sizes.values():
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)
        value.mul_(1 + spread * noise.to(value.device))
    return meta


def gradient_of(
    config: AlgorithmConfig,
    domain: ToyDomain,
    network: nn.Module,
    meta: MetaParameters,
    batch: TaskBatch,
    execution: Execution = "loop",
) -> MetaGradient:
    with task_threads(2) as pool:
        return meta_gradient(
            rule_for(config),
            domain,
            function_of(network),
            meta,
            batch,
            config.inner(network),
            execution,
            pool,
        )


def differences(a: MetaGradient, b: MetaGradient) -> dict[str, float]:
    """The largest difference of each tensor relative to the largest entry of its kind."""
    found = {"loss": float(abs(a.loss - b.loss) / abs(b.loss))}
    for kind in ("weights", "step_sizes"):
        mine, other = getattr(a, kind), getattr(b, kind)
        assert list(mine) == list(other)
        scale = max((float(v.abs().max()) for v in other.values()), default=1.0)
        for name, value in mine.items():
            assert value.shape == other[name].shape and value.dtype == other[name].dtype
            found[f"{kind}.{name}"] = float((value - other[name]).abs().max()) / (scale or 1.0)
    return found
