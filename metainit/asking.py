"""What a client asks an endpoint to compute, and what it reads in the answer; without a connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from metainit.card import canonical_json
from metainit.errors import DataError, EndpointError
from metainit.kept import SHA256
from metainit.transfer import Blob

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 64 << 30
AT_ONCE = 32
"""Networks that are asked for in one request."""
What = Literal["sample", "mean", "one_step"]


@dataclass(frozen=True)
class Generation:
    """What is asked of a generator: so many networks, with seeds that count on, under one condition.

    `condition`: a class by its number or name, or a description. `observation`: of the task, a tensor or
    nested lists. `what`: what is drawn; what the generator's card says where it is None.

    Example:
        >>> [part.count for part in Generation(40, seed=3).parts()]
        [32, 8]
    """

    count: int = 1
    seed: int = 0
    condition: int | str | None = None
    observation: Tensor | Sequence[Any] | None = None
    what: What | None = None

    def parts(self) -> Iterator[Generation]:
        """Yield requests of a size that an endpoint takes, which together ask for the same."""
        for done in range(0, self.count, AT_ONCE):
            count = min(AT_ONCE, self.count - done)
            yield Generation(count, self.seed + done, self.condition, self.observation, self.what)

    def body(self) -> bytes:
        """Return the body of a request.

        Raises:
            DataError: the observation is no array of numbers.
        """
        value: dict[str, Any] = {"count": self.count, "seed": self.seed, "condition": self.condition}
        if self.observation is not None:
            value["observation"] = _flat(self.observation)
        if self.what is not None:
            value["what"] = self.what
        return canonical_json(value).encode()


def blob_of(answer: Mapping[str, Any], asked: str, endpoint: str) -> Blob:
    """Return the blob that an answer announces.

    Args:
        answer: with ``sha256`` and ``size``.
        asked: the address that gave it.
        endpoint: whose blobs these are.

    Raises:
        EndpointError: it announces none, or one that is too large.
    """
    sha256, size = answer.get("sha256"), answer.get("size")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256) or type(size) is not int:
        raise EndpointError(f"{asked} gave no SHA-256 and size; is this a metainit endpoint?")
    if not 0 < size <= MAX_BYTES:
        raise EndpointError(f"{asked} announces {size} bytes, expected at most {MAX_BYTES}")
    # Not the answer's own address: behind a proxy the endpoint does not know the path it is asked under.
    return Blob(sha256, size, f"{endpoint}/v1/blobs/{sha256}")


def blobs_of(answer: Mapping[str, Any], part: Generation, asked: str, endpoint: str) -> list[Blob]:
    """Return the blobs that the answer to a request for networks announces, in the order of their seeds.

    Raises:
        EndpointError: they are not those that were asked for.
    """
    items = answer.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise EndpointError(f"{asked} gave no list of networks; is this a metainit endpoint?")
    seeds = [item.get("seed") for item in items]
    if seeds != list(range(part.seed, part.seed + part.count)):
        raise EndpointError(
            f"{asked} gave networks of the seeds {seeds[:3]}…, expected {part.count} from {part.seed} on"
        )
    return [blob_of(item, asked, endpoint) for item in items]


def _flat(observation: Tensor | Sequence[Any]) -> dict[str, Any]:
    """Return an observation as its shape and a flat list."""
    import torch

    try:
        values = torch.as_tensor(observation).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the observation is no array of numbers: {str(error)[:200]}") from error
    if not bool(torch.isfinite(values).all()):
        raise DataError("the observation has numbers that are not finite")
    return {"shape": list(values.shape), "values": values.flatten().tolist()}
