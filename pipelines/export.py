"""A version as a folder in the form of the model hubs: weights, model card, configuration, evidence.

The folder needs nothing of metainit's to be looked at, and ``metainit.load(FOLDER/model.safetensors)``
loads it. The weights are the registered file, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from metainit.card import Card
from metainit.checkpoint import load
from metainit.errors import RegistryError
from pipelines.answering import headline_text
from pipelines.flavour import CHECKPOINT, MLMODEL
from pipelines.registry import Registry
from pipelines.version import EVIDENCE, Version, read_evidence

WEIGHTS, MODEL_CARD, CARD, CONFIG, PICTURES = (
    "model.safetensors",
    "README.md",
    "card.json",
    "config.json",
    "pictures",
)
_LEFT_OUT = (CHECKPOINT, MLMODEL)


def export(registry: Registry, version: Version, folder: Path, licence: str | None = None) -> Path:
    """Write a version as a hub-style folder and return the folder, which must be new or empty.

    `licence` is the SPDX identifier of the weights; without it the model card says that none is stated.

    Raises:
        RegistryError: the folder holds something, the version cannot be fetched, or the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RegistryError(f"{folder} is there already and not an empty folder; choose another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / "folder"
            fetched = registry.download(version, Path(temporary) / "fetched")
            card, evidence = load(fetched / CHECKPOINT).card, read_evidence(fetched)
            shutil.copytree(fetched, made, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            os.replace(fetched / CHECKPOINT, made / WEIGHTS)
            _dump(made / CARD, card.model_dump(mode="json"))
            _dump(made / CONFIG, configuration(card))
            pictures = sorted(p.name for p in (made / PICTURES).glob("*.png"))
            text = model_card(version, card, evidence, pictures, licence)
            (made / MODEL_CARD).write_text(text, encoding="utf-8")
            os.chmod(made, 0o755)
            if folder.exists():
                folder.rmdir()
            os.replace(made, folder)
    except OSError as error:
        raise RegistryError(
            f"cannot export {version.reference} to {folder}: {error.strerror or error}; nothing was left "
            "there: free some space or choose another folder"
        ) from error
    return folder


def configuration(card: Card) -> dict[str, Any]:
    """Return what rebuilds the network and adapts it: ``config.json``."""
    whole = card.model_dump(mode="json")
    return {
        "library": "metainit",
        **{key: whole[key] for key in ("kind", "name", "network", "routine", "domain")},
    }


def front_matter(version: Version, card: Card, licence: str | None) -> dict[str, Any]:
    """Return the metadata of the model card, in the words that the hubs index."""
    stated = {"license": licence} if licence else {"license": "other", "license_name": "not-stated"}
    specs = (card.network, card.domain)
    words = ("initialization", card.kind, card.method.name, *(spec.name for spec in specs if spec))
    metadata: dict[str, Any] = {
        **stated,
        "library_name": "metainit",
        "tags": list(dict.fromkeys(("metainit", *words))),
    }
    headline = version.headline
    if headline and {"metric", "steps", "value"} <= headline.keys():
        metadata["metrics"] = [headline["metric"]]
        metadata["model-index"] = [_indexed(version, card, headline)]
    return metadata


def _indexed(version: Version, card: Card, headline: Mapping[str, Any]) -> dict[str, Any]:
    domain = card.domain.name if card.domain else "unknown"
    source = card.provenance.data
    values = {f"{headline['metric']} after {headline['steps']} steps": headline["value"]}
    if {"gain", "control"} <= headline.keys():
        values[f"gain over {headline['control']} after {headline['steps']} steps"] = headline["gain"]
    metrics = [{"type": headline["metric"], "name": name, "value": value} for name, value in values.items()]
    dataset = {"name": source.description or domain, "type": domain}
    result = {"task": {"type": "other", "name": domain}, "dataset": dataset, "metrics": metrics}
    return {"name": version.name, "results": [result]}


def model_card(
    version: Version, card: Card, evidence: Mapping[str, Any] | None, pictures: list[str], licence: str | None
) -> str:
    """Return the model card: YAML front matter, then Markdown."""
    head = yaml.safe_dump(front_matter(version, card, licence), sort_keys=False, allow_unicode=True)
    source, routine = card.provenance.data, card.routine
    lines = [
        f"---\n{head}---\n",
        f"# {version.name}\n",
        f"Initial weights of kind *{card.kind}*, made by {card.method.name}"
        + (f" ({card.method.paper})" if card.method.paper else "")
        + f". Exported from version {version.version}; SHA-256 `{version.sha256}`.\n",
        "## Use\n",
        "```python\nimport metainit\n\n"
        f'start = metainit.load("{WEIGHTS}")\nstart.init_(network)  # fills your network in place\n```\n',
    ]
    if card.network:
        lines.append(f"Network: `{json.dumps(card.network.model_dump(mode='json'), sort_keys=True)}`.\n")
    if routine:
        lines.append(
            f"Adapt with {routine.steps} steps of {routine.optimizer}, as `start.adapt(network, task)` does: "
            "the start was learned with this routine.\n"
        )
    lines += [
        "## Data\n",
        f"{source.description or 'not described'}; licence of the data: {source.licence}.\n",
    ]
    lines += ["## Evidence\n", _evidence_text(version, evidence)]
    lines += [f"![{name}]({PICTURES}/{name})\n" for name in pictures]
    if card.notes:
        lines += ["## Notes\n", f"{card.notes}\n"]
    return "\n".join(lines)


def _evidence_text(version: Version, evidence: Mapping[str, Any] | None) -> str:
    from metainit.evidence.record import EvidenceRecord
    from metainit.evidence.report import text_table

    if not evidence:
        return "It was not measured.\n"
    text = f"{headline_text(version.headline) or 'There is no headline'}. All of it is in `{EVIDENCE}`.\n"
    try:
        table = text_table(EvidenceRecord.model_validate(evidence))
    except ValidationError:  # of an older metainit: the file is there all the same
        return text
    return f"{text}\n```text\n{table}\n```\n"


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
