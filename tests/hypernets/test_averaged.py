"""What trainings that average their weights have in common."""

import pytest
import torch

from hypernets.averaged import decay_at, saved_in, state_of
from metainit.errors import CheckpointError


def trained(steps: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    """Return a layer after some steps towards zero, and its optimizer."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(steps):
        step(layer, optimizer)
    return layer, optimizer


def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(layer(torch.ones(1, 2)).square().sum())
    optimizer.step()


def test_a_state_that_is_read_back_goes_on_with_the_same_bytes() -> None:
    layer, optimizer = trained(3)
    state = {k: v.clone() for k, v in state_of(layer.state_dict(), layer.state_dict(), 3, optimizer).items()}
    saved = saved_in(state)
    other, fresh = trained(0)
    other.load_state_dict(saved.model)
    saved.load_into(fresh)
    assert saved.step == 3 and saved.average.keys() == saved.model.keys()
    step(layer, optimizer)
    step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("missing", ["step", "model."])
def test_another_state_is_refused(missing: str) -> None:
    layer, optimizer = trained(1)
    state = state_of(layer.state_dict(), layer.state_dict(), 1, optimizer)
    other = {k: v for k, v in state.items() if not k.startswith(missing)}
    with pytest.raises(CheckpointError, match="not one of this training.*to begin anew"):
        saved_in(other)


def test_the_average_forgets_early_weights_and_never_more_than_asked() -> None:
    decays = [decay_at(k, 0.9) for k in range(1, 200)]
    assert decays == sorted(decays) and decays[0] < 0.2 and decays[-1] == 0.9
