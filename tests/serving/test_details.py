"""A look-up is kept as bytes for as long as the catalog says the same."""

from __future__ import annotations

import httpx
import pytest

from serving import details
from serving.store import Store
from tests.serving.shelf import Shelf


def test_a_look_up_that_has_not_changed_is_304(http: httpx.Client) -> None:
    first = http.get("/v1/inits/faces@champion")
    assert first.headers["content-type"] == "application/json"
    again = http.get("/v1/inits/faces@champion", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert again.headers["etag"] == first.headers["etag"]
    other = http.get("/v1/inits/faces@challenger", headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200 and other.headers["etag"] != first.headers["etag"]


def test_an_alias_that_moves_makes_new_bytes(http: httpx.Client, shelf: Shelf, store: Store) -> None:
    first = http.get("/v1/inits/faces/versions/2")
    assert first.json()["aliases"] == ["challenger"]
    shelf.point("faces", "champion", 2)
    store.refresh()
    tag = {"if-none-match": first.headers["etag"]}
    moved = http.get("/v1/inits/faces/versions/2", headers=tag)
    assert moved.status_code == 200 and moved.json()["aliases"] == ["challenger", "champion"]
    assert http.get("/v1/inits/faces").json()["version"] == 2


def test_what_is_kept_is_bounded(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "MOST", 1)
    for _ in range(2):
        for version in (1, 2):
            assert http.get(f"/v1/inits/faces/versions/{version}").json()["version"] == version
