"""The values of qos2.h in qos2.win32: numbers, layouts, error names and inline functions, one by one.

The expected numbers are written out here as Windows' headers have them, and not taken from the package.
"""

import ctypes
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import qos2
from qos2 import win32
from qos2.model import Condition, RateReason, Shaping, TrafficType
from qos2.win32 import WinError
from qos2.win32.structures import QOS_FLOW_FUNDAMENTALS, QOS_FLOWRATE_OUTGOING, QOS_PACKET_PRIORITY, QOS_VERSION

ENUMERATIONS = {
    "QOS_TRAFFIC_TYPE": {
        "QOSTrafficTypeBestEffort": 0,
        "QOSTrafficTypeBackground": 1,
        "QOSTrafficTypeExcellentEffort": 2,
        "QOSTrafficTypeAudioVideo": 3,
        "QOSTrafficTypeVoice": 4,
        "QOSTrafficTypeControl": 5,
    },
    "QOS_SET_FLOW": {"QOSSetTrafficType": 0, "QOSSetOutgoingRate": 1, "QOSSetOutgoingDSCPValue": 2},
    "QOS_QUERY_FLOW": {"QOSQueryFlowFundamentals": 0, "QOSQueryPacketPriority": 1, "QOSQueryOutgoingRate": 2},
    "QOS_NOTIFY_FLOW": {"QOSNotifyCongested": 0, "QOSNotifyUncongested": 1, "QOSNotifyAvailable": 2},
    "QOS_SHAPING": {"QOSShapeOnly": 0, "QOSShapeAndMark": 1, "QOSUseNonConformantMarkings": 2},
    "QOS_FLOWRATE_REASON": {
        "QOSFlowRateNotApplicable": 0,
        "QOSFlowRateContentChange": 1,
        "QOSFlowRateCongestion": 2,
        "QOSFlowRateHigherContentEncoding": 3,
        "QOSFlowRateUserCaused": 4,
    },
}
#: The same enumeration in the package's own words.
OURS = {
    "QOS_TRAFFIC_TYPE": TrafficType,
    "QOS_NOTIFY_FLOW": Condition,
    "QOS_SHAPING": Shaping,
    "QOS_FLOWRATE_REASON": RateReason,
}
#: Per structure its size, and offset and size of its members.
LAYOUTS = {
    "QOS_VERSION": (4, {"MajorVersion": (0, 2), "MinorVersion": (2, 2)}),
    "QOS_FLOW_FUNDAMENTALS": (
        40,
        {
            "BottleneckBandwidthSet": (0, 4),
            "BottleneckBandwidth": (8, 8),
            "AvailableBandwidthSet": (16, 4),
            "AvailableBandwidth": (24, 8),
            "RTTSet": (32, 4),
            "RTT": (36, 4),
        },
    ),
    "QOS_FLOWRATE_OUTGOING": (16, {"Bandwidth": (0, 8), "ShapingBehavior": (8, 4), "Reason": (12, 4)}),
    "QOS_PACKET_PRIORITY": (
        16,
        {
            "ConformantDSCPValue": (0, 4),
            "NonConformantDSCPValue": (4, 4),
            "ConformantL2Value": (8, 4),
            "NonConformantL2Value": (12, 4),
        },
    ),
}
ERRORS = {
    "ERROR_SUCCESS": 0,
    "ERROR_ACCESS_DENIED": 5,
    "ERROR_INVALID_HANDLE": 6,
    "ERROR_NOT_ENOUGH_MEMORY": 8,
    "ERROR_GEN_FAILURE": 31,
    "ERROR_NOT_SUPPORTED": 50,
    "ERROR_NETWORK_BUSY": 54,
    "ERROR_ADAP_HDW_ERR": 57,
    "ERROR_UNEXP_NET_ERR": 59,
    "ERROR_BAD_NET_NAME": 67,
    "ERROR_INVALID_PARAMETER": 87,
    "ERROR_INSUFFICIENT_BUFFER": 122,
    "ERROR_BUSY": 170,
    "ERROR_ALREADY_EXISTS": 183,
    "ERROR_NO_DATA": 232,
    "ERROR_SYSTEM_POWERSTATE_TRANSITION": 782,
    "ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION": 783,
    "ERROR_OPERATION_ABORTED": 995,
    "ERROR_IO_INCOMPLETE": 996,
    "ERROR_IO_PENDING": 997,
    "ERROR_SERVICE_ALREADY_RUNNING": 1056,
    "ERROR_SERVICE_DEPENDENCY_FAIL": 1068,
    "ERROR_IO_DEVICE": 1117,
    "ERROR_DEVICE_REINITIALIZATION_NEEDED": 1164,
    "ERROR_NOT_FOUND": 1168,
    "ERROR_CONNECTION_REFUSED": 1225,
    "ERROR_HOST_UNREACHABLE": 1232,
    "ERROR_RETRY": 1237,
    "ERROR_ACCESS_DISABLED_BY_POLICY": 1260,
    "ERROR_NO_SYSTEM_RESOURCES": 1450,
    "ERROR_TIMEOUT": 1460,
    "ERROR_RESOURCE_DISABLED": 4309,
}
CALLS = {
    "QOSCreateHandle": ["Version", "path"],
    "QOSCloseHandle": ["QOSHandle"],
    "QOSStartTrackingClient": ["QOSHandle", "DestAddr", "Flags"],
    "QOSStopTrackingClient": ["QOSHandle", "DestAddr", "Flags"],
    "QOSEnumerateFlows": ["QOSHandle", "Size"],
    "QOSAddSocketToFlow": ["QOSHandle", "Socket", "DestAddr", "TrafficType", "Flags", "FlowId"],
    "QOSRemoveSocketFromFlow": ["QOSHandle", "Socket", "FlowId", "Flags"],
    "QOSSetFlow": ["QOSHandle", "FlowId", "Operation", "Size", "Buffer", "Flags", "Overlapped"],
    "QOSQueryFlow": ["QOSHandle", "FlowId", "Operation", "Size", "Flags", "Overlapped"],
    "QOSNotifyFlow": ["QOSHandle", "FlowId", "Operation", "Size", "Buffer", "Flags", "Overlapped"],
    "QOSCancel": ["QOSHandle", "Overlapped"],
    "GetOverlappedResult": ["QOSHandle", "Overlapped", "Wait"],
}
HELPERS = {"QOS_HEADER_OVERHEAD", "QOS_ADD_OVERHEAD", "QOS_SUBTRACT_OVERHEAD"}
CONSTANTS = {
    "QOS_QUERYFLOW_FRESH": 1,
    "QOS_NON_ADAPTIVE_FLOW": 2,
    "QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH": 0xFFFFFFFF,
    "STATUS_PENDING": 0x103,
}
OTHERS = {"ERROR_NAMES", "HANDLE", "OVERLAPPED", "QOS_FLOWID", "WinError"}

