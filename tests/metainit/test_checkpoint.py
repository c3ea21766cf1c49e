"""The checkpoint file: what is written comes back, and what was changed is refused."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metainit import card as cards
from metainit import checkpoint as files
from metainit.card import AdaptationRoutine, Card, Method, Spec
from metainit.checkpoint import Limits
from metainit.errors import CheckpointError, DigestError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool,
]  # fmt: skip
LENGTH = 8
"""Bytes of the header's length, which a safetensors file begins with."""


def card_of(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "kind": "prior",
        "name": "photos",
        "method": Method(name="reptile", paper="Nichol et al. 2018"),
        "network": Spec(name="siren", arguments={"width": 8, "omega": 1e-05}),
        "routine": AdaptationRoutine(steps=2, step_size=0.01, per_tensor={"w": [0.1, 0.2]}),
        "notes": 'Grüße, 世界 \\ "quoted"\n\x00',
    }
    return Card(**{**values, **changes})


def tensors_of(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.0.weight": torch.randn(3, 2, generator=generator),
        "layers.0.bias": torch.randn(3, generator=generator, dtype=torch.float64),
        "step_size.layers.0.bias": torch.rand(2, 3, generator=generator),
    }


def same(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and a.contiguous().view(-1).view(torch.uint8).equal(
        b.contiguous().view(-1).view(torch.uint8)
    )


def crafted(header: Any, data: bytes = b"\0\0\0\0", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(LENGTH, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
            st.tuples(
                st.sampled_from(DTYPES),
                st.lists(st.integers(0, 4), max_size=4),
                st.integers(0, 2**31),
                st.booleans(),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def test_of_any_name_shape_and_type(self, wanted: dict[str, Any]) -> None:
        tensors = {}
        for name, (dtype, shape, seed, turned) in wanted.items():
            drawn = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed))
            value = (drawn % 2 == 0) if dtype is torch.bool else drawn.abs().to(dtype)
            tensors[name] = value.mT if turned and value.dim() > 1 else value
        content = files.to_bytes(tensors, card_of())
        found = files.from_bytes(content)
        assert set(found.tensors) == set(tensors)
        assert all(same(found.tensors[k], v) for k, v in tensors.items())
        assert found.card == card_of(digest=found.card.digest)
        assert files.to_bytes(found.tensors, found.card) == content

    def test_through_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "a.safetensors"
        written = files.save(path, tensors_of(), card_of())
        found = files.load(path)
        assert found.card == written.card and found.card.digest
        assert files.digest(found.tensors, found.card) == found.card.digest
        assert {k: v.tolist() for k, v in found.tensors.items()} == {
            k: v.tolist() for k, v in written.tensors.items()
        }
        assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]

    def test_weights_and_step_sizes_are_told_apart(self) -> None:
        found = files.from_bytes(files.to_bytes(tensors_of(), card_of()))
        assert set(found.weights) == {"layers.0.weight", "layers.0.bias"}
        assert set(found.step_sizes) == {"layers.0.bias"}

    def test_any_safetensors_reader_can_open_it(self) -> None:
        plain = safetensors.torch.load(files.to_bytes(tensors_of(), card_of()))
        assert all(same(plain[k], v) for k, v in tensors_of().items())

    def test_of_tied_and_overlapping_tensors(self) -> None:
        whole = torch.arange(12.0).reshape(4, 3)
        tied = {"a": whole, "b": whole, "head": whole[:2], "turned": whole.T, "step": whole[::2]}
        found = files.from_bytes(files.to_bytes(tied, card_of())).tensors
        assert all(same(found[k], v) for k, v in tied.items())

    def test_of_parameters_that_require_gradients(self) -> None:
        layer = nn.Linear(2, 2)
        found = files.from_bytes(files.to_bytes(dict(layer.named_parameters()), card_of()))
        assert not any(v.requires_grad for v in found.tensors.values())


class TestSameBytes:
    def test_whatever_the_order(self) -> None:
        backwards = dict(reversed(tensors_of().items()))
        assert files.to_bytes(backwards, card_of()) == files.to_bytes(tensors_of(), card_of())

    def test_in_another_process(self) -> None:
        code = (
            "import sys\n"
            "from metainit import checkpoint\n"
            "from tests.metainit.test_checkpoint import card_of, tensors_of\n"
            "sys.stdout.buffer.write(checkpoint.to_bytes(tensors_of(), card_of()))"
        )
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, timeout=120, check=True
        )
        assert done.stdout == files.to_bytes(tensors_of(), card_of())

    def test_digest_is_the_documented_hash(self) -> None:
        """Written out once more, so that no change of the code can change the format unseen."""
        tensors, card = tensors_of(), card_of()
        total = hashlib.sha256(json.dumps(
            card.model_dump(mode="json") | {"digest": ""}, sort_keys=True, separators=(",", ":")
        ).encode())  # fmt: skip
        for name, value in sorted(tensors.items()):
            head = json.dumps([name, str(value.dtype), list(value.shape)], separators=(",", ":"))
            total.update(head.encode() + value.numpy().tobytes())
        assert files.from_bytes(files.to_bytes(tensors, card)).card.digest == total.hexdigest()

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: {**t, "layers.0.weight": t["layers.0.weight"].nextafter(torch.tensor(9.0))},
            lambda t: {**t, "layers.0.weight": t["layers.0.weight"].T.contiguous()},
            lambda t: {**t, "layers.0.weight": t["layers.0.weight"].view(torch.int32)},
            lambda t: {k.replace("bias", "basis"): v for k, v in t.items()},
        ],
        ids=["value", "shape", "type", "name"],
    )
    def test_digest_covers_everything(self, change: Callable[..., dict[str, Tensor]]) -> None:
        assert files.digest(change(tensors_of()), card_of()) != files.digest(tensors_of(), card_of())


