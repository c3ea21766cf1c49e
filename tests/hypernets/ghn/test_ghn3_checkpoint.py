"""Published files are read whole or refused; nothing in them runs."""

import argparse
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from hypernets.ghn.ghn3_checkpoint import from_checkpoint, import_ghn3, to_checkpoint
from hypernets.ghn.ghn3_config import Ghn3Config
from hypernets.ghn.ghn3_network import Ghn3
from metainit import checkpoint
from metainit.card import Card, Method
from metainit.checkpoint import Limits
from metainit.errors import CheckpointError

CONFIG = Ghn3Config(hidden=8, layers=2, heads=4, channels=8, kernel=11, classes=10)
WRITTEN = {
    "max_shape": (8, 8, 11, 11), "num_classes": 10, "hypernet": "gatedgnn", "decoder": "conv",
    "weight_norm": True, "ve": True, "layernorm": True, "hid": 8, "layers": 2, "heads": 4, "is_ghn2": False,
}  # fmt: skip
TABLES = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return OrderedDict(Ghn3(CONFIG).state_dict())


def moved(state):
    return OrderedDict((f"gnn.0.{k}" if k.startswith(TABLES) else k, v) for k, v in state.items())


def assert_read(path, state):
    config, tensors = import_ghn3(path)
    assert config == CONFIG
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], value) for name, value in state.items())


@pytest.mark.parametrize("form", ["tensors", "parameters", "arrays", "views"])
def test_hub_files(tmp_path, state, form):
    joblib = pytest.importorskip("joblib")
    transposed = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()}
    content = {
        "tensors": state,
        "parameters": {k: torch.nn.Parameter(v) for k, v in state.items()},
        "arrays": {
            k: np.asfortranarray(v.numpy()) if n % 2 else v.numpy() for n, (k, v) in enumerate(state.items())
        },
        "views": transposed,
    }[form]
    joblib.dump(content, tmp_path / "ghn3.pt")
    assert_read(tmp_path / "ghn3.pt", state)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_hub_files_of_any_age(tmp_path, state, protocol):
    (tmp_path / "ghn3.pt").write_bytes(pickle.dumps(state, protocol=protocol))
    assert_read(tmp_path / "ghn3.pt", state)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_own_trainings(tmp_path, state, zipped):
    content = {
        "state_dict": moved(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 4e-4}]},
        "epoch": 3,
        "step": 10,
        "args": argparse.Namespace(name="mine", lr=4e-4, max_shape=(8, 8, 11, 11)),
        "config": WRITTEN,
    }
    torch.save(content, tmp_path / "mine.pt", _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / "mine.pt", state)


def test_what_the_configuration_says_counts(tmp_path, state):
    config = {**WRITTEN, "ve": False, "weight_norm": False}
    torch.save({"state_dict": state, "config": config}, tmp_path / "a.pt")
    found, _ = import_ghn3(tmp_path / "a.pt")
    assert (found.virtual_edges, found.weight_norm) == (False, False)


def test_sizes_are_read_off_the_tensors(tmp_path):
    config = Ghn3Config(hidden=16, layers=1, heads=2, channels=4, kernel=16, classes=100, final_norm=False)
    torch.save({"state_dict": Ghn3(config).state_dict()}, tmp_path / "a.pt")
    assert import_ghn3(tmp_path / "a.pt")[0] == config


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, state, protocol, place):
    mark = tmp_path / "ran"
    content = Bomb(mark) if place == "alone" else {**dict(list(state.items())[:1]), "x": Bomb(mark)}
    (tmp_path / "a.pt").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"mkdir|opcode|encode"):
        import_ghn3(tmp_path / "a.pt")
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path, state, zipped):
    mark = tmp_path / "ran"
    torch.save(
        {"state_dict": state, "args": Bomb(mark)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match="more than tensors"):
        import_ghn3(tmp_path / "a.pt")
    assert not mark.exists()


def test_code_in_a_storage_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Bomb(mark)),)

    (tmp_path / "a.pt").write_bytes(pickle.dumps({"embed.weight": Storage()}))
    with pytest.raises(CheckpointError, match="mkdir"):
        import_ghn3(tmp_path / "a.pt")
    assert not mark.exists()


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        # A small storage that claims to be large, from its start, its offset and its strides.
        lambda s: {
            "a": Call(torch._utils._rebuild_tensor_v2, s, 0, (10**6, 10**6), (0, 0), False, OrderedDict())
        },
        lambda s: {"a": Call(torch._utils._rebuild_tensor_v2, s, 5, (4,), (1,), False, OrderedDict())},
        lambda s: {"a": Call(torch._utils._rebuild_tensor_v2, s, 0, (2,), (10**9,), False, OrderedDict())},
        lambda s: {"a": Call(torch._utils._rebuild_tensor_v2, s, -1, (2,), (1,), False, OrderedDict())},
        lambda s: {"a": Call(torch._utils._rebuild_tensor_v2, "s", 0, (2,), (1,), False, OrderedDict())},
        lambda s: {"a": Call(torch.storage._load_from_bytes, b"")},
        lambda s: {"a": Call(torch.storage._load_from_bytes, b"\x80\x02].")},
        lambda s: {"a": Call(np.dtype, "O")},
        lambda s: [s],
        lambda s: {},
        lambda s: {1: 2},
        lambda s: {"embed.weight": 3},
    ],
)
def test_damaged_pickles_are_refused(tmp_path, content):
    storage = torch.arange(6.0)._typed_storage()
    (tmp_path / "a.pt").write_bytes(pickle.dumps(content(storage)))
    with pytest.raises(CheckpointError):
        import_ghn3(tmp_path / "a.pt")


