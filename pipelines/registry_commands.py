"""The subcommands that look at the registry and move its aliases.

`list`, `show` and `pull` read from the registry, or from an endpoint with ``--server``, and answer
in the same form either way. Exit status: 0 for done, 1 for an error, 2 for bad usage.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from metainit.errors import EndpointError, MetainitError
from metainit.references import Reference
from pipelines.version import EVIDENCE, Version

P = ParamSpec("P")
CHECKPOINT_SUFFIX = ".safetensors"
BLOB = re.compile("[0-9a-f]{64}")


def _pinned(text: str) -> str:
    """Refuse what is not a reference as bad usage."""
    try:
        return str(Reference.parse(text))
    except EndpointError as error:
        raise typer.BadParameter(str(error)) from error


Named = Annotated[
    str, typer.Argument(metavar="NAME", help="name, name@alias or name/version", callback=_pinned)
]
AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]
Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="read from this endpoint instead")
]


def _answering(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that metainit raises on purpose into a line on stderr and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except MetainitError as error:
            typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
            raise typer.Exit(1) from error

    return wrapped


@_answering
def list_(server: Server = None, as_json: AsJson = False) -> None:
    """List what is registered: names, versions, aliases, method, network and evidence."""
    items = _client(server).list() if server else [_name_line(name) for name in _names()]
    if as_json:
        _print_json(items)
        return
    if not items:
        typer.echo("nothing is registered yet; train something: metainit train image-photos")
        return
    rows = []
    for item in items:
        for position, version in enumerate(item["versions"]):
            if version["aliases"] or position == 0:
                rows.append(
                    (
                        item["name"],
                        str(version["version"]),
                        ", ".join(version["aliases"]),
                        version["method"],
                        version["network"] or "",
                        headline_text(version["headline"]),
                        size_text(version["size"]),
                    )
                )
    _table(("name", "version", "aliases", "method", "network", "evidence", "size"), rows)


@_answering
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="name, name@alias or name/version; with --graph a file or the SHA-256 of a blob, too",
        ),
    ],
    server: Server = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="draw the network that weights were predicted for")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the picture; graph.png unless given")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: card, adaptation routine and evidence; or draw the graph of predicted weights."""
    if graph:
        _drawn(name, server, out or Path("graph.png"), as_json)
        return
    if out is not None:
        raise typer.BadParameter("-o goes with --graph; `metainit pull` fetches files")
    name = _pinned(name)
    detail = _client(server).show(name) if server else _detail(name)
    if as_json:
        _print_json(detail)
        return
    card = detail.get("card") or {}
    rows = [
        ("reference", f"{detail['name']}/{detail['version']}"),
        ("aliases", ", ".join(detail["aliases"]) or "none"),
        ("kind", detail["kind"]),
        ("method", " ".join(filter(None, (card.get("method") or {}).values())) or detail["method"]),
        ("network", _compact(card.get("network")) or detail["network"] or ""),
        ("routine", routine_text(card.get("routine"))),
        ("data", _compact((card.get("provenance") or {}).get("data"))),
        ("evidence", headline_text(detail["headline"]) or "not measured"),
        ("gate", _gate(detail.get("tags") or {})),
        ("sha256", detail["sha256"]),
        ("size", size_text(detail["size"])),
        ("run", detail.get("run_id") or ""),
    ]
    _table(("", ""), [row for row in rows if row[1]], header=False)


def _drawn(name: str, server: str | None, picture: Path, as_json: bool) -> None:
    """Draw the graph that lies on the card of some weights."""
    from hypernets.architecture.picture import draw
    from hypernets.ghn.predicted import stored_graph
    from metainit.checkpoint import load

    if Path(name).suffix == CHECKPOINT_SUFFIX:
        file = Path(name)
    elif server:
        client = _client(server)
        file = client.blob(name) if BLOB.fullmatch(name) else client.fetch(_pinned(name))
    else:
        from pipelines.registry import Registry, cached

        registry = Registry()
        file = cached(registry, registry.resolve(_pinned(name)))
    found = stored_graph(load(file).card)
    draw(found, picture)
    facts = {"graph": found.hash, "nodes": len(found.nodes), "parameters": len(found.parameters)}
    if as_json:
        _print_json({**facts, "elements": found.numel, "path": str(picture)})
    else:
        typer.echo(
            f"{facts['nodes']} operations with {facts['parameters']} parameters ({found.numel} numbers) -> "
            f"{picture}"
        )


@_answering
def pull(
    name: Named,
    out: Annotated[Path, typer.Option("-o", "--out", help="a .safetensors file, or a folder for everything")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a verified checkpoint into a file, or a version with its evidence into a folder."""
    from metainit.checkpoint import write_atomically
    from pipelines.flavour import CHECKPOINT

    whole = out.suffix != CHECKPOINT_SUFFIX
    target = out / CHECKPOINT if whole else out
    if server:
        client = _client(server)
        detail = client.show(name)
        pinned = f"{detail['name']}/{detail['version']}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetched(client, pinned, target)
        if whole and detail.get("evidence") is not None:
            write_atomically(out / EVIDENCE, json.dumps(detail["evidence"]).encode())
        sha256 = detail["sha256"]
    else:
        from pipelines.registry import Registry, cached

        registry = Registry()
        version = registry.resolve(name)
        if whole:
            registry.download(version, out)
        else:
            write_atomically(target, cached(registry, version).read_bytes())
        pinned, sha256 = version.reference, version.sha256
    if as_json:
        _print_json({"reference": pinned, "sha256": sha256, "path": str(target)})
    else:
        typer.echo(f"{pinned} -> {target}")


def _fetched(client: Any, reference: str, target: Path) -> None:
    """Fetch a file, with a bar where somebody looks on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        client.fetch(reference, target)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console) as bar:
        line = bar.add_task(reference, total=None)
        client.fetch(
            reference, target, progress=lambda done, total: bar.update(line, completed=done, total=total)
        )


@_answering
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered name")],
    version: Annotated[int, typer.Argument(min=1, help="number of the version")],
    alias: Annotated[str, typer.Argument(help="champion, challenger or one of your own")],
    as_json: AsJson = False,
) -> None:
    """Give an alias to a version by hand; a champion that goes becomes `previous`."""
    from pipelines.registry import Registry

    _moved(Registry().promote(f"{name}/{version}", alias), as_json)


