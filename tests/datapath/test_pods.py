"""The manifests of deploy/kubernetes at work: the DaemonSet's container on a node, applications in pods of their own.

No cluster is needed: harness/containers.py gives each process the namespaces, mounts, user and capabilities that
its manifest states. The lab's router is the node, `app` is the network of the pods, and the peer is the judge. The
programs are those of the checkout, or with QOS_TEST_IMAGE those of the image whose root file system that names.
"""

import copy
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import qos2
from demo.capture import Recording
from demo.lab import Lab
from demo.packets import UDP, Packets
from demo.processes import START_S
from harness.containers import FIRST_MAPPED, Container, Node
from harness.manifests import Document, config_maps, gid_of_image, pod_of_daemon, pod_of_example
from harness.wire import PATIENCE_S, check_rate, eventually

pytestmark = pytest.mark.datapath

V4 = "198.51.100.2"
S = 1_000_000_000
VOICE = 56
#: The example sends every 20 ms, but not while it asks for a mark: what a busy machine may take for that, with slack.
LONGEST_SILENCE_NS = S
#: Of the daemon's socket, as the manifests have it.
SOCKET = "/run/qos2/qos2.sock"


class Cluster:
    """A node and its daemon, which a test may kill, and a port of the peer to send to."""

    def __init__(self, lab: Lab, node: Node, port: int) -> None:
        self.lab = lab
        self.node = node
        self.port = port
        self.daemon = self.start_daemon()

    def start_daemon(self) -> Container:
        """The DaemonSet's container; returns once it answers, as its startup probe waits for."""
        self.daemon = self.node.run(pod_of_daemon(), self.lab.router, NODE_IP="127.0.0.1")
        deadline = time.monotonic() + START_S
        while True:
            with suppress(qos2.ServiceUnavailable), qos2.Handle(self.socket):
                return self.daemon
            assert self.daemon.process.poll() is None, self.daemon.log
            assert time.monotonic() < deadline, self.daemon.log
            time.sleep(0.02)

    @property
    def socket(self) -> str:
        """Where the node has the daemon's socket."""
        return str(self.node.host(SOCKET))

    def example(self) -> Container:
        """The example application, as its pod has it."""
        return self.node.run(pod_of_example(), self.lab.app, DESTINATION=f"{V4}:{self.port}")

    def python(self, pod: Document, program: str, port: int = 0) -> Container:
        """Another program in place of the example."""
        return self.node.run(pod, self.lab.app, "python3", "-c", program, DESTINATION=V4, PORT=str(port or self.port))