#: Family, protocol, bytes of payload, rate; bytes of headers, rate with them, rate without them.
RATES = [
    (socket.AF_INET, socket.IPPROTO_UDP, 1400, 20_160_000, 28, 20_563_200, 19_764_706),
    (socket.AF_INET6, socket.IPPROTO_UDP, 1400, 20_160_000, 48, 20_851_200, 19_491_713),
    (socket.AF_INET, socket.IPPROTO_TCP, 1460, 10_000_000, 40, 10_273_972, 9_733_334),
    (socket.AF_INET6, socket.IPPROTO_TCP, 1440, 10_000_000, 60, 10_416_666, 9_600_000),
    (socket.AF_INET, socket.IPPROTO_UDP, 160, 64_000, 28, 75_200, 54_469),
    (socket.AF_INET6, socket.IPPROTO_UDP, 160, 64_000, 48, 83_200, 49_231),
]
WINDOWS_AF_INET6 = 23


def test_exactly_these_names_are_exported() -> None:
    members = {member for enumeration in ENUMERATIONS.values() for member in enumeration}
    expected = ENUMERATIONS.keys() | members | LAYOUTS.keys() | ERRORS.keys() | CALLS.keys() | CONSTANTS.keys()
    assert set(win32.__all__) == expected | HELPERS | OTHERS
    assert all(hasattr(win32, name) for name in win32.__all__)


@pytest.mark.parametrize(("name", "members"), ENUMERATIONS.items())
def test_enumerations_have_the_numbers_of_the_header(name: str, members: dict[str, int]) -> None:
    enumeration = getattr(win32, name)
    assert {each.name: int(each) for each in enumeration} == members
    assert {member: getattr(win32, member) for member in members} == {each.name: each for each in enumeration}
    if name in OURS:
        assert [int(each) for each in OURS[name]] == list(members.values())


@pytest.mark.parametrize(("name", "number"), (CONSTANTS | ERRORS).items())
def test_constants_have_the_numbers_of_the_headers(name: str, number: int) -> None:
    assert getattr(win32, name) == number


def test_every_error_number_has_its_name() -> None:
    assert {number: name for name, number in ERRORS.items()} == win32.ERROR_NAMES


@pytest.mark.parametrize(("name", "layout"), LAYOUTS.items())
def test_structures_are_laid_out_as_on_windows(name: str, layout: tuple[int, dict[str, tuple[int, int]]]) -> None:
    structure = getattr(win32, name)
    names = [each[0] for each in structure._fields_ if not each[0].startswith("_")]
    found = {each: (getattr(structure, each).offset, getattr(structure, each).size) for each in names}
    assert (ctypes.sizeof(structure), found) == layout


def test_no_structure_depends_on_the_alignment_of_the_processor() -> None:
    """Where each member follows the one before without a gap, i386 with its 4-byte UINT64 lays out the same."""
    for name in LAYOUTS:
        end = 0
        for field in getattr(win32, name)._fields_:
            member = getattr(getattr(win32, name), field[0])
            assert member.offset == end, f"{name}.{field[0]}"
            end += member.size


def test_a_flow_id_has_32_bits() -> None:
    assert ctypes.sizeof(win32.QOS_FLOWID) == 4


