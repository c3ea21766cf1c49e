"""The learn2learn engine: its own algorithms, our meta-gradients."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from metainit.errors import RecipeError
from metainit.meta import engine as ours
from metainit.meta import learn2learn_engine as theirs
from metainit.meta.maml import maml
from metainit.meta.registry import rule_for
from metainit.meta.state import MetaGradient
from metainit.networks import FourierMLP, function_of
from tests.metainit.meta.problems import (
    RULES,
    QuadraticDomain,
    SineDomain,
    algorithm,
    differences,
    linear_map,
    small_siren,
    start_of,
)

needs_learn2learn = pytest.mark.skipif(
    theirs.importlib.util.find_spec("learn2learn") is None,
    reason="learn2learn is not installed: it has to be compiled, and no C compiler was found at set-up",
)
SUPPORTED = [
    row
    for row in RULES
    if rule_for(algorithm(row)) in theirs.FIRST_ORDER
    and algorithm(row).adapts == "all"
    and not algorithm(row).variation.active
]
AGREEMENT = 1e-9


def both(row: str, domain: SineDomain, network: nn.Module, tasks: int = 3) -> list[MetaGradient]:
    config = algorithm(row)
    arguments = (
        rule_for(config),
        domain,
        function_of(network),
        start_of(network, config, spread=0.5),
        domain.tasks(0, 0, tasks),
        config.inner(network),
    )
    return [engine.meta_gradient(*arguments, "loop") for engine in (theirs, ours)]


@needs_learn2learn
@pytest.mark.parametrize("row", SUPPORTED)
@pytest.mark.parametrize("problem", ["siren", "fourier_mlp", "quadratic"])
def test_meta_gradients_agree_with_ours(row: str, problem: str) -> None:
    if problem == "quadratic":
        theirs_, ours_ = both(row, QuadraticDomain(), linear_map())
    elif problem == "siren":
        theirs_, ours_ = both(row, SineDomain(), small_siren())
    else:
        network = FourierMLP(1, 1, width=8, depth=3, frequencies=4, scale=1.0).double()
        theirs_, ours_ = both(row, SineDomain(), network)
    assert theirs_.tasks == ours_.tasks == 3
    assert max(differences(theirs_, ours_).values()) < AGREEMENT


@needs_learn2learn
def test_meta_gradients_of_an_image_network_agree_with_ours() -> None:
    from metainit.domains.image import ImageConfig, ImageDomain
    from metainit.networks import Siren

    images = torch.rand(8, 16, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    domain = ImageDomain.from_arrays(images.numpy(), ImageConfig(height=16, width=16, fit="resize"))
    network = Siren(width=32, depth=4).double()
    network.reset_sine_parameters(torch.Generator().manual_seed(0))
    for row in ("maml", "fomaml"):
        config = algorithm(row, inner_steps=2, inner_step_size=0.01)
        batch = domain.tasks(0, 0, 3).map(lambda t: t.double())
        meta = start_of(network, config)
        arguments = (rule_for(config), domain, function_of(network), meta, batch, config.inner(network))
        found = differences(theirs.meta_gradient(*arguments), ours.meta_gradient(*arguments))
        assert max(found.values()) < AGREEMENT


@needs_learn2learn
@pytest.mark.parametrize("row", SUPPORTED)
def test_threads_give_the_same_bytes_as_the_loop(row: str) -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm(row)
    meta, batch = start_of(network, config, spread=0.5), domain.tasks(0, 0, 6)
    function, rule = function_of(network), rule_for(config)
    loop = theirs.meta_gradient(rule, domain, function, meta, batch, config.inner(network), "loop")
    with ours.task_threads(2) as pool:
        threads = theirs.meta_gradient(
            rule, domain, function, meta, batch, config.inner(network), "threads", pool
        )
    assert max(differences(threads, loop).values()) == 0


@needs_learn2learn
def test_leaves_parameters_and_inputs_alone() -> None:
    network, config = small_siren(), algorithm("meta_sgd-2-parameter")
    domain, meta = SineDomain(), start_of(network, config)
    kept = {k: v.clone() for k, v in meta.weights.items()}
    rule, function = rule_for(config), function_of(network)
    theirs.meta_gradient(rule, domain, function, meta, domain.tasks(0, 0, 2), config.inner(network))
    assert all(torch.equal(v, meta.weights[k]) for k, v in kept.items())
    assert all(torch.equal(v, kept[k]) and v.grad is None for k, v in network.named_parameters())
    assert not any(v.requires_grad for part in meta for v in part.values())


@pytest.mark.parametrize(
    "row,execution,says",
    [
        ("reptile", "loop", "no rule 'reptile', only maml, fomaml and meta_sgd"),
        ("maml-head", "loop", "algorithm.adapts to all"),
        ("fomaml-varied", "loop", "leave minibatch out"),
        ("maml", "vmap", "algorithm.execution to loop, threads or auto"),
    ],
)
def test_refuses_what_learn2learn_cannot_do(row: str, execution, says: str) -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm(row)
    meta, batch = start_of(network, config), domain.tasks(0, 0, 2)
    with pytest.raises(RecipeError, match=says):
        theirs.meta_gradient(
            rule_for(config), domain, function_of(network), meta, batch, config.inner(network), execution
        )


def test_says_what_to_install_where_learn2learn_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)  # makes its import fail
    domain, network, config = SineDomain(), small_siren(), algorithm("maml")
    meta, batch = start_of(network, config), domain.tasks(0, 0, 1)
    with pytest.raises(RecipeError, match=r"pip install 'metainit\[learn2learn\]'.*C compiler"):
        theirs.meta_gradient(maml, domain, function_of(network), meta, batch, config.inner(network))


@needs_learn2learn
def test_imports_without_a_word_and_twice() -> None:
    code = (
        "from metainit.meta.learn2learn_engine import import_learn2learn as get\n"
        "import sys\n"
        "print(get().__name__, get() is get())\n"
        "from gym_notices.notices import notices\n"
        "assert notices, 'the notices were not put back'"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.stderr) == (["learn2learn", "True"], "")
