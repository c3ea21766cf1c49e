"""Recalibrated statistics are those of the data, and nothing else of the network changes."""

import pytest
import torch
from torch import nn

from metainit.errors import DataError, DivergenceError
from metainit.recalibration import recalibrate


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(108, 4), nn.BatchNorm1d(4),
    )  # fmt: skip


def test_one_batch_gives_its_own_statistics():
    net, images = network().eval(), torch.randn(16, 1, 8, 8)
    done = recalibrate(net, [images])
    features = net[0](images)
    torch.testing.assert_close(net[1].running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, features.var((0, 2, 3)))
    # The second layer sees what the first gives with the batch's statistics, without dropout.
    normal = (features - features.mean((0, 2, 3), keepdim=True)) / (
        features.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    torch.testing.assert_close(net[6].running_mean, net[5](normal.relu().flatten(1)).mean(0))
    assert done.layers == ("1", "6") and done.inputs == 16
    assert "2 layers (1, 6) from 16 inputs in 1 batches" in str(done)


def test_several_batches_count_alike():
    batches = [torch.randn(8, 1, 8, 8) * scale for scale in (1, 2, 3)]
    net = network()
    recalibrate(net, batches)
    means = torch.stack([net[0](b).mean((0, 2, 3)) for b in batches])
    torch.testing.assert_close(net[1].running_mean, means.mean(0))
    assert int(net[1].num_batches_tracked) == 3


def test_flags_momenta_and_weights_stay():
    net = network().train()
    net[3].eval()
    net[1].momentum = 0.3
    weights = {k: v.clone() for k, v in net.named_parameters()}
    recalibrate(net, [torch.randn(4, 1, 8, 8)])
    assert net.training and not net[3].training and net[1].training
    assert (net[1].momentum, net[6].momentum) == (0.3, 0.1)
    assert all(torch.equal(v, weights[k]) for k, v in net.named_parameters())


@pytest.mark.parametrize(
    ("batches", "error"),
    [([], DataError), ([torch.randn(4, 1, 8, 8), torch.full((4, 1, 8, 8), float("nan"))], DivergenceError)],
)
def test_all_or_nothing(batches, error):
    net = network().train()
    recalibrate(net, [torch.randn(4, 1, 8, 8)])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(error):
        recalibrate(net, batches)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and net[1].momentum == 0.1


def test_a_failing_forward_pass_leaves_everything_as_it_was():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 5, 5)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_networks_without_statistics_are_left_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert "nothing was changed" in str(recalibrate(net, iter([])))
