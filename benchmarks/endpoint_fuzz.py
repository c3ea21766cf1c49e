"""Mutated graphs, headers and checkpoints, and what schemathesis makes of the OpenAPI, in this process.

Every input has a limit of time. What is counted: how many were taken and refused, the slowest, the growth of
memory, and everything that should not be: another error than the documented one, an answer of 500, one of 503
without Retry-After, a wrong byte.
"""

from __future__ import annotations

import gc
import json
import random
import re
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.cells import Cells
from benchmarks.mutants import WORDS, altered, mutants, of_bytes, of_json
from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Method, Spec, canonical_json
from metainit.errors import CheckpointError, GraphError

LIMIT = 5.0
"""Seconds of CPU that one input may take."""
SHOWN = 20


@dataclass
class Findings:
    """What became of the inputs; `bad` holds the first inputs that were not handled as they should be."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    slowest_ms: float = 0.0
    grown_mb: float = 0.0
    seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    bad: list[str] = field(default_factory=list)


class Hang(Exception):
    """An input took longer than its limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang in a block that uses more CPU than that; it needs the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} CPU seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_all(
    inputs: Iterable[bytes], target: Callable[[bytes], object], refusals: tuple[type[Exception], ...]
) -> Findings:
    """Give every input to a target, which takes it or refuses it with one of the documented errors."""
    found, answers = Findings(), Counter[str]()
    began, memory = time.process_time(), _peak_mb()
    for index, content in enumerate(inputs):
        if index == 1000:  # caches are full and modules imported: what comes on top is growth
            memory = _peak_mb()
        start = time.process_time()
        try:
            with limited(LIMIT):
                outcome = target(content)
            found.taken += 1
            if isinstance(outcome, int):
                answers[str(outcome)] += 1
        except refusals:
            found.refused += 1
        except Exception as error:
            found.failures += 1
            if len(found.bad) < SHOWN:
                found.bad.append(f"{index}: {type(error).__name__}: {error}; input {content[:300]!r}")
        found.inputs += 1
        found.slowest_ms = max(found.slowest_ms, 1e3 * (time.process_time() - start))
    gc.collect()
    found.seconds, found.grown_mb = time.process_time() - began, _peak_mb() - memory
    found.answers = dict(sorted(answers.items()))
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def graphs(count: int, seed: int, folder: Path) -> Findings:
    """Mutated architecture graphs; one that is taken has to come out again as it went in.

    Of those that are taken, one in five is sent to the endpoint, which predicts for it or says why not.
    """
    from hypernets.architecture.serialize import from_json, to_json

    with served(folder) as (http, _, files):
        taken = 0

        def read(text: bytes) -> int | None:
            nonlocal taken
            graph = from_json(text)
            again = from_json(canonical_json(to_json(graph)))
            if again != graph:
                raise ValueError("another graph after a round trip")
            taken += 1
            if taken % 5:
                return None
            body = canonical_json({"graph": to_json(graph)})
            answer = http.post("/v1/inits/digits/predict", content=body.encode(), headers=JSON)
            check(answer.status_code, dict(answer.headers), answer.content, "POST", files)
            return int(answer.status_code)

        return try_all(mutants(seed, count, of_json(graph_corpus())), read, (GraphError,))


JSON = {"content-type": "application/json"}


def graph_corpus() -> list[dict[str, Any]]:
    """Return the graphs of three small networks as JSON values."""
    from torch import nn

    from hypernets.architecture.serialize import to_json
    from hypernets.architecture.trace import trace

    networks = (
        (nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)), torch.zeros(2, 5)),
        (
            nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2)
            ),
            torch.zeros(1, 3, 8, 8),
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.LayerNorm(4)), torch.zeros(1, 4, 3, 3)),
    )
    return [to_json(trace(network, example)) for network, example in networks]


def checkpoints(count: int, seed: int, folder: Path) -> Findings:
    """Mutated checkpoints: bytes anywhere, and headers and cards that stay JSON with a fitting length."""
    raw = of_bytes(checkpoint_corpus())

    def mutant(chance: random.Random) -> bytes:
        return raw(chance) if chance.random() < 0.5 else reframed(chance.choice(checkpoint_corpus()), chance)

    return try_all(mutants(seed, count, mutant), checkpoint.from_bytes, (CheckpointError,))


