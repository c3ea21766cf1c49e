"""The checkpoint file: tensors under the network's own names, and a card in the safetensors header.

The format is plain safetensors with a single metadata key (`METADATA_KEY`), because a header with
several keys has no fixed order and the same run must write the same bytes. Nothing is unpickled. torch is
imported where tensors are touched: an endpoint can say what it has without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from metainit.card import Card, canonical_json, read_card
from metainit.errors import CheckpointError, DigestError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "metainit"
HEADER_KEY = "__metadata__"
"""Where a safetensors header keeps its metadata, among the names of the tensors."""
STEP_SIZE_PREFIX = "step_size."
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Limits:
    """The largest checkpoint that `load` accepts: bytes of file and header, and number of tensors."""

    file_bytes: int = 64 << 30
    header_bytes: int = 32 << 20
    tensors: int = 1_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and the card that describes them.

    `tensors` maps state-dict names to tensors on the CPU. Learned per-parameter step sizes are among
    them under ``step_size.<name>``; `weights` leaves those out.
    """

    tensors: Mapping[str, Tensor]
    card: Card

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that fill a network: everything but learned step sizes."""
        return {k: v for k, v in self.tensors.items() if not k.startswith(STEP_SIZE_PREFIX)}

    @property
    def step_sizes(self) -> dict[str, Tensor]:
        """Learned per-parameter step sizes by the name of the tensor that they belong to."""
        cut = len(STEP_SIZE_PREFIX)
        return {k[cut:]: v for k, v in self.tensors.items() if k.startswith(STEP_SIZE_PREFIX)}


def digest(tensors: Mapping[str, Tensor], card: Card) -> str:
    """Return the SHA-256 (hex) of the card without its digest and of every tensor's name, type and bytes.

    Example:
        >>> import torch
        >>> from metainit.card import Card, Method
        >>> card = Card(kind='prior', name='a', method=Method(name='reptile'))
        >>> digest({'w': torch.zeros(2)}, card) == digest({'w': torch.zeros(2)}, card)
        True
        >>> digest({'w': torch.zeros(2)}, card) == digest({'w': torch.ones(2)}, card)
        False
    """
    return _digest(tensors, card.model_copy(update={"digest": ""}).canonical())


def _digest(tensors: Mapping[str, Tensor], unsigned: str) -> str:
    import torch

    total = hashlib.sha256(unsigned.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = [name, str(tensor.dtype), list(tensor.shape)]
        total.update(canonical_json(head).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def to_bytes(tensors: Mapping[str, Tensor], card: Card) -> bytes:
    """Return the checkpoint as bytes; the same tensors and card give the same bytes.

    Raises:
        CheckpointError: there is no tensor, one is not finite, or the card holds what JSON cannot.
    """
    import safetensors.torch

    if not tensors:
        raise CheckpointError("a checkpoint needs at least one tensor, got none")
    if HEADER_KEY in tensors:
        raise CheckpointError(f"no tensor can be called {HEADER_KEY!r}: rename it")
    bad = [k for k, v in tensors.items() if not finite(v)]
    if bad:
        raise CheckpointError(f"not finite: {', '.join(sorted(bad))}; a checkpoint holds finite numbers only")
    plain = _unshared(tensors)
    try:
        signed = card.model_copy(update={"digest": digest(plain, card)})
        return safetensors.torch.save(plain, metadata={METADATA_KEY: signed.canonical()})
    except ValueError as error:
        raise CheckpointError(f"the card of {card.name!r} cannot be written: {error}") from error


def finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite.

    Example:
        >>> import torch
        >>> finite(torch.ones(2)), finite(torch.tensor([torch.inf, -torch.inf])), finite(torch.arange(3))
        (True, False, True)
    """
    import torch

    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # The types of one byte have neither sum nor isfinite of their own.
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    # What is not finite stays so in a sum, which is many times as fast; a sum of finite numbers may overflow.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU; what shares memory (tied weights) is copied, as the format asks."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if place in seen else own
        seen.add(place)
    return plain


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves either the old content or the new.

    Raises:
        CheckpointError: the file cannot be written; what stood at `path` before is untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; nothing was changed there: "
            "free some space or choose another folder"
        ) from error


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Card) -> Checkpoint:
    """Write a checkpoint atomically and return it with its digest filled in.

    Raises:
        CheckpointError: a tensor is not finite, or the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from metainit.card import Card, Method
        >>> card = Card(kind='prior', name='zero', method=Method(name='none'))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = save(f'{folder}/zero.safetensors', {'w': torch.zeros(2, 3)}, card)
        ...     load(f'{folder}/zero.safetensors').card == written.card
        True
    """
    content = to_bytes(tensors, card)
    write_atomically(Path(path), content)
    return from_bytes(content, str(path))


