"""The subcommand that searches a start's adaptation routine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError

if TYPE_CHECKING:
    from pipelines.search import SearchConfig, Trial
    from pipelines.tune import Tuned


def tune(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name, name@alias or name/version")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the search, such as trials=50"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="folder or npz; the card's unless given")] = None,
    measured: Annotated[
        bool, typer.Option("--measure/--no-measure", help="measure the result, so that the gate can judge it")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Search step size, steps and regularization of a registered start; register what is better."""
    from pipelines.train_commands import display
    from pipelines.tune import tune as run

    config = _config(settings or [])
    with display() as shown:

        def progress(done: Sequence[Trial]) -> None:
            best = max(trial.outcome.score for trial in done)
            shown.note(f"trial {len(done)} of {config.trials}, best so far {best:.4g}")

        result = run(name, config, data=data, measured=measured, progress=progress, note=shown.note)
    answer = _answer(result)
    typer.echo(json.dumps(answer, indent=2) if as_json else _in_words(answer))


def _config(settings: list[str]) -> SearchConfig:
    from pipelines.search import SearchConfig

    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting!r}: expected key=value")
        values[key] = yaml.safe_load(value)
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'search'}: {p['msg']}" for p in error.errors())
        raise typer.BadParameter(f"the search is not valid: {said}") from error


def _answer(result: Tuned) -> dict[str, Any]:
    found = result.found
    return {
        "metric": found.metric,
        "before": found.before.score,
        "after": found.best.outcome.score,
        "improved": found.improved,
        "routine": found.routine.model_dump(mode="json", exclude={"per_tensor"}),
        "trials": len(found.trials),
        "tasks": len(found.tasks),
        "at_the_edge": list(found.at_the_edge),
        "reference": result.version.reference if result.version else None,
        "aliases": list(result.version.aliases) if result.version else [],
        "gate": result.decision.reason if result.decision else None,
    }


def _in_words(answer: dict[str, Any]) -> str:
    from pipelines.registry_commands import routine_text

    lines = [
        f"{answer['metric']} on {answer['tasks']} validation tasks: {answer['before']:.4g} with the card's "
        f"routine, {answer['after']:.4g} with the best of {answer['trials']} trials"
    ]
    if answer["at_the_edge"]:
        names = ", ".join(answer["at_the_edge"])
        lines.append(f"the best value of {names} lies at the end of its range: search further with --set")
    if answer["improved"]:
        lines.append(f"{answer['reference']}: {routine_text(answer['routine'])}")
        lines.append(f"gate: {answer['gate']}")
    else:
        lines.append("the card's routine is as good; nothing was registered")
    return "\n".join(lines)