def checkpoint_corpus() -> list[bytes]:
    """Return two small checkpoints."""
    if not _CHECKPOINTS:
        generator = torch.Generator().manual_seed(0)
        routine = AdaptationRoutine(steps=2, step_size=0.01)
        spec = Spec(name="siren", arguments={"width": 8})
        card = Card(kind="prior", name="p", method=Method(name="maml"), network=spec, routine=routine)
        bare = Card(kind="weights", name="w", method=Method(name="none"))
        tensors = {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.zeros(3)}
        half = {"x": torch.ones(5, dtype=torch.bfloat16), "n": torch.arange(4)}
        _CHECKPOINTS.extend([checkpoint.to_bytes(tensors, card), checkpoint.to_bytes(half, bare)])
    return _CHECKPOINTS


_CHECKPOINTS: list[bytes] = []


def reframed(content: bytes, chance: random.Random) -> bytes:
    """Change the header of a safetensors file, or the card in it, and write its true length before it."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header["__metadata__"]
    (key,) = metadata
    if chance.random() < 0.5:
        metadata[key] = canonical(altered(json.loads(metadata[key]), chance))
    else:
        header = altered(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def canonical(value: Any) -> str:
    """Return the text of a JSON value as cards are written, also of values that no card may hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


HEADERS = {
    b"if-none-match": (b'"%(tag)s"', b"*", b'W/"%(tag)s"', b'"a", "b"'),
    b"range": (b"bytes=0-9", b"bytes=-5", b"bytes=5-", b"bytes=0-1,3-4", b"items=0-1"),
    b"if-range": (b'"%(tag)s"', b"Wed, 21 Oct 2015 07:28:00 GMT"),
    b"accept": (b"text/html", b"application/json", b"*/*"),
    b"host": (b"endpoint", b"endpoint:80", b"[::1]:80"),
    b"content-length": (b"0", b"12"),
    b"content-type": (b"application/json", b"multipart/form-data; boundary=x"),
    b"authorization": (b"Bearer key", b"Basic YTpi"),
    b"x-request-id": (b"one",),
    b"x-forwarded-for": (b"10.0.0.1, 10.0.0.2",),
    b"x-forwarded-prefix": (b"/base",),
    b"forwarded": (b"for=10.0.0.1;proto=https",),
    b"origin": (b"http://elsewhere.example",),
    b"accept-encoding": (b"gzip, br", b"identity"),
}


def headers(count: int, seed: int, folder: Path) -> Findings:
    """Requests for weights, blobs and cards with mutated headers: every byte that comes has to be right."""
    with served(folder) as (http, tag, files):

        def ask(line: bytes) -> int:
            request = json.loads(line)
            fields = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in request["headers"]]
            answer = http.request(request["method"], request["path"], headers=fields)
            check(answer.status_code, dict(answer.headers), answer.content, request["method"], files)
            return int(answer.status_code)

        return try_all(mutants(seed, count, _request_of(tag)), ask, ())


def _request_of(tag: str) -> Callable[[random.Random], bytes]:
    corpus = {
        name: [value.replace(b"%(tag)s", tag.encode()) for value in values]
        for name, values in HEADERS.items()
    }
    paths = ["/v1/inits/faces/weights", f"/v1/blobs/{tag}", "/v1/inits/faces@champion", "/v1/inits"]

    def mutant(chance: random.Random) -> bytes:
        chosen = chance.sample(list(corpus), chance.randint(1, 4))
        if chance.random() < 0.7 and b"range" not in chosen:
            chosen.append(b"range")
        fields = []
        for name in chosen:
            value = of_bytes([*corpus[name], *WORDS])(chance) if chance.random() < 0.8 else corpus[name][0]
            # What no HTTP server lets through to an app is left out.
            clean = re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value)[:8000].strip()
            fields.append((name.decode(), clean.decode("latin-1")))
        method = chance.choice(("GET", "GET", "GET", "HEAD"))
        return json.dumps({"method": method, "path": chance.choice(paths), "headers": fields}).encode()

    return mutant


def check(status: int, fields: dict[str, str], body: bytes, method: str, files: dict[str, bytes]) -> None:
    """Check an answer; `files` are the right bytes by entity tag.

    Raises:
        ValueError: it says that the server failed, or its bytes are not those of the file.
    """
    if status == 503 and not fields.get("retry-after", "").isdigit():
        raise ValueError("503 without Retry-After")
    if status >= 500 and status != 503:
        raise ValueError(f"status {status}: {body[:300]!r}")
    if fields.get("etag") not in files or status not in (200, 206):
        return
    expected = files[fields["etag"]]
    if status == 206:
        start, end = map(int, re.findall(r"\d+", fields["content-range"])[:2])
        expected = expected[start : end + 1]
    if int(fields["content-length"]) != len(expected):
        raise ValueError(f"{fields['content-length']} bytes announced, expected {len(expected)}")
    if body != (b"" if method == "HEAD" else expected):
        raise ValueError(f"wrong bytes: {len(body)} came, expected {len(expected)}")