def load(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated, oversized, no checkpoint, or of an unknown version.
        DigestError: the file was changed after it was written.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > limits.file_bytes:
            raise CheckpointError(
                f"{path} has {size} bytes, expected at most {limits.file_bytes}; raise limits.file_bytes "
                "if you trust it"
            )
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return from_bytes(content, str(path), limits)


def from_bytes(content: bytes, origin: str = "checkpoint", limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Parse and verify a checkpoint held in memory; `origin` names it in errors.

    Raises:
        CheckpointError: the bytes are truncated, oversized, not a checkpoint, or of an unknown version.
        DigestError: the bytes are not the ones that were written.
    """
    import safetensors.torch

    text = _metadata(content, origin, limits)
    card = read_card(text)
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{origin} is not a valid safetensors file: {error}") from error
    except KeyError as error:
        raise CheckpointError(
            f"{origin} has tensors of the type {error}, which torch does not know"
        ) from error
    # The digest was taken of the card as it was written, in the schema version of its time.
    written = json.loads(text)
    claimed = written.get("digest")
    actual = _digest(tensors, canonical_json({**written, "digest": ""}))
    if actual != claimed or text != canonical_json(written):
        raise DigestError(
            f"{origin} was changed after it was written: its digest is {actual[:16]}…, "
            f"the card says {str(claimed or 'none')[:16]}…; fetch it again"
        )
    return Checkpoint(tensors, card)


def _metadata(content: bytes, origin: str, limits: Limits) -> str:
    """Check the frame of a safetensors file before anything is allocated, and return the card's text."""
    if len(content) > limits.file_bytes:
        raise CheckpointError(f"{origin} has {len(content)} bytes, expected at most {limits.file_bytes}")
    if len(content) < 8:
        raise CheckpointError(f"{origin} is truncated: {len(content)} bytes, expected at least 8")
    length = int.from_bytes(content[:8], "little")
    if length > limits.header_bytes:
        raise CheckpointError(
            f"{origin} claims a header of {length} bytes, expected at most {limits.header_bytes}; "
            "it is not a checkpoint"
        )
    if len(content) < 8 + length:
        raise CheckpointError(
            f"{origin} is truncated: {len(content)} bytes, its header alone needs {8 + length}"
        )
    written = content[8 : 8 + length]
    try:
        header = json.loads(written)
        metadata = dict(header.pop(HEADER_KEY, {}))
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{origin} has no readable safetensors header: {error}") from error
    if len(header) > limits.tensors:
        raise CheckpointError(f"{origin} holds {len(header)} tensors, expected at most {limits.tensors}")
    if len(content) != 8 + length + end:
        raise CheckpointError(
            f"{origin} is truncated or padded: {len(content)} bytes, its header asks for {8 + length + end}"
        )
    if not written.rstrip(b" ").endswith(b"}"):
        raise DigestError(
            f"{origin} was changed after it was written: its header ends in other bytes than spaces"
        )
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{origin} is a safetensors file without a metainit card (metadata key {METADATA_KEY!r})"
        )
    return str(metadata[METADATA_KEY])
