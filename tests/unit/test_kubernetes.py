"""The manifests of deploy/kubernetes: whole in themselves, and of one mind with the daemon, its unit and its image.

No cluster and no kubectl; what they do when they run is tests/datapath/test_pods.py's matter.
"""

import re
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from harness.manifests import (
    FOLDER,
    Document,
    config_maps,
    document,
    gid_of_image,
    pod_of_daemon,
    pod_of_example,
    yaml,
)
from qos2 import client, daemon
from qos2.cli.main import parser
from qos2.config import Config, load
from qos2.policyfile import FOLDER as POLICY_FOLDER
from qos2.policyfile import read_policy
from unit.native import REPOSITORY

PODS = {"daemonset.yaml": pod_of_daemon(), "example/pod.yaml": pod_of_example()}
KUSTOMIZATIONS = {"daemonset.yaml": "kustomization.yaml", "example/pod.yaml": "example/kustomization.yaml"}
FILES = sorted(str(path.relative_to(FOLDER)) for pattern in ("*.yaml", "*.yml") for path in FOLDER.rglob(pattern))
UNIT = (REPOSITORY / "deploy" / "systemd" / "qos2d.service").read_text()
SOCKET_UNIT = (REPOSITORY / "deploy" / "systemd" / "qos2d.socket").read_text()
METRICS_PORT = 9472

#: Names of fields in the API's reference (core/v1 as of Kubernetes 1.30): those in use. A misspelt one is not an error
#: for every API server.
POD_FIELDS = {
    *("automountServiceAccountToken", "containers", "dnsPolicy", "enableServiceLinks", "hostNetwork", "hostPID"),
    *(
        "nodeSelector",
        "priorityClassName",
        "securityContext",
        "terminationGracePeriodSeconds",
        "tolerations",
        "volumes",
    ),
}
CONTAINER_FIELDS = {
    *("args", "command", "env", "image", "livenessProbe", "name", "ports", "readinessProbe", "resources"),
    *("securityContext", "startupProbe", "volumeMounts"),
}
SECURITY_FIELDS = {
    *("allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged", "readOnlyRootFilesystem"),
    *("runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile", "supplementalGroups"),
}
MOUNT_FIELDS = {"mountPath", "mountPropagation", "name", "readOnly", "subPath"}
PROBE_FIELDS = {"exec", "failureThreshold", "periodSeconds", "timeoutSeconds"}


class OneKeyOnce(yaml.SafeLoader):  # type: ignore[misc] # PyYAML has no types
    """Refuses a mapping with the same key twice, of which the last would win silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return made


def container_of(pod: Document) -> Document:
    (container,) = pod["containers"]
    assert isinstance(container, dict)
    return container


def mounts_of(pod: Document) -> dict[str, Document]:
    """A pod's mounts by name of the volume."""
    return {mount["name"]: mount for mount in container_of(pod)["volumeMounts"]}


def volumes_of(pod: Document) -> dict[str, Document]:
    return {volume["name"]: volume for volume in pod["volumes"]}


@pytest.mark.parametrize("name", FILES)
def test_no_mapping_has_a_key_twice(name: str) -> None:
    assert list(yaml.load_all((FOLDER / name).read_text(), OneKeyOnce))


@pytest.mark.parametrize("name", PODS)
def test_fields_have_the_names_of_the_api(name: str) -> None:
    pod, container = PODS[name], container_of(PODS[name])
    assert set(pod) <= POD_FIELDS
    assert set(container) <= CONTAINER_FIELDS
    for security in (pod.get("securityContext", {}), container["securityContext"]):
        assert set(security) <= SECURITY_FIELDS
    for mount in container["volumeMounts"]:
        assert set(mount) <= MOUNT_FIELDS
    for probe in (container[field] for field in container if field.endswith("Probe")):
        assert set(probe) <= PROBE_FIELDS


