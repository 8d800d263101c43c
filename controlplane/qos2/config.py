"""The daemon's configuration: one flat TOML table, checked whole before anything is touched.

A value that cannot be honoured is refused with the file, the key and, for a misspelt key, the
nearest known one. Command-line flags are overrides with the same keys, types and checks. Nothing
here opens sockets, devices or maps; `deploy/qos2d.toml` lists every key with its default.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from qos2.core.rules import Deniable
from qos2.core.thresholds import Thresholds
from qos2.errors import ConfigError
from qos2.model import SLOT_MASK

#: Bytes of a path in sockaddr_un, less the terminating zero (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
#: IFNAMSIZ less the terminating zero.
MAX_DEVICE_NAME_BYTES = 15

Count = Annotated[int, Meta(ge=1, le=SLOT_MASK)]
LOG_LEVELS = ("debug", "info", "warning", "error")
LogFormat = Literal["auto", "text", "json", "journal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an operator can choose. Construction raises ValueError for a value out of range of its key."""

    socket: Path = Path("/run/qos2/qos2.sock")
    #: Permissions of the socket file: who may ask the daemon for anything at all.
    socket_mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o666
    #: Names of devices to attach to; empty: every device with no other device below it.
    devices: tuple[str, ...] = ()
    #: ADDRESS:PORT of the metrics endpoint, IPv6 in brackets; empty: none.
    metrics: str = "127.0.0.1:9472"
    #: At most so many flows are told one by one at /metrics/flows of that endpoint; 0: none.
    metrics_flows_top: Annotated[int, Meta(ge=0, le=50)] = 0
    #: Size of the flow table; about 160 bytes of kernel memory per flow.
    max_flows: Count = 65_536
    flows_per_uid: Count = 16_384
    handles_per_uid: Count = 1_024
    members_per_flow: Count = 4_096
    #: Requests of one handle that wait for something.
    pending_per_handle: Count = 1_024
    #: Remote hosts that one user's processes track.
    tracked_per_uid: Count = 1_024
    #: Clients connected at a time.
    connections: Count = 4_096
    #: Seconds for which flows of a killed daemon stay in force after the next one starts.
    orphan_grace_s: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    #: Refuse addresses that Windows refuses: IPv4 on a dual-stack socket, IPv4-mapped.
    strict: bool = False
    #: What nobody may do, root included: core.rules.Deniable.
    deny: tuple[Deniable, ...] = ()
    #: Hosts beyond a router: "default" as those on the link, "windows" without estimates, as there.
    off_link: Literal["default", "windows"] = "default"
    #: Whether paths in use are probed; without, only what TCP flows and applications tell is known.
    probing: bool = True
    #: UDP port of reflectors.
    probe_port: Annotated[int, Meta(ge=1, le=0xFFFF)] = 862
    #: Of the measured capacity of a path, at most so much goes into probes on average.
    probe_share_percent: Annotated[float, Meta(ge=0.01, le=10)] = 1.0
    #: When a flow is congested: core.thresholds.Thresholds says what each means, and why it is what it is.
    congested_queue_delay_ms: float = Thresholds.congested_queue_delay_ms
    congested_rtt_share: float = Thresholds.congested_rtt_share
    congested_loss: float = Thresholds.congested_loss
    congested_ce: float = Thresholds.congested_ce
    congested_bad_windows: int = Thresholds.congested_bad_windows
    congested_window_count: int = Thresholds.congested_window_count
    congested_dwell_s: float = Thresholds.congested_dwell_s
    uncongested_share: float = Thresholds.uncongested_share
    uncongested_good_windows: int = Thresholds.uncongested_good_windows
    unknown_after_s: float = Thresholds.unknown_after_s
    baseline_rise_s: float = Thresholds.baseline_rise_s
    #: Folder of the policy's *.toml files; one that is not there is an empty policy.
    policy: Path = Path("/etc/qos2/policy.d")
    #: Directory on a bpffs for what must outlive the daemon.
    pin_path: Path = Path("/sys/fs/bpf/qos2")
    #: Directory where the compiled datapath is kept, so that the next start need not compile.
    cache: Path = Path("/var/cache/qos2")
    #: Set IP_TOS / IPV6_TCLASS on passed sockets of one flow, so that the datapath seldom has to rewrite.
    preset_tos: bool = True
    #: net.ipv4.tcp_tso_rtt_log while the daemon runs, in each namespace with its devices; None: as it is.
    tcp_tso_rtt_log: Annotated[int, Meta(ge=0, le=255)] | None = None
    log_level: str = "info"
    #: "auto": fields of the systemd journal where standard error goes there, else plain lines.
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        if len(bytes(self.socket)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"socket: a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes")
        for name in self.devices:
            _check_device(name)
        if len(set(self.devices)) < len(self.devices):
            raise ValueError("devices: a device is named twice")
        if len(set(self.deny)) < len(self.deny):
            raise ValueError("deny: a word is named twice")
        if self.metrics:
            parse_endpoint(self.metrics)
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level: {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")

        _ = self.thresholds  # contradictions among them

    @property
    def thresholds(self) -> Thresholds:
        """When a flow is congested."""
        return Thresholds(**{each.name: getattr(self, each.name) for each in fields(Thresholds)})

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Address and port of the metrics endpoint, None where it is off."""
        return parse_endpoint(self.metrics) if self.metrics else None


def _check_device(name: str) -> None:
    # The kernel's own rule: dev_valid_name() in net/core/dev.c.
    refused = name in {"", ".", ".."} or any(c in "/:" or c.isspace() for c in name)
    if refused or len(name.encode()) > MAX_DEVICE_NAME_BYTES:
        raise ValueError(f"devices: {name!r} cannot be the name of a network device")


def parse_endpoint(text: str) -> tuple[str, int]:
    """Address and port of `192.0.2.1:9472` or `[2001:db8::1]:9472`; port 0 lets the kernel choose one.

    Raises ValueError. Names are refused: what they resolve to would change behind the operator's back.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    number = int(port) if port.isascii() and port.isdigit() else -1
    if not colon or address is None or bracketed is not (address.version == 6) or not 0 <= number <= 0xFFFF:
        raise ValueError(f"metrics: {text!r} is no ADDRESS:PORT such as 127.0.0.1:9472 or [::1]:9472")
    return str(address), number


KEYS = tuple(key.name for key in fields(Config))


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a file (None: the defaults) with `overrides` in place of its keys.

    Raises ConfigError: no such file, no TOML, an unknown key, a value of the wrong type or range.
    """
    values = {} if path is None else _read(path)
    _check(values, str(path))
    if overrides:
        _check(overrides, "command line")
    return _config(values | dict(overrides or {}), "command line" if path is None else str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "name another file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _check(values: Mapping[str, Any], source: str) -> None:
    """Refuse what `source` says by itself, so that the error names the right one of file and command line."""
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(KEYS)}"
            raise ConfigError(f"{source}: unknown key `{key}`", hint)
    _config(values, source)


def _config(values: Mapping[str, Any], source: str) -> Config:
    try:
        return msgspec.convert(values, Config, dec_hook=_path)
    except msgspec.ValidationError as error:
        # msgspec appends " - at `$.key`"; our own checks begin with the key themselves.
        what, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(f"{source}: {key}: {what[:1].lower()}{what[1:]}" if key else f"{source}: {what}") from error


def _path(kind: type, value: object) -> Path:
    # The only field type that msgspec does not know itself.
    if kind is not Path:
        raise NotImplementedError(kind)
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("Expected a path")
    return Path(value).absolute()
