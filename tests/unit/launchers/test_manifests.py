"""The manifests of the guide against Kubernetes' own schemas, and that of the PyTorchJob."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra dev)")
validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (it comes with the above)")

FOLDER = ROOT / "docs" / "guide" / "kubernetes"
SCHEMA = json.loads(Path(__file__).with_name("pytorchjob.schema.json").read_text())
KUBERNETES = "1.32"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def check_pod(template: dict[str, Any], restart: str) -> None:
    """A template as the pod that it makes."""
    spec = {"restartPolicy": restart, **template["spec"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    validate.validate(pod, KUBERNETES, strict=True)


def test_the_pytorch_job() -> None:
    [job] = documents("pytorchjob.yaml")
    jsonschema.validate(job, SCHEMA)
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        check_pod(replica["template"], replica["restartPolicy"])
        [container] = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
    pods = sum(r["replicas"] for r in job["spec"]["pytorchReplicaSpecs"].values())
    assert container["command"][4] == str(pods * int(job["spec"]["nprocPerNode"]))


def test_the_job_without_an_operator() -> None:
    service, job = documents("job.yaml")
    for found in (service, job):
        validate.validate(found, KUBERNETES, strict=True)
    pod = job["spec"]["template"]
    check_pod(pod, "Never")
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    line = pod["spec"]["containers"][0]["command"][2]
    assert f"--nnodes {job['spec']['completions']} --nproc-per-node 8" in line
    assert f"dsmoe run {job['spec']['completions'] * 8} " in line


@pytest.mark.parametrize("wrong", ["spec", "replica", "pod"])
def test_a_mistake_is_found(wrong: str) -> None:
    [job] = copy.deepcopy(documents("pytorchjob.yaml"))
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    place = {"spec": job["spec"], "replica": worker, "pod": worker["template"]["spec"]}[wrong]
    place["containres"] = []
    with pytest.raises((jsonschema.ValidationError, validate.ValidationError)):
        jsonschema.validate(job, SCHEMA)
        check_pod(worker["template"], "Never")
