"""The subcommands that need no other room: measure, fit and doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metainit.card import AdaptationRoutine, Card, Spec
from metainit.errors import DataError

if TYPE_CHECKING:
    from metainit.domains.base import Domain

AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]


def measure(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="what metainit.load takes")],
    out: Annotated[Path, typer.Option("--out", help="folder for table, JSON and picture")],
    domain: Annotated[str | None, typer.Option(help="a domain's name; the card's unless given")] = None,
    data: Annotated[Path | None, typer.Option(help="folder or npz; the card's unless given")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="held-out tasks")] = 64,
    steps: Annotated[str, typer.Option(help="adaptation steps, for example 0,1,2,5,10")] = "0,1,2,5,10",
    network: Annotated[str | None, typer.Option(help="network spec as YAML; the card's unless given")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="draws of each control")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure starts beside tuned controls on held-out tasks: table, JSON and picture."""
    from metainit.domains.registry import build_domain
    from metainit.evidence.measuring import measure as run
    from metainit.initialization import load

    wanted = _steps(steps)
    asked = None if network is None else _spec(network)
    cards = [load(source).card for source in sources]
    carried = next((c.domain for c in cards if c.domain is not None), None)
    spec = _domain_spec(domain, data, carried)
    console = Console(stderr=True)
    with console.status("reading the data") as status:
        built = build_domain(spec)
        if domain is None and data is None:
            _require_same_data(cards, built)
        evidence = run(
            sources,
            built,
            wanted,
            tasks,
            network=asked,
            seeds=seeds,
            domain_spec=spec,
            progress=status.update,
        )
    evidence.to_json(out / "evidence.json")
    evidence.plot(out / "evidence.png")
    (out / "evidence.txt").write_text(evidence.table() + "\n")
    if as_json:
        typer.echo(json.dumps(evidence.record.model_dump(mode="json")))
    else:
        typer.echo(evidence.table())
        typer.echo(f"written to {out}: evidence.txt, evidence.json, evidence.png")


def fit(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="an image, an npz sinogram, or a folder"),
    ],
    init: Annotated[str, typer.Option("--init", metavar="SOURCE", help="what metainit.load takes")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for weights, renderings and reports")],
    steps: Annotated[int | None, typer.Option(min=0, help="the card's number unless given")] = None,
    step_size: Annotated[
        float | None, typer.Option(min=0, help="Adam's, instead of the card's routine")
    ] = None,
    network: Annotated[str | None, typer.Option(help="network spec as YAML; the card's unless given")] = None,
    seed: Annotated[int, typer.Option(help="for starts that are drawn")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU many files are fitted at once")] = "cpu",
    domain: Annotated[str | None, typer.Option(help="what the files are; the card's unless given")] = None,
    truth: Annotated[Path | None, typer.Option(help="folder of masks to judge segmentations by")] = None,
    native: Annotated[
        bool, typer.Option("--native", help="segment at the images' own resolution, in tiles")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit to a file or a folder, as the start's domain does; what is finished is skipped next time."""
    from metainit.fitting import fit_all
    from metainit.initialization import load

    _check_device(device)
    asked = None if network is None else _spec(network)
    routine = None
    if step_size is not None:
        count = 100 if steps is None else steps
        routine = AdaptationRoutine(optimizer="adam", steps=count, step_size=step_size)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        total = len([p for p in path.rglob("*") if p.is_file()]) if path.is_dir() else 1
        line = bar.add_task("fitting", total=total)

        def progress(number: int, name: str, metrics: Mapping[str, float]) -> None:
            bar.update(line, completed=number, description=f"{name} {_in_words(metrics)}")

        report = fit_all(
            path,
            load(init),
            out,
            steps,
            routine,
            asked,
            seed,
            progress,
            device,
            truth,
            domain,
            native,
        )
        bar.update(line, total=report["files"], completed=report["files"])
    if as_json:
        typer.echo(json.dumps(report, sort_keys=True))
    else:
        _summarize(report, out)
    if report["failed"] or report.get("unjudged"):
        raise typer.Exit(1)


def _summarize(report: dict[str, Any], out: Path) -> None:
    for name, metrics in report["fitted"].items():
        typer.echo(f"{name}: {_in_words(metrics)}")
    for name, reason in report["failed"].items():
        typer.secho(f"failed: {name}: {reason}", err=True, fg=typer.colors.RED)
    for name, reason in report.get("unjudged", {}).items():
        typer.secho(f"not judged: {name}: {reason}", err=True, fg=typer.colors.RED)
    if report.get("label_next"):
        typer.echo(f"worth labelling next: {report['label_next']}")
    typer.echo(f"{len(report['fitted'])} of {report['files']} fitted, written to {out}")


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def doctor(
    server: Annotated[
        str | None, typer.Option(envvar="METAINIT_SERVER", help="an endpoint to check too")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this set-up, and how to mend it."""
    from metainit.diagnosis import diagnose

    findings = diagnose(server)
    if as_json:
        typer.echo(json.dumps([f.to_dict() for f in findings]))
    else:
        marks = {"ok": "ok     ", "warning": "warning", "error": "error  "}
        for finding in findings:
            typer.echo(f"{marks[finding.level]}  {finding.subject}: {finding.text}")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


def _steps(text: str) -> list[int]:
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"--steps {text!r}: expected whole numbers like 0,1,2") from error
    if values[0] < 0:
        raise typer.BadParameter(f"--steps {text!r}: expected numbers from 0")
    return values


def _require_same_data(cards: list[Card], domain: Domain) -> None:
    """Raise where a domain that was rebuilt from a card has other data than the prior was learned on."""
    for card in cards:
        data = card.provenance.data
        if card.domain is not None and data.fingerprint not in ("", domain.fingerprint()):
            raise DataError(
                f"{card.name!r} was learned on other data ({data.description}) than its card can bring: "
                "say where they lie with --data"
            )


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(f"--device {name!r}: expected cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {name!r}: there is no CUDA device here; leave it out")


def _spec(text: str) -> Spec:
    try:
        value = yaml.safe_load(text)
        return Spec(name=value) if isinstance(value, str) else Spec.model_validate(value)
    except (yaml.YAMLError, ValidationError) as error:
        raise typer.BadParameter(
            f"--network {text!r}: expected a name or {{name: ..., arguments: {{...}}}}: {error}"
        ) from error


def _domain_spec(name: str | None, data: Path | None, carried: Spec | None) -> Spec:
    """Return the domain of the command line, or the card's with what the command line says instead."""
    from metainit.domains.registry import DOMAINS, PLACES

    if name is None and carried is None:
        raise typer.BadParameter(f"no card names a domain: give --domain, one of {', '.join(DOMAINS)}")
    same = carried is not None and name in (None, carried.name)
    spec = carried if same and carried is not None else Spec(name=name or "")
    if data is None:
        return spec
    kept = {k: v for k, v in spec.arguments.items() if k not in (*PLACES, "bundled")}
    return Spec(name=spec.name, arguments={**kept, "data": str(data)})
