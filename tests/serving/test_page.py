"""The page's files, the filtered list, the overview and the graphs, over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest

from serving.app import create_app
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.web_shelf import stocked

HTML = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("page")
    store = Store(stocked(folder / "shelf"), folder / "store", poll=3600.0)
    with InProcess(create_app(store)) as transport:
        with httpx.Client(transport=transport, base_url="http://endpoint") as client:
            yield client


def test_the_index_is_for_browsers_and_json_for_others(http: httpx.Client) -> None:
    page = http.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src" not in page.headers["content-security-policy"]  # nothing but 'self'
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache" and page.headers["vary"] == "Accept"
    assert http.get("/").json()["inits"] == "/v1/inits"
    again = http.get("/", headers={**HTML, "if-none-match": page.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_every_file_that_the_index_names_is_served_for_ever(http: httpx.Client) -> None:
    index = http.get("/", headers=HTML).text
    named = re.findall(r'(?:href|src)="(web/[^"]+)"', index)
    shipped = {f.name for f in (files("serving") / "web").iterdir()} - {"index.html"}
    assert {path.rsplit("/", 1)[1] for path in named} == shipped
    for path in named:
        assert not path.startswith("/")  # the page may lie below any path
        answer = http.get(path)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        tag = {"if-none-match": answer.headers["etag"]}
        assert http.get(path, headers=tag).status_code == 304
        old = re.sub("web/[0-9a-f]+/", "web/0123456789abcdef/", path)
        assert http.get(old).content == answer.content
        assert http.get(old).headers["cache-control"] == "no-cache"
    assert http.get("/web/x/none.js").status_code == 404
    assert http.get("/web/x/..%2Fapp.py").status_code == 404


def test_nothing_in_the_page_is_inline_or_from_elsewhere() -> None:
    for item in (files("serving") / "web").iterdir():
        text = item.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), item.name
        assert "innerHTML" not in text and "eval(" not in text, item.name
        if item.name == "index.html":
            assert not re.search(r"<script(?![^>]*src)|style=|<style|\son[a-z]+=", text)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["bare", "faces", "hyper", "slices"]),
        ("family=learned", ["bare", "faces", "slices"]),
        ("family=predicted", ["hyper"]),
        ("family=generated", []),
        ("domain=ct", ["slices"]),
        ("q=SIREN+meta", ["faces", "slices"]),
        ("q=ghn", ["hyper"]),
        ("q=nothing", []),
        ("family=learned&domain=image&q=face", ["faces"]),
    ],
)
def test_the_list_is_filtered(http: httpx.Client, query: str, names: list[str]) -> None:
    part = http.get(f"/v1/inits?{query}").json()
    assert [item["name"] for item in part["items"]] == names and part["total"] == len(names)


def test_pages_of_a_filtered_list_stay_filtered(http: httpx.Client) -> None:
    part = http.get("/v1/inits?family=learned&limit=2").json()
    assert [item["name"] for item in part["items"]] == ["bare", "faces"] and part["total"] == 3
    rest = http.get(part["next"]).json()
    assert [item["name"] for item in rest["items"]] == ["slices"] and rest["next"] is None
    assert http.get("/v1/inits?family=other").status_code == 422


def test_a_line_says_what_a_gallery_shows(http: httpx.Client) -> None:
    line = http.get("/v1/inits?q=faces").json()["items"][0]
    assert (line["family"], line["domain"], line["default"]) == ("learned", "image", 2)
    assert [picture["id"] for picture in line["pictures"]] == ["reconstructions.png"]
    assert http.get(line["pictures"][0]["url"]).headers["content-type"] == "image/png"


def test_the_overview_counts(http: httpx.Client) -> None:
    overview = http.get("/v1/overview").json()
    assert overview["families"] == {"learned": 3, "predicted": 1, "generated": 0, "computed": 0}
    assert overview["domains"] == {"ct": 1, "image": 1} and overview["total"] == 4
    assert "siren" in [rule["name"] for rule in overview["rules"]]


def test_the_graph_of_a_network_is_laid_out(http: httpx.Client) -> None:
    answer = http.get("/v1/inits/faces/graph")
    drawing = answer.json()
    assert drawing["of"] == "network" and drawing["elements"] == 2 * 24 + 24 + 24 * 24 + 24 + 24 * 3 + 3
    assert (
        drawing["nodes"][0]["sort"] == "input, output" and drawing["nodes"][-1]["row"] == drawing["rows"] - 1
    )
    for source, target in drawing["edges"]:
        assert drawing["nodes"][source]["row"] < drawing["nodes"][target]["row"]
    places = [(node["row"], node["lane"]) for node in drawing["nodes"]]
    assert len(set(places)) == len(places)
    tag = {"if-none-match": answer.headers["etag"]}
    assert http.get("/v1/inits/faces/graph", headers=tag).status_code == 304


def test_a_card_without_a_network_has_no_graph(http: httpx.Client) -> None:
    answer = http.get("/v1/inits/hyper/versions/1/graph")
    assert answer.status_code == 404 and "no architecture graph" in answer.json()["detail"]
