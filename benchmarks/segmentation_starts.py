"""The segmentation data sets, and the starts that are trained on them: the prior and joint training."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.cells import WEIGHTS, cpu_seconds, data_set
from benchmarks.training import Plan, train
from metainit import load
from metainit.card import Spec
from metainit.domains.augmentation import AugmentationConfig
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.evidence.controls.base import Setting
from metainit.evidence.controls.joint import joint
from metainit.evidence.curves import Start, weights_of
from metainit.initialization import Prior
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks import build
from metainit.networks.normalization import Norm

SEEDS = (0, 1, 2)
SHOTS, QUERIES = 5, 5
TRAINING_STEPS = {"clothes": 350, "strokes": 500, "synth": 1500}
INNER_STEPS, META_BATCH = 5, 4


def network_spec(norm: Norm = "group") -> Spec:
    """Return the network that all of them share."""
    return Spec(name="unet", arguments={"width": 8, "depth": 5, "norm": norm})


@cache
def domain(name: str, shots: int = SHOTS) -> SegmentationDomain:
    """Return a data set's tasks.

    ``clothes``: the garments of street photographs, `fewshot_val_classes` for reporting alone. ``strokes``:
    written characters on clutter; those of two alphabets are for reporting alone. ``synth``: synthesised.
    ``cells`` and ``membranes``: microscopy, split by image and by slice; ``objects``: things on a blue cloth,
    split by category.
    """
    extra: dict[str, Any]
    if name == "clothes":
        extra = {
            "data": data_set("ccp_fashion"),
            "label_array": "y",
            "label_names_array": "class_names",
            "train_classes_array": "fewshot_train_classes",
            "test_classes_array": "fewshot_val_classes",
            "height": 96,
            "width": 64,
            "recolour": 0.5,
            "augmentation": AugmentationConfig(flips=("horizontal",)),
        }
    elif name == "strokes":
        extra = {
            "source": "strokes",
            "data": data_set("omniglot_small"),
            "class_array": "y",
            "class_names_array": "class_names",
            "split_array": "split",
            "height": 48,
            "width": 48,
        }
    elif name == "synth":
        extra = {"source": "synthesised"}
    elif name == "cells":
        extra = {
            "data": data_set("wbc"),
            "label_array": "mask",
            "label_names_array": "mask_names",
            "split_array": "split",
            "split": "images",
        }
    elif name == "membranes":
        extra = {
            "data": data_set("isbi_em"),
            "label_array": "mask",
            "split_array": "split",
            "group_array": "slice",
            "split": "images",
            "fit": "crop",
        }
    else:
        extra = {
            "data": data_set("eth80"),
            "label_array": "mask",
            "class_array": "category",
            "class_names_array": "category_names",
            "split_array": "split",
        }
    return SegmentationDomain(SegmentationConfig(shots=shots, queries=QUERIES, **extra))


def plan(name: str, norm: Norm = "group") -> Plan:
    """Return what the prior is trained with."""
    return Plan(
        name=f"seg-{name}" if norm == "group" else f"seg-{name}-{norm}",
        network=network_spec(norm),
        algorithm=AlgorithmConfig(
            rule="meta_sgd",
            order=1,
            inner_steps=INNER_STEPS,
            inner_step_size=0.02,
            step_sizes="tensor",
            execution="loop",
        ),
        outer=OuterConfig(steps=TRAINING_STEPS[name], meta_batch=META_BATCH, step_size=2e-3, averaging=0.99),
        start="default",
    )


def prior_start(name: str, seed: int, norm: Norm = "group") -> tuple[Start, dict[str, Any]]:
    """Return the prior of one seed, and what its training cost; trains it where that is still to do."""
    path, facts = train(plan(name, norm), domain(name), seed)
    start = load(path)
    assert isinstance(start, Prior)
    filled = start.init_(build(network_spec(norm)))
    return Start("prior", weights_of(filled), start.card.routine, start.checkpoint.step_sizes), facts


def joint_start(name: str, seed: int) -> tuple[Start, dict[str, Any]]:
    """Return transfer learning's start: as many gradient evaluations as the prior's training had.

    The search of its step size comes on top of that.
    """
    path, note = WEIGHTS / f"seg-{name}-joint-{seed}.safetensors", WEIGHTS / f"seg-{name}-joint-{seed}.json"
    budget = TRAINING_STEPS[name] * META_BATCH * (INNER_STEPS + 1)
    expected = {"budget": budget, "seed": seed, "network": network_spec().model_dump(mode="json")}
    expected["domain"] = domain(name).fingerprint()
    if path.is_file() and note.is_file():
        kept: dict[str, Any] = json.loads(note.read_text())
        if {k: kept.get(k) for k in expected} != expected:
            raise SystemExit(f"{note}: trained otherwise than now asked for: delete {path} to train again")
        return Start("joint", load_file(path)), kept
    said: list[str] = []
    begin = cpu_seconds()
    start = joint(Setting(build(network_spec()), domain(name), seed=seed, budget=budget, note=said.append))
    facts = {
        **expected,
        "cpu_seconds": round(cpu_seconds() - begin, 1),
        "trained": said[-1],
        "pilots": said[:-1],
    }
    _save(path, start)
    note.write_text(json.dumps(facts))
    return start, facts


def _save(path: Path, start: Start) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in start.weights.items()}, path)


ORDINARY: tuple[Literal["default", "kaiming", "orthogonal", "lsuv"], ...] = (
    "default", "kaiming", "orthogonal", "lsuv"
)  # fmt: skip


def network_of(norm: Norm = "group") -> nn.Module:
    """Return the network, whose weights are of no account."""
    return copy.deepcopy(build(network_spec(norm)))


def batch_of(name: str, split: Literal["validation", "test"], count: int, shots: int = SHOTS) -> Any:
    """Return the first held-out tasks of a data set; with more shots the queries stay the same."""
    from metainit.evidence.measuring import held_out

    return held_out(domain(name, shots), split, count)


torch.set_num_threads(1)
