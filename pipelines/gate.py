"""The gate: which version becomes champion, decided by evidence and by nothing else.

`decide` is a pure function of two evidence values; `admit` applies it. The comparison is made
before the lock is taken (it may mean to measure again, for minutes); under the lock the alias moves
only if the champion is still the one that was compared with. Otherwise the candidate is judged
again, so of two racing runs the second has to beat the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from metainit.errors import MetainitError, RegistryError
from pipelines.history import digest, moved
from pipelines.lock import locked
from pipelines.registry import CHALLENGER, CHAMPION, Registry, Version, crown

Evidence = Mapping[str, Any]
"""The JSON value that `metainit measure` writes."""
Remeasure = Callable[[Version, Version], tuple[Evidence, Evidence]]
"""(candidate, champion) -> the evidence of both on the same held-out tasks; raises a `MetainitError`."""

_ATTEMPTS = 20
_SAME_TASKS = ("data_fingerprint", "metric", "higher_is_better", "task_ids")
_SAME = ("network", *_SAME_TASKS)


@dataclass(frozen=True)
class Decision:
    """What the gate decided and why; `gain`, `low` and `high` are in units of the metric.

    `comparable` is False where there was nothing to compare with: no evidence, or another network
    or other data than the champion's.
    """

    alias: str
    reason: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    against: str = ""
    comparable: bool = True


def decide(
    candidate: Evidence | None, champion: Evidence | None = None, same: Sequence[str] = _SAME
) -> Decision:
    """Decide on a candidate: against the champion, or against its controls where there is none.

    `champion` is None where there is none, and an empty mapping where it has no evidence. `same`: what two
    evidence values must have in common to be compared.

    Raises:
        RegistryError: an evidence value lacks what a comparison needs.

    Example:
        >>> headline = {'metric': 'psnr', 'steps': 2, 'control': 'siren',
        ...             'gain': 7.5, 'low': 7.1, 'high': 7.9}
        >>> decide({'headline': headline}).reason
        'better than siren by 7.5 psnr at 2 steps (7.1 to 7.9)'
    """
    if not candidate or not candidate.get("headline"):
        return Decision(CHALLENGER, "there is no evidence for it: measure it", comparable=False)
    try:
        if champion is None:
            return _against_controls(candidate["headline"])
        reason = _not_comparable(candidate, champion, same)
        if reason:
            return Decision(CHALLENGER, reason, comparable=False)
        return _against_champion(candidate, champion)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RegistryError(
            f"the evidence lacks what the gate compares ({error!r}); measure again"
        ) from error


def admit(registry: Registry, version: Version, remeasure: Remeasure | None = None) -> Decision:
    """Judge a version and move the aliases; the tag ``metainit.gate`` keeps the decision.

    `remeasure` measures candidate and champion again where they cannot be compared as they are;
    without it such a candidate is refused, that is, it becomes challenger with the reason.

    Raises:
        RegistryError: the store cannot be reached, the evidence is malformed, or the lock is held.
    """
    candidate = registry.evidence(version)
    for _ in range(_ATTEMPTS):
        seen = registry.aliases(version.name).get(CHAMPION)
        if seen == version.version:
            return Decision(CHAMPION, "it is the champion already")
        decision = _judge(registry, version, candidate, seen, remeasure)
        with locked(registry.connection, version.name) as lease:
            aliases = registry.aliases(version.name)
            if aliases.get(CHAMPION) != seen:
                continue  # another run was faster: its version is the one to beat now
            said = {"reason": decision.reason, "against": decision.against, "evidence": digest(candidate)}
            event = moved(version, "gate", decision.alias, seen).model_copy(update=said)
            acted = {"by": event.by, "at": event.at, "evidence": event.evidence}
            registry.tag(version, "gate", json.dumps(asdict(decision) | acted, sort_keys=True))
            if decision.alias == CHAMPION:
                crown(registry, version, aliases, lease, event)
            else:
                lease.check()
                registry.set_alias(version, CHALLENGER)
        return decision
    raise RegistryError(
        f"the champion of {version.name!r} changed {_ATTEMPTS} times while {version.reference} was "
        "judged; try again when fewer runs end at once"
    )


def _judge(
    registry: Registry,
    version: Version,
    candidate: Evidence | None,
    seen: int | None,
    remeasure: Remeasure | None,
) -> Decision:
    """Decide against the champion of number `seen`, measuring again where need be."""
    if seen is None:
        return decide(candidate)
    champion = registry.resolve(f"{version.name}/{seen}")
    decision = decide(candidate, registry.evidence(champion) or {})
    if candidate and not decision.comparable and remeasure is not None:
        try:
            decision = decide(*remeasure(version, champion), _SAME_TASKS)
        except MetainitError as error:
            why = f"{decision.reason} ({champion.reference} could not be measured again: {error})"
            decision = replace(decision, reason=why)
    return replace(decision, against=champion.reference)


def _against_controls(headline: Mapping[str, Any]) -> Decision:
    gain, low, high = (float(headline[key]) for key in ("gain", "low", "high"))
    text = (
        f"than {headline['control']} by {gain:.4g} {headline['metric']} at {headline['steps']} "
        f"steps ({low:.4g} to {high:.4g})"
    )
    control = str(headline["control"])
    if low > 0:
        return Decision(CHAMPION, f"better {text}", gain, low, high, control)
    return Decision(CHALLENGER, f"not surely better {text}", gain, low, high, control)


def _against_champion(candidate: Evidence, champion: Evidence) -> Decision:
    from metainit.evidence.statistics import paired_bootstrap

    steps = int(candidate["headline"]["steps"])
    new, old = _values(candidate, steps), _values(champion, steps)
    if new.shape[1] != old.shape[1]:
        raise RegistryError(
            f"the evidence names {len(candidate['task_ids'])} tasks but holds {new.shape[1]} and "
            f"{old.shape[1]} values a seed; measure again"
        )
    groups = candidate.get("task_groups") or candidate["task_ids"]
    if len(groups) != new.shape[1]:
        raise RegistryError(
            f"the evidence names {len(groups)} groups, expected one for each of {new.shape[1]} tasks; "
            "measure again"
        )
    gain, low, high = paired_bootstrap(new, old, groups=groups)
    if not candidate.get("higher_is_better", True):
        gain, low, high = -gain, -high, -low
    number = len(set(groups))
    grouped = "" if number == new.shape[1] else f" in {number} group{'' if number == 1 else 's'}"
    text = (
        f"than the champion by {gain:.4g} {candidate['metric']} at {steps} steps ({low:.4g} to "
        f"{high:.4g}; {len(new)} seeds, {new.shape[1]} tasks{grouped})"
    )
    if low > 0:
        return Decision(CHAMPION, f"better {text}", gain, low, high)
    return Decision(CHALLENGER, f"not surely better {text}", gain, low, high)


def _values(evidence: Evidence, steps: int) -> npt.NDArray[np.float64]:
    """Return the candidate's values after `steps` steps: (seeds, tasks)."""
    at = list(evidence["steps"]).index(steps)
    curve = next(c for c in evidence["curves"] if c["role"] == "candidate")
    values: npt.NDArray[np.float64] = np.asarray(curve["values"], dtype=np.float64)[:, :, at]
    return values


def _not_comparable(candidate: Evidence, champion: Evidence, same: Sequence[str]) -> str:
    """Return why two evidence values cannot be compared, or an empty string."""
    way_out = "measure both on the same held-out tasks, or promote it by hand"
    if not champion.get("curves"):
        return f"the champion has no evidence to compare with: {way_out}"
    changed = [key for key in same if candidate.get(key) != champion.get(key)]
    if _domain(candidate) != _domain(champion):
        changed.append("domain")
    if changed:
        return f"{', '.join(changed)} changed since the champion was measured: {way_out}"
    steps = candidate["headline"]["steps"]
    if steps not in champion["steps"]:
        return f"the champion was not measured at {steps} steps: {way_out}"
    return ""


def _domain(evidence: Evidence) -> Any:
    """Return the domain without the place of its data, which the fingerprint stands for."""
    domain = dict(evidence.get("domain") or {})
    arguments = {k: v for k, v in (domain.get("arguments") or {}).items() if k != "data"}
    return domain | {"arguments": arguments}
