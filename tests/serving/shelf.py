"""A registry in memory, and a store over it: what the serving tests stand on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Method, Provenance, Spec
from metainit.errors import RegistryError
from metainit.transfer import file_sha256

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


@dataclass(frozen=True)
class Version:
    name: str
    version: int
    aliases: tuple[str, ...]
    sha256: str
    size: int
    kind: str = "prior"
    method: str = "reptile"
    network: str | None = "siren"
    headline: dict[str, Any] | None = None
    run_id: str | None = "run"
    tags: dict[str, str] = field(default_factory=dict)


class Shelf:
    """Versions in a folder; `gone` makes every call fail as an unreachable registry does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aliases: dict[str, dict[str, int]] = {}
        self.files: dict[str, dict[int, Path]] = {}
        self.digests: dict[Path, str] = {}
        self.cards: dict[Path, Card] = {}
        self.gone = False
        self.downloads = 0

    def add(self, name: str, seed: int, *aliases: str, elements: int = 64) -> str:
        """Register a new version and return its SHA-256."""
        number = len(self.files.setdefault(name, {})) + 1
        generator = torch.Generator().manual_seed(seed)
        card = Card(
            kind="prior",
            name=name,
            method=Method(name="reptile"),
            network=Spec(name="siren", arguments={"width": 8}),
            routine=AdaptationRoutine(steps=2, step_size=0.01),
        )
        tensors = {"layers.0.weight": torch.randn(elements, generator=generator)}
        return self._put(name, number, tensors, card, aliases)

    def add_hypernetwork(self, name: str, seed: int, *aliases: str) -> str:
        """Register a new version that is a small, untrained hypernetwork, and return its SHA-256."""
        from hypernets.ghn.config import GhnConfig
        from hypernets.ghn.model import Ghn

        config = GhnConfig(width=16, heads=2, layers=1, block=4, kernel=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tensors = Ghn(config).state_dict()
        recipe = {"hypernetwork": config.model_dump(mode="json")}
        card = Card(kind="ghn", name=name, method=Method(name="ghn"), provenance=Provenance(recipe=recipe))
        return self._put(name, len(self.files.setdefault(name, {})) + 1, tensors, card, aliases)

    def add_generator(self, name: str, seed: int, *aliases: str) -> str:
        """Register a new version that is a small, untrained generator of Siren networks."""
        from hypernets.generator.checkpoints import Base, described_card, generator_tensors
        from hypernets.generator.config import ConditionConfig, GeneratorConfig
        from hypernets.generator.model import Generator
        from metainit.networks import build

        conditions = ConditionConfig(classes=3, class_names=("ring", "square", "star"), observation=(2, 4))
        config = GeneratorConfig(
            conditions=conditions, width=16, depth=1, embedding=8, mean_width=8, mean_depth=1, sketch=8
        )
        spec = Spec(name="siren", arguments={"in_features": 1, "out_features": 1, "width": 4, "depth": 2})
        base = Base.of(build(spec, seed=seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(config, base.layout, base.layers, members=4)
            for parameter in generator.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        generator.unit.deviation.fill_(0.01)
        routine = AdaptationRoutine(steps=2, step_size=0.01)
        plain = Card(
            kind="generator", name=name, method=Method(name="diffusion"), network=spec, routine=routine
        )
        tensors = generator_tensors(generator.state_dict(), base)
        number = len(self.files.setdefault(name, {})) + 1
        return self._put(name, number, tensors, described_card(plain, config, base), aliases)

    def add_published(self, name: str, *aliases: str) -> str:
        """Register a new version that is a small GHN-3, and return its SHA-256."""
        from hypernets.ghn.ghn3_checkpoint import to_checkpoint
        from hypernets.ghn.ghn3_config import Ghn3Config
        from hypernets.ghn.ghn3_network import Ghn3

        config = Ghn3Config(hidden=8, layers=1, heads=2, channels=8, kernel=11, classes=10)
        path = self.folder / "published.safetensors"
        stored = to_checkpoint(config, Ghn3(config).state_dict(), path, name, "a file of ours")
        number = len(self.files.setdefault(name, {})) + 1
        return self._put(name, number, dict(stored.tensors), stored.card, aliases)

    def _put(
        self, name: str, number: int, tensors: dict[str, torch.Tensor], card: Card, aliases: tuple[str, ...]
    ) -> str:
        folder = self.folder / name / str(number)
        path = folder / "checkpoint.safetensors"
        checkpoint.save(path, tensors, card)
        (folder / "evidence.json").write_text(json.dumps({"metric": "psnr", "steps": [0, 2]}))
        (folder / "recipe.yaml").write_text(f"name: {name}\n")
        (folder / "pictures").mkdir()
        (folder / "pictures" / "steps.png").write_bytes(PNG)
        self.files[name][number] = path
        self.digests[path] = file_sha256(path)
        self.cards[path] = card
        for alias in aliases:
            self.point(name, alias, number)
        return self.digests[path]

    def point(self, name: str, alias: str, number: int) -> None:
        self.aliases.setdefault(name, {})[alias] = number

    def _version(self, name: str, number: int) -> Version:
        path = self.files[name][number]
        meant = tuple(a for a, v in self.aliases.get(name, {}).items() if v == number)
        size = path.stat().st_size
        kind, method = self.cards[path].kind, self.cards[path].method.name
        return Version(name, number, meant, self.digests[path], size, kind, method, headline={"psnr": 30.0})

    def _reach(self) -> None:
        if self.gone:
            raise RegistryError("the registry does not answer")

    def names(self) -> list[str]:
        self._reach()
        return sorted(self.files)

    def versions(self, name: str) -> list[Version]:
        self._reach()
        return [self._version(name, number) for number in sorted(self.files[name], reverse=True)]

    def resolve(self, reference: str) -> Version:
        self._reach()
        name, number = reference.split("/")
        return self._version(name, int(number))

    def download(self, version: Version, folder: Path) -> Path:
        self._reach()
        self.downloads += 1
        source = self.files[version.name][version.version].parent
        for path in source.rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return folder