class TestRefused:
    def test_truncated_anywhere(self) -> None:
        content = files.to_bytes(tensors_of(), card_of())
        for length in {*range(0, len(content), 7), *range(LENGTH + 2), len(content) - 1}:
            with pytest.raises(CheckpointError):
                files.from_bytes(content[:length])

    def test_padded(self) -> None:
        with pytest.raises(CheckpointError, match="truncated or padded"):
            files.from_bytes(files.to_bytes(tensors_of(), card_of()) + b"\0")

    @pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
    def test_a_changed_byte_anywhere(self, flip: int) -> None:
        """In the length, the header with the card, and the tensors."""
        content = files.to_bytes(tensors_of(), card_of())
        for offset in range(len(content)):
            changed = bytearray(content)
            changed[offset] ^= flip
            with pytest.raises(CheckpointError):
                files.from_bytes(bytes(changed))

    @pytest.mark.parametrize("space", [b"\t", b"\n", b"\r"])
    def test_other_white_space_around_the_header(self, space: bytes) -> None:
        content = files.to_bytes(tensors_of(), card_of())
        end = LENGTH + int.from_bytes(content[:LENGTH], "little")
        padding = end - len(content[:end].rstrip(b" "))
        assert padding, "choose other tensors: this header needs no padding, so nothing is tested"
        for offset in range(end - padding, end):
            with pytest.raises(DigestError):
                files.from_bytes(content[:offset] + space + content[offset + 1 :])

    def test_a_card_that_is_written_another_way(self) -> None:
        """The same values in other words are other bytes: one checkpoint, one digest, one file."""
        content = files.to_bytes(tensors_of(), card_of())
        assert content.count(b"1e-05") == 1
        with pytest.raises(DigestError):
            files.from_bytes(content.replace(b"1e-05", b"1E-05"))

    def test_swapped_tensors(self) -> None:
        tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
        card = files.from_bytes(files.to_bytes(tensors, card_of())).card
        swapped = {"a": tensors["b"], "b": tensors["a"]}
        metadata = {files.METADATA_KEY: card.canonical()}
        with pytest.raises(DigestError, match="changed after it was written.*fetch it again"):
            files.from_bytes(safetensors.torch.save(swapped, metadata))

    @pytest.mark.parametrize(
        "content,says",
        [
            (b"", "truncated"),
            (b"\xff" * 64, "claims a header"),
            ((2**63).to_bytes(8, "little") + b"{}", "claims a header"),
            (crafted({}, b""), "without a metainit card"),
            (crafted([]), "no readable safetensors header"),
            (crafted(7), "no readable safetensors header"),
            (b"\x02" + b"\0" * 7 + b"{x", "no readable safetensors header"),
            ((200_000).to_bytes(8, "little") + b"[" * 200_000, "no readable safetensors header"),
            (crafted({"w": 3}), "no readable safetensors header"),
            (crafted({"w": entry(data_offsets=[0])}), "no readable safetensors header"),
            (crafted({"w": entry(data_offsets=[0, "x"])}), "no readable safetensors header"),
            (crafted({"w": entry(data_offsets=[0, 2**62])}), "its header asks for"),
            (crafted({"w": entry(), "__metadata__": None}), "no readable safetensors header"),
            (crafted({"w": entry(), "__metadata__": "metainit"}), "no readable safetensors header"),
            (crafted({"w": entry(), "__metadata__": {"format": "pt"}}), "without a metainit card"),
            (crafted({"w": entry(), "__metadata__": {"metainit": "no JSON"}}), "card is not valid JSON"),
        ],
    )
    def test_what_is_no_checkpoint(self, content: bytes, says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            files.from_bytes(content)

    @pytest.mark.parametrize(
        "wrong",
        [
            entry(dtype="F4", shape=[8]),
            entry(dtype="Q9"),
            entry(shape=[2]),
            entry(shape=[2**62, 4]),
            entry(shape=[-1]),
            entry(data_offsets=[2, 4]),
            entry(data_offsets=[4, 0]),
        ],
    )
    def test_impossible_tensors(self, wrong: dict[str, Any]) -> None:
        card = card_of(digest="0" * 64).canonical()
        with pytest.raises(CheckpointError):
            files.from_bytes(crafted({"w": wrong, "__metadata__": {"metainit": card}}))

    @pytest.mark.parametrize(
        "limits,says",
        [
            (Limits(file_bytes=100), "at most 100"),
            (Limits(header_bytes=64), "expected at most 64"),
            (Limits(tensors=2), "holds 3 tensors, expected at most 2"),
        ],
    )
    def test_larger_than_the_limits(self, tmp_path: Path, limits: Limits, says: str) -> None:
        path = tmp_path / "a.safetensors"
        files.save(path, tensors_of(), card_of())
        with pytest.raises(CheckpointError, match=says):
            files.load(path, limits)
        with pytest.raises(CheckpointError, match=says):
            files.from_bytes(path.read_bytes(), limits=limits)

    def test_a_missing_file_or_a_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "absent.safetensors", tmp_path):
            with pytest.raises(CheckpointError, match=f"cannot read {path}"):
                files.load(path)

    @pytest.mark.parametrize(
        "bad",
        [
            torch.tensor([1.0, float("nan")]),
            torch.tensor([float("-inf")], dtype=torch.float16),
            torch.tensor([float("nan")]).to(torch.float8_e5m2),
            torch.tensor([complex(0, float("inf"))]),
        ],
    )
    def test_numbers_that_are_not_finite_are_not_written(self, tmp_path: Path, bad: Tensor) -> None:
        with pytest.raises(CheckpointError, match="not finite: b.weight;"):
            files.save(tmp_path / "a.safetensors", {"a": torch.ones(2), "b.weight": bad}, card_of())
        assert list(tmp_path.iterdir()) == []

    def test_nothing_to_write(self) -> None:
        with pytest.raises(CheckpointError, match="at least one tensor"):
            files.to_bytes({}, card_of())

    def test_a_tensor_under_the_name_of_the_header(self) -> None:
        with pytest.raises(CheckpointError, match="rename it"):
            files.to_bytes({"__metadata__": torch.zeros(1)}, card_of())

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
    def test_a_card_that_json_cannot_hold(self, value: Any) -> None:
        network = Spec(name="siren", arguments={"width": value})
        with pytest.raises(CheckpointError, match="card of 'photos' cannot be written"):
            files.to_bytes(tensors_of(), card_of(network=network))


