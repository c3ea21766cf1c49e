"""The subcommands that look at the registry and move its aliases.

`list`, `show` and `pull` read from the registry, or from an endpoint with ``--server``, and answer
in the same form either way. Exit status: 0 for done, 1 for an error, 2 for bad usage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from metainit.references import Reference
from pipelines.answering import (
    AsJson,
    Named,
    answering,
    as_reference,
    headline_text,
    print_json,
    size_text,
    table,
)
from pipelines.version import EVIDENCE, Version

CHECKPOINT_SUFFIX = ".safetensors"
BLOB = re.compile("[0-9a-f]{64}")


Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="read from this endpoint instead")
]


@answering
def list_(server: Server = None, as_json: AsJson = False) -> None:
    """List what is registered: names, versions, aliases, method, network and evidence."""
    items = _client(server).list() if server else [_name_line(name) for name in _names()]
    if as_json:
        print_json(items)
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
    table(("name", "version", "aliases", "method", "network", "evidence", "size"), rows)


@answering
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
    history: Annotated[
        bool, typer.Option("--history", help="who moved the aliases of the name when, and why")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one version: card, routine and evidence; or its name's history, or the graph of a prediction."""
    if graph:
        _drawn(name, server, out or Path("graph.png"), as_json)
        return
    if out is not None:
        raise typer.BadParameter("-o goes with --graph; `metainit pull` fetches files")
    name = as_reference(name)
    if history:
        if server:
            raise typer.BadParameter("--history is read from the registry; leave --server out")
        _told(Reference.parse(name).name, as_json)
        return
    detail = _client(server).show(name) if server else _detail(name)
    if as_json:
        print_json(detail)
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
    table(("", ""), [row for row in rows if row[1]], header=False)


def _told(name: str, as_json: bool) -> None:
    """Print the history of a name, newest first."""
    from pipelines.registry import Registry

    events = Registry().history(name)
    if as_json:
        print_json([event.model_dump(mode="json") for event in events])
        return
    if not events:
        typer.echo(f"no alias of {name} was moved yet")
        return
    rows = [
        (
            event.when,
            event.by,
            event.action,
            event.alias,
            f"{event.before or 'none'} -> {event.version}"
            if event.alias == "champion"
            else str(event.version),
            event.reason,
            (event.evidence or "")[:12],
        )
        for event in events
    ]
    table(("time", "by", "action", "alias", "version", "reason", "evidence"), rows)


def _drawn(name: str, server: str | None, picture: Path, as_json: bool) -> None:
    """Draw the graph that lies on the card of some weights."""
    from hypernets.architecture.picture import draw
    from hypernets.ghn.predicted import stored_graph
    from metainit.checkpoint import load

    if Path(name).suffix == CHECKPOINT_SUFFIX:
        file = Path(name)
    elif server:
        client = _client(server)
        file = client.blob(name) if BLOB.fullmatch(name) else client.fetch(as_reference(name))
    else:
        from pipelines.registry import Registry, cached

        registry = Registry()
        file = cached(registry, registry.resolve(as_reference(name)))
    found = stored_graph(load(file).card)
    draw(found, picture)
    facts = {"graph": found.hash, "nodes": len(found.nodes), "parameters": len(found.parameters)}
    if as_json:
        print_json({**facts, "elements": found.numel, "path": str(picture)})
    else:
        typer.echo(
            f"{facts['nodes']} operations with {facts['parameters']} parameters ({found.numel} numbers) -> "
            f"{picture}"
        )


@answering
def pull(
    name: Named,
    out: Annotated[Path, typer.Option("-o", "--out", help="a .safetensors file, or a folder for everything")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a verified checkpoint into a file, or a version with its evidence into a folder."""
    from metainit.checkpoint import write_atomically
    from metainit.transfer import file_sha256
    from pipelines.flavour import CHECKPOINT

    whole = out.suffix != CHECKPOINT_SUFFIX
    target = out / CHECKPOINT if whole else out
    if server:
        client, pinned = _client(server), name
        if not client.offline:
            detail = client.show(name)
            pinned = f"{detail['name']}/{detail['version']}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetched(client, pinned, target)
        sha256 = file_sha256(target)
        if not client.offline:
            client.fetch(name)  # is there already; from now on the name means this without the endpoint, too
        if whole and (evidence := client.evidence(name, sha256)) is not None:
            write_atomically(out / EVIDENCE, json.dumps(evidence).encode())
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
        print_json({"reference": pinned, "sha256": sha256, "path": str(target)})
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


@answering
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered name")],
    version: Annotated[int, typer.Argument(min=1, help="number of the version")],
    alias: Annotated[str, typer.Argument(help="champion, challenger or one of your own")],
    reason: Annotated[str, typer.Option(help="why; the history keeps it")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Give an alias to a version by hand; a champion that goes becomes `previous`."""
    from pipelines.registry import Registry

    _moved(Registry().promote(f"{name}/{version}", alias, reason), as_json)


@answering
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered name")],
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again."""
    from pipelines.registry import Registry

    _moved(Registry().rollback(name), as_json)


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
        print_json(_version_line(version) | {"name": version.name})
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
