"""How the packets of a flow are treated: from what its owner asked for to the policy of the datapath.

Pure values. `Treatment` is the whole state that decides about marks and rate, and each of its methods
is one step that an owner can make; nothing here knows of slots, sockets or handles.

The DSCPs per traffic type are those that Windows was observed to send; the rules are those of the
QOSSetFlow page and of the comments in Microsoft's qos2.h (see docs/api.md).
"""

from typing import NamedTuple

from qos2.model import Action, Bandwidth, Dscp, FlowId, FlowPolicy, FlowRate, PacketPriority, Shaping, TrafficType

#: Indexed by TrafficType: CS0, CS1, CS5, CS5, CS7, CS7. Two pairs share their bits on purpose.
TYPE_DSCP: tuple[Dscp, ...] = (Dscp(0), Dscp(8), Dscp(40), Dscp(40), Dscp(56), Dscp(56))

#: What is over a contract is treated as if nobody had asked for anything.
NON_CONFORMANT_DSCP = Dscp(0)


class Treatment(NamedTuple):
    """What the owner of a flow has asked for so far. Immutable: each step makes another one."""

    traffic_type: TrafficType
    adaptive: bool
    marking: bool  #: whether type and override count: not before an adaptive flow has a rate, nor after rate 0
    override: Dscp | None = None
    rate: FlowRate | None = None

    @classmethod
    def begin(cls, traffic_type: TrafficType, *, adaptive: bool) -> "Treatment":
        """Of a new flow: a non-adaptive one marks at once, an adaptive one waits for its rate."""
        return cls(traffic_type, adaptive, not adaptive)

    def with_traffic_type(self, traffic_type: TrafficType) -> "Treatment":
        """Clears an override, keeps the contract, and marks again after a rate of 0."""
        marking = self.rate is not None or not self.adaptive
        return Treatment(traffic_type, self.adaptive, marking, None, self.rate)

    def with_rate(self, rate: FlowRate | None) -> "Treatment":
        """None takes away the contract and all marks, those of an override too until something is set again."""
        return self._replace(rate=rate, marking=rate is not None)

    def with_override(self, dscp: Dscp) -> "Treatment":
        """A DSCP of the owner's choice instead of the traffic type's, until the type is set again.

        For non-adaptive flows only, so that it marks at once.
        """
        return self._replace(override=dscp, marking=True)

    @property
    def bandwidth(self) -> Bandwidth:
        """Of the contract in bits/s, 0 without one."""
        return Bandwidth(0) if self.rate is None else self.rate.bandwidth

    @property
    def dscp(self) -> Dscp | None:
        """What conformant packets carry; None leaves them as the application made them."""
        if not self.marking:
            return None
        if self.override is not None:
            return self.override
        if self.rate is not None and self.rate.shaping is Shaping.SHAPE_ONLY:
            return Dscp(0)
        return TYPE_DSCP[self.traffic_type]

    @property
    def priority(self) -> PacketPriority:
        """The values in force: 0 where nothing is written, and no 802.1p priority, since none is sent."""
        return PacketPriority(Dscp(self.dscp or 0), NON_CONFORMANT_DSCP)

    def policy(self, flow: FlowId, netns_cookies: frozenset[int]) -> FlowPolicy:
        """What the datapath must do with the packets of `flow` in these network namespaces."""
        rate = self.rate
        if rate is None:
            return FlowPolicy(flow, self.dscp, NON_CONFORMANT_DSCP, Action.NONE, Bandwidth(0), netns_cookies)
        remarks = rate.shaping is Shaping.USE_NON_CONFORMANT_MARKINGS
        action = Action.REMARK if remarks else Action.DELAY
        return FlowPolicy(flow, self.dscp, NON_CONFORMANT_DSCP, action, rate.bandwidth, netns_cookies)
