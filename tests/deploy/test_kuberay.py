"""The manifests: the shape that KubeRay takes, what they refer to, and what Ray Serve makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from metainit import __version__
from pipelines.recipe import load_recipe, read_recipe
from serving.app import create_app
from serving.arguments import Arguments
from serving.haproxy import fast_path
from serving.store import Store
from tests.serving.shelf import Shelf

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
Value = dict[str, Any]


@cache
def validator() -> Draft202012Validator:
    schema = json.loads((FOLDER / "schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@cache
def documents() -> tuple[Value, ...]:
    """Return every document of the folder."""
    return tuple(d for f in sorted(FOLDER.glob("*.yaml")) for d in yaml.safe_load_all(f.read_text()))


def of_kind(kind: str) -> Value:
    (found,) = [d for d in documents() if d["kind"] == kind]
    return found


def clusters() -> Iterator[Value]:
    yield of_kind("RayJob")["spec"]["rayClusterSpec"]
    yield of_kind("RayService")["spec"]["rayClusterConfig"]


def pods(cluster: Value) -> Iterator[Value]:
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]


def errors(document: Value) -> str:
    branch = "RayJob" if document["kind"] == "RayJob" else "RayService"
    narrowed = validator().evolve(schema={**validator().schema, "oneOf": [{"$ref": f"#/$defs/{branch}"}]})
    found = sorted(narrowed.iter_errors(document), key=lambda e: list(map(str, e.absolute_path)))
    return "\n".join(
        f"{list(inner.absolute_path)}: {inner.message}" for e in found for inner in (e.context or [e])
    )


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_the_manifests_fit_the_schema(kind: str) -> None:
    assert errors(of_kind(kind)) == ""


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("RayJob", "spec.entrypiont", "x", "entrypiont"),
        ("RayJob", "spec.backoffLimit", "2", "not of type 'integer'"),
        ("RayJob", "spec.rayClusterSpec.authOptions.mode", "disabled", "'token' was expected"),
        ("RayService", "spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", -1, "minimum"),
        ("RayService", "spec.rayClusterConfig.headGroupSpec.template.spec.securityContext", {}, "required"),
        (
            "RayService",
            "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.image",
            "metainit:latest",
            "match",
        ),
    ],
)
def test_the_schema_refuses(kind: str, path: str, value: Any, says: str) -> None:
    document = json.loads(json.dumps(of_kind(kind)))
    *where, last = path.split(".")
    at: Any = document
    for part in where:
        at = at[int(part)] if part.isdigit() else at[part]
    at[last] = value
    assert says in errors(document)


@pytest.mark.parametrize("cluster", [*clusters()], ids=["job", "service"])
def test_every_mount_has_its_volume_and_every_writable_folder_is_one(cluster: Value) -> None:
    claims = {d["metadata"]["name"] for d in documents() if d["kind"] == "PersistentVolumeClaim"}
    maps = {d["metadata"]["name"] for d in documents() if d["kind"] == "ConfigMap"}
    secrets = {d["metadata"]["name"] for d in documents() if d["kind"] == "Secret"}
    for pod in pods(cluster):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        said = {e["name"]: e["value"] for e in container["env"]}
        written = {said[name] for name in ("METAINIT_HOME", "METAINIT_CACHE") if name in said}
        assert "METAINIT_HOME" in said and {*written, "/tmp", "/dev/shm"} <= set(mounts)
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            assert volume.get("configMap", {}).get("name") in {None, *maps}
            assert volume.get("secret", {}).get("secretName") in {None, *secrets}
        assert all(source["secretRef"]["name"] in secrets for source in container["envFrom"])
        assert "MLFLOW_TRACKING_URI" in of_secret("metainit-registry")["stringData"]


def test_no_pod_is_told_of_services_whose_variables_look_like_settings() -> None:
    every = [pod for cluster in clusters() for pod in pods(cluster)]
    every.append(of_kind("RayJob")["spec"]["submitterPodTemplate"]["spec"])
    assert all(pod["enableServiceLinks"] is False for pod in every)


def test_the_endpoints_pods_take_the_fast_path_and_its_limit_lets_a_large_file_through() -> None:
    service = of_kind("RayService")["spec"]
    fast = fast_path("/bin/true")
    try:
        chosen = {name: fast.environment[name] for name in (
            "RAY_SERVE_ENABLE_HA_PROXY",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS",
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
        )}  # fmt: skip
    finally:
        fast.remove()
    for pod in pods(service["rayClusterConfig"]):
        has = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert chosen.items() <= has.items()
    assert yaml.safe_load(service["serveConfigV2"])["http_options"]["request_timeout_s"] >= 3600


def of_secret(name: str) -> Value:
    (found,) = [d for d in documents() if d["kind"] == "Secret" and d["metadata"]["name"] == name]
    return found


def test_the_versions_are_those_of_the_package_and_of_ray() -> None:
    text = "".join(f.read_text() for f in FOLDER.glob("ray*.yaml"))
    assert set(re.findall(r"image: \S+:(\S+)", text)) == {__version__}
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and {cluster["rayVersion"] for cluster in clusters()} == {pinned[1]}


def test_the_job_trains_a_valid_recipe_that_its_workers_have_room_for() -> None:
    job = of_kind("RayJob")["spec"]
    recipe = read_recipe(yaml.safe_load(of_kind("ConfigMap")["data"]["recipe.yaml"]))
    assert job["entrypoint"].split()[:2] == ["metainit", "train"]
    (mount,) = {
        m["mountPath"] for p in pods(job["rayClusterSpec"]) for m in p["containers"][0]["volumeMounts"]
        if m["name"] == "recipe"
    }  # fmt: skip
    assert job["entrypoint"].split()[2] == f"{mount}/recipe.yaml"
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert recipe.cpus is not None and recipe.cpus <= cpus and group["maxReplicas"] > recipe.workers
    shipped = load_recipe("ct-phantoms", ["workers=2", "cpus=2", "checkpoint_every=50"])
    assert recipe.determining() == shipped.determining()


def test_serve_takes_the_config_and_the_application_its_arguments() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = of_kind("RayService")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = config.applications
    arguments = Arguments.model_validate(application.args)
    endpoint, predictor, generator = application.deployments
    groups = {group["groupName"]: group for group in service["rayClusterConfig"]["workerGroupSpecs"]}
    assert endpoint.num_replicas == arguments.settings.replicas == groups["endpoint"]["replicas"]
    assert arguments.predictors == groups["predictors"]["maxReplicas"]
    for deployment, group in (
        (endpoint, groups["endpoint"]),
        (predictor, groups["predictors"]),
        (generator, groups["predictors"]),
    ):
        asked = deployment.ray_actor_options.resources
        # KubeRay hands the value to a shell, within quotes of its own.
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert asked == offered
    store = {m["mountPath"] for m in groups["endpoint"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert arguments.cache is not None and str(arguments.cache.parent) in store


def test_the_probes_ask_routes_that_exist(tmp_path: Path) -> None:
    app = create_app(Store(Shelf(tmp_path / "registry"), tmp_path / "store", poll=3600.0))
    routes = set(app.openapi()["paths"])
    (group, _) = of_kind("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    kinds = ("startupProbe", "livenessProbe", "readinessProbe")
    probes = {kind: container[kind]["httpGet"] for kind in kinds}
    assert {p["path"] for p in probes.values()} == {"/healthz", "/readyz"} <= routes
    assert {p["port"] for p in probes.values()} == {container["ports"][0]["containerPort"]}


def test_the_kustomization_names_files_that_exist() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert all((FOLDER / name).is_file() for name in kustomization["resources"])
    assert "secrets.example.yaml" not in kustomization["resources"]
