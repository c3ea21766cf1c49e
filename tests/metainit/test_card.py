"""The card: one canonical JSON value, versioned and limited."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metainit import card as cards
from metainit.card import (
    AdaptationRoutine,
    Card,
    Continuation,
    DataSource,
    Method,
    Provenance,
    Spec,
    canonical_json,
    read_card,
)
from metainit.errors import CheckpointError

MINIMAL: dict[str, Any] = {"schema_version": 1, "kind": "prior", "name": "a", "method": {"name": "reptile"}}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def full() -> Card:
    return Card(
        kind="prior",
        name="faces-2.1",
        method=Method(name="maml", paper="Finn et al. 2017"),
        network=Spec(name="siren", arguments={"width": 8, "omega": 30.0, "nested": {"a": [1, None]}}),
        domain=Spec(name="image", arguments={"height": 4}),
        routine=AdaptationRoutine(
            steps=2,
            step_size=1e-3,
            per_tensor={"w": [0.1, 1e-7]},
            continuation=Continuation(optimizer="adam", step_size=1e-4),
        ),
        provenance=Provenance(
            recipe={"a": {"b": 1}}, seeds=[0, 1], data=DataSource(fingerprint="f"), code_version="1"
        ),
        skipped={"running_mean": "a statistic"},
        notes="ü\u2028",
        digest="d" * 64,
    )


def test_round_trip() -> None:
    assert read_card(full().canonical()) == full()


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.text())
def test_free_form_parts_round_trip(arguments: dict[str, Any], notes: str) -> None:
    try:
        notes.encode()
    except UnicodeEncodeError:
        notes = "half a surrogate pair is no text"
    card = Card(
        kind="prior",
        name="a",
        method=Method(name="m"),
        network=Spec(name="n", arguments=arguments),
        notes=notes,
    )
    text = card.canonical()
    assert read_card(text).canonical() == text


def test_canonical_json_is_sorted_dense_and_ascii() -> None:
    text = full().canonical()
    parsed = json.loads(text)
    assert text == json.dumps(parsed, sort_keys=True, separators=(",", ":"))
    assert text.isascii() and "\n" not in text
    assert canonical_json({"b": [1.0, "é"], "a": None}) == '{"a":null,"b":[1.0,"\\u00e9"]}'


def test_keys_in_another_order_are_the_same_card() -> None:
    assert read_card(json.dumps(dict(reversed(MINIMAL.items())))) == read_card(json.dumps(MINIMAL))


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {**MINIMAL, "network": {"name": "n", "arguments": {"a": value}}}


@pytest.mark.parametrize(
    "text,says",
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "is a JSON list, expected an object"),
        ("null", "is a JSON NoneType"),
        ('{"schema_version": 1' + "1" * 5000 + "}", "not valid JSON"),
        ('{"schema_version": 1, "notes": NaN}', "not valid JSON"),
        ('{"schema_version": 1, "a": [1e999]}', "not valid JSON"),
        ("{}", "version None is not known"),
        ('{"schema_version": 2}', "version 2 is not known; .*versions 1 to 1: upgrade metainit"),
        ('{"schema_version": "1"}', "version '1' is not known"),
        ('{"schema_version": []}', r"version \[\] is not known"),
        (json.dumps({**MINIMAL, "colour": "red"}), "colour"),
        (json.dumps({k: v for k, v in MINIMAL.items() if k != "method"}), "method"),
        (json.dumps({**MINIMAL, "name": "../up"}), "name"),
        (json.dumps({**MINIMAL, "name": "-f"}), "name"),
        (json.dumps({**MINIMAL, "name": "a" * 201}), "name"),
        (json.dumps(nested(cards.MAX_CARD_DEPTH)), "nested deeper than 32"),
        (json.dumps({**MINIMAL, "notes": "a" * cards.MAX_CARD_CHARACTERS}), "expected at most 4000000"),
    ],
)
def test_what_is_no_card_is_refused(text: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_card(text)


def test_the_deepest_card_that_is_allowed() -> None:
    below = nested(cards.MAX_CARD_DEPTH - 4)
    assert read_card(json.dumps(below)).network is not None


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"steps": -1, "step_size": 0.1}, "steps"),
        ({"steps": 1, "step_size": -0.1}, "step_size"),
        ({"steps": 1, "step_size": float("nan")}, "step_size"),
        ({"steps": 1, "step_size": 0.1, "optimizer": "lbfgs"}, "sgd"),
        ({"steps": 1, "step_size": 0.1, "per_tensor": {"w": []}}, "at least one step size"),
        ({"steps": 1, "step_size": 0.1, "per_tensor": {"w": [float("inf")]}}, "per_tensor"),
        ({"steps": 1, "step_size": 0.1, "per_tensor": {"w": [1.0]}, "per_parameter": True}, "not both"),
    ],
)
def test_routines_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AdaptationRoutine(**wrong)


def test_a_card_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        full().name = "other"  # type: ignore[misc]


def test_older_versions_are_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_minus_one(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "schema_version": 0, "title": old["title"].lower()}

    def from_zero(old: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in old.items() if k != "title"}
        return {**kept, "schema_version": 1, "name": old["title"]}

    monkeypatch.setattr(cards, "MIGRATIONS", {-1: from_minus_one, 0: from_zero})
    old = {k: v for k, v in MINIMAL.items() if k != "name"} | {"schema_version": -1, "title": "FACES"}
    assert read_card(json.dumps(old)).name == "faces"
    with pytest.raises(CheckpointError, match="version -2 is not known; .*versions -1 to 1"):
        read_card(json.dumps({**old, "schema_version": -2}))
