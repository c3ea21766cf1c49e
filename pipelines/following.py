"""Following the registry: what has changed since the last look, at a cost that does not grow with it.

MLflow moves the time of a name's last change when a version is made or deleted, but neither when an
alias is set nor when a tag is (on SQLite and PostgreSQL alike). So metainit moves that time itself with
each alias (`Registry.touch`), and a look reads the names that changed last, newest first, until it meets
ones that it knows. What was changed in MLflow's own pages, where nobody moves that time, is found by
listing all names with their aliases, as often as `SHARE` of the time allows: with a hundred names at
almost every look, with ten thousand every few minutes. Tags that were changed by hand, and versions that
were deleted there, are found when everything is read anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipelines.discarding import REMOVED
from pipelines.registry import FORMAT, FORMAT_TAG, Registry
from pipelines.tags import TAG
from pipelines.version import Damaged, Version, readable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

SHARE = 0.2
"""Share of the time that listing all names may take."""
FULL_SECONDS = 900.0
"""Time after which everything is read anew, at least; longer where that takes long."""
SLACK_SECONDS = 60.0
"""How far the clocks of the servers that write the times of changes may lie apart."""
WHOLE = 200
"""Versions up to which a name that changed is read anew as a whole."""
_FIRST_PAGE, _PAGE, _VERSIONS_PAGE = 10, 200, 1000


@dataclass(frozen=True)
class Known:
    """One name as it was last read: versions newest first, and the time of its last change in ms."""

    name: str
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]
    damaged: tuple[Damaged, ...]
    updated: int
    removed: str = ""


@dataclass(frozen=True)
class Seen:
    """Everything that was read; times are monotonic seconds, `seconds` is what listing all names took."""

    names: Mapping[str, Known] = field(default_factory=dict)
    horizon: int = 0
    listed: float = 0.0
    seconds: float = 0.0
    full: float = 0.0
    full_seconds: float = 0.0


def look(registry: Registry, seen: Seen | None = None) -> Seen:
    """Return what the registry holds now; a name that has not changed is the same object as before.

    Raises:
        RegistryError: the store cannot be reached.

    Example:
        >>> seen = look(Registry())                                         # doctest: +SKIP
        >>> look(registry, seen).names['faces'].aliases                     # doctest: +SKIP
        {'champion': 3, 'previous': 1}
    """
    now = time.monotonic()
    with registry.connection.calls("look at the registry") as client:
        if seen is None or now - seen.full > max(FULL_SECONDS, seen.full_seconds / SHARE):
            return _everything(client, seen or Seen(), now)
        if now - seen.listed > seen.seconds / SHARE:
            return _listed(client, seen, now)
        return _newest(client, seen)


def _everything(client: MlflowClient, seen: Seen, now: float) -> Seen:
    """Read all names and all their versions, a page of many at a time."""
    models = list(_models(client, _VERSIONS_PAGE))
    seconds = time.monotonic() - now
    gathered: dict[str, list[ModelVersion]] = {model.name: [] for model in models}
    token: str | None = None
    while models:
        page = client.search_model_versions(
            f"tags.`{TAG}sha256` LIKE '%'", max_results=_VERSIONS_PAGE, page_token=token
        )
        for entity in page:
            if entity.name in gathered:
                gathered[entity.name].append(entity)
        token = page.token
        if not token:
            break
    names = {model.name: _known(model, gathered[model.name]) for model in models}
    names |= {m.name: _whole(client, m) for m in models if _incomplete(names[m.name], seen.names.get(m.name))}
    names |= _overlooked(client, seen, names)
    end = time.monotonic()
    return Seen(names, _horizon(models, 0), end, seconds, end, end - now)


def _incomplete(known: Known, before: Known | None) -> bool:
    """Return whether a version that an alias means, or that was there before, is missing.

    A search by a tag misses versions that have lost it; whoever reads all of the name names the damage.
    """
    there = _numbers(known)
    expected = set(known.aliases.values())
    if before is not None:
        expected |= _numbers(before)
    return not expected <= there


def _numbers(known: Known) -> set[int]:
    return {one.version for one in known.versions} | {one.version for one in known.damaged}


def _listed(client: MlflowClient, seen: Seen, now: float) -> Seen:
    """List all names with their aliases, and read those that differ."""
    models = list(_models(client, _VERSIONS_PAGE))
    end = time.monotonic()
    names: Mapping[str, Known] = {m.name: _again(client, m, seen.names.get(m.name)) for m in models}
    names = {**names, **_overlooked(client, seen, names)}
    if len(names) == len(seen.names) and all(seen.names.get(n) is known for n, known in names.items()):
        names = seen.names
    return replace(seen, names=names, horizon=_horizon(models, seen.horizon), listed=end, seconds=end - now)


def _overlooked(client: MlflowClient, seen: Seen, names: Mapping[str, Known]) -> dict[str, Known]:
    """Return names that a listing missed and that are there: one is deleted between two pages of it."""
    from mlflow.exceptions import MlflowException

    found: dict[str, Known] = {}
    for name in seen.names.keys() - names.keys():
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        if model.tags.get(FORMAT_TAG) == FORMAT:
            found[name] = _again(client, model, seen.names[name])
    return found


def _newest(client: MlflowClient, seen: Seen) -> Seen:
    """Read the names that changed since the last look."""
    changed: dict[str, Known] = {}
    fresh: list[RegisteredModel] = []
    edge = seen.horizon - SLACK_SECONDS * 1000
    for model in _models(client, _FIRST_PAGE, ["last_updated_timestamp DESC"]):
        if model.last_updated_timestamp < edge:
            break
        fresh.append(model)
        before = seen.names.get(model.name)
        known = _again(client, model, before)
        if known is not before:
            changed[model.name] = known
    if not changed:
        return seen
    return replace(seen, names={**seen.names, **changed}, horizon=_horizon(fresh, seen.horizon))


def _models(client: MlflowClient, first: int, order: list[str] | None = None) -> Iterable[RegisteredModel]:
    """Yield metainit's names a page at a time; pages after the first are larger."""
    size, token = first, None
    while True:
        page = client.search_registered_models(
            f"tags.`{FORMAT_TAG}` = '{FORMAT}'", max_results=size, order_by=order, page_token=token
        )
        yield from page
        size, token = max(size, _PAGE), page.token
        if not token:
            return


