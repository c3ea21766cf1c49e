"""The subcommands of this room: import-ghn3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]


def import_ghn3(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a published GHN-3, as ghn3tm8.pt")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the checkpoint to write, *.safetensors")],
    name: Annotated[str | None, typer.Option(help="the checkpoint's name; FILE's unless given")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a published GHN-3 into a checkpoint; nothing of the file is unpickled."""
    from hypernets.ghn import ghn3_checkpoint
    from metainit.checkpoint import SUFFIX

    if out.suffix != SUFFIX:
        raise typer.BadParameter(f"--out {out}: expected a name that ends in {SUFFIX}")
    config, tensors = ghn3_checkpoint.import_ghn3(file)
    stored = ghn3_checkpoint.to_checkpoint(
        config, tensors, out, name or file.stem, f"imported from {file.name}"
    )
    count = sum(tensor.numel() for tensor in tensors.values())
    if as_json:
        answer = {
            "path": str(out),
            "name": stored.card.name,
            "digest": stored.card.digest,
            "parameters": count,
        }
        typer.echo(json.dumps({**answer, "hypernetwork": config.model_dump(mode="json")}, sort_keys=True))
    else:
        sizes = (
            f"width {config.hidden}, {config.layers} layers, {config.heads} heads, {config.classes} classes"
        )
        typer.echo(f"{stored.card.name}: {count:,} parameters, {sizes}; written to {out}")
