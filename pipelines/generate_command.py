"""The subcommand that draws initial weights from a generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast, get_args, runtime_checkable

import typer

from metainit.errors import SourceError
from metainit.references import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from metainit.card import Card
    from metainit.checkpoint import Checkpoint

DIGITS = 4
"""Of the number in a file's name."""
LARGEST_COUNT = 65_536
"""As many as a generator gives."""
AT_ONCE = 256
"""Starts that are drawn and written before the next ones: more need not be in memory."""
What = Literal["sample", "mean", "one_step"]


@runtime_checkable
class Generates(Protocol):
    """A start that draws checkpoints."""

    @property
    def card(self) -> Card:
        """Its own card."""
        ...

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of an observation, empty where it takes none."""
        ...

    def generate(
        self,
        count: int,
        seed: int,
        *,
        condition: str | None,
        observation: Tensor | None,
        what: What,
        **how: Any,
    ) -> Sequence[Checkpoint]:
        """Return checkpoints of one network each; `how` they are sampled, where that is said."""
        ...


def generate(
    source: Annotated[
        str, typer.Argument(metavar="NAME", help="a registered generator, a file, or a reference")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="the folder to write to")],
    condition: Annotated[
        str | None, typer.Option(help="a class, by its number or its name, or a description")
    ] = None,
    observation: Annotated[
        Path | None,
        typer.Option(help="what is seen of the task: an image, or an npy file of values in [0, 1]"),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=LARGEST_COUNT, help="how many starts")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="the first one's; each has a seed of its own")] = 0,
    what: Annotated[
        str, typer.Option(help="sample; one_step, which is faster; or mean, which is the same for every seed")
    ] = "sample",
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="a generator on this endpoint, drawn there")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="of the sampler; 20 unless given")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="how much the condition counts, 1 as in the zoo")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm_solver++ or, for a flow, euler; the quickest unless given")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Draw initial weights, as many different ones as you like, each a checkpoint of its own."""
    from metainit import checkpoint
    from metainit.initialization import load
    from pipelines.predict_command import source_of

    if what not in get_args(What):
        raise typer.BadParameter(f"--what {what}: expected sample, mean or one_step")
    address = f"{server.rstrip('/')}{Reference.parse(source).path}" if server else source_of(source)
    start = load(address)
    if not isinstance(start, Generates):
        raise SourceError(
            f"{source!r} is a {start.card.kind}, which generates nothing: name a generator (kind generator)"
        )
    seen = None if observation is None else _observed(observation, start.observed_shape)
    paths = [out / f"{start.card.name}-{n:0{DIGITS}}{checkpoint.SUFFIX}" for n in range(count)]
    if not overwrite and (there := next((path for path in paths if path.exists()), None)):
        raise SourceError(f"{there} is there already: choose another folder, or replace it with --overwrite")
    given = {"steps": steps, "guidance": guidance, "sampler": sampler}
    how = {name: value for name, value in given.items() if value is not None}
    if server and how:
        names = ", ".join(f"--{name}" for name in how)
        raise typer.BadParameter(f"{names}: an endpoint draws as its generator's card says; leave it out")
    written: list[dict[str, Any]] = []
    for begin in range(0, count, AT_ONCE):
        some = paths[begin : begin + AT_ONCE]
        drawn = start.generate(
            len(some), seed + begin, condition=condition, observation=seen, what=cast("What", what), **how
        )
        out.mkdir(parents=True, exist_ok=True)
        written += [_saved(path, stored) for path, stored in zip(some, drawn, strict=True)]
    answer = {"generator": start.card.name, "what": what, "condition": condition, "files": written}
    typer.echo(json.dumps(answer, indent=2) if as_json else _in_words(answer))


def _saved(path: Path, stored: Checkpoint) -> dict[str, Any]:
    """Write a start, and return what there is to say of it."""
    from metainit import checkpoint

    saved = checkpoint.save(path, stored.tensors, stored.card)
    return {
        "path": str(path),
        "seed": next(iter(saved.card.provenance.seeds), None),
        "refused_copies": saved.card.provenance.recipe.get("refused_copies", 0),
        "digest": saved.card.digest,
    }


def _in_words(answer: dict[str, Any]) -> str:
    files = answer["files"]
    refused = sum(one["refused_copies"] for one in files)
    lines = [f"{answer['generator']}: {len(files)} {'start' if len(files) == 1 else 'starts'}"]
    if answer["what"] == "mean" and len(files) > 1:
        lines.append("all of them are the same: the mean does not depend on the seed")
    if refused:
        lines.append(f"{refused} copies of zoo members were refused and drawn again")
    first = files[0]["path"]
    lines.append(f"written to {Path(first).parent}; use one: metainit.init_(network, {first!r})")
    return "\n".join(lines)


def _observed(path: Path, shape: Sequence[int]) -> Tensor:
    """Return an image file as an observation ``(channels, height, width)``, or the array of an npy file.

    Raises:
        DataError: it cannot be read, or the generator takes no images.
    """
    import numpy as np
    import torch

    from metainit.domains.images import centre_cropped, read_image, resized, with_channels
    from metainit.errors import DataError

    if not shape:
        raise DataError(f"{path}: this generator takes no observation: leave --observation out")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file: name an image, or an npy file of values in [0, 1]")
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        return torch.from_numpy(values).float()
    if len(shape) != 3:
        raise DataError(
            f"{path}: this generator takes no image but an observation of the shape "
            f"{' x '.join(map(str, shape))}: give an array in an npy file"
        )
    channels, height, width = shape
    pixels = with_channels(read_image(path).pixels, channels, str(path))
    fitted = resized(centre_cropped(pixels, height, width), height, width)
    return torch.from_numpy(fitted).movedim(-1, 0)