@pytest.mark.parametrize("name", PODS)
def test_every_mount_has_its_volume_and_every_volume_is_mounted(name: str) -> None:
    pod = PODS[name]
    assert sorted(mounts_of(pod)) == sorted(volumes_of(pod))
    assert len(pod["volumes"]) == len(container_of(pod)["volumeMounts"])


@pytest.mark.parametrize("name", PODS)
def test_every_config_map_is_made_with_the_keys_that_are_mounted(name: str) -> None:
    pod, made = PODS[name], config_maps(KUSTOMIZATIONS[name])
    used = {volume["configMap"]["name"]: volume["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert sorted(used) == sorted(made)
    for config_map, volume in used.items():
        assert {mounts_of(pod)[volume].get("subPath"), None} - {None} <= made[config_map].keys()


@pytest.mark.parametrize("name", PODS)
def test_the_image_is_the_one_that_the_kustomization_replaces(name: str) -> None:
    (image,) = document(KUSTOMIZATIONS[name])["images"]
    assert container_of(PODS[name])["image"] == image["name"]
    assert image["newTag"] == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def test_everything_that_is_applied_is_there_in_the_one_namespace() -> None:
    kustomization = document("kustomization.yaml")
    assert sorted(kustomization["resources"]) == ["daemonset.yaml", "namespace.yaml"]
    assert document("namespace.yaml")["metadata"]["name"] == kustomization["namespace"] == "qos2"
    assert document("example/kustomization.yaml")["resources"] == ["pod.yaml"]


def test_the_daemon_set_finds_its_own_pods() -> None:
    spec = document("daemonset.yaml")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_each_capability_has_its_reason_above_it() -> None:
    lines = (FOLDER / "daemonset.yaml").read_text().splitlines()
    (begin,) = (index for index, line in enumerate(lines) if line.strip() == "add:")
    named = re.findall(r"^ *- ([A-Z_]+)$", "\n".join(lines[begin:]), re.MULTILINE)
    capabilities = container_of(pod_of_daemon())["securityContext"]["capabilities"]
    assert capabilities == {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"]}
    assert named == capabilities["add"]
    for name in named:
        (at,) = (index for index, line in enumerate(lines) if line.strip() == f"- {name}")
        assert re.fullmatch(r" *# .*\.", lines[at - 1]), f"{name} has no reason"


def test_the_daemon_can_gain_nothing_and_writes_only_where_it_must() -> None:
    pod = pod_of_daemon()
    security = container_of(pod)["securityContext"]
    assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
    assert (security["readOnlyRootFilesystem"], pod["automountServiceAccountToken"]) == (True, False)
    writable = {mount["mountPath"] for mount in container_of(pod)["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/run/qos2", "/sys/fs/bpf", "/var/cache/qos2"}


def test_paths_are_those_of_the_configuration_and_of_the_unit() -> None:
    config = load(FOLDER / "qos2d.toml")
    mounts = {mount["mountPath"]: name for name, mount in mounts_of(pod_of_daemon()).items()}
    assert mounts[str(config.socket.parent)] == "socket"
    assert mounts[str(config.pin_path.parent)] == "bpf"
    assert mounts[str(config.cache)] == "cache"
    assert f"\nListenSequentialPacket={config.socket}\n" in SOCKET_UNIT
    (file,) = re.findall(r"^ExecStart=\S*qos2d --config (\S+)", UNIT, re.MULTILINE)
    assert mounts[file] == "config"
    assert mounts[str(POLICY_FOLDER)] == "policy"
    for name in ("socket", "bpf", "cache"):
        assert volumes_of(pod_of_daemon())[name]["hostPath"]["path"] == mounts_of(pod_of_daemon())[name]["mountPath"]


def test_the_sockets_directory_is_shared_and_not_the_socket() -> None:
    for pod in PODS.values():
        (shared,) = (each["hostPath"] for each in pod["volumes"] if each.get("hostPath", {}).get("path") == "/run/qos2")
        assert shared["type"] == "DirectoryOrCreate"
    mount = mounts_of(pod_of_example())["qos2"]
    assert (mount["mountPath"], mount["readOnly"]) == (str(Config().socket.parent), True)
    variables = {each["name"]: each["value"] for each in container_of(pod_of_example())["env"]}
    assert variables[client.PATH_VARIABLE] == str(Config().socket)


def test_the_configuration_is_taken_and_says_nothing_that_is_so_anyway() -> None:
    text = (FOLDER / "qos2d.toml").read_text()
    given = tomllib.loads(text)
    assert [key for key in given if key != "devices" and given[key] == getattr(Config(), key)] == []
    assert load(FOLDER / "qos2d.toml").devices == ()


def test_the_policy_has_no_rule_until_the_marks_in_front_of_one_are_removed(tmp_path: Path) -> None:
    assert list(read_policy(FOLDER / "policy.d").rules) == []
    for path in (FOLDER / "policy.d").iterdir():
        (tmp_path / path.name).write_text(re.sub(r"^#(?! )", "", path.read_text(), flags=re.MULTILINE))
    assert [rule.name for rule in read_policy(tmp_path).rules] == ["backup"]


def test_the_arguments_are_the_daemons() -> None:
    container = container_of(pod_of_daemon())
    arguments = [word.replace("$(NODE_IP)", "192.0.2.7") for word in container["args"]]
    given = daemon.arguments().parse_args(arguments)
    assert (str(given.config), given.metrics) == ("/etc/qos2/qos2d.toml", f"192.0.2.7:{METRICS_PORT}")
    assert load(None, {"metrics": given.metrics}).metrics_address == ("192.0.2.7", METRICS_PORT)
    assert [each["name"] for each in container["env"]] == ["NODE_IP"]


def test_every_probe_asks_the_daemon_and_the_first_waits_as_long_as_it_compiles() -> None:
    container = container_of(pod_of_daemon())
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *arguments = container[name]["exec"]["command"]
        assert program == "qos2"
        assert parser().parse_args(arguments).execute
    first = container["startupProbe"]
    (compiling,) = re.findall(
        r"^_COMPILE_SECONDS = (\d+)", (REPOSITORY / "controlplane/qos2/datapath/pins.py").read_text(), re.MULTILINE
    )
    assert first["periodSeconds"] * first["failureThreshold"] >= int(compiling)


def test_it_gets_as_long_to_stop_as_by_the_unit() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s?$", UNIT, re.MULTILINE)
    assert pod_of_daemon()["terminationGracePeriodSeconds"] >= int(seconds)


def test_prometheus_finds_the_pods_and_their_port() -> None:
    (job,) = document("prometheus.yml")["scrape_configs"]
    (discovery,) = job["kubernetes_sd_configs"]
    assert discovery == {"role": "pod", "namespaces": {"names": [document("namespace.yaml")["metadata"]["name"]]}}
    (port,) = container_of(pod_of_daemon())["ports"]
    assert port == {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}
    annotations = document("daemonset.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)}
    kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"}
    assert kept == {
        "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
        "__meta_kubernetes_pod_container_port_name": port["name"],
    }


def test_an_application_needs_no_right_and_starts_its_own_file() -> None:
    pod = pod_of_example()
    security = pod["securityContext"] | container_of(pod)["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (security["runAsNonRoot"], security["allowPrivilegeEscalation"]) == (True, False)
    _python, script = container_of(pod)["command"]
    folder, _, name = script.rpartition("/")
    assert mounts_of(pod)["application"]["mountPath"] == folder
    assert list(config_maps("example/kustomization.yaml")["application"]) == [name]


def test_the_group_of_the_image_is_the_one_that_pods_are_told_to_name() -> None:
    told = f"supplementalGroups: [{gid_of_image()}]"
    assert f"# {told}" in (FOLDER / "example" / "pod.yaml").read_text()
    assert f"`{told}`" in (REPOSITORY / "docs" / "kubernetes.md").read_text()
