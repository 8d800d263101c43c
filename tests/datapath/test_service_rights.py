"""What the daemon can do as the user of its unit, and what fails without each right that the unit gives it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

import qos2
from demo.lab import Lab, LabError
from demo.processes import environment
from harness.service import ServiceDaemon, capabilities, system_calls

pytestmark = pytest.mark.datapath

RIGHTS = capabilities()
NOBODY = 65_534

#: A program flow of another user than the daemon's: prints the cgroup that it was put into, or the error.
PROGRAM = (
    "import os, sys, qos2\n"
    f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    "with qos2.Handle(sys.argv[1]) as handle:\n"
    "    try:\n"
    "        handle.add_program(qos2.TrafficType.BACKGROUND)\n"
    "        print(next(line for line in open('/proc/self/cgroup') if line.startswith('0:')).strip())\n"
    "    except qos2.QosError as error:\n"
    "        print(error.code)\n"
)


@pytest.fixture(scope="module", autouse=True)
def _systemd() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze, which knows what the unit allows, is not installed (Debian's package systemd)")


@pytest.fixture(scope="module")
def rights_lab() -> Iterator[Lab]:
    """A lab without the session's daemon."""
    with Lab("qos2-test-rights") as lab:
        yield lab


def connected(lab: Lab, *, elsewhere: bool = False) -> socket.socket:
    sock = (lab.router if elsewhere else lab.app).socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((lab.peer.ipv4[0], 5004))
    return sock


def dscp(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2


def program(lab: Lab, daemon: ServiceDaemon) -> str:
    """What comes of `qos2 run` for a user that is neither root nor the daemon's."""
    return lab.app.run("env", f"PYTHONPATH={environment()['PYTHONPATH']}", sys.executable, "-c", PROGRAM, daemon.socket)


def root_qdisc(lab: Lab) -> str:
    return lab.app.run("tc", "qdisc", "show", "dev", lab.app.device, "root").split()[1]


def test_with_the_rights_of_its_unit_the_daemon_does_all_of_its_work(rights_lab: Lab) -> None:
    default = root_qdisc(rights_lab)
    calls = system_calls()
    with (
        ServiceDaemon(rights_lab.app, rights=RIGHTS, calls=calls, tcp_tso_rtt_log=0) as daemon,
        connected(rights_lab) as sock,
    ):
        assert daemon.process is not None
        with qos2.Handle(daemon.socket) as handle:
            flow = handle.add_socket(sock, qos2.TrafficType.VOICE)
            assert dscp(sock) == 56
            flow.set_rate(1_000_000)
            report = handle.status().datapath
            assert [(each["name"], report["problems"]) for each in report["devices"]] == [("eth0", [])]
            assert report["devices"][0]["shaper"] in ("fq", "htb")
            assert root_qdisc(rights_lab) == report["devices"][0]["shaper"]
            assert "/qos2-" in program(rights_lab, daemon)
            daemon.kill()
        daemon.start()  # its own pins, taken over
        assert dscp(sock) == 56
        with qos2.Handle(daemon.socket) as handle:
            assert handle.status().orphans == 1
            handle.add_socket(sock, qos2.TrafficType.VOICE)
            assert daemon.stop() == 0
        assert dscp(sock) == 0  # by pidfd_getfd
        assert root_qdisc(rights_lab) == default
        assert not daemon.pins.exists()
        assert "Traceback" not in daemon.log, daemon.log


def test_other_namespaces_need_the_right_of_the_drop_in(rights_lab: Lab) -> None:
    for rights, served in ((RIGHTS, False), (RIGHTS | {"sys_admin"}, True)):
        with (
            ServiceDaemon(rights_lab.app, rights=rights) as daemon,
            connected(rights_lab, elsewhere=True) as foreign,
            qos2.Handle(daemon.socket) as handle,
        ):
            if served:
                handle.add_socket(foreign, qos2.TrafficType.VOICE)
                assert dscp(foreign) == 56
            else:
                with pytest.raises(qos2.DatapathError, match="CAP_SYS_ADMIN"):
                    handle.add_socket(foreign, qos2.TrafficType.VOICE)
                assert dscp(foreign) == 0


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("bpf", "could not open bpf map"),
        ("perfmon", "prohibited for !root"),
        ("dac_override", "Permission denied"),
    ],
)
def test_without_these_it_does_not_start(rights_lab: Lab, missing: str, words: str) -> None:
    with pytest.raises(LabError) as failed, ServiceDaemon(rights_lab.app, rights=RIGHTS - {missing}):
        pass
    assert words in str(failed.value)


def test_without_net_admin_no_device_is_attached(rights_lab: Lab) -> None:
    # CAP_BPF alone does not load programs for network devices.
    with pytest.raises(LabError) as failed, ServiceDaemon(rights_lab.app, rights=RIGHTS - {"net_admin"}):
        pass
    assert "Operation not permitted" in str(failed.value)


def test_without_sys_ptrace_others_programs_and_presets_are_out_of_reach(rights_lab: Lab) -> None:
    """The test's own process runs as root, as any user other than the daemon's would do."""
    assert os.geteuid() == 0
    with (
        ServiceDaemon(rights_lab.app, rights=RIGHTS - {"sys_ptrace"}) as daemon,
        connected(rights_lab) as sock,
        qos2.Handle(daemon.socket) as handle,
    ):
        handle.add_socket(sock, qos2.TrafficType.VOICE)
        assert program(rights_lab, daemon).strip() == "no_such_flow"
        assert daemon.stop() == 0
        assert dscp(sock) == 56  # left behind


def test_a_system_call_that_the_unit_does_not_allow_is_missed(rights_lab: Lab) -> None:
    calls = system_calls()
    assert {"bpf", "pidfd_getfd", "sendto"} <= calls
    assert not calls & {"ptrace", "mount", "init_module", "setpriority", "sched_setaffinity"}
    with pytest.raises(LabError), ServiceDaemon(rights_lab.app, rights=RIGHTS, calls=calls - {"bpf"}):
        pass


def test_the_user_of_the_tests_is_nobody_else() -> None:
    told = subprocess.run(["getent", "passwd", "54321"], capture_output=True, check=False)
    assert told.returncode == 2
