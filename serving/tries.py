"""Live fits under way: how many there may be, who watches them, and what they have sent so far."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from metainit.errors import EndpointError
from serving.cache import Entry
from serving.catalog import Missing
from serving.predictions import Predictions

if TYPE_CHECKING:
    from serving.trying import Trial

LOGGER = logging.getLogger("metainit.serving")
SAMPLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "chelsea": ("chelsea.png", "a cat"),
        "coffee": ("coffee.png", "a cup of coffee"),
        "rocket": ("rocket.jpg", "a rocket launch"),
        "cell": ("cell.png", "a cell"),
        "page": ("page.png", "a printed page"),
    }
)
"""Pictures of scikit-image that no bundled prior has learned from: name -> file and what it shows."""


class Untriable(EndpointError):
    """The initialization exists, but is none that images can be fitted from here."""


class BadImage(EndpointError):
    """What was sent is no image that can be fitted."""


class TooManyTries(EndpointError):
    """Too many live fits wait already."""


class Stopped(EndpointError):
    """Nobody wants the fit any more."""


@dataclass(frozen=True)
class TryLimits:
    """What a live fit may cost.

    `body_bytes` and `pixels` of the image that is sent, `side` of what is fitted, `parameters` of the
    network, `steps` and `seconds` of a fit, `waiting` fits at once (one is computed, the others wait), `kept`
    fits that have ended and can still be asked for, `patience`: seconds that a fit goes on with nobody
    watching.
    """

    body_bytes: int = 8 << 20
    pixels: int = 16_000_000
    side: int = 256
    parameters: int = 2_000_000
    steps: int = 200
    seconds: float = 30.0
    waiting: int = 4
    kept: int = 16
    patience: float = 5.0


def sample_file(name: str) -> Path:
    """Return the file of a sample.

    Raises:
        Missing: there is no such sample.
    """
    import skimage

    if name not in SAMPLES:
        raise Missing(f"there is no sample {name!r}; there are: {', '.join(SAMPLES)}")
    return Path(skimage.__file__).parent / "data" / SAMPLES[name][0]


@dataclass
class Try:
    """A live fit: what it has sent so far, how it stands, and how many watch it."""

    id: str
    reference: str
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    state: str = "waiting"
    error: Exception | None = None
    watchers: int = 0
    unwanted: threading.Event = field(default_factory=threading.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")

    def add(self, name: str, value: dict[str, Any]) -> None:
        """Append an event and wake those who watch; called in the event loop."""
        self.events.append((name, value))
        self.wake()

    def wake(self) -> None:
        """Wake those who watch."""
        self.changed.set()
        self.changed = asyncio.Event()


class Tries:
    """Runs live fits one after the other in a thread of its own, and keeps what they made."""

    def __init__(self, kept: Predictions, limits: TryLimits | None = None) -> None:
        """Keep fitted weights among the predictions; no thread runs before the first fit."""
        self.limits = limits or TryLimits()
        self._kept = kept
        self._tries: OrderedDict[str, Try] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, entry: Entry, trial: Trial) -> Try:
        """Begin a fit, or queue it.

        Raises:
            TooManyTries: too many are under way.
        """
        under_way = sum(not one.over for one in self._tries.values())
        if under_way >= self.limits.waiting:
            raise TooManyTries(f"{under_way} live fits are under way; try again in a moment")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "metainit-try", _one_thread)
        one = Try(secrets.token_hex(12), entry.facts.reference)
        self._tries[one.id] = one
        self._forget_old()
        loop = asyncio.get_running_loop()
        self._pool.submit(self._run, one, entry.facts.sha256, trial, loop)
        loop.call_later(2 * self.limits.patience, self._look_after, one)
        return one

    def find(self, identity: str) -> Try:
        """Return a fit.

        Raises:
            Missing: there is none of this name, or it ended long ago.
        """
        if identity not in self._tries:
            raise Missing(
                f"there is no live fit {identity!r} here: it may have ended long ago; start another"
            )
        return self._tries[identity]

    def stop(self, one: Try) -> None:
        """Make a fit end at its next step."""
        one.unwanted.set()

    async def watch(self, one: Try, after: int = 0) -> AsyncGenerator[tuple[int, str, dict[str, Any]]]:
        """Iterate over the events of a fit from number `after` on, until it is over.

        A fit that nobody watches any more is stopped after a while.
        """
        one.watchers += 1
        try:
            while True:
                changed = one.changed
                for number in range(after, len(one.events)):
                    yield (number + 1, *one.events[number])
                    after = number + 1
                if one.over and after >= len(one.events):
                    return
                if changed is one.changed:
                    await changed.wait()
        finally:
            one.watchers -= 1
            if one.watchers == 0 and not one.over:
                asyncio.get_running_loop().call_later(self.limits.patience, self._look_after, one)

    def close(self) -> None:
        """Stop all fits; waits for the step that is under way."""
        for one in self._tries.values():
            one.unwanted.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _look_after(self, one: Try) -> None:
        if one.watchers == 0:
            one.unwanted.set()

    def _forget_old(self) -> None:
        over = [name for name, one in self._tries.items() if one.over]
        for name in over[: max(0, len(over) - self.limits.kept)]:
            del self._tries[name]

    def _run(self, one: Try, sha256: str, trial: Trial, loop: asyncio.AbstractEventLoop) -> None:
        """Compute a fit; runs in the thread."""

        def tell(state: str, error: Exception | None, *events: tuple[str, dict[str, Any]]) -> None:
            def change() -> None:
                one.state, one.error = state, error
                one.events.extend(events)
                one.wake()

            # A loop that was closed meanwhile has nobody to tell.
            if not loop.is_closed():
                loop.call_soon_threadsafe(change)

        try:
            from serving.trying import Begun, Ended, fit_live

            for event in fit_live(trial, self.limits, lambda: not one.unwanted.is_set()):
                if isinstance(event, Ended):
                    tell("done", None, ("end", self._keep(event, sha256, trial)))
                else:
                    name = "begin" if isinstance(event, Begun) else "frame"
                    tell("running", None, (name, asdict(event)))
        except Stopped as error:
            tell("stopped", error)
        except Exception as error:  # whatever it is, those who watch have to hear of it
            tell("failed", error)

    def _keep(self, ended: Any, sha256: str, trial: Trial) -> dict[str, Any]:
        image = hashlib.sha256(trial.pixels.tobytes()).hexdigest()
        weights = {}
        for side, content in ended.weights.items():
            text = json.dumps([sha256, image, side, ended.steps, trial.seed, "live"])
            kept = self._kept.keep(hashlib.sha256(text.encode()).hexdigest(), content)
            weights[side] = {"sha256": kept.sha256, "size": kept.size}
        value = {k: getattr(ended, k) for k in ("psnr", "steps", "own_psnr", "level_at", "said")}
        return {**value, "weights": weights}


def _one_thread() -> None:
    """Keep torch from taking the cores that answer requests."""
    import torch

    torch.set_num_threads(1)