class TestMigration:
    def old_file(self, **changes: Any) -> bytes:
        """A file of an invented version 0, whose cards called the method `algorithm`."""
        tensors = {"w": torch.arange(3.0)}
        old = {"schema_version": 0, "kind": "prior", "name": "old", "algorithm": "reptile", **changes}
        hashed = hashlib.sha256(cards.canonical_json({**old, "digest": ""}).encode())
        hashed.update(cards.canonical_json(["w", "torch.float32", [3]]).encode())
        hashed.update(tensors["w"].numpy().tobytes())
        signed = cards.canonical_json({**old, "digest": hashed.hexdigest()})
        return safetensors.torch.save(tensors, {files.METADATA_KEY: signed})

    @pytest.fixture
    def migrates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def upgrade(old: dict[str, Any]) -> dict[str, Any]:
            kept = {k: v for k, v in old.items() if k != "algorithm"}
            return {**kept, "schema_version": 1, "method": {"name": old["algorithm"]}}

        monkeypatch.setattr(cards, "MIGRATIONS", {0: upgrade})

    @pytest.mark.usefixtures("migrates")
    def test_an_old_file_is_read(self) -> None:
        found = files.from_bytes(self.old_file())
        assert (found.card.schema_version, found.card.method.name) == (1, "reptile")
        assert found.tensors["w"].tolist() == [0, 1, 2]

    @pytest.mark.usefixtures("migrates")
    def test_an_old_file_that_was_changed_is_refused(self) -> None:
        content = bytearray(self.old_file())
        for offset in range(len(content)):
            changed = bytearray(content)
            changed[offset] ^= 0x01
            with pytest.raises(CheckpointError):
                files.from_bytes(bytes(changed))

    def test_without_a_migration_it_says_what_it_reads(self) -> None:
        with pytest.raises(
            CheckpointError, match="version 0 is not known; this metainit reads versions 1 to 1"
        ):
            files.from_bytes(self.old_file())


