"""Which initializations a list shows: by family, by domain, and by what their names say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from metainit.references import Reference
from serving.cache import Entry
from serving.catalog import Facts, Init
from serving.store import Store

Family = Literal["learned", "predicted", "generated", "computed"]
FAMILIES: tuple[Family, ...] = get_args(Family)
FAMILY_OF_KIND: Mapping[str, Family] = {"prior": "learned", "ghn": "predicted", "generator": "generated"}


@dataclass(frozen=True)
class Selection:
    """What to show; None and the empty text leave nothing out. `text`: words that must all occur."""

    family: Family | None = None
    domain: str | None = None
    text: str = ""

    def of(self, store: Store) -> list[Init]:
        """Return the names of a store that are selected, in alphabetical order.

        A word is looked for in the name, method, network, kind and domain of the version that the bare name
        means.
        """
        everything = sorted(store.catalog.inits.values(), key=lambda init: init.name)
        if self == Selection():
            return everything
        return [init for init in everything if self._holds(shown(init), card_of(store, init))]

    def _holds(self, facts: Facts, card: Mapping[str, Any]) -> bool:
        domain = domain_of(card)
        said = " ".join((facts.name, facts.method, facts.network or "", facts.kind, domain or "")).lower()
        return (
            self.family in (None, family_of(facts.kind, card))
            and self.domain in (None, domain)
            and all(word in said for word in self.text.lower().split())
        )


@dataclass(frozen=True)
class Part:
    """A page of what is selected; `following` is the query of the next one, and `total` counts all pages."""

    inits: list[Init]
    total: int
    following: str | None


def part_of(store: Store, selection: Selection, after: str, limit: int) -> Part:
    """Return what is selected behind a name, at most `limit` of it."""
    found = selection.of(store)
    later = [init for init in found if init.name > after]
    if len(later) <= limit:
        return Part(later, len(found), None)
    asked = {"family": selection.family, "domain": selection.domain, "q": selection.text or None}
    given = {key: value for key, value in asked.items() if value is not None}
    last = later[limit - 1].name
    return Part(later[:limit], len(found), urlencode({**given, "limit": limit, "after": last}))


def shown(init: Init) -> Facts:
    """Return the version that the bare name means."""
    return init.find(init.default) or init.versions[0]


def entry_of(store: Store, init: Init) -> Entry | None:
    """Return the version that the bare name means where its files are at hand; never blocks."""
    return store.at_hand(Reference(init.name, version=shown(init).version))


def card_of(store: Store, init: Init) -> Mapping[str, Any]:
    """Return the card of that version, empty where it is not at hand."""
    entry = entry_of(store, init)
    return entry.card if entry is not None else {}


def family_of(kind: str, card: Mapping[str, Any]) -> Family:
    """Return the family that a checkpoint belongs to.

    Example:
        >>> family_of('prior', {}), family_of('weights', {'graph': 'ab'}), family_of('weights', {})
        ('learned', 'predicted', 'computed')
    """
    if kind in FAMILY_OF_KIND:
        return FAMILY_OF_KIND[kind]
    return "predicted" if card.get("graph") else "computed"


def domain_of(card: Mapping[str, Any]) -> str | None:
    """Return the name of the domain on a card, if it names one.

    Example:
        >>> domain_of({'domain': {'name': 'ct'}}), domain_of({})
        ('ct', None)
    """
    domain = card.get("domain")
    return str(domain["name"]) if isinstance(domain, Mapping) else None


def counted(store: Store) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many names there are of each family, and of each domain."""
    cards = [(shown(init), card_of(store, init)) for init in store.catalog.inits.values()]
    families = Counter(family_of(facts.kind, card) for facts, card in cards)
    return {f: families[f] for f in FAMILIES}, _sorted(domain_of(card) for _, card in cards)


def _sorted(names: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(name for name in names if name is not None)
    return dict(sorted(counts.items()))