@contextmanager
def served(folder: Path) -> Iterator[tuple[Any, str, dict[str, bytes]]]:
    """Serve a prior and a hypernetwork in this process.

    Gives a client, the checksum of the prior, and the bytes of both by entity tag.
    """
    import httpx

    from serving.app import create_app
    from serving.store import Store
    from tests.serving.inprocess import InProcess
    from tests.serving.shelf import Shelf

    shelf = Shelf(folder / "shelf")
    tag = shelf.add("faces", 0, "champion")
    shelf.add_hypernetwork("digits", 0, "champion")
    files = {f'"{sha256}"': path.read_bytes() for path, sha256 in shelf.digests.items()}
    store = Store(shelf, folder / "store", poll=3600.0)
    with InProcess(create_app(store)) as transport:
        with httpx.Client(transport=transport, base_url="http://endpoint", timeout=60) as http:
            yield http, tag, files


def openapi(count: int, seed: int, folder: Path) -> Findings:
    """About `count` requests that schemathesis derives from the OpenAPI, shared among the operations."""
    import hypothesis
    import schemathesis
    from hypothesis import strategies

    found, answers = Findings(), Counter[str]()
    began, memory = time.process_time(), _peak_mb()
    with served(folder) as (http, tag, files):
        schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
        operations = [result.ok() for result in schema.get_all_operations()]
        known: dict[str, Any] = {"name": "faces", "version": 1, "sha256": tag, "picture": "steps.png"}
        for operation in operations:

            def probe(case: Any, reference: str, body: Any) -> None:
                nonlocal memory
                if reference:  # else what schemathesis made up, which is hardly ever there
                    there = known | {"reference": reference}
                    case.path_parameters = {k: there.get(k, v) for k, v in case.path_parameters.items()}
                if body is not None and case.method == "POST":
                    case.body = body
                if found.inputs == 1000:  # as in `try_all`
                    memory = _peak_mb()
                start = time.process_time()
                sent = case.as_transport_kwargs(base_url="http://endpoint")
                request = {k: v for k, v in sent.items() if v is not None and k != "files"}
                with limited(LIMIT):
                    answer = http.request(**request)
                found.inputs += 1
                found.slowest_ms = max(found.slowest_ms, 1e3 * (time.process_time() - start))
                answers[str(answer.status_code)] += 1
                try:
                    check(answer.status_code, dict(answer.headers), answer.content, case.method, files)
                    found.taken += answer.status_code < 400
                    found.refused += answer.status_code >= 400
                except ValueError as error:
                    found.failures += 1
                    if len(found.bad) < SHOWN:
                        found.bad.append(f"{case.method} {case.formatted_path}: {error}; {request}"[:600])

            settings = hypothesis.settings(
                max_examples=max(1, count // len(operations)),
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            bodies = [{"graph": graph, "seed": 1} for graph in graph_corpus()]
            given = hypothesis.given(
                case=operation.as_strategy(),
                reference=strategies.sampled_from(["", "faces", "faces@champion", "digits/1", "digits"]),
                body=strategies.sampled_from([None, None, None, *bodies]),
            )
            hypothesis.seed(seed)(settings(given(probe)))()
    found.seconds, found.grown_mb = time.process_time() - began, _peak_mb() - memory
    found.answers = dict(sorted(answers.items()))
    return found


KINDS: dict[str, Callable[[int, int, Path], Findings]] = {
    "graphs": graphs,
    "headers": headers,
    "checkpoints": checkpoints,
    "openapi": openapi,
}


def run(cells: Cells, inputs: int, requests: int, seed: int) -> None:
    """Measure what is not there yet: a cell is a kind of input."""
    for kind, search in KINDS.items():

        def measure(
            kind: str = kind, search: Callable[[int, int, Path], Findings] = search
        ) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                found = search(requests if kind == "openapi" else inputs, seed, Path(folder))
            return {"seed": seed, **asdict(found)}

        cells.cell(f"fuzz/{kind}", measure)
