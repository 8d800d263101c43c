"""The manifests of deploy/kubernetes as plain values, read as kustomize would put them together."""

import re
from pathlib import Path
from typing import Any

import pytest

yaml: Any = pytest.importorskip("yaml", reason="no PyYAML (package python3-yaml): the manifests cannot be read")

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FOLDER = _DEPLOY / "kubernetes"

#: One YAML document.
Document = dict[str, Any]


def document(name: str) -> Document:
    """The one document of a file below deploy/kubernetes. Raises AssertionError where it holds another number."""
    (found,) = yaml.safe_load_all((FOLDER / name).read_text())
    assert isinstance(found, dict), name
    return found


def config_maps(kustomization: str = "kustomization.yaml") -> dict[str, dict[str, str]]:
    """What the generators of a kustomization make: the files' content by ConfigMap and key."""
    folder = (FOLDER / kustomization).parent
    return {
        generator["name"]: {Path(name).name: (folder / name).read_text() for name in generator["files"]}
        for generator in document(kustomization)["configMapGenerator"]
    }


def pod_of_daemon() -> Document:
    """The pod of the DaemonSet: its `spec`."""
    spec: Document = document("daemonset.yaml")["spec"]["template"]["spec"]
    return spec


def pod_of_example() -> Document:
    """The example application's pod: its `spec`."""
    spec: Document = document("example/pod.yaml")["spec"]
    return spec


def gid_of_image() -> int:
    """The number of the group qos2 in the daemon's image."""
    (gid,) = re.findall(r"^ARG QOS2_GID=(\d+)$", (_DEPLOY / "container" / "Containerfile").read_text(), re.MULTILINE)
    return int(gid)
