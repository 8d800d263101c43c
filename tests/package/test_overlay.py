"""The judge of what packages leave behind sees every kind of change, and nothing that came and went."""

from pathlib import Path

import pytest

from package.overlay import Overlay

pytestmark = pytest.mark.datapath


def test_every_change_is_seen_and_the_folder_below_is_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(parents=True)
    data = root / "data"
    (data / "folder").mkdir(parents=True)
    for name in ("changed", "removed", "touched", "back", "folder/inner"):
        (data / name).write_text("same")
    (data / "link").symlink_to("here")
    before = {path: path.lstat().st_mtime_ns for path in data.rglob("*")}
    with Overlay(root) as overlay:
        assert overlay.changes() == set()
        folder = overlay.path("/data")
        (folder / "changed").write_text("other")
        (folder / "removed").unlink()
        (folder / "added").mkdir()
        (folder / "added" / "file").touch()
        (folder / "touched").touch()
        (folder / "came").touch()
        (folder / "came").unlink()
        (folder / "back").unlink()
        (folder / "back").write_text("same")
        (folder / "folder" / "inner").unlink()
        (folder / "folder").rmdir()
        (folder / "link").unlink()
        (folder / "link").symlink_to("there")
        expected = {"changed", "removed", "added", "added/file", "folder", "link"}
        assert overlay.changes() == {f"/data/{name}" for name in expected}
    assert {path: path.lstat().st_mtime_ns for path in data.rglob("*")} == before