@pytest.mark.parametrize("container", ["pickle", "joblib", "zip", "legacy"])
def test_a_file_that_ends_early_or_has_other_bytes_is_refused(tmp_path, state, container):
    path = tmp_path / "a.pt"
    small = {k: v for k, v in state.items() if v.numel() < 100}
    if container == "joblib":
        joblib = pytest.importorskip("joblib")
        joblib.dump({k: v.numpy() for k, v in small.items()}, path)
    elif container == "pickle":
        path.write_bytes(pickle.dumps(small))
    else:
        torch.save({"state_dict": small}, path, _use_new_zipfile_serialization=container == "zip")
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for cut in [0, 1, 2, 10, *generator.integers(11, len(whole) - 1, 20)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            import_ghn3(path)
    for place in generator.integers(0, len(whole), 100):
        # Not a whole GHN-3 in any case: whatever the changed byte means, it ends in one kind of error.
        path.write_bytes(whole[:place] + bytes([int(generator.integers(256))]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            import_ghn3(path)


def change(state, **changes):
    changed = dict(state)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del changed[name]
        else:
            changed[name] = value
    return changed


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"embed__weight": None}, "embed.weight is missing"),
        ({"gnn__1__ff__net__0__bias": None}, r"gnn\.1\.ff\.net\.0\.bias is missing"),
        ({"ln__bias": torch.zeros(3)}, r"ln\.bias has the shape \(3,\), expected \(8,\)"),
        ({"embed__weight": torch.zeros(16, 8)}, r"embed\.weight has the shape \(16, 8\), expected \(15, 8\)"),
        ({"embed__weight": torch.zeros(15, 12)}, "does not fit|no GHN-3"),
        ({"embed__weight": torch.zeros(8)}, r"embed\.weight has the shape"),
        ({"extra": torch.zeros(1)}, "extra is unexpected"),
        ({"ln__bias": torch.zeros(8, dtype=torch.long)}, "expected floating point"),
        ({"gnn__gru__weight_ih": torch.zeros(3)}, "GHN-2"),
        ({"decoder__conv__2__weight": torch.zeros(65, 64)}, "expected"),
    ],
)
def test_tensors_that_are_no_ghn3_are_refused(tmp_path, state, changes, said):
    torch.save({"state_dict": change(state, **changes)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=said):
        import_ghn3(tmp_path / "a.pt")


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path, state):
    torch.save({"state_dict": state, "config": {**WRITTEN, "heads": 2}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="heads"):
        import_ghn3(tmp_path / "a.pt")


def test_limits(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="at most 1000"):
        import_ghn3(tmp_path / "a.pt", Limits(file_bytes=1000))
    with pytest.raises(CheckpointError, match="at most 3"):
        import_ghn3(tmp_path / "a.pt", Limits(tensors=3))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(CheckpointError, match="unpacks to 1000000 bytes"):
        import_ghn3(tmp_path / "bomb.pt", Limits(file_bytes=10_000))
    with pytest.raises(CheckpointError, match="cannot read"):
        import_ghn3(tmp_path / "none.pt")


def test_a_checkpoint_gives_the_hypernetwork_again(tmp_path, state):
    to_checkpoint(CONFIG, state, tmp_path / "a.safetensors", "tiny", "a test")
    stored = checkpoint.load(tmp_path / "a.safetensors")
    assert (stored.card.kind, stored.card.method.name) == ("ghn", "ghn3")
    ghn = from_checkpoint(stored)
    assert ghn.config == CONFIG
    assert all(torch.equal(value, state[name]) for name, value in ghn.state_dict().items())


def test_another_kind_of_checkpoint_is_refused(tmp_path, state):
    card = Card(kind="prior", name="a", method=Method(name="reptile"))
    stored = checkpoint.save(tmp_path / "a.safetensors", state, card)
    with pytest.raises(CheckpointError, match="import-ghn3"):
        from_checkpoint(stored)


def test_command(tmp_path, state, monkeypatch, capsys):
    import typer

    from hypernets.commands import import_ghn3 as command

    torch.save({"state_dict": state}, tmp_path / "ghn3tiny.pt")
    app = typer.Typer()
    app.command()(command)
    with pytest.raises(SystemExit) as ended:
        app([str(tmp_path / "ghn3tiny.pt"), "-o", str(tmp_path / "out.safetensors")])
    assert ended.value.code == 0
    assert "ghn3tiny" in capsys.readouterr().out
    assert from_checkpoint(checkpoint.load(tmp_path / "out.safetensors")).config == CONFIG