class TestWriting:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode != 0:
            pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
        yield path
        subprocess.run(["umount", str(path)], check=True)

    def test_a_full_disk_leaves_the_old_file(self, small_disk: Path) -> None:
        path = small_disk / "a.safetensors"
        files.save(path, tensors_of(), card_of())
        before = path.read_bytes()
        large = {"w": torch.zeros(64, 1024)}
        with pytest.raises(CheckpointError, match="No space left on device; nothing was changed there"):
            files.save(path, large, card_of())
        assert path.read_bytes() == before
        assert [p.name for p in small_disk.iterdir()] == ["a.safetensors"]
        files.save(path, tensors_of(1), card_of())
        assert same(files.load(path).tensors["layers.0.weight"], tensors_of(1)["layers.0.weight"])

    def test_a_file_that_may_not_grow_leaves_the_old_file(self, tmp_path: Path) -> None:
        """The same without a disk of its own: the process may write no more than 64 kB to a file."""
        path = tmp_path / "a.safetensors"
        files.save(path, tensors_of(), card_of())
        before = path.read_bytes()
        code = (
            "import resource, sys, torch\n"
            "from metainit import checkpoint\n"
            "from tests.metainit.test_checkpoint import card_of\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
            "try:\n"
            "    checkpoint.save(sys.argv[1], {'w': torch.zeros(64, 1024)}, card_of())\n"
            "except checkpoint.CheckpointError as error:\n"
            "    print(error)"
        )
        command = [sys.executable, "-c", code, str(path)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
        assert "File too large; nothing was changed there" in done.stdout
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CheckpointError, match="cannot write"):
            files.save(tmp_path / "file" / "a.safetensors", tensors_of(), card_of())
        assert (tmp_path / "file").read_text() == "in the way"

    def test_others_may_read_the_file(self, tmp_path: Path) -> None:
        files.save(tmp_path / "a.safetensors", tensors_of(), card_of())
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_what_is_not_finite_is_found(dtype: torch.dtype) -> None:
    large = torch.full((5,), torch.finfo(dtype).max, dtype=dtype)
    assert files.finite(large)  # their sum is not
    assert files.finite(torch.empty(0, dtype=dtype))
    for wrong in ([torch.inf], [-torch.inf], [torch.nan], [torch.inf, -torch.inf]):
        assert not files.finite(torch.cat([large, torch.tensor(wrong, dtype=dtype)]))
