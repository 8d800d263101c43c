"""The daemon's configuration: defaults, overrides, and one clear refusal for each wrong value."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qos2.config import Config, load
from qos2.core.rules import Deniable, Limits
from qos2.core.thresholds import Thresholds
from qos2.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "deploy" / "qos2d.toml"
#: Keys that are absent by default: the shipped file shows an example for them.
OPTIONAL = {"tcp_tso_rtt_log"}
NAN = float("nan")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "qos2d.toml"
    path.write_text(text)
    return path


def test_without_a_file_all_values_are_the_defaults() -> None:
    assert load() == Config()


def test_defaults_are_those_of_the_documentation() -> None:
    config = Config()
    assert config.socket == Path("/run/qos2/qos2.sock")
    assert config.socket_mode == 0o666
    assert config.devices == ()
    assert config.metrics_address == ("127.0.0.1", 9472)
    assert config.max_flows == 65_536
    assert config.pin_path == Path("/sys/fs/bpf/qos2")
    assert config.preset_tos is True
    assert config.tcp_tso_rtt_log is None
    assert (config.strict, config.deny) == (False, ())
    assert (config.pending_per_handle, config.tracked_per_uid) == (1_024, 1_024)


def test_limits_without_a_file_are_those_of_the_core() -> None:
    config, limits = Config(), Limits()
    shared = {key.name for key in fields(Config)} & {key.name for key in fields(Limits)}
    assert shared == {key.name for key in fields(Limits)} - {"flows_per_privileged_uid"}
    assert {key: getattr(config, key) for key in shared} == {key: getattr(limits, key) for key in shared}


def test_what_is_denied_is_named_by_its_word(tmp_path: Path) -> None:
    path = written(tmp_path, 'strict = true\ndeny = ["dscp", "estimates"]\n')
    assert load(path) == Config(strict=True, deny=(Deniable.DSCP, Deniable.ESTIMATES))
    assert load(None, {"deny": list(Deniable)}).deny == tuple(Deniable)


def test_the_shipped_file_explains_every_word_of_deny() -> None:
    text = SHIPPED.read_text()
    assert [word.value for word in Deniable if f'"{word.value}"' not in text] == []


def test_values_of_a_file_replace_defaults_and_overrides_replace_both(tmp_path: Path) -> None:
    path = written(tmp_path, 'max_flows = 100\nsocket = "/run/a.sock"\ndevices = ["eth0", "wg1"]\norphan_grace_s = 3\n')
    config = load(path, {"socket": Path("/run/b.sock"), "metrics": "[::1]:9999"})
    assert config == Config(
        max_flows=100,
        socket=Path("/run/b.sock"),
        devices=("eth0", "wg1"),
        orphan_grace_s=3.0,
        metrics="[::1]:9999",
    )
    assert config.metrics_address == ("::1", 9999)


def test_the_shipped_file_changes_nothing() -> None:
    assert load(SHIPPED) == Config()


def test_the_shipped_file_lists_each_key_with_its_default() -> None:
    lines = re.findall(r"^#([a-z_]+ = .*)$", SHIPPED.read_text(), re.MULTILINE)
    told = tomllib.loads("\n".join(lines))
    assert set(told) == {key.name for key in fields(Config)}
    assert load(None, {key: value for key, value in told.items() if key not in OPTIONAL}) == Config()
    load(None, told)


def test_empty_metrics_means_no_endpoint() -> None:
    assert load(None, {"metrics": ""}).metrics_address is None


def test_a_relative_socket_path_is_taken_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {"socket": "qos2.sock"}).socket == tmp_path / "qos2.sock"


def test_an_unknown_key_is_refused_with_file_and_nearest_key(tmp_path: Path) -> None:
    path = written(tmp_path, "max_flow = 7\n")
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.message == f"{path}: unknown key `max_flow`"
    assert refused.value.hint == "did you mean `max_flows`?"


def test_an_unknown_key_near_no_other_lists_all_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {"zzz": 1})
    assert refused.value.hint == f"known keys: {', '.join(key.name for key in fields(Config))}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_flows", 0, "max_flows: expected `int` >= 1"),
        ("max_flows", 1 << 20, "max_flows: expected `int` <= 1048575"),
        ("max_flows", "many", "max_flows: expected `int`, got `str`"),
        ("max_flows", True, "max_flows: expected `int`, got `bool`"),
        ("connections", 1.5, "connections: expected `int`, got `float`"),
        ("socket_mode", 0o1000, "socket_mode: expected `int` <= 511"),
        ("socket", "", "socket: expected a path"),
        ("socket", 3, "socket: expected a path"),
        ("socket", "/" + "x" * 107, "socket: a socket's path has at most 107 bytes"),
        ("devices", "eth0", "devices: expected `array`, got `str`"),
        ("devices", ["eth0", 1], "devices[1]: expected `str`, got `int`"),
        ("devices", ["eth0", "eth0"], "devices: a device is named twice"),
        ("devices", ["a/b"], "devices: 'a/b' cannot be the name of a network device"),
        ("devices", ["abcdefghijklmnop"], "devices: 'abcdefghijklmnop' cannot be the name of a network device"),
        ("orphan_grace_s", NAN, "orphan_grace_s: expected `float` >= 0.0"),
        ("orphan_grace_s", -1, "orphan_grace_s: expected `float` >= 0.0"),
        ("preset_tos", 1, "preset_tos: expected `bool`, got `int`"),
        ("tcp_tso_rtt_log", 256, "tcp_tso_rtt_log: expected `int` <= 255"),
        ("strict", "yes", "strict: expected `bool`, got `str`"),
        ("deny", "dscp", "deny: expected `array`, got `str`"),
        ("deny", ["dscp", "everything"], "deny[1]: invalid enum value 'everything'"),
        ("deny", ["dscp", "dscp"], "deny: a word is named twice"),
        ("pending_per_handle", 0, "pending_per_handle: expected `int` >= 1"),
        ("log_level", "loud", "log_level: 'loud' is none of debug, info, warning, error"),
        ("off_link", "linux", "off_link: invalid enum value 'linux'"),
        ("off_link", True, "off_link: expected `str`, got `bool`"),
        ("probing", "no", "probing: expected `bool`, got `str`"),
        ("probing", 0, "probing: expected `bool`, got `int`"),
        ("probe_port", 0, "probe_port: expected `int` >= 1"),
        ("probe_port", 65_536, "probe_port: expected `int` <= 65535"),
        ("probe_port", "862", "probe_port: expected `int`, got `str`"),
        ("probe_share_percent", 0, "probe_share_percent: expected `float` >= 0.01"),
        ("probe_share_percent", 10.1, "probe_share_percent: expected `float` <= 10.0"),
        ("probe_share_percent", NAN, "probe_share_percent: expected `float` >= 0.01"),
        ("probe_share_percent", "1%", "probe_share_percent: expected `float`, got `str`"),
    ],
)
def test_a_wrong_value_is_refused_with_source_and_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {key: value})
    assert refused.value.message == f"command line: {message}"


# When a flow is congested


def test_thresholds_without_a_file_are_those_of_the_core() -> None:
    shared = {key.name for key in fields(Config)} & {key.name for key in fields(Thresholds)}
    assert shared == {key.name for key in fields(Thresholds)}
    assert Config().thresholds == Thresholds()


def test_what_paths_are_asked_by_default_is_what_the_documentation_says() -> None:
    config = Config()
    assert (config.off_link, config.probing, config.probe_port, config.probe_share_percent) == ("default", True, 862, 1)


def test_values_about_paths_and_congestion_are_taken_from_a_file(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "off_link": "windows",
        "probing": False,
        "probe_port": 8620,
        "probe_share_percent": 0.25,
        "congested_queue_delay_ms": 12.5,
        "congested_rtt_share": 0.75,
        "congested_loss": 0.02,
        "congested_ce": 0.1,
        "congested_bad_windows": 2,
        "congested_window_count": 4,
        "congested_dwell_s": 3,
        "uncongested_share": 0.25,
        "uncongested_good_windows": 5,
        "unknown_after_s": 30,
        "baseline_rise_s": 60.5,
    }
    literals = {"off_link": '"windows"', "probing": "false"}
    config = load(written(tmp_path, "".join(f"{key} = {literals.get(key, value)}\n" for key, value in told.items())))
    assert config == Config(**told)
    assert config.thresholds == Thresholds(**{key.name: told[key.name] for key in fields(Thresholds)})
    # Each of them is another than by default, so that none was left out.
    assert [key for key, value in told.items() if getattr(Config(), key) == value] == []


LIMITS = [
    ("congested_queue_delay_ms", 0.1, 10_000),
    ("congested_rtt_share", 0, 10),
    ("congested_loss", 0.0001, 1),
    ("congested_ce", 0.0001, 1),
    ("uncongested_share", 0.01, 1),
    ("uncongested_good_windows", 1, 250),
    ("congested_dwell_s", 0, 3600),
    ("unknown_after_s", 0.5, 3600),
    ("baseline_rise_s", 1, 86_400),
]


@pytest.mark.parametrize(("key", "least", "most"), LIMITS)
def test_a_threshold_has_its_limits(key: str, least: float, most: float) -> None:
    for value in (least, most):
        assert getattr(load(None, {key: value}).thresholds, key) == value
    whole = key == "uncongested_good_windows"
    beyond = [least - 1, most + 1] if whole else [least - 1e-6, most + 1e-3, -most, NAN, float("inf"), -float("inf")]
    for value in beyond:
        with pytest.raises(ConfigError) as refused:
            load(None, {key: value})
        assert refused.value.message == f"command line: {key}: from {least} to {most}"


@pytest.mark.parametrize("key", [key.name for key in fields(Thresholds)])
@pytest.mark.parametrize(("value", "kind"), [("30", "str"), (True, "bool"), ([30], "array")])
def test_a_threshold_is_a_number(key: str, value: Any, kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {key: value})
    expected = "int" if type(getattr(Thresholds, key)) is int else "float"
    assert refused.value.message == f"command line: {key}: expected `{expected}`, got `{kind}`"


@pytest.mark.parametrize("key", ["congested_bad_windows", "congested_window_count", "uncongested_good_windows"])
def test_windows_are_counted_whole(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {key: 2.5})
    assert refused.value.message == f"command line: {key}: expected `int`, got `float`"


@pytest.mark.parametrize(
    ("bad", "count", "taken"),
    [
        (1, 1, True),
        (8, 8, True),
        (3, 6, True),
        (0, 6, False),
        (7, 6, False),
        (9, 9, False),
        (1, 9, False),
        (1, 0, False),
    ],
)
def test_so_many_windows_can_be_bad_as_there_are(bad: int, count: int, taken: bool) -> None:
    told = {"congested_bad_windows": bad, "congested_window_count": count}
    if taken:
        thresholds = load(None, told).thresholds
        assert (thresholds.congested_bad_windows, thresholds.congested_window_count) == (bad, count)
        return
    with pytest.raises(ConfigError) as refused:
        load(None, told)
    assert refused.value.message == (
        "command line: congested_bad_windows: from 1 to congested_window_count, which is at most 8"
    )


# What is wrong as a whole


@pytest.mark.parametrize(
    "text",
    ["9472", ":9472", "localhost:9472", "::1:9472", "[127.0.0.1]:9472", "1.2.3.4:65536", "1.2.3.4:", "1.2.3.4:-1"],
)
def test_a_metrics_endpoint_needs_a_literal_address_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: metrics: .* is no ADDRESS:PORT"):
        load(None, {"metrics": text})


def test_a_wrong_value_of_the_file_is_blamed_on_the_file_even_where_it_is_overridden(tmp_path: Path) -> None:
    path = written(tmp_path, "max_flows = 0\n")
    with pytest.raises(ConfigError) as refused:
        load(path, {"max_flows": 5})
    assert refused.value.message == f"{path}: max_flows: expected `int` >= 1"


def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    path = written(tmp_path, "max_flows = \n")
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.message == f"{path}: not TOML: Invalid value (at line 1, column 13)"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qos2d.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "none.toml")
    assert refused.value.message == f"{tmp_path / 'none.toml'}: No such file or directory"
