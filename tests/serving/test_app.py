"""The HTTP contract, answered in this process."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serving.store import Store
from tests.serving.scraped import scraped
from tests.serving.shelf import PNG, Shelf

WEIGHTS = "/v1/inits/faces/weights"


@pytest.fixture
def content(shelf: Shelf) -> bytes:
    return shelf.files["faces"][1].read_bytes()


def test_list_is_paged_in_alphabetical_order(http: httpx.Client) -> None:
    first = http.get("/v1/inits", params={"limit": 1}).json()
    assert [item["name"] for item in first["items"]] == ["ct"]
    second = http.get(first["next"]).json()
    assert [item["name"] for item in second["items"]] == ["faces"]
    assert second["next"] is None
    faces = second["items"][0]
    assert faces["default"] == 1 and faces["aliases"] == {"champion": 1, "challenger": 2}
    assert [v["version"] for v in faces["versions"]] == [2, 1]
    assert faces["versions"][1]["headline"] == {"psnr": 30.0}


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("faces", 1),
        ("faces@champion", 1),
        ("faces@challenger", 2),
        ("faces/versions/2", 2),
        ("ct", 1),
    ],
)
def test_a_reference_names_a_version(http: httpx.Client, path: str, version: int) -> None:
    answer = http.get(f"/v1/inits/{path}")
    assert answer.status_code == 200
    value = answer.json()
    assert value["version"] == version
    assert value["card"]["routine"]["steps"] == 2
    assert value["evidence"] == {"metric": "psnr", "steps": [0, 2]}
    weights = http.get(value["weights"])
    assert weights.headers["etag"] == f'"{value["sha256"]}"'
    assert weights.headers["content-location"] == value["blob"]
    assert weights.content == http.get(value["blob"]).content
    assert len(weights.content) == value["size"]


def test_pictures(http: httpx.Client) -> None:
    listed = http.get("/v1/inits/faces/pictures").json()["items"]
    assert [item["id"] for item in listed] == ["steps.png"]
    picture = http.get(listed[0]["url"])
    assert picture.content == PNG and picture.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/inits/face",
        "/v1/inits/faces@champio",
        "/v1/inits/faces/versions/9",
        "/v1/inits/faces/pictures/no.png",
        "/v1/inits/faces/pictures/..%2Fcard.json",
        "/v1/blobs/" + "0" * 64,
        "/v1/blobs/..%2F..%2Fcatalog.json",
        "/nowhere",
    ],
)
def test_what_does_not_exist_is_a_problem(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    value = answer.json()
    assert set(value) == {"type", "title", "status", "detail", "instance", "request_id"}
    assert value["request_id"] == answer.headers["x-request-id"]
    assert value["status"] == 404


def test_a_typing_mistake_gets_a_suggestion(http: httpx.Client) -> None:
    assert "'faces'" in http.get("/v1/inits/fases").json()["detail"]
    assert "'champion'" in http.get("/v1/inits/faces@champoin").json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/inits?limit=0", 422), ("/v1/inits/faces/versions/x", 422), ("/v1/inits/-x", 422)],
)
def test_a_bad_request_is_a_problem(http: httpx.Client, path: str, status: int) -> None:
    answer = http.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_method_is_a_problem(http: httpx.Client) -> None:
    answer = http.post("/v1/inits")
    assert answer.status_code == 405 and answer.json()["status"] == 405
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", [WEIGHTS, "blob"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_range_conformance(http: httpx.Client, content: bytes, path: str, method: str) -> None:
    if path == "blob":
        path = http.head(WEIGHTS).headers["content-location"]
    size, tag = len(content), http.head(WEIGHTS).headers["etag"]
    table: list[tuple[dict[str, str], int, bytes]] = [
        ({}, 200, content),
        ({"range": "bytes=0-0"}, 206, content[:1]),
        ({"range": "bytes=3-9"}, 206, content[3:10]),
        ({"range": "bytes=5-"}, 206, content[5:]),
        ({"range": "bytes=-7"}, 206, content[-7:]),
        ({"range": f"bytes=-{size + 100}"}, 206, content),
        ({"range": f"bytes=9-{size + 100}"}, 206, content[9:]),
        ({"range": f"bytes={size - 1}-"}, 206, content[-1:]),
        ({"range": f"bytes={size}-"}, 416, b""),
        ({"range": "bytes=-0"}, 416, b""),
        ({"range": "bytes=9-3"}, 200, content),
        ({"range": "bytes=0-1,4-5"}, 200, content),
        ({"range": "bytes=a-b"}, 200, content),
        ({"range": "bytes=-"}, 200, content),
        ({"range": "lines=1-2"}, 200, content),
        ({"range": "bytes=2-4", "if-range": tag}, 206, content[2:5]),
        ({"range": "bytes=2-4", "if-range": '"other"'}, 200, content),
        ({"range": "bytes=2-4", "if-range": f"W/{tag}"}, 200, content),
        ({"if-none-match": tag}, 304, b""),
        ({"if-none-match": f'"other", W/{tag}'}, 304, b""),
        ({"if-none-match": "*"}, 304, b""),
        ({"if-none-match": '"other"'}, 200, content),
        ({"if-none-match": tag, "range": "bytes=0-3"}, 304, b""),
    ]
    for headers, status, body in table:
        if method == "HEAD" and status in (206, 416):
            status, body = 200, content  # a Range is of a GET only
        answer = http.request(method, path, headers=headers)
        assert answer.status_code == status, headers
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{size}"
            continue
        assert answer.headers["etag"] == tag
        assert answer.content == (body if method == "GET" else b""), headers
        if status in (200, 206):
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["content-length"] == str(len(body))
        if status == 206:
            start = content.index(body) if len(body) > 4 else None
            assert answer.headers["content-range"].endswith(f"/{size}")
            if start is not None:
                expected = f"bytes {start}-{start + len(body) - 1}/{size}"
                assert answer.headers["content-range"] == expected


def test_a_blob_may_be_kept_for_ever_and_an_alias_may_not(http: httpx.Client) -> None:
    weights = http.head(WEIGHTS)
    assert weights.headers["cache-control"] == "no-cache"
    blob = http.head(weights.headers["content-location"])
    assert blob.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_redirect_only_when_asked(http: httpx.Client) -> None:
    answer = http.get(WEIGHTS, params={"redirect": "1"}, follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["location"] == http.head(WEIGHTS).headers["content-location"]


def test_a_file_larger_than_a_chunk_arrives_whole(store: Store, shelf: Shelf, http: httpx.Client) -> None:
    digest = shelf.add("big", 3, elements=900_000)
    store.refresh()
    content = shelf.files["big"][1].read_bytes()
    assert http.get("/v1/inits/big/weights").content == content
    part = http.get(f"/v1/blobs/{digest}", headers={"range": "bytes=1000000-3000000"})
    assert part.content == content[1_000_000:3_000_001]


def test_health_readiness_metrics_and_index(http: httpx.Client) -> None:
    http.get("/v1/inits/faces")
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz").json()
    assert ready["ready"] is True and ready["stale"] is False and ready["inits"] == 2
    text = http.get("/metrics").text
    asked = {"method": "GET", "route": "/v1/inits/{reference}", "status": "200"}
    assert scraped(text, "metainit_requests_total", **asked) == 1
    assert http.get("/").json()["inits"] == "/v1/inits"
    assert "<title>metainit</title>" in http.get("/", headers={"accept": "text/html"}).text


def test_the_page_of_the_api_names_every_route_and_loads_nothing(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for path, operations in http.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    assert "://" not in answer.text and "<script" not in answer.text
    assert http.get("/redoc").status_code == 404


def test_openapi_names_every_route(http: httpx.Client) -> None:
    paths: dict[str, Any] = http.get("/openapi.json").json()["paths"]
    for tail in ("", "/pictures", "/pictures/{picture}", "/weights"):
        assert "/v1/inits/{reference}" + tail in paths
        assert "/v1/inits/{name}/versions/{version}" + tail in paths
    assert {"/v1/inits", "/v1/blobs/{sha256}", "/healthz", "/readyz"} <= set(paths)


def test_versions_come_a_page_at_a_time_and_a_list_holds_the_newest(
    http: httpx.Client, shelf: Shelf, store: Store
) -> None:
    for seed in range(30):
        shelf.add("many", seed, elements=4)
    shelf.point("many", "champion", 2)
    store.look()
    (line,) = (item for item in http.get("/v1/inits").json()["items"] if item["name"] == "many")
    assert [v["version"] for v in line["versions"]] == [*range(30, 10, -1), 2]
    assert (line["count"], line["default"]) == (30, 2)
    address, seen = line["versions_url"] + "?limit=7", []
    while address:
        page = http.get(address).json()
        seen += [v["version"] for v in page["items"]]
        assert len(page["items"]) <= 7
        address = page["next"]
    assert seen == list(range(30, 0, -1))
    assert http.get("/v1/inits/nobody/versions").status_code == 404
    assert http.get("/v1/inits/many/versions?limit=0").status_code == 422
    assert http.get("/v1/inits/many/versions?before=1").json() == {"items": [], "next": None}