@pytest.fixture(scope="module")
def mortal() -> Iterator[Cluster]:
    """One cluster for all tests here."""
    maps = config_maps() | config_maps("example/kustomization.yaml")
    image = Path(os.environ["QOS_TEST_IMAGE"]) if "QOS_TEST_IMAGE" in os.environ else None
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-test"))
        node = stack.enter_context(Node(maps, image))
        sink = stack.enter_context(lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((V4, 0))
        cluster = Cluster(lab, node, sink.getsockname()[1])
        yield cluster
        assert cluster.daemon.stop() == 0, cluster.daemon.log
        assert "Traceback" not in cluster.daemon.log, cluster.daemon.log


@pytest.fixture
def cluster(mortal: Cluster) -> Cluster:
    """The daemon runs, whatever the test before did to it."""
    if mortal.daemon.process.poll() is not None:
        mortal.start_daemon()
    return mortal


@pytest.fixture
def recording(cluster: Cluster) -> Iterator[Recording]:
    """A capture at the peer that has begun."""
    recording = Recording.start(cluster.lab.peer, cluster.lab.router)
    yield recording
    recording.cancel()


def said(container: Container, line: str, times: int = 1) -> bool:
    """Whether a container comes to write lines that begin so."""
    return eventually(lambda: sum(each.startswith(line) for each in container.log.splitlines()) >= times)


def answer(container: Container) -> object:
    """What a program in a pod has written, once it has ended."""
    assert container.process.wait(30) == 0, container.log
    return json.loads(container.log)


def longest_silence_ns(packets: Packets) -> int:
    """Between two packets that follow each other, in nanoseconds."""
    return int((packets.time_ns[1:] - packets.time_ns[:-1]).max())


def changed(pod: Document, **security: object) -> Document:
    """A pod whose securityContext differs."""
    other = copy.deepcopy(pod)
    other["securityContext"] |= security
    return other


def test_a_pod_stays_marked_while_its_nodes_daemon_is_killed_and_comes_back(
    cluster: Cluster, recording: Recording
) -> None:
    application = cluster.example()
    assert said(application, "marked as voice")
    marked = time.time_ns()
    time.sleep(1.2)  # it has looked once by then
    cluster.daemon.kill()
    time.sleep(0.5)
    cluster.start_daemon()
    # Through the directory that was mounted before there was this daemon, by a handle of its own.
    assert said(application, "marked as voice", times=2), application.log
    time.sleep(0.3)
    packets = recording.stop().select(protocol=UDP, dport=cluster.port, begin_ns=marked)
    assert application.stop() == 0
    told = [line.partition(":")[0] for line in application.log.splitlines()]
    assert [each for each in told if each != "unmarked"] == ["marked as voice", "ended", "marked as voice"]
    assert packets.dscps() == {VOICE: len(packets)}
    assert longest_silence_ns(packets) < LONGEST_SILENCE_NS


def test_pods_send_unmarked_while_the_daemon_is_replaced_and_are_marked_afterwards(
    cluster: Cluster, recording: Recording
) -> None:
    before = cluster.example()
    assert said(before, "marked as voice")
    marked = time.time_ns()
    time.sleep(0.2)
    stopping = time.time_ns()
    assert cluster.daemon.stop() == 0
    stopped = time.time_ns()
    meanwhile = cluster.example()
    assert said(meanwhile, f"unmarked: no daemon at {SOCKET}: No such file or directory"), meanwhile.log
    time.sleep(0.3)
    starting = time.time_ns()
    cluster.start_daemon()
    assert said(before, "marked as voice", times=2), before.log
    assert said(meanwhile, "marked as voice"), meanwhile.log
    again = time.time_ns()
    time.sleep(0.2)
    packets = recording.stop().select(protocol=UDP, dport=cluster.port)
    for application in (before, meanwhile):
        assert application.stop() == 0
    first = packets.select(sport=int(packets.sport[0]))
    assert set(first.select(begin_ns=marked, end_ns=stopping).dscps()) == {VOICE}
    assert set(packets.select(begin_ns=stopped, end_ns=starting).dscps()) == {0}
    assert set(packets.select(begin_ns=again).dscps()) == {VOICE}
    assert len(set(packets.select(begin_ns=again).sport.tolist())) == 2
    assert longest_silence_ns(first) < LONGEST_SILENCE_NS


def test_a_pods_contract_is_kept_and_counted_once_though_the_nodes_devices_are_attached_too(
    cluster: Cluster, recording: Recording
) -> None:
    bandwidth, datagrams = 4_000_000, 150
    program = f"""
import json, os, socket, qos2
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((os.environ["DESTINATION"], int(os.environ["PORT"])))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
with qos2.Handle() as qos:
    flow = qos.add_socket(sock, qos2.TrafficType.AUDIO_VIDEO)
    flow.set_rate({bandwidth})
    for _ in range({datagrams}):
        sock.send(bytes(1472))
    print(json.dumps([os.getpid(), flow.id]), flush=True)
    os.read(0, 1)
    print(json.dumps(flow.stats().packets))
"""
    with cluster.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((V4, 0))
        receiver.settimeout(PATIENCE_S)
        port = receiver.getsockname()[1]
        pod = cluster.python(pod_of_example(), program, port)
        for _ in range(datagrams):
            receiver.recv(2048)
    assert eventually(lambda: pod.log.endswith("\n")), pod.log
    own_pid, flow = json.loads(pod.log)
    with qos2.Handle(cluster.socket) as qos:
        details = qos.flow_details(flow)
        places = {device["name"]: device["netns_cookie"] for device in qos.status().datapath["devices"]}
    packets = recording.stop().select(protocol=UDP, dport=port)
    first_process = pod.pid
    assert pod.process.stdin is not None
    pod.process.stdin.write(b"\n")
    pod.process.stdin.flush()
    assert pod.process.wait(10) == 0
    # The pod's only device, and both of the node's.
    assert sorted(places) == ["eth0", "to-app", "to-peer"]
    assert places["eth0"] != places["to-app"] == places["to-peer"]
    assert (details.uid, details.program) == (10001, "python3")
    assert (own_pid, details.pid) == (1, first_process)
    # Asked for once they had all left by the node's device too.
    assert json.loads(pod.log.splitlines()[1]) == datagrams
    assert packets.dscps() == {40: datagrams}
    check_rate(packets, bandwidth, int(packets.time_ns[0]), int(packets.time_ns[-1]), 1500)


def test_a_pod_sees_the_socket_and_can_neither_remove_nor_replace_it(cluster: Cluster) -> None:
    program = """
import errno, json, os
def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
print(json.dumps([
    os.listdir("/run/qos2"), os.path.exists("/sys/fs/bpf/qos2"),
    refused(os.unlink, "/run/qos2/qos2.sock"), refused(os.mkdir, "/run/qos2/mine"), refused(os.mkdir, "/mine"),
    status["CapEff"], status["CapBnd"], status["NoNewPrivs"], os.getuid(), os.getgroups(),
]))
"""
    # Root, who would be stopped by no permission.
    root = changed(pod_of_example(), runAsUser=0)
    nothing = "0" * 16
    expected = [["qos2.sock"], False, "EROFS", "EROFS", "EROFS", nothing, nothing, "1"]
    assert answer(cluster.python(root, program)) == [*expected, 0, []]
    assert answer(cluster.python(pod_of_example(), program)) == [*expected, 10001, []]


@pytest.mark.parametrize(
    ("users_of_its_own", "security", "uid", "allowed"),
    [
        (False, {}, 10001, False),
        (False, {"supplementalGroups": [gid_of_image()]}, 10001, True),
        (False, {"runAsUser": 0}, 0, True),
        (True, {"runAsUser": 0, "supplementalGroups": [gid_of_image()]}, FIRST_MAPPED, False),
    ],
    ids=["user", "member of qos2", "root", "root of a user namespace"],
)
def test_raw_dscp_is_for_the_nodes_root_and_its_group(
    cluster: Cluster, users_of_its_own: bool, security: Document, uid: int, allowed: bool
) -> None:
    program = """
import json, os, socket, qos2
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((os.environ["DESTINATION"], int(os.environ["PORT"])))
with qos2.Handle() as qos:
    flow = qos.add_socket(sock, qos2.TrafficType.BACKGROUND)
    uid = qos.flow_details(flow.id).uid
    try:
        flow.set_dscp(17)
    except qos2.NotPermitted:
        pass
    print(json.dumps([uid, flow.priority().conformant_dscp]))
"""
    pod = changed(pod_of_example(), **security) | {"hostUsers": not users_of_its_own}
    assert answer(cluster.python(pod, program)) == [uid, 17 if allowed else 8]
