"""Hold the manifests in deploy/kuberay, and the schema kept with them, against KubeRay's own CRDs.

    python -m benchmarks.kuberay_schema FOLDER

FOLDER holds ray.io_rayjobs.yaml and ray.io_rayservices.yaml, as in ray-operator/config/crd/bases of
github.com/ray-project/kuberay (Apache-2.0). Nothing is written. The exit status is 1 where something
does not fit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[1] / "deploy" / "kuberay"
VERSION = "v1"
FREE = "x-kubernetes-preserve-unknown-fields"
MANIFESTS = {"RayJob": "rayjob.yaml", "RayService": "rayservice.yaml"}
DEFINITIONS = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}


def closed(schema: Any) -> Any:
    """Return a CRD's schema as JSON schema that refuses keys it does not name, as the API server does.

    Example:
        >>> closed({'type': 'object', 'properties': {'a': {'type': 'string'}}})['additionalProperties']
        False
        >>> closed({'x-kubernetes-int-or-string': True})['type']
        ['integer', 'string']
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        found["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
        if not schema.get(FREE):
            found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


def specification(file: Path) -> Any:
    """Return the schema of the `spec` of one CRD."""
    definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == VERSION]
    return closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def misfits(manifest: Mapping[str, Any], schema: Any) -> list[str]:
    """Return what the API server would refuse in a manifest."""
    found = Draft202012Validator(schema).iter_errors(manifest["spec"])
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def unknown(own: Mapping[str, Any], theirs: Any, definitions: Mapping[str, Any], at: str) -> Iterator[str]:
    """Yield the keys of our schema that a CRD does not know."""
    if "$ref" in own:
        own = definitions[own["$ref"].rpartition("/")[2]]
    if not isinstance(theirs, Mapping):
        return
    for key, value in own.get("properties", {}).items():
        there = theirs.get("properties", {})
        if key in there:
            yield from unknown(value, there[key], definitions, f"{at}.{key}")
        elif not (theirs.get(FREE) or "additionalProperties" in theirs and theirs["additionalProperties"]):
            yield f"{at}.{key}"
    if "items" in own:
        yield from unknown(own["items"], theirs.get("items"), definitions, f"{at}[]")


def compare(folder: Path) -> dict[str, list[str]]:
    """Return what does not fit, for the manifests and for the schema kept with them."""
    own = json.loads((FOLDER / "schema.json").read_text())["$defs"]
    report: dict[str, list[str]] = {}
    for kind, file in MANIFESTS.items():
        schema = specification(folder / DEFINITIONS[kind])
        documents = yaml.safe_load_all((FOLDER / file).read_text())
        (manifest,) = [document for document in documents if document["kind"] == kind]
        report[file] = misfits(manifest, schema)
        report[f"schema.json, {kind}"] = list(unknown(own[kind]["properties"]["spec"], schema, own, "spec"))
    return report


def main() -> None:
    """Compare and say what does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where KubeRay's CRDs lie")
    report = compare(parser.parse_args().folder)
    for name, found in report.items():
        print(f"{name}: {'fits' if not found else ''}")
        for line in found:
            print(f"  {line}")
    sys.exit(any(report.values()))


if __name__ == "__main__":
    main()
