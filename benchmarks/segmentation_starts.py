"""The segmentation data sets, and the starts that are trained on them: the prior and joint training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.cells import WEIGHTS, cpu_seconds, data_set
from benchmarks.training import Plan, train
from metainit import load
from metainit.card import Spec
from metainit.domains.base import TaskBatch
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.evidence.controls.base import Setting
from metainit.evidence.controls.joint import joint
from metainit.evidence.curves import Start, weights_of
from metainit.evidence.measuring import held_out
from metainit.initialization import Prior
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks import build
from metainit.networks.normalization import Norm

SEEDS = (0, 1, 2)
ORDINARY = ("default", "kaiming", "orthogonal", "lsuv")
SHOTS, QUERIES = 5, 5
TRAINING_STEPS = {"clothes": 350, "strokes": 500, "synth": 1500}
INNER_STEPS, META_BATCH = 5, 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where networks are trained and adapted."""


def network_spec(norm: Norm = "group") -> Spec:
    """Return the network that all of them share."""
    return Spec(name="unet", arguments={"width": 8, "depth": 5, "norm": norm})


DATA: Mapping[str, tuple[str | None, Mapping[str, Any]]] = MappingProxyType(
    {
        "clothes": (
            "ccp_fashion",
            {
                "label_array": "y",
                "label_names_array": "class_names",
                "train_classes_array": "fewshot_train_classes",
                "test_classes_array": "fewshot_val_classes",
                "height": 96,
                "width": 64,
                "recolour": 0.5,
                "augmentation": {"flips": ("horizontal",)},
            },
        ),
        "strokes": (
            "omniglot_small",
            {
                "source": "strokes",
                "class_array": "y",
                "class_names_array": "class_names",
                "split_array": "split",
                "height": 48,
                "width": 48,
            },
        ),
        "synth": (None, {"source": "synthesised"}),
        "cells": (
            "wbc",
            {
                "label_array": "mask",
                "label_names_array": "mask_names",
                "split_array": "split",
                "split": "images",
            },
        ),
        "membranes": (
            "isbi_em",
            {
                "label_array": "mask",
                "split_array": "split",
                "group_array": "slice",
                "split": "images",
                "fit": "crop",
            },
        ),
        "objects": (
            "eth80",
            {
                "label_array": "mask",
                "class_array": "category",
                "class_names_array": "category_names",
                "split_array": "split",
            },
        ),
    }
)
"""Of each name the folder below METAINIT_DATA, if it needs one, and what the arrays mean."""


@cache
def domain(name: str, shots: int = SHOTS) -> SegmentationDomain:
    """Return a data set's tasks.

    ``clothes``: the garments of street photographs, `fewshot_val_classes` for reporting alone. ``strokes``:
    written characters on clutter; those of two alphabets are for reporting alone. ``synth``: synthesised.
    ``cells`` and ``membranes``: microscopy, split by image and by slice; ``objects``: things on a blue cloth,
    split by category.
    """
    data, rules = DATA[name]
    arguments = rules if data is None else {**rules, "data": data_set(data)}
    return SegmentationDomain(
        SegmentationConfig.model_validate({**arguments, "shots": shots, "queries": QUERIES})
    )


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
    path, facts = train(plan(name, norm), domain(name), seed, device=DEVICE)
    start = load(path)
    assert isinstance(start, Prior)
    filled = start.init_(network_of(norm))
    sizes = {k: v.to(DEVICE) for k, v in start.checkpoint.step_sizes.items()}
    return Start("prior", weights_of(filled), start.card.routine, sizes), facts


def joint_start(name: str, seed: int, norm: Norm = "group") -> tuple[Start, dict[str, Any]]:
    """Return transfer learning's start: as many gradient evaluations as the prior's training had.

    The search of its step size comes on top of that.
    """
    kind = "joint" if norm == "group" else f"joint-{norm}"
    path = WEIGHTS / f"seg-{name}-{kind}-{seed}.safetensors"
    note = path.with_suffix(".json")
    budget = TRAINING_STEPS[name] * META_BATCH * (INNER_STEPS + 1)
    expected = {"budget": budget, "seed": seed, "network": network_spec(norm).model_dump(mode="json")}
    expected["domain"] = domain(name).fingerprint()
    if path.is_file() and note.is_file():
        kept: dict[str, Any] = json.loads(note.read_text())
        if {k: kept.get(k) for k in expected} != expected:
            raise SystemExit(f"{note}: trained otherwise than now asked for: delete {path} to train again")
        return Start("joint", load_file(path, str(DEVICE))), kept
    said: list[str] = []
    begin = cpu_seconds()
    start = joint(Setting(network_of(norm), domain(name), seed=seed, budget=budget, note=said.append))
    facts = {
        **expected,
        "cpu_seconds": round(cpu_seconds() - begin, 1),
        "trained": said[-1],
        "pilots": said[:-1],
    }
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in start.weights.items()}, path)
    note.write_text(json.dumps(facts))
    return start, facts


def network_of(norm: Norm = "group") -> nn.Module:
    """Return the network, whose weights are of no account."""
    return build(network_spec(norm)).to(DEVICE)


def batch_of(name: str, split: Literal["validation", "test"], count: int, shots: int = SHOTS) -> TaskBatch:
    """Return the first held-out tasks of a data set; with more shots the queries stay the same."""
    return held_out(domain(name, shots), split, count).to(DEVICE, torch.float32)
