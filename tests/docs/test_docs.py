"""README and guide: examples run, links resolve, commands exist, and everything that exists is named."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from metainit.card import AdaptationRoutine, Card
from metainit.cli import app
from metainit.domains.classification import ClassificationConfig
from metainit.domains.image import ImageConfig
from metainit.domains.registry import DOMAINS
from metainit.domains.segmentation import SegmentationConfig
from metainit.domains.structures import KINDS
from metainit.evidence.overlap import OVERLAP_METRICS
from metainit.initializers import INITIALIZERS
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.meta.registry import RULES
from metainit.networks import NETWORKS
from pipelines.recipe import load_recipe, recipe_names
from pipelines.tracking import ListSink
from pipelines.train import train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHELL = ("console", "sh", "bash", "")
by_page = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Yield language, text and line of each fenced block."""
    content = page.read_text()
    for found in FENCE.finditer(content):
        yield found["language"], found["text"], content.count("\n", 0, found.start()) + 2


def prose(page: Path) -> str:
    """Return a page without its fenced blocks, where a bracket is no link and a `#` no heading."""
    return FENCE.sub("", page.read_text())


@pytest.fixture(scope="session")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that the README has pulled before it goes on in Python."""
    folder = tmp_path_factory.mktemp("pulled")
    recipe = load_recipe("image-photos", ["outer.steps=1", "validation_tasks=0"])
    checkpoint = train(recipe, folder / "run", sink=ListSink()).checkpoint
    checkpoint.rename(folder / "image-photos.safetensors")
    return folder


# --- examples


@by_page
def test_the_python_examples_run(page: Path, pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with prompts is run, one namespace a page; one without (it needs a server, say) is parsed."""
    monkeypatch.chdir(pulled)
    torch.manual_seed(0)
    parser, namespace, examples = doctest.DocTestParser(), {"__name__": page.name}, []
    for language, text, line in blocks(page):
        if language != "python":
            continue
        if ">>>" not in text:
            ast.parse(text, filename=f"{page}:{line}")
            continue
        found = parser.get_examples(text, page.name)
        for example in found:
            example.lineno += line - 1
        examples += found
    test = doctest.DocTest(examples, namespace, page.name, str(page), 0, None)
    report: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert outcome.failed == 0, "".join(report)


def test_some_examples_run() -> None:
    run = sum(">>>" in text for page in PAGES for language, text, _ in blocks(page) if language == "python")
    assert run >= 10


# --- links


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = [found["title"].lower() for found in HEADING.finditer(prose(page))]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}


@by_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for found in LINK.finditer(prose(page)):
        target = found["target"]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = page.parent / name if name else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert not broken


def test_every_page_is_reachable_from_readme_and_index() -> None:
    for start in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        linked = {
            (start.parent / found["target"].partition("#")[0]).resolve()
            for found in LINK.finditer(prose(start))
        }
        assert {p.resolve() for p in PAGES} - linked - {ROOT / "README.md", start} == set()


def test_every_picture_is_shown_and_made_by_a_script() -> None:
    scripts = "".join(script.read_text() for script in (ROOT / "docs").glob("make_*.py"))
    shown = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        assert f"pictures/{picture.name}" in shown
        assert picture.name in scripts


# --- commands


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page's shell blocks, and of blocks without a language."""
    for language, text, _ in blocks(page):
        if language not in SHELL:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0] in ("metainit", "make", "pip"):
                yield words


@by_page
def test_commands_exist_with_their_options(page: Path) -> None:
    group: Any = click_group()
    extras = project()["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert [w for w in words[1:] if "=" not in w and w not in targets] == [], words
        elif words[0] == "pip":
            named = re.findall(r"\[([\w,]+)\]", " ".join(words))
            assert {extra for part in named for extra in part.split(",")} <= extras.keys(), words
        else:
            command = group.get_command(click.Context(group), words[1])
            assert command is not None, words
            try:
                command.make_context(words[1], words[2:])  # parses, and does not run
            except click.UsageError as error:
                pytest.fail(f"{' '.join(words)}: {error.format_message()}")


@by_page
def test_settings_on_the_command_line_are_settings_of_the_recipe(page: Path) -> None:
    for words in commands(page):
        if words[:2] in (["metainit", "train"], ["metainit", "submit"]) and words[2] in recipe_names():
            given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            load_recipe(words[2], given)


def click_group() -> Any:
    import typer.main

    return typer.main.get_command(app)


def project() -> Mapping[str, Any]:
    content: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return content["project"]


# --- nothing is left out


def rows(page: str) -> str:
    """Return the table rows of a page of the guide."""
    return "\n".join(line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("initializers.md", INITIALIZERS),
        ("meta-learning.md", RULES),
        ("meta-learning.md", AlgorithmConfig.model_fields),
        ("meta-learning.md", OuterConfig.model_fields),
        ("images.md", ImageConfig.model_fields.keys() - {"folder", "npz"}),
        ("segmentation.md", SegmentationConfig.model_fields),
        ("classification.md", ClassificationConfig.model_fields),
        ("segmentation.md", OVERLAP_METRICS),
        ("segmentation.md", KINDS),
        ("checkpoints.md", Card.model_fields),
        ("index.md", NETWORKS),
        ("index.md", DOMAINS),
        ("index.md", recipe_names()),
    ],
    ids=[
        "sources",
        "rules",
        "algorithm",
        "outer",
        "image",
        "segmentation",
        "classification",
        "metrics",
        "structures",
        "card",
        "networks",
        "domains",
        "recipes",
    ],
)
def test_the_table_names_everything(page: str, names: Any) -> None:
    assert sorted(n for n in names if f"`{n}`" not in rows(page)) == []


def test_the_text_names_the_routine() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    assert [name for name in AdaptationRoutine.model_fields if f"`{name}" not in text] == []


@pytest.mark.parametrize(
    ("page", "papers"),
    [
        ("initializers.md", [paper for _, paper in INITIALIZERS.values()]),
        ("meta-learning.md", [rule.paper for rule in RULES.values()]),
    ],
    ids=["sources", "rules"],
)
def test_papers_are_those_of_the_code(page: str, papers: Any) -> None:
    for paper in papers:
        for identifier in re.findall(r"arXiv:[\d.]+", paper):
            assert identifier in rows(page)


def test_every_command_is_shown() -> None:
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "metainit"}
    shown |= {"demo"}  # which `make demo` runs
    assert set(click_group().list_commands(click.Context(click_group()))) <= shown


def test_the_package_shows_the_readme() -> None:
    assert project()["readme"] == "README.md"
    assert (ROOT / "README.md").is_file()


def test_the_table_in_the_guide_is_the_measured_one() -> None:
    measured = (ROOT / "docs" / "pictures" / "evidence.txt").read_text()
    assert f"```text\n{measured}```" in (ROOT / "docs" / "evidence.md").read_text()
