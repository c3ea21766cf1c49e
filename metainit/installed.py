"""Whether the packages are there that metainit and its extras need, and new enough."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from metainit.diagnosis import Finding

LEFT_OUT = ("all", "dev")
"""Extras that bundle others, or that nobody needs who uses metainit."""
UNINDEXED = {"learn2learn": "learn2learn"}
"""What an extra is for, but cannot require, since no index has it built."""


def packages() -> list[Finding]:
    """Look at the core's requirements and at each extra's."""
    try:
        needs = [Requirement(text) for text in requires("metainit") or ()]
    except PackageNotFoundError:
        remedy = "pip install it, from its folder or the index"
        return [Finding("error", "packages", "metainit is imported, but not installed", "", remedy)]
    named = metadata("metainit").get_all("Provides-Extra") or []
    core = [need for need in needs if _applies(need, "")]
    findings = [_core(core)]
    for extra in sorted({*named} - {*LEFT_OUT}):
        findings.append(_extra(extra, [n for n in needs if _applies(n, extra) and n not in core]))
    return findings


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def lacking(needs: Iterable[Requirement]) -> tuple[list[str], list[str]]:
    """Return what is missing or too old, in words, and what is as it should be.

    Example:
        >>> lacking([Requirement('no-such-package>=1'), Requirement('packaging>=1')])[0]
        ['no-such-package is missing']
    """
    bad, good = [], []
    for need in needs:
        try:
            have = version(need.name)
        except PackageNotFoundError:
            bad.append(f"{need.name} is missing")
            continue
        if need.specifier.contains(have, prereleases=True):
            good.append(f"{need.name} {have}")
        else:
            bad.append(f"{need.name} is {have}, expected {need.specifier}")
    return bad, good


def _core(needs: list[Requirement]) -> Finding:
    bad, good = lacking(needs)
    if bad:
        return Finding("error", "packages", "; ".join(bad), "", "pip install --upgrade metainit")
    return Finding("ok", "packages", ", ".join(good))


def _extra(name: str, needs: list[Requirement]) -> Finding:
    subject, remedy = f"extra {name}", f"pip install 'metainit[{name}]'"
    if name in UNINDEXED:
        needs = [*needs, Requirement(UNINDEXED[name])]
        remedy = f"{remedy}, and build {UNINDEXED[name]} (`make venv` does both)"
    bad, good = lacking(needs)
    if not bad:
        return Finding("ok", subject, ", ".join(good))
    missing = [text for text in bad if text.endswith(" is missing")]
    if len(missing) == len(needs):
        return Finding("ok", subject, "not installed", "", f"{remedy} if you want it")
    return Finding("warning", subject, "; ".join(bad), "", remedy)
