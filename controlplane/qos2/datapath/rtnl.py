"""The message types of rtnetlink, from pyroute2: the only importer of it.

pyroute2's own __init__ imports all of the library (its databases, event loops and sockets), of which
nothing is used here (ADR 0010): 8 MB and a quarter of a second for two classes that decode. So the
package is entered past it; its modules do not need what it does.
"""

import sys
from importlib.machinery import PathFinder
from types import ModuleType

from qos2.errors import MissingKernelFeature


def _enter_package(name: str) -> None:
    if name in sys.modules:
        return
    spec = PathFinder.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingKernelFeature(f"{name} is not installed", "pip install 'qos2[daemon]'")
    package = ModuleType(name)
    package.__spec__ = spec
    package.__path__ = spec.submodule_search_locations
    sys.modules[name] = package


_enter_package("pyroute2")

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg as ifinfmsg  # noqa: E402  after the line above, on purpose
from pyroute2.netlink.rtnl.tcmsg import tcmsg as tcmsg  # noqa: E402  likewise
