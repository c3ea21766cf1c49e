"""What the comparison with KubeRay's CRDs finds, on a CRD of three keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks.kuberay_schema import misfits, specification, unknown

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["entrypoint"],
    "properties": {
        "entrypoint": {"type": "string"},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "free": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
    },
}


def crd(folder: Path) -> Path:
    whole = {"properties": {"spec": SPEC}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": whole}}
    file = folder / "crd.yaml"
    file.write_text(yaml.safe_dump({"spec": {"versions": [version, {"name": "v1alpha1"}]}}))
    return file


def test_a_manifest_is_held_against_the_crd(tmp_path: Path) -> None:
    schema = specification(crd(tmp_path))
    assert misfits({"spec": {"entrypoint": "x", "port": "http", "free": {"anything": 1}}}, schema) == []
    (missing,) = misfits({"spec": {"port": 8000}}, schema)
    assert "'entrypoint' is a required property" in missing
    (unnamed,) = misfits({"spec": {"entrypoint": "x", "entrypiont": "x"}}, schema)
    assert "entrypiont" in unnamed
    (kind,) = misfits({"spec": {"entrypoint": 1}}, schema)
    assert kind == "entrypoint: 1 is not of type 'string'"


def test_a_key_of_ours_that_the_crd_does_not_know_is_named(tmp_path: Path) -> None:
    schema = specification(crd(tmp_path))
    own = {"properties": {"entrypoint": {}, "free": {"properties": {"x": {}}}, "part": {"$ref": "#/$defs/p"}}}
    assert list(unknown(own, schema, {"p": {"properties": {"y": {}}}}, "spec")) == ["spec.part"]
