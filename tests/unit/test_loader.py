"""Where the loader finds kernel headers, on made-up trees of the kinds that distributions install."""

from pathlib import Path

import pytest

from qos2.datapath.loader import find_headers
from qos2.errors import MissingKernelFeature

RELEASE = "6.18.0-test"


def debian(sources: Path, version: str) -> Path:
    """Debian's two halves."""
    (sources / f"linux-headers-{version}-common" / "include" / "linux").mkdir(parents=True)
    generated = sources / f"linux-headers-{version}-amd64" / "include" / "generated"
    generated.mkdir(parents=True)
    return sources / f"linux-headers-{version}-common"


def ubuntu(sources: Path, version: str) -> Path:
    """Ubuntu's complete folder."""
    folder = sources / f"linux-headers-{version}-generic"
    (folder / "include" / "generated").mkdir(parents=True)
    (folder / "include" / "linux").mkdir()
    (folder / "include" / "linux" / "kconfig.h").touch()
    return folder


def test_the_running_kernels_own_headers_come_first(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    (tmp_path / "modules" / RELEASE / "build" / "include").mkdir(parents=True)
    headers = find_headers(tmp_path / "modules", tmp_path / "src", RELEASE)
    assert (headers.source, headers.flags) == (None, [])


def test_debians_halves_are_put_together(tmp_path: Path) -> None:
    common = debian(tmp_path, "6.1.0-9")
    headers = find_headers(tmp_path / "none", tmp_path, RELEASE)
    assert headers.source == common
    assert headers.flags[0] == f"-I{tmp_path / 'linux-headers-6.1.0-9-amd64' / 'include'}"
    assert len(headers.flags) == 4


def test_a_complete_folder_needs_no_flags(tmp_path: Path) -> None:
    folder = ubuntu(tmp_path, "6.8.0-45")
    headers = find_headers(tmp_path / "none", tmp_path, RELEASE)
    assert (headers.source, headers.flags) == (folder, [])


def test_the_newest_of_several_is_taken_by_number_not_by_letter(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-9")
    newest = debian(tmp_path, "6.1.0-56")
    assert find_headers(tmp_path / "none", tmp_path, RELEASE).source == newest


def test_half_of_debians_headers_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "linux-headers-6.1.0-9-amd64" / "include" / "generated").mkdir(parents=True)
    with pytest.raises(MissingKernelFeature):
        find_headers(tmp_path / "none", tmp_path, RELEASE)


def test_without_headers_the_error_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(MissingKernelFeature) as caught:
        find_headers(tmp_path / "none", tmp_path, RELEASE)
    assert "linux-headers" in caught.value.hint
    assert "apt-get install" in caught.value.hint
