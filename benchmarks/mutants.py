"""Mutated inputs: what a seed makes of a few good ones, the same on every run.

Half of the mutants of a JSON value keep its form and change what stands in it; the other half are its text
with bytes flipped, cut, doubled and spliced.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

NUMBERS = (0, -1, 1, 2**31, -(2**31), 2**63, 2**64, 10**30, 0.5, 1e308, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    "",
    "a" * 2000,
    "../../etc/passwd",
    "\x00",
    "\ud800",
    "é☃",
    [],
    {},
    [[]],
    {"": {}},
)
WORDS = tuple(
    word.encode()
    for word in (
        "-1",
        "18446744073709551616",
        "1e999",
        "NaN",
        "null",
        "{}",
        "[",
        "]",
        '"',
        "\\u0000",
        ",",
        "=",
    )
)
Mutant = Callable[[random.Random], bytes]


def mutants(seed: int, count: int, mutant: Mutant) -> Iterator[bytes]:
    """Yield `count` mutants, each from a generator of its own: any of them can be made again alone."""
    for index in range(count):
        yield mutant(random.Random(f"{seed}/{index}"))


def of_bytes(corpus: Sequence[bytes]) -> Mutant:
    """Return what mutates the bytes of one member of a corpus, one to eight times."""

    def mutant(chance: random.Random) -> bytes:
        content = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 8)):
            chance.choice(_CHANGES)(content, chance, corpus)
        return bytes(content)

    return mutant


def of_json(corpus: Sequence[Any]) -> Mutant:
    """Return what mutates one member of a corpus of JSON values, or its text."""
    raw = of_bytes([json.dumps(value).encode() for value in corpus])

    def mutant(chance: random.Random) -> bytes:
        if chance.random() < 0.5:
            return raw(chance)
        return json.dumps(altered(chance.choice(corpus), chance)).encode()

    return mutant


def altered(value: Any, chance: random.Random) -> Any:
    """Return a copy of a JSON value that is changed in one to three places."""
    changed = [copy.deepcopy(value)]
    for _ in range(chance.randint(1, 3)):
        where, key = chance.choice(list(_places(changed)))
        chance.choice(_ALTERATIONS)(where, key, chance)
        if not changed:
            return None
    return changed[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with every key of it, below and at a container."""
    level = [value]
    while level:
        container = level.pop()
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            yield container, key
            if isinstance(container[key], dict | list):
                level.append(container[key])


def _replace(where: Any, key: Any, chance: random.Random) -> None:
    where[key] = copy.deepcopy(chance.choice(ODD))


def _nudge(where: Any, key: Any, chance: random.Random) -> None:
    value = where[key]
    if isinstance(value, bool | None) or not isinstance(value, int | float):
        _replace(where, key, chance)
    else:
        where[key] = value + chance.choice((-1, 1, 7, -value, 1000))


def _drop(where: Any, key: Any, chance: random.Random) -> None:
    del where[key]


def _double(where: Any, key: Any, chance: random.Random) -> None:
    if isinstance(where, list):
        where.insert(key, copy.deepcopy(where[key]))
    else:
        where[f"{key}x"] = copy.deepcopy(where[key])


def _swap(where: Any, key: Any, chance: random.Random) -> None:
    other = chance.choice(list(where) if isinstance(where, dict) else range(len(where)))
    where[key], where[other] = where[other], where[key]


def _bury(where: Any, key: Any, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 10, 100))):
        where[key] = [where[key]]


_ALTERATIONS = (_replace, _replace, _nudge, _nudge, _drop, _double, _swap, _bury)


def _flip(content: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _write(content: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = chance.randint(0, len(content))
    word = chance.choice((chance.choice(WORDS), chance.randbytes(chance.randint(1, 8))))
    content[at : at + chance.choice((0, len(word)))] = word


def _cut(content: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = chance.randint(0, len(content))
    del content[at : at + chance.choice((1, 8, 64, len(content)))]


def _repeat(content: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = chance.randint(0, len(content))
    content[at:at] = content[at : at + chance.choice((1, 16, 256))] * chance.choice((1, 2, 50))


def _splice(content: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    other = chance.choice(corpus)
    content[chance.randint(0, len(content)) :] = other[chance.randint(0, len(other)) :]


_CHANGES = (_flip, _flip, _write, _write, _cut, _repeat, _splice)
