"""The Kubernetes manifests, by the schemas of Kubernetes' API that are kept beside them."""

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sdpo.config.load import make_config

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def _script() -> ModuleType:
    found = importlib.util.spec_from_file_location("validate", DOCKER / "validate.py")
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    return script


VALIDATE = _script()
SCHEMAS: dict[str, Any] = json.loads(VALIDATE.SCHEMAS.read_text(encoding="utf-8"))
DOCUMENTS: list[tuple[str, dict[str, Any]]] = list(VALIDATE.documents())


def worker() -> dict[str, Any]:
    (found,) = [each for name, each in DOCUMENTS if (name, each["kind"]) == WORKER]
    return copy.deepcopy(found)


WORKER = ("worker.yaml", "Deployment")


def test_there_are_manifests_of_each_file_and_the_job_of_the_pool() -> None:
    assert {name for name, _ in DOCUMENTS} == {
        "kubernetes-work-pool.json",
        *(path.name for path in (DOCKER / "kubernetes").glob("*.yaml")),
    }


@pytest.mark.parametrize("place", range(len(DOCUMENTS)))
def test_a_manifest_is_valid(place: int) -> None:
    name, document = DOCUMENTS[place]
    assert VALIDATE.fault(document, SCHEMAS) == "", name


def jobset() -> dict[str, Any]:
    (found,) = [each for name, each in DOCUMENTS if name == "jobset.yaml"]
    return copy.deepcopy(found)


def jobs(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The jobs of a JobSet by their name."""
    return {each["name"]: each["template"]["spec"] for each in document["spec"]["replicatedJobs"]}


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda d: d["spec"].update(failurePolicies={}), "$.spec: "),
        (lambda d: d["spec"]["replicatedJobs"][0].pop("name"), "$.spec.replicatedJobs[0]: "),
        (
            lambda d: jobs(d)["nodes"].update(parallelism="two"),
            "$.spec.replicatedJobs[1].template.spec.parallelism: ",
        ),
        (
            lambda d: jobs(d)["chain"]["template"]["spec"].update(container=[]),
            "$.spec.replicatedJobs[0].template.spec.template.spec: ",
        ),
    ],
    ids=["a misspelled field", "no name", "another type", "deep inside"],
)
def test_a_mistake_in_the_jobset_is_named_with_its_place(
    spoil: Callable[[dict[str, Any]], Any], where: str
) -> None:
    document = jobset()
    spoil(document)
    assert VALIDATE.fault(document, SCHEMAS).startswith(where)


def test_the_pods_of_the_jobset_are_the_nodes_that_its_run_waits_for() -> None:
    document = jobset()
    name, chain, nodes = (
        document["metadata"]["name"],
        jobs(document)["chain"],
        jobs(document)["nodes"],
    )
    containers = [job["template"]["spec"]["containers"][0] for job in (chain, nodes)]
    for container in containers:
        variables = {each["name"]: each["value"] for each in container["env"]}
        # A pod is called JOBSET-JOB-INDEX-POD, in the domain of the JobSet's name.
        assert variables["MASTER_ADDR"] == f"{name}-chain-0-0.{name}"
    assert chain["completionMode"] == nodes["completionMode"] == "Indexed", "else it has no name"
    settings = [arg.removeprefix("--set=") for arg in containers[0]["args"] if "--set=" in arg]
    launch = make_config(
        {"name": "x", "model": {"name_or_path": "x"}, "data": {"sources": [{"path": "x"}]}},
        overrides=settings,
    ).launch
    assert launch.launcher == "torchrun"
    assert launch.nodes == chain["parallelism"] + nodes["parallelism"]
    for container in containers:
        assert container["resources"]["limits"]["nvidia.com/gpu"] == launch.per_node
    assert containers[1]["args"] == ["sdpo", "node", "join"]


def _pod(document: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = document["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda d: d["spec"].update(replica=1), "$.spec: "),
        (lambda d: d["spec"].update(replicas="one"), "$.spec.replicas: "),
        (lambda d: d["spec"].pop("selector"), "$.spec: "),
        (lambda d: _pod(d)["containers"][0].pop("name"), "$.spec.template.spec.containers[0]: "),
        (
            lambda d: _pod(d)["containers"][0].update(securityContexts={}),
            "$.spec.template.spec.containers[0]: ",
        ),
        (lambda d: d.update(kind="DaemonSet"), "there is no schema of apps/v1 DaemonSet"),
    ],
    ids=["a misspelled field", "another type", "no selector", "no name", "deep inside", "a kind"],
)
def test_a_mistake_in_a_manifest_is_named_with_its_place(
    spoil: Callable[[dict[str, Any]], Any], where: str
) -> None:
    document = worker()
    spoil(document)
    assert VALIDATE.fault(document, SCHEMAS).startswith(where)