def _again(client: MlflowClient, model: RegisteredModel, before: Known | None) -> Known:
    """Return what is known of a name, read anew as far as it may have changed."""
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    if before is not None and (before.updated, before.aliases) == (model.last_updated_timestamp, aliases):
        return before
    where = f"name = '{model.name}'"
    old = before is not None and before.removed == model.tags.get(REMOVED, "")
    if before is None or not old or len(before.versions) <= WHOLE:
        return _whole(client, model)
    order = ["last_updated_timestamp DESC", "version_number DESC"]
    page = client.search_model_versions(where, WHOLE, order)
    if page and (page[-1].last_updated_timestamp or 0) > before.updated:
        return _whole(client, model)  # more of them are new than one page holds
    fresh = {int(v.version): v for v in page}
    for number in {*before.aliases.values(), *aliases.values()} - fresh.keys():
        if any(number == version.version for version in before.versions):
            fresh[number] = client.get_model_version(model.name, str(number))
    read = _known(model, fresh.values())
    kept = tuple(_renamed(v, aliases) for v in before.versions if v.version not in fresh)
    versions = tuple(sorted((*read.versions, *kept), key=lambda v: -v.version))
    damaged = (*read.damaged, *(d for d in before.damaged if d.version not in fresh))
    return replace(read, versions=versions, damaged=damaged)


def _whole(client: MlflowClient, model: RegisteredModel) -> Known:
    """Read a name with all its versions."""
    entities: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(
            f"name = '{model.name}'", max_results=_VERSIONS_PAGE, page_token=token
        )
        entities += page
        token = page.token
        if not token:
            return _known(model, entities)


def _known(model: RegisteredModel, entities: Iterable[ModelVersion]) -> Known:
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    versions, damaged = readable(entities, aliases)
    updated = int(model.last_updated_timestamp or 0)
    return Known(
        model.name, aliases, tuple(versions), tuple(damaged), updated, str(model.tags.get(REMOVED, ""))
    )


def _renamed(version: Version, aliases: Mapping[str, int]) -> Version:
    """Return a version that was not read anew under the aliases of now."""
    now = tuple(sorted(alias for alias, at in aliases.items() if at == version.version))
    return version if version.aliases == now else replace(version, aliases=now)


def _horizon(models: Iterable[RegisteredModel], before: int) -> int:
    return max((int(model.last_updated_timestamp or 0) for model in models), default=before)
