"""Starts that share an encoder: pre-trained on noise (Snp), or on a few real signals (as STRAINER)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metainit.domains.grid import pixel_grid
from metainit.errors import DivergenceError, MismatchError
from metainit.initializers.analytic import default
from metainit.initializers.base import Context, SineNetwork, need

NOISE_SIGNALS = 10
NOISE_SIDE = 32
STEPS = 1000
STEP_SIZE = 1e-4


def pretrain_shared_encoder(
    network: nn.Module,
    inputs: Tensor,
    signals: Tensor,
    generator: torch.Generator,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Fit one encoder with a head a signal to all signals at once; keep the encoder, draw the head anew.

    The head is the last module that holds parameters; everything before it is the encoder.

    Args:
        network: what to fill, in place.
        inputs: ``(points, in_features)``; cast to the network's type, as the signals are.
        signals: ``(signals, points, out_features)``.
        generator: random state of the starting weights.
        steps: Adam steps on the sum over the signals of the mean squared error.
        step_size: Adam's step size.
        progress: called with the step and the mean loss.

    Raises:
        MismatchError: the signals do not fit the network; nothing is changed.
        DivergenceError: the loss is not finite; nothing is changed.

    Source: Vyas et al. 2024, "Learning Transferable Features for Implicit Neural Representations"
    (STRAINER), section 3; with noise for signals, "Noise Pretraining for INRs" (Snp), arXiv:2603.29034.
    """
    like = next(network.parameters(), inputs)
    inputs, signals = (t.to(like.dtype) if t.is_floating_point() else t for t in (inputs, signals))
    try:
        output = network(inputs)
    except RuntimeError as error:
        raise MismatchError(f"example_inputs do not fit the network: {error}") from error
    if len(signals) == 0 or signals.dim() != 3 or signals.shape[1:] != output.shape:
        raise MismatchError(
            f"observation has shape {tuple(signals.shape)}, expected (signals, {output.shape[0]}, "
            f"{output.shape[1]}): one value for each of example_inputs"
        )
    before = {k: v.detach().clone() for k, v in network.state_dict().items()}
    _draw(network, Context(generator))
    start = {k: v.detach().clone() for k, v in network.named_parameters()}
    last = list(start)[-1].rpartition(".")[0]
    heads = [k for k in start if k.rpartition(".")[0] == last]
    weights = {
        k: (v.expand(len(signals), *v.shape).clone() if k in heads else v.clone()).requires_grad_()
        for k, v in start.items()
    }
    axes = {k: 0 if k in heads else None for k in weights}
    optimizer = torch.optim.Adam(weights.values(), lr=step_size)

    def of_one(parameters: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(network, parameters, (inputs,))
        return out

    for step in range(steps):
        loss = (vmap(of_one, in_dims=(axes,))(weights) - signals).square().mean((1, 2)).sum()
        reached = float(loss.detach())
        if not math.isfinite(reached):
            network.load_state_dict(before)
            raise DivergenceError(
                f"pre-training step {step}: the loss is {reached}; lower step_size (now {step_size:g})"
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if progress is not None:
            progress(step, reached / len(signals))
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(start[name] if name in heads else weights[name])


def snp(network: nn.Module, context: Context) -> None:
    """Pre-train the encoder on uniform noise: a strong start for fitting that needs no data.

    The noise is 10 random images of 32x32 pixels on the square [-1, 1]^2.

    Raises:
        MismatchError: the network does not take two coordinates.

    Source: "Noise Pretraining for INRs" (Snp), arXiv:2603.29034.
    """
    reference = next(network.parameters())
    inputs = pixel_grid(NOISE_SIDE, NOISE_SIDE, dtype=reference.dtype, device=reference.device)
    try:
        features = network(inputs[:1]).shape[-1]
    except RuntimeError as error:
        raise MismatchError(f"snp needs a network of two coordinates: {error}") from error
    noise = torch.rand(NOISE_SIGNALS, len(inputs), features, generator=context.generator)
    pretrain_shared_encoder(network, inputs, noise.to(inputs), context.generator, STEPS)


def strainer(network: nn.Module, context: Context) -> None:
    """Pre-train the encoder on a few real signals, given as `observation` at `example_inputs`.

    Raises:
        MismatchError: signals or inputs are missing, or do not fit the network.

    Source: Vyas et al. 2024, "Learning Transferable Features for Implicit Neural Representations".
    """
    inputs = need(context.example_inputs, "example_inputs", "the coordinates of the signals")
    signals = need(context.observation, "observation", "signals (signals, points, values)")
    pretrain_shared_encoder(network, inputs, signals, context.generator, STEPS)


def _draw(network: nn.Module, context: Context) -> None:
    if isinstance(network, SineNetwork):
        network.reset_sine_parameters(context.generator)
    else:
        default(network, context)
