"""What the tests of several roots say of the packages' contents, and packages that are made for them."""

import re
import subprocess
from pathlib import Path

from package.overlay import Overlay

#: Run by the system's Python: whether there are many modules, and whose numpy they use.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.path[:0] = ["/usr/lib/qos2/commands", "/usr/lib/qos2/client"]
import qos2
names = [each.name for each in pkgutil.walk_packages(qos2.__path__, "qos2.") if not each.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names) > 50, sys.modules["numpy"].__file__)
"""

#: What dpkg, and programs that it calls for any package, keep for themselves.
_BOOKKEEPING = re.compile(
    r"/var/lib/dpkg(/.*)?|/var/log(/.*)?|/var/cache(/.*)?"
    r"|/var/lib/systemd/deb-systemd-helper-(enabled|masked)"  # the folders alone
    r"|/etc/ld\.so\.cache|/etc/\.pwd\.lock"
    r"|/usr/local/sbin/systemctl|/usr/sbin/policy-rc\.d"  # Overlay.pretend_systemd()
    # The account stays: its number, given out anew, would hand files to a stranger.
    r"|/etc/(passwd|group|shadow|gshadow)-?"
)


def left_behind(system: Overlay) -> set[str]:
    """What is not as it was before the packages were there."""
    return {path for path in system.changes() if not _BOOKKEEPING.fullmatch(path)}


def packed(folder: Path, name: str) -> Path:
    """A package of a folder that has its DEBIAN below it; it lies beside the folder."""
    file = folder.with_name(f"{name}.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", folder, file], capture_output=True, check=True)
    return file


def next_version(package: Path, folder: Path) -> Path:
    """The same package, one version later, with another default in its configuration file."""
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    control = folder / "DEBIAN" / "control"
    control.write_text(re.sub(r"^Version: .*", r"\g<0>+next", control.read_text(), flags=re.MULTILINE))
    with (folder / "etc/qos2/qos2d.toml").open("a") as file:
        file.write("# new in the next version\n")
    return packed(folder, "next")


def unmet(package: Path) -> str:
    """What it depends on and this machine does not have; empty: nothing."""
    depends = subprocess.run(["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True).stdout
    command = ["dpkg-checkbuilddeps", "-d", depends.strip(), "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip().rpartition(": ")[2]
