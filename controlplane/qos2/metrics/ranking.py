"""Which network devices are told by name, so that there are few series however many devices there are."""

from collections.abc import Iterable, Mapping

from qos2.model import DeviceStatus

#: So many are told by their name.
MAX_DEVICES = 5
#: All others.
OTHER = "other"


class DeviceRanking:
    """Which devices are told by name: who has a place keeps it while it is attached, free places go to the busiest.

    Busiest are those with the most flows to hold back, then those that have sent most. What all others have sent and
    dropped is summed as it grows, so that it never goes back when one of them leaves or gets a place.
    """

    def __init__(self, places: int = MAX_DEVICES) -> None:
        self._places = places
        self._told: dict[str, None] = {}
        self._left_out: frozenset[str] = frozenset()
        self._last: dict[str, tuple[int, int]] = {}
        #: How often a device was left without a place.
        self.truncated = 0
        self.other_sent_bytes = 0
        self.other_dropped_packets = 0

    def look(
        self, devices: Iterable[DeviceStatus], sent_bytes: Mapping[str, int], dropped_packets: Mapping[str, int]
    ) -> tuple[str, ...]:
        """The names that are told, of those attached now; their counters are given by name."""
        shaped: dict[str, int] = {}
        for device in devices:
            shaped[device.name] = shaped.get(device.name, 0) + device.shaped_flows
        told = [name for name in self._told if name in shaped]
        outside = sorted(
            shaped.keys() - self._told.keys(), key=lambda name: (-shaped[name], -sent_bytes.get(name, 0), name)
        )
        told += outside[: self._places - len(told)]
        self._told = dict.fromkeys(told)
        now = {name: (sent_bytes.get(name, 0), dropped_packets.get(name, 0)) for name in shaped}
        left_out = frozenset(shaped.keys() - self._told.keys())
        for name in left_out:
            sent, dropped = self._last.get(name, now[name])
            self.other_sent_bytes += max(0, now[name][0] - sent)
            self.other_dropped_packets += max(0, now[name][1] - dropped)
        self.truncated += len(left_out - self._left_out)
        self._last, self._left_out = now, left_out
        return tuple(sorted(told))

    @property
    def left_out(self) -> bool:
        """Whether there was a device without a place; OTHER is told from then on."""
        return self.truncated > 0