def test_structures_show_their_members() -> None:
    assert repr(QOS_VERSION(1, 0)) == "QOS_VERSION(MajorVersion=1, MinorVersion=0)"
    assert repr(QOS_FLOWRATE_OUTGOING(64_000, 1, 4)) == (
        "QOS_FLOWRATE_OUTGOING(Bandwidth=64000, ShapingBehavior=1, Reason=4)"
    )
    assert repr(QOS_FLOW_FUNDAMENTALS(RTTSet=1, RTT=20)) == (
        "QOS_FLOW_FUNDAMENTALS(BottleneckBandwidthSet=0, BottleneckBandwidth=0,"
        " AvailableBandwidthSet=0, AvailableBandwidth=0, RTTSet=1, RTT=20)"
    )


def test_values_of_the_package_become_structures() -> None:
    known = qos2.FlowFundamentals(qos2.Bandwidth(10**12), qos2.Bandwidth(0), 250)
    assert bytes(QOS_FLOW_FUNDAMENTALS.of(known)) == bytes(
        QOS_FLOW_FUNDAMENTALS(
            BottleneckBandwidthSet=1,
            BottleneckBandwidth=10**12,
            AvailableBandwidthSet=1,
            AvailableBandwidth=0,
            RTTSet=1,
            RTT=250,
        )
    )
    assert bytes(QOS_FLOW_FUNDAMENTALS.of(qos2.FlowFundamentals())) == bytes(40)
    assert QOS_FLOW_FUNDAMENTALS.of(qos2.FlowFundamentals(rtt_us=2**32)).RTT == 2**32 - 1
    priority = qos2.PacketPriority(qos2.Dscp(40), qos2.Dscp(8), 5, 1)
    assert bytes(QOS_PACKET_PRIORITY.of(priority)) == bytes(QOS_PACKET_PRIORITY(40, 8, 5, 1))


@pytest.mark.parametrize(("name", "parameters"), CALLS.items())
def test_calls_have_the_parameters_of_windows_in_their_order(name: str, parameters: list[str]) -> None:
    call = getattr(win32, name)
    function = call.__wrapped__
    assert list(
        function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    ) == (parameters)
    assert call.__name__ == name
    assert call.__doc__


@pytest.mark.parametrize(("family", "protocol", "payload", "rate", "header", "added", "subtracted"), RATES)
def test_rates_with_and_without_headers(
    family: int, protocol: int, payload: int, rate: int, header: int, added: int, subtracted: int
) -> None:
    assert win32.QOS_HEADER_OVERHEAD(family, protocol) == header
    assert win32.QOS_ADD_OVERHEAD(family, protocol, payload, rate) == added
    assert win32.QOS_SUBTRACT_OVERHEAD(family, protocol, payload, rate) == subtracted


def test_what_is_not_ipv4_counts_as_ipv6() -> None:
    assert win32.QOS_HEADER_OVERHEAD(WINDOWS_AF_INET6, socket.IPPROTO_TCP) == 60


@pytest.mark.parametrize("function", [win32.QOS_ADD_OVERHEAD, win32.QOS_SUBTRACT_OVERHEAD])
@pytest.mark.parametrize("payload", [0, -1])
def test_packets_without_payload_have_no_overhead(function: object, payload: int) -> None:
    assert callable(function)
    with pytest.raises(WinError) as refused:
        function(socket.AF_INET, socket.IPPROTO_UDP, payload, 64_000)
    assert (refused.value.winerror, refused.value.name) == (87, "ERROR_INVALID_PARAMETER")


def test_an_error_says_what_is_wrong_and_what_to_do() -> None:
    error = WinError(1168, "no flow 7", "it has ended")
    assert str(error) == "[WinError 1168] ERROR_NOT_FOUND: no flow 7 (it has ended)"
    assert (error.winerror, error.name, error.strerror, error.hint, error.size, error.errno) == (
        1168,
        "ERROR_NOT_FOUND",
        "no flow 7",
        "it has ended",
        0,
        None,
    )
    assert str(WinError(122, "8 bytes", size=16)) == "[WinError 122] ERROR_INSUFFICIENT_BUFFER: 8 bytes"
    assert WinError(4711, "?").name == "ERROR_4711"


def test_an_error_is_an_oserror_and_survives_pickling() -> None:
    error = WinError(122, "8 bytes", "16 are needed", 16)
    assert isinstance(error, OSError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.winerror, copy.strerror, copy.hint, copy.size) == (
        WinError,
        122,
        "8 bytes",
        "16 are needed",
        16,
    )


def test_every_error_of_the_package_has_a_name_on_windows() -> None:
    nameless = {error.code for error in qos2.errors.BY_CODE.values() if error.win32 not in win32.ERROR_NAMES}
    assert nameless == set()


def test_importing_it_loads_nothing_of_the_daemon() -> None:
    code = "import sys, qos2.win32; print(*sorted(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(qos2.__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"bcc", "pyroute2", "prometheus_client", "numpy", "rich", "asyncio"}
    assert not {each for each in loaded if each.startswith(("qos2.core", "qos2.datapath", "qos2.paths", "qos2.server"))}