@_answering
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered name")],
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again."""
    from pipelines.registry import Registry

    _moved(Registry().rollback(name), as_json)


@_answering
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    keep: Annotated[int, typer.Option(min=0, help="newest versions to keep of each name")] = 1,
    as_json: AsJson = False,
) -> None:
    """Delete old versions that no alias names, with their files."""
    from pipelines.registry import Registry

    removed = Registry().gc(dry_run=dry_run, keep=keep)
    if as_json:
        _print_json({"dry_run": dry_run, "removed": [_version_line(v) for v in removed]})
        return
    verb = "would delete" if dry_run else "deleted"
    for version in removed:
        typer.echo(f"{verb} {version.reference} ({size_text(version.size)})")
    total = size_text(sum(version.size for version in removed))
    typer.echo(f"{verb} {len(removed)} version(s), {total} of weights")


def headline_text(headline: Mapping[str, Any] | None) -> str:
    """Return the headline evidence in one line.

    Example:
        >>> headline_text({'metric': 'psnr', 'steps': 2, 'value': 31.2, 'control': 'siren',
        ...                'gain': 7.53, 'low': 7.1, 'high': 7.94})
        '31.2 psnr at 2 steps, +7.53 over siren (7.1 to 7.94)'
    """
    if not headline:
        return ""
    numbers = {k: f"{float(headline[k]):.4g}" for k in ("value", "low", "high") if k in headline}
    text = f"{numbers.get('value', '')} {headline.get('metric', '')}".strip()
    text += f" at {headline.get('steps', '?')} steps"
    if {"gain", "low", "high", "control"} <= set(headline):
        gain = f"{float(headline['gain']):+.4g}"
        text += f", {gain} over {headline['control']} ({numbers['low']} to {numbers['high']})"
    return text


def size_text(size: int) -> str:
    """Return a size in bytes as a person reads it.

    Example:
        >>> size_text(2_500_000)
        '2.5 MB'
    """
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _client(server: str) -> Any:
    from metainit.client import Client

    return Client(server)


def _names() -> Iterable[str]:
    from pipelines.registry import Registry

    return Registry().names()


def _version_line(version: Version) -> dict[str, Any]:
    """Return a version as the endpoint lists it, with its reference."""
    keys = ("version", "sha256", "size", "kind", "method", "network", "headline")
    line = {key: getattr(version, key) for key in keys}
    return line | {"aliases": list(version.aliases), "reference": version.reference}


def _name_line(name: str) -> dict[str, Any]:
    """Return a name with its versions as the endpoint lists it."""
    from pipelines.registry import CHAMPION, Registry

    versions = Registry().versions(name)
    aliases = {alias: v.version for v in versions for alias in v.aliases}
    newest = versions[0].version if versions else None
    return {
        "name": name,
        "default": aliases.get(CHAMPION, newest),
        "aliases": aliases,
        "versions": [_version_line(v) for v in versions],
    }


def _detail(name: str) -> dict[str, Any]:
    """Return a version as the endpoint shows it."""
    from metainit.checkpoint import load
    from pipelines.registry import Registry, cached

    registry = Registry()
    version = registry.resolve(name)
    card = load(cached(registry, version)).card.model_dump(mode="json")
    return _version_line(version) | {
        "name": version.name,
        "run_id": version.run_id,
        "tags": version.tags,
        "card": card,
        "evidence": registry.evidence(version),
    }


def _moved(version: Version, as_json: bool) -> None:
    if as_json:
        _print_json(_version_line(version) | {"name": version.name})
    else:
        typer.echo(f"{version.reference} is {', '.join(version.aliases)}")


def _compact(value: Any) -> str:
    """Return a spec or another small mapping in one line."""
    if not value:
        return ""
    if set(value) == {"name", "arguments"}:
        inner = ", ".join(f"{key}={v}" for key, v in value["arguments"].items())
        return f"{value['name']}({inner})"
    return ", ".join(f"{key} {v}" for key, v in value.items() if v)


def routine_text(routine: Mapping[str, Any] | None) -> str:
    """Return an adaptation routine in one line."""
    if not routine:
        return ""
    learned = routine.get("per_tensor") or routine.get("per_parameter")
    size = "learned step sizes" if learned else f"step size {routine['step_size']:g}"
    more = [
        f", {title} {routine[key]:g}"
        for key, title in (("weight_decay", "weight decay"), ("augmentation", "augmentation"))
        if routine.get(key)
    ]
    return f"{routine['steps']} steps of {routine['optimizer']}, {size}{''.join(more)}"


def _gate(tags: Mapping[str, str]) -> str:
    text = tags.get("metainit.gate")
    return str(json.loads(text)["reason"]) if text else ""


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]], header: bool = True) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, show_header=header, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
