"""Every error has one place in the table, and unexpected ones tell nothing."""

from __future__ import annotations

import httpx
import pytest
from fastapi.exceptions import RequestValidationError

from metainit import errors
from serving.app import create_app
from serving.catalog import Missing
from serving.problems import TABLE, RangeNotSatisfiable, kind_of
from serving.store import NotReady, Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Missing("x"), 404),
        (RangeNotSatisfiable("bytes=9-", 3), 416),
        (errors.EndpointError("x"), 422),
        (errors.ConditionError("x"), 422),
        (errors.CopyError("x"), 409),
        (RequestValidationError([]), 422),
        (errors.DigestError("x"), 502),
        (errors.CheckpointError("x"), 502),
        (NotReady("x"), 503),
        (errors.RegistryError("x"), 503),
        (errors.MismatchError("x"), 500),
        (ZeroDivisionError("x"), 500),
    ],
)
def test_table(error: Exception, status: int) -> None:
    assert kind_of(error).status == status


def test_every_error_of_the_project_is_mapped() -> None:
    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    tree = [error for error in tree if issubclass(error, Exception)]
    assert all(any(base in TABLE for base in error.__mro__) for error in tree)
    assert all(400 <= kind.status <= 599 for kind in TABLE.values())


def test_an_unexpected_error_keeps_its_details_in_the_log(store: Store) -> None:
    app = create_app(store)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a secret")

    with InProcess(app) as transport, httpx.Client(transport=transport) as http:
        answer = http.get("http://endpoint/broken")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


def test_not_ready_says_when_to_come_back(store: Store, shelf: Shelf) -> None:
    shelf.gone = True
    with InProcess(create_app(store)) as transport, httpx.Client(transport=transport) as http:
        answer = http.get("http://endpoint/readyz")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
    assert "does not answer" in answer.json()["detail"]
