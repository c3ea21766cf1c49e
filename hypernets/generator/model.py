"""The generator: a mean, a diffusion of what it leaves, a one-step student, and a guard against copies.

Letters: `D` numbers of a network, `d` of them generated, `B` samples.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hypernets.generator.conditions import Conditioner, Conditions
from hypernets.generator.config import GeneratorConfig
from hypernets.generator.copies import Sketch
from hypernets.generator.denoiser import MlpDenoiser
from hypernets.generator.description import Layers, What
from hypernets.generator.flat import FlatLayout
from hypernets.generator.mean import Regressor, Scale
from hypernets.generator.process import Process
from hypernets.generator.sampling import Sampler, guided, noise_of, sample
from hypernets.generator.standardization import Standardization
from hypernets.generator.tokens import TokenLayout, layers_with
from hypernets.generator.transformer import TransformerDenoiser
from metainit.domains.seeding import seed_of
from metainit.errors import CopyError, DivergenceError, MismatchError, RecipeError

LARGEST_GUIDANCE = 100.0
ATTEMPTS = 16
"""How often a sample that is a copy is drawn again."""
SHOWN = 3
"""Tensors that an error names."""


@dataclass(frozen=True)
class Drawn:
    """Deltas (B, D), and how many copies of members were refused on the way to each (B) int64."""

    deltas: Tensor
    refused: Tensor


class Generator(nn.Module):
    r"""Draws deltas from a base for one network, given what is known of the task.

    .. math:: \delta = s(c) \, (\mu_0 + \sigma_0 \odot (m(c) + \mu_1 + \sigma_1 \odot x)), \; x \sim p(x | c)

    with the predicted mean m, the diffused residual x, each with its standardization, and the predicted scale
    s, or 1. Everything that sampling needs is in the state dict.

    Args:
        config: which parts there are.
        layout: all parameters of the network.
        layers: which of them belong to one module.
        members: how many members the guard against copies knows.

    Raises:
        MismatchError: `config.parameters` names what the network does not have.

    Example:
        >>> from hypernets.generator.conditions import conditions_of
        >>> layout = FlatLayout.of({'weight': torch.zeros(2, 3)})
        >>> generator = Generator(GeneratorConfig(width=16), layout, (('weight',),), members=8)
        >>> nothing = conditions_of(generator.config.conditions, 2)
        >>> generator.sample(nothing, seeds=[0, 1], steps=2).deltas.shape
        torch.Size([2, 6])
    """

    columns: Tensor

    def __init__(self, config: GeneratorConfig, layout: FlatLayout, layers: Layers, members: int) -> None:
        super().__init__()
        self.config, self.layout, self.layers = config, layout, layers
        if unknown := sorted(set(config.parameters) - set(layout.names)):
            raise MismatchError(
                f"the network has no parameters {', '.join(unknown)}, which were to be generated; it has "
                f"{', '.join(layout.names)}"
            )
        wanted = set(config.parameters) or set(layout.names)
        kept = [(n, s) for n, s in zip(layout.names, layout.shapes, strict=True) if n in wanted]
        part = FlatLayout(tuple(n for n, _ in kept), tuple(s for _, s in kept))
        numbers = layout.unflatten(torch.arange(layout.size, device="cpu"))
        columns = torch.cat([numbers[name].flatten() for name in part.names])
        self.register_buffer("columns", columns, persistent=False)
        own, size, conditions = layers_with(layers, wanted), part.size, config.conditions
        regressor = (conditions, config.embedding, config.mean_width, config.mean_depth)
        self.process = Process(config.prediction)
        self.unit = Standardization(part, own, config.standardization)
        self.residual = Standardization(part, own, config.standardization)
        self.mean = Regressor(*regressor, size) if config.mean else None
        self.scale = Scale(*regressor) if config.scale == "predicted" else None
        self.conditioner = Conditioner(conditions, config.embedding)
        self.denoiser: nn.Module
        if config.denoiser == "mlp":
            self.denoiser = MlpDenoiser(size, config.width, config.depth, config.embedding)
        else:
            tokens = TokenLayout.of(part, own, config.tokens, config.token_size)
            self.denoiser = TransformerDenoiser(
                tokens, config.width, config.depth, config.heads, config.embedding, config.projection
            )
        self.student = copy.deepcopy(self.denoiser) if config.one_step else None
        self.sketch = Sketch(size, config.sketch, members)

    @property
    def device(self) -> torch.device:
        """Where the generator lies."""
        return self.unit.mean.device

    def fit(self, deltas: Tensor, held_out: Tensor, closeness: float) -> None:
        """Take standardization, scales and sketches from deltas (n, D) of members and of held-out fits.

        Raises:
            DataError: the members are all the same.
        """
        chosen = self.select(deltas)
        if self.scale is not None:
            self.scale.fit(chosen)
        self.unit.fit(self._scaled(chosen))
        self.sketch.fit(self.standardized(deltas), self.standardized(held_out), closeness)

    def select(self, deltas: Tensor) -> Tensor:
        """Return those numbers of deltas ``(B, D)`` that are generated, (B, d)."""
        return deltas[..., self.columns]

    def standardized(self, deltas: Tensor) -> Tensor:
        """Return deltas (B, D) as standardized values (B, d)."""
        values: Tensor = self.unit(self._scaled(self.select(deltas)))
        return values

    def _scaled(self, chosen: Tensor) -> Tensor:
        return chosen if self.scale is None else chosen / self.scale.of(chosen)

    def deltas(self, values: Tensor, conditions: Conditions) -> Tensor:
        """Return standardized values (B, d) as deltas (B, D), zero where nothing is generated."""
        chosen = self.unit.inverse(values)
        if self.scale is not None:
            chosen = chosen * self.scale(conditions)
        if len(self.columns) == self.layout.size:
            return chosen
        return chosen.new_zeros(len(chosen), self.layout.size).index_copy(1, self.columns, chosen)

    def predicted_mean(self, conditions: Conditions) -> Tensor:
        """Return the standardized mean under conditions, (B, d); zero where none is predicted."""
        if self.mean is None:
            return self.unit.mean.new_zeros(len(conditions), len(self.columns))
        predicted: Tensor = self.mean(conditions)
        return predicted

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        what: What = "sample",
        *,
        steps: int = 20,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
        constant_shape: bool = False,
    ) -> Drawn:
        """Return deltas from the base, each of which follows from its own seed and condition.

        Args:
            conditions: one a sample.
            seeds: one a sample.
            what: ``sample`` draws in `steps` steps; ``one_step`` has the student draw in one; ``mean`` draws
                nothing and is the same for every seed.
            steps: of the sampler.
            guidance: how much the condition counts, 1 as in the data (`hypernets.generator.sampling.guided`).
            sampler: of `hypernets.generator.sampling.SAMPLERS`; None for the one that needs fewest steps.
            constant_shape: compute all of them again where one is drawn again: the rounding of a row follows
                from the number of rows.

        Raises:
            CopyError: `ATTEMPTS` draws were all copies of members.
            DivergenceError: a delta is not finite.
            MismatchError: there are not as many seeds as conditions.
            RecipeError: the generator has no such part, or steps, guidance and sampler do not go with it.
        """
        if len(seeds) != len(conditions):
            raise MismatchError(f"got {len(seeds)} seeds for {len(conditions)} conditions: one each")
        self._require(what, guidance)
        conditions = conditions.to(self.device)
        values = mean = self.predicted_mean(conditions)
        refused = torch.zeros(len(seeds), dtype=torch.int64)
        waiting = torch.arange(0 if what == "mean" else len(seeds))
        for attempt in range(ATTEMPTS + 1):
            if not len(waiting):
                break
            rows = torch.arange(len(seeds)) if constant_shape else waiting
            drawn = [seed_of(seeds[i], "again", attempt) if attempt else seeds[i] for i in rows.tolist()]
            noise = noise_of(drawn, len(self.columns)).to(self.device)
            asked = conditions[rows.to(self.device)]
            x = (
                self._one_step(noise, asked)
                if what == "one_step"
                else self._many(noise, asked, steps, guidance, sampler)
            )
            found = mean[rows] + self.residual.inverse(x)
            copies = self.sketch.is_copy(found).cpu()
            if constant_shape:
                found, copies = found[waiting], copies[waiting]
            values = values.index_copy(0, waiting.to(self.device), found)
            waiting = waiting[copies]
            refused[waiting] += 1
        if len(waiting):
            raise CopyError(
                f"{len(waiting)} of {len(seeds)} samples are copies of members after {ATTEMPTS} more draws "
                f"({_listed([seeds[i] for i in waiting.tolist()])}): the generator has learned its members "
                "by heart; train it on more of them, or for fewer steps"
            )
        deltas = self.deltas(values, conditions)
        if not bool(torch.isfinite(deltas).all()):
            raise DivergenceError("a generated weight is not finite: lower guidance, or train again")
        return Drawn(deltas, refused)

    def _require(self, what: What, guidance: float) -> None:
        has = {"sample": True, "mean": self.mean is not None, "one_step": self.student is not None}
        if not has.get(what, False):
            raise RecipeError(
                f"the generator gives {' or '.join(k for k, v in has.items() if v)}, no {what!r}"
            )
        if what != "sample" and guidance != 1.0:
            raise RecipeError(f"guidance {guidance:g} is for what='sample', not for {what!r}: leave it out")
        if not 0 <= guidance <= LARGEST_GUIDANCE:
            raise RecipeError(f"guidance: expected 0 to {LARGEST_GUIDANCE:g}, got {guidance:g}")

    def _many(
        self, noise: Tensor, conditions: Conditions, steps: int, guidance: float, sampler: Sampler | None
    ) -> Tensor:
        nothing = conditions.none()
        # The mean without a condition is another one: residuals are measured from there.
        shift = (self.predicted_mean(conditions) - self.predicted_mean(nothing)) / self.residual.deviation
        embedded, unconditional = self.conditioner(conditions), self.conditioner(nothing)
        predict = guided(self.process, self.denoiser, embedded, unconditional, guidance, shift)
        return sample(self.process, predict, noise, steps, sampler)

    def _one_step(self, noise: Tensor, conditions: Conditions) -> Tensor:
        assert self.student is not None
        return self.process.from_noise(self.student, noise, self.conditioner(conditions))

    def residuals(self, noise: Tensor, conditions: Conditions, steps: int) -> Tensor:
        """Return what noise (B, d) becomes in some steps, in standardized residuals (B, d)."""
        return self._many(noise, conditions, steps, 1.0, None)


def _listed(seeds: Sequence[int]) -> str:
    """Return seeds in words, each once, not more than an error should hold."""
    own = list(dict.fromkeys(seeds))
    more = ", ..." if len(own) > SHOWN else ""
    return f"seed{'s' * (len(own) > 1)} {', '.join(map(str, own[:SHOWN]))}{more}"


def generator_from(
    config: GeneratorConfig, layout: FlatLayout, layers: Layers, tensors: Mapping[str, Tensor]
) -> Generator:
    """Return the generator that some tensors are the state of.

    What the configuration says costs no memory before the tensors are known to be those of it, and nothing is
    drawn.

    Raises:
        MismatchError: they are not.
    """
    sketched = tensors.get("sketch.members")
    members = len(sketched) if sketched is not None and sketched.dim() else 0
    with torch.device("meta"):
        generator = Generator(config, layout, layers, members)
    expected = generator.state_dict()
    wrong = [f"no {name}" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"an unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    wrong += [
        f"{name} {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise MismatchError(
            f"the tensors are not those of such a generator: {'; '.join(wrong[:SHOWN])}{more}"
        )
    state = {name: tensors[name].to(value.dtype) for name, value in expected.items()}
    generator.load_state_dict(state, assign=True)
    return generator.eval().requires_grad_(False)
