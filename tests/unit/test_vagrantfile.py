"""The two machines of the Vagrantfile, as far as they need not run: Vagrant's own check, scripts, and the verdict.

`vagrant validate` needs Vagrant, which is no package of the tests; `./dev vagrant` runs all of it.
"""

import os
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from demo.packets import TCP, UDP, Packets, parse_frames
from demo.verdict import Finding
from qos2 import TrafficType
from unit.native import REPOSITORY, tool
from vagrant.e2e import FLOWS, Flow, Interval, judge
from vagrant.receiver import CONTROL_PORT

FOLDER = REPOSITORY / "deploy" / "vagrant"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh"))
S = 1_000_000_000

VOICE = Flow("voice", UDP, 7101, dscp=56, traffic_type=TrafficType.VOICE, contract=1_000_000, payload=1200)
OTHER = Flow("other", UDP, 7103, dscp=10, payload=1000, per_second=100)


def validate(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`vagrant validate` with these environment variables; no provider has to run."""
    vagrant = shutil.which("vagrant")
    if vagrant is None:
        pytest.skip("vagrant is not installed: the Vagrantfile is not validated")
    ours = {"VAGRANT_HOME": str(home), "VAGRANT_DOTFILE_PATH": str(home / "dot"), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("QOS_VM_", "VAGRANT_"))}
    done = subprocess.run(
        [vagrant, "validate"],
        cwd=REPOSITORY,
        env=plain | ours | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if "No usable default provider" in done.stderr:
        pytest.skip("vagrant has no provider here: the Vagrantfile is not validated")
    return done


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"QOS_VM_DRIVER": "qemu"},
        {"QOS_VM_DRIVER": "kvm", "QOS_VM_BOX": "bento/ubuntu-24.04", "QOS_VM_CPUS": "4", "QOS_VM_MEMORY": "4096"},
    ],
    ids=lambda settings: " ".join(settings.values()) or "defaults",
)
def test_vagrant_accepts_the_vagrantfile(tmp_path: Path, settings: dict[str, str]) -> None:
    done = validate(tmp_path, **settings)
    assert (done.returncode, done.stdout) == (0, "Vagrantfile validated successfully.\n"), done.stderr


def test_vagrant_refuses_a_size_that_is_no_number(tmp_path: Path) -> None:
    done = validate(tmp_path, QOS_VM_CPUS="two")
    assert done.returncode != 0
    assert 'invalid value for Integer(): "two"' in done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say_for(script: str) -> None:
    done = subprocess.run(
        [tool("shellcheck"), "--external-sources", str(FOLDER / script)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_box_leaves_out_what_the_machines_leave_out() -> None:
    """Else a box would bring in what rsync never brings up to date."""
    (listed,) = re.findall(r"rsync__exclude: \[(.*?)\]", (REPOSITORY / "Vagrantfile").read_text(), re.DOTALL)
    (built,) = re.findall(r"^readonly LEFT_OUT=\((.*?)\)", (FOLDER / "build-box.sh").read_text(), re.MULTILINE)
    machines = [name.rstrip("/") for name in re.findall(r'"(.*?)"', listed)]
    assert machines == [name.strip("'") for name in built.split()]


def test_clean_up_knows_the_machines_by_the_names_that_they_get() -> None:
    vagrantfile = (REPOSITORY / "Vagrantfile").read_text()
    (prefix,) = re.findall(r'libvirt\.default_prefix = "(\w+)"', vagrantfile)
    names = re.findall(r'"(\w+)" => "#\{NETWORK\}', vagrantfile)
    assert f"'{prefix}({'|'.join(names)})'" in (FOLDER / "libvirt.sh").read_text()


def test_every_flow_has_a_port_of_its_own() -> None:
    ports = {(flow.protocol, flow.port) for flow in FLOWS}
    assert len(ports) == len(FLOWS)
    assert (TCP, CONTROL_PORT) not in ports


def test_what_nobody_registered_is_offered_above_the_contract_beside_it() -> None:
    """Else being held back would not show."""
    contracts = {flow.protocol: flow.contract for flow in FLOWS if flow.contract}
    offered = {flow.protocol: flow.offered for flow in FLOWS if not flow.contract}
    assert sorted(contracts) == sorted(offered) == [TCP, UDP]
    assert [protocol for protocol in contracts if offered[protocol] <= contracts[protocol]] == []


def captured(times_ns: list[int], payload: int, dscps: dict[int, int]) -> Packets:
    """IPv4 UDP packets at these times; `dscps` by index, where it is another than 56."""
    frames = []
    for index, time_ns in enumerate(times_ns):
        dscp = dscps.get(index, 56)
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, dscp << 2, 28 + payload, 0, 0, 64, UDP, 0),
            *(socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")),
        )
        frames.append((time_ns, bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", 1, 7101, 8 + payload, 0)))
    return parse_frames(frames)


def evenly(per_second: int, seconds: int = 4) -> list[int]:
    return [index * S // per_second for index in range(per_second * seconds)]


def test_a_flow_as_it_should_be_is_good_in_every_claim() -> None:
    # 1 Mbit/s are 101.8 packets of 1228 bytes.
    seen = captured(evenly(102), 1200, {})
    assert judge(VOICE, seen, Interval(S, 3 * S), sent_bytes=1200 * 408) == [
        Finding(True, "DSCP 56 on all 408 packets"),
        Finding(True, "packets as on the wire, the longest of 1,228 bytes"),
        Finding(True, "1.002 of 1 Mbit/s contracted (+0.20%)"),
        Finding(True, "none of 408 packets lost"),
    ]


def test_an_unregistered_flow_is_measured_by_its_payload() -> None:
    seen = captured(evenly(100), 1000, dict.fromkeys(range(400), 10))
    assert judge(OTHER, seen, Interval(S, 3 * S), sent_bytes=1000 * 400) == [
        Finding(True, "DSCP 10 on all 400 packets"),
        Finding(True, "packets as on the wire, the longest of 1,028 bytes"),
        Finding(True, "0.800 of 0.8 Mbit/s offered (+0.00%)"),
        Finding(True, "none of 400 packets lost"),
    ]


def test_one_packet_with_another_dscp_fails() -> None:
    seen = captured(evenly(102), 1200, {7: 0})
    assert judge(VOICE, seen, Interval(S, 3 * S), 1200 * 408)[0] == Finding(
        False, "DSCP 56 on 407 of 408 packets; 1 with 0"
    )


@pytest.mark.parametrize(("per_second", "text"), [(96, "0.943"), (108, "1.061")])
def test_a_rate_beyond_the_tolerance_fails(per_second: int, text: str) -> None:
    found = judge(VOICE, captured(evenly(per_second), 1200, {}), Interval(S, 3 * S), 1200 * per_second * 4)
    assert [(finding.good, finding.text.split()[0]) for finding in found] == [
        (True, "DSCP"),
        (True, "packets"),
        (False, text),
        (True, "none"),
    ]


def test_a_lost_packet_and_a_joined_one_fail() -> None:
    found = judge(VOICE, captured(evenly(102), 2400, {}), Interval(S, 3 * S), 1200 * 409)
    assert [finding.text for finding in found if not finding.good] == [
        "packets as on the wire, the longest of 2,428 bytes",
        "1.981 of 1 Mbit/s contracted (+98.12%)",
        "1 packets lost",
    ]


def test_a_flow_of_which_nothing_arrived_fails() -> None:
    assert judge(VOICE, captured([], 1200, {}), Interval(S, 3 * S), 1200) == [Finding(False, "nothing arrived")]
