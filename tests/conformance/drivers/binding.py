"""What programs over a binding have in common: a scene, and objects behind the names of a row."""

from abc import abstractmethod
from typing import Any

from conformance.drivers.base import Driver
from conformance.drivers.scene import Scene
from conformance.numbers import QUERY_RATE
from conformance.table import Step
from conformance.vocabulary import DaemonBack, Privileged, Steered


class BindingDriver(Driver):
    """A program in a scene, which outlives it. Its OVERLAPPED structures are made when a row first names them."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self._overlapped: dict[str, Any] = {}

    def close(self) -> None:
        # Handles that the row has closed, or whose daemon is gone, are refused or not: both is well here.
        for handle in self.handles.values():
            self.QOSCloseHandle(handle)
        for overlapped in self._overlapped.values():
            overlapped.close()

    def reach(self, state: Step | Steered) -> None:
        if isinstance(state, Privileged):
            self.scene.privileged = True
            return
        if isinstance(state, DaemonBack):
            self.flows.clear()  # the ids may be given once more
        self.scene.reach(state, self.flows)

    def settle(self, handle: Any) -> None:
        """Answers come in the order in which they were sent, so that of another call comes after all of them."""
        self.QOSQueryFlow(handle, 0, QUERY_RATE, 8, None, 0, None)

    def overlapped(self, name: str) -> Any:
        """The OVERLAPPED of this name."""
        if name not in self._overlapped:
            self._overlapped[name] = self.new_overlapped()
        return self._overlapped[name]

    @abstractmethod
    def new_overlapped(self) -> Any:
        """One that was never used; its `close` gives it up."""
