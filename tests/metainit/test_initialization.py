"""Sources: every form of one, what it fills, and what is said where it names nothing."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metainit
from metainit import checkpoint as files
from metainit.adaptation import Task
from metainit.card import AdaptationRoutine, Card, Method, Spec
from metainit.errors import CheckpointError, DigestError, EndpointError, MismatchError, SourceError
from metainit.fill import fill
from metainit.initialization import Analytic, Initialization, Prior, extension
from metainit.initializers import INITIALIZERS
from metainit.networks import Siren, build
from tests.metainit.meta.problems import SineDomain

SPEC = Spec(name="siren", arguments={"in_features": 1, "out_features": 1, "width": 6, "depth": 3})
ROUTINE = AdaptationRoutine(steps=2, step_size=0.01)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    return build(SPEC, seed).to(dtype)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return store(tmp_path / "prior.safetensors")


def store(path: Path, **changes: Any) -> Path:
    card: dict[str, Any] = {
        "kind": "prior", "name": "sines", "method": Method(name="maml"), "network": SPEC, "routine": ROUTINE
    }  # fmt: skip
    files.save(path, network(seed=9).state_dict(), Card(**{**card, **changes}))
    return path


class TestLoad:
    @pytest.mark.parametrize("name", INITIALIZERS)
    def test_the_name_of_a_rule(self, name: str) -> None:
        start = metainit.load(name)
        assert isinstance(start, Analytic) and isinstance(start, Initialization)
        assert (start.card.kind, start.card.name, start.evidence) == ("analytic", name, None)
        assert start.card.method.paper == INITIALIZERS[name][1]

    @pytest.mark.parametrize("as_text", [True, False])
    def test_a_file(self, stored: Path, as_text: bool) -> None:
        start = metainit.load(str(stored) if as_text else stored)
        assert isinstance(start, Prior) and isinstance(start, Initialization)
        assert start.card == files.load(stored).card and start.evidence is None

    def test_a_file_of_another_name(self, stored: Path) -> None:
        other = stored.rename(stored.with_name("weights.bin"))
        assert metainit.load(other).card.name == "sines"

    def test_a_file_in_the_current_folder(self, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(stored.parent)
        assert metainit.load(stored.name).card.name == "sines"

    def test_evidence_beside_the_file(self, stored: Path) -> None:
        (stored.parent / "evidence.json").write_text(json.dumps({"headline": {"gain": 6.5}}))
        assert metainit.load(stored).evidence == {"headline": {"gain": 6.5}}

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
    def test_damaged_evidence_is_named(self, stored: Path, content: bytes) -> None:
        (stored.parent / "evidence.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="evidence.json"):
            metainit.load(stored)

    def test_evidence_without_end_is_refused(self, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        beside = stored.parent / "evidence.json"
        beside.write_text('{"a": ' + 100 * "[" + 100 * "]" + "}")
        with pytest.raises(CheckpointError, match=r"evidence.json is nested deeper than 64; mend it"):
            metainit.load(stored)
        monkeypatch.setattr("metainit.bounded.MAX_EVIDENCE_BYTES", 100)
        with pytest.raises(CheckpointError, match=r"evidence.json has more than 100 bytes; mend it"):
            metainit.load(stored)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"cannot read .*gone.safetensors: No such file"):
            metainit.load(tmp_path / "gone.safetensors")

    def test_a_damaged_file(self, stored: Path) -> None:
        content = bytearray(stored.read_bytes())
        content[-1] ^= 1
        stored.write_bytes(content)
        with pytest.raises(DigestError, match="prior.safetensors was changed"):
            metainit.load(stored)

    @pytest.mark.parametrize(
        "source,says",
        [
            ("sirn", "'sirn' is no source: .*did you mean 'siren'"),
            ("", "'' is no source: .*the choices are: default, kaiming"),
            (".", "is no source"),
            ("no/such/folder", "is no source"),
            ("nothing:/name@alias", "nothing installed offers 'nothing' in metainit.schemes; .*models"),
            ("modles:/name", "did you mean 'models'"),
        ],
    )
    def test_what_names_nothing(self, source: str, says: str) -> None:
        with pytest.raises(SourceError, match=says):
            metainit.load(source)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1/inits/faces", "https://127.0.0.1:9/faces"])
    def test_an_endpoint_that_does_not_answer(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METAINIT_CACHE", str(tmp_path))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
        with pytest.raises(EndpointError, match="127.0.0.1:9"):
            metainit.load(url)

    @pytest.mark.parametrize(
        "kind,says",
        [("models", r"pip install 'metainit\[ray\]'"), ("praior", "did you mean 'prior'")],
    )
    def test_a_kind_that_nothing_installed_can_load(self, tmp_path: Path, kind: str, says: str) -> None:
        path = store(tmp_path / "a.safetensors", kind=kind)
        with pytest.raises(
            SourceError, match=f"nothing installed offers '{kind}' in metainit.kinds; .*{says}"
        ):
            metainit.load(path)

    def test_every_entry_point_leads_somewhere(self) -> None:
        for group in ("metainit.schemes", "metainit.kinds", "metainit.remotes"):
            names = [point.name for point in entry_points(group=group)]
            assert names and all(callable(extension(group, name)) for name in names)


class TestInit:
    def test_a_prior_fills_with_its_own_bytes_whatever_the_seed(self, stored: Path) -> None:
        for seed in (None, 0, 1):
            target = network()
            assert metainit.init_(target, stored, seed=seed) is target
            assert equal(values(target), values(network(seed=9)))

    def test_the_network_keeps_its_dtype_and_its_parameters(self, stored: Path) -> None:
        target = network(dtype=torch.float64)
        before = list(target.parameters())
        metainit.init_(target, stored)
        assert all(a is b for a, b in zip(target.parameters(), before, strict=True))
        assert all(v.dtype == torch.float64 and v.requires_grad and v.grad is None for v in before)
        assert equal(values(target.float()), values(network(seed=9)))

    @pytest.mark.parametrize(
        "changes,says",
        [
            ({"width": 7}, r"mis-shaped: layers.0.bias \(6,\) \(expected \(7,\)\), layers.0.weight"),
            ({"depth": 4}, "missing: layers.3.bias, layers.3.weight; mis-shaped: layers.2.bias"),
            ({"depth": 2}, "unexpected: layers.2.bias, layers.2.weight; mis-shaped: layers.1.bias"),
        ],
    )
    def test_another_network_is_refused_with_a_list_and_nothing_is_filled(
        self, stored: Path, changes: dict[str, int], says: str
    ) -> None:
        other = build(Spec(name="siren", arguments={**SPEC.arguments, **changes}))
        before = values(other)
        with pytest.raises(MismatchError, match=f"{says}.*; nothing was filled. Build the network"):
            metainit.init_(other, stored)
        assert equal(values(other), before)

    def test_step_sizes_are_no_weights(self, tmp_path: Path) -> None:
        sizes = {f"step_size.{k}": torch.ones(1, *v.shape) for k, v in network().named_parameters()}
        card = files.load(store(tmp_path / "a.safetensors")).card
        files.save(tmp_path / "b.safetensors", {**network(seed=9).state_dict(), **sizes}, card)
        assert equal(values(metainit.init_(network(), tmp_path / "b.safetensors")), values(network(seed=9)))

    def test_buffers_are_filled_too(self, tmp_path: Path) -> None:
        spec = Spec(name="fourier_mlp", arguments={"width": 4, "depth": 2, "frequencies": 3})
        made = build(spec, seed=1)
        card = Card(kind="prior", name="a", method=Method(name="m"), network=spec)
        files.save(tmp_path / "a.safetensors", made.state_dict(), card)
        arguments = {**spec.arguments, "frequency_seed": 5}
        other = build(Spec(name=spec.name, arguments=arguments))
        assert equal(values(metainit.init_(other, tmp_path / "a.safetensors")), values(made))

    def test_a_condition_is_refused_where_none_is_taken(self, stored: Path) -> None:
        for source in (stored, "siren"):
            target = network()
            before = values(target)
            with pytest.raises(SourceError, match="takes no condition; only generated starts do"):
                metainit.load(source).init_(target, condition=3)
            assert equal(values(target), before)

    def test_tied_weights_stay_tied(self) -> None:
        layer = nn.Linear(2, 2, bias=False)
        tied = nn.Sequential(layer, nn.ReLU(), layer)
        fill(tied, {k: torch.eye(2) for k in tied.state_dict()}, "test")
        assert tied[0].weight is tied[2].weight and torch.equal(layer.weight, torch.eye(2))

    @pytest.mark.parametrize("name", sorted(INITIALIZERS))
    def test_a_network_without_storage_is_refused(self, name: str) -> None:
        with torch.device("meta"):
            network = Siren(width=8, depth=3)
        with pytest.raises(MismatchError, match=r"meta device .*nothing was filled: .*to_empty"):
            metainit.init_(network, name, seed=0)


class TestAdapt:
    def task(self) -> Task:
        domain = SineDomain(dtype=torch.float32)
        return Task(domain, domain.tasks(0, 0, 1))

    def test_the_routine_of_the_card_unless_one_is_given(self, stored: Path) -> None:
        start, told = metainit.load(stored), []
        target = start.init_(network())
        assert start.adapt(target, self.task(), progress=lambda *now: told.append(now[:2])) is target
        assert told == [(1, 2), (2, 2)]
        told.clear()
        longer = ROUTINE.model_copy(update={"steps": 3})
        start.adapt(start.init_(network()), self.task(), longer, progress=lambda *now: told.append(now[:2]))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_without_a_routine_it_says_what_to_pass(self, tmp_path: Path) -> None:
        path = store(tmp_path / "a.safetensors", routine=None)
        for source in (path, "siren"):
            with pytest.raises(SourceError, match="has no adaptation routine: pass routine="):
                metainit.load(source).adapt(network(), self.task())

    def test_an_analytic_start_takes_a_routine(self) -> None:
        target = metainit.init_(network(), "siren", seed=0)
        before = values(target)
        metainit.load("siren").adapt(target, self.task(), ROUTINE)
        assert not equal(values(target), before)

    def test_nothing_is_stored_on_the_module(self, stored: Path) -> None:
        start, target = metainit.load(stored), Siren(1, 1, width=6, depth=3)
        attributes = set(vars(target))
        start.adapt(start.init_(target), self.task())
        assert set(vars(target)) == attributes
        assert all(v.grad is None and v.is_leaf for v in target.parameters())
