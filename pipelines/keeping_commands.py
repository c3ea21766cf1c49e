"""The subcommands that keep the registry: garbage collection, back-up and restore, and export.

Exit status: 0 for done, 1 for an error, 2 for bad usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.answering import AsJson, Named, answering, print_json, size_text


@answering
def gc(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="registered names; all unless given")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="delete; without it this only says what would go")
    ] = False,
    keep: Annotated[int, typer.Option(min=0, help="newest versions to keep of each name")] = 1,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="age that a version has to have")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Delete old versions that no alias and no run in progress needs, with their files."""
    from pipelines.collecting import collect
    from pipelines.registry import Registry

    found = collect(Registry(), delete=yes, keep=keep, older_than=86400 * older_than, names=names or None)
    if as_json:
        goes = [{"reference": v.reference, "sha256": v.sha256, "size": v.size} for v in found.goes]
        stays = {version.reference: reason for version, reason in found.stays}
        print_json({"deleted": yes, "goes": goes, "stays": stays})
        return
    verb = "deleted" if yes else "would delete"
    for version in found.goes:
        typer.echo(f"{verb} {version.reference} ({size_text(version.size)})")
    for version, reason in found.stays:
        typer.echo(f"keeps {version.reference}: {reason}")
    total = size_text(sum(version.size for version in found.goes))
    hint = "" if yes or not found.goes else "; --yes deletes them"
    typer.echo(f"{verb} {len(found.goes)} version(s), {total} of weights{hint}")


@answering
def backup(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="all names unless given")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the back-up")] = Path("metainit-backup"),
    as_json: AsJson = False,
) -> None:
    """Copy names with all their versions, aliases and history into a folder; again, only what is new."""
    from pipelines.backup import back_up
    from pipelines.registry import Registry

    registry = Registry()
    done = back_up(registry, names or registry.names(), out, note=None if as_json else typer.echo)
    if as_json:
        print_json([vars(one) for one in done])
        return
    for one in done:
        for line in one.left_out:
            typer.secho(f"left out {line}", err=True, fg=typer.colors.RED)
        typer.echo(
            f"{one.name}: {len(one.copied)} version(s) copied, {len(one.present)} there already -> {out}"
        )
    if not done:
        typer.echo("nothing is registered yet")


@answering
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a back-up")],
    names: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="a name to restore; all unless given")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a back-up into the registry: same numbers, bytes, aliases and history; nothing is overwritten."""
    from pipelines.registry import Registry
    from pipelines.restoring import restore as restored

    done = restored(Registry(), folder, names or None, note=None if as_json else typer.echo)
    if as_json:
        print_json([vars(one) for one in done])
        return
    for one in done:
        aliases = ", ".join(f"{alias} {version}" for alias, version in one.aliases.items()) or "no alias"
        count = f"{len(one.restored)} version(s) restored, {len(one.present)} there already"
        typer.echo(f"{one.name}: {count}; {aliases}")
        for alias, version in one.kept.items():
            typer.echo(f"{one.name}: {alias} stays at version {version}, which the registry had")


@answering
def export(
    name: Named,
    out: Annotated[Path, typer.Option("-o", "--out", help="a new folder")],
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="SPDX", help="licence of the weights, such as cc-by-4.0"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version as a folder for a model hub: safetensors, model card, configuration and evidence."""
    from pipelines.export import WEIGHTS
    from pipelines.export import export as exported
    from pipelines.registry import Registry

    registry = Registry()
    version = registry.resolve(name)
    folder = exported(registry, version, out, license_)
    if as_json:
        print_json({"reference": version.reference, "sha256": version.sha256, "path": str(folder / WEIGHTS)})
    else:
        typer.echo(f"{version.reference} -> {folder}")
