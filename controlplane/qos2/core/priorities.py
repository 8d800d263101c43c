"""How the packets of a flow are treated: from what its owner asked for, and a rule of the administrator grants, to
the policy of the datapath.

Pure values. `Treatment` is the whole state that decides about marks and rate, and each of its methods
is one step that an owner can make; nothing here knows of slots, sockets or handles.

The DSCPs per traffic type are those that Windows was observed to send; the rules are those of the
QOSSetFlow page and of the comments in Microsoft's qos2.h (see docs/api.md).
"""

from dataclasses import replace
from typing import NamedTuple

from qos2.core.rule import Act, Rule
from qos2.model import Action, Bandwidth, Dscp, FlowId, FlowPolicy, FlowRate, PacketPriority, Shaping, TrafficType

#: Indexed by TrafficType: CS0, CS1, CS5, CS5, CS7, CS7. Two pairs share their bits on purpose.
TYPE_DSCP: tuple[Dscp, ...] = (Dscp(0), Dscp(8), Dscp(40), Dscp(40), Dscp(56), Dscp(56))

#: What is over a contract is treated as if nobody had asked for anything.
NON_CONFORMANT_DSCP = Dscp(0)


#: Traffic types of what a rule marks, indexed by the upper three bits of its DSCP (the class selector, RFC 2474).
_CLASS_TYPE = (
    TrafficType.BEST_EFFORT,
    TrafficType.BACKGROUND,
    TrafficType.EXCELLENT_EFFORT,
    TrafficType.EXCELLENT_EFFORT,
    TrafficType.AUDIO_VIDEO,
    TrafficType.AUDIO_VIDEO,
    TrafficType.CONTROL,
    TrafficType.CONTROL,
)
#: Expedited forwarding (RFC 3246) and voice admit (RFC 5865) are meant for voice, whatever their class.
_VOICE_DSCP = (46, 44)


def mark_of(act: Act) -> Dscp | None:
    """What a rule writes; None leaves the DSCP as it is."""
    if act.dscp is not None:
        return act.dscp
    if act.traffic_type is None or (act.rate and act.shaping is Shaping.SHAPE_ONLY):
        return None
    return TYPE_DSCP[act.traffic_type]


def type_of(act: Act) -> TrafficType:
    """Under which traffic type a rule's own flow is counted: the rule's, else the one that its DSCP is usual for."""
    if act.traffic_type is not None:
        return act.traffic_type
    dscp = act.dscp or 0
    return TrafficType.VOICE if dscp in _VOICE_DSCP else _CLASS_TYPE[dscp >> 3]


class Treatment(NamedTuple):
    """What the owner of a flow has asked for so far, or what is granted of it. Immutable: each step makes another."""

    traffic_type: TrafficType
    adaptive: bool
    marking: bool  #: whether type and override count: not before an adaptive flow has a rate, nor after rate 0
    override: Dscp | None = None
    rate: FlowRate | None = None
    l2: int | None = None  #: 802.1p priority, which rules alone can set

    @classmethod
    def of_rule(cls, act: Act) -> "Treatment":
        """Of a rule's own flow, for what no application has asked anything for."""
        rate = FlowRate(act.rate, act.shaping) if act.rate else None
        mark = mark_of(act)
        return cls(type_of(act), False, mark is not None, mark, rate, act.priority)

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

    def under(self, act: Act) -> "Treatment":
        """What is granted of this by a rule, which is above all that an application asks for.

        A ceiling caps what was asked for, and is the rate of who asked for none; any other rate takes its place.
        """
        if act.exempt:
            return self
        if act.deny:
            return Treatment(self.traffic_type, self.adaptive, marking=False)
        mark = mark_of(act)
        return Treatment(
            self.traffic_type if act.traffic_type is None or mark is None else act.traffic_type,
            self.adaptive,
            self.marking or mark is not None,
            self.override if mark is None else mark,
            self._limited(act),
            act.priority,
        )

    def _limited(self, act: Act) -> FlowRate | None:
        if not act.rate:
            return self.rate
        if act.ceiling and self.rate is not None:
            return replace(self.rate, bandwidth=min(self.rate.bandwidth, act.rate))
        # A rule that only shapes has no mark of its own: that of the application stays.
        marks = act.shaping is Shaping.SHAPE_ONLY
        return FlowRate(act.rate, Shaping.SHAPE_AND_MARK if marks else act.shaping)

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
        """The values in force: 0 where nothing is written, and where no 802.1p priority is sent."""
        l2 = self.l2 or 0
        return PacketPriority(Dscp(self.dscp or 0), NON_CONFORMANT_DSCP, l2, l2)

    def policy(self, flow: FlowId, netns_cookies: frozenset[int]) -> FlowPolicy:
        """What the datapath must do with the packets of `flow` in these network namespaces."""
        rate = self.rate
        if rate is None:
            return FlowPolicy(flow, self.dscp, NON_CONFORMANT_DSCP, Action.NONE, Bandwidth(0), netns_cookies, self.l2)
        remarks = rate.shaping is Shaping.USE_NON_CONFORMANT_MARKINGS
        action = Action.REMARK if remarks else Action.DELAY
        return FlowPolicy(flow, self.dscp, NON_CONFORMANT_DSCP, action, rate.bandwidth, netns_cookies, self.l2)


def granted(treatment: Treatment, rule: Rule | None) -> Treatment:
    """What is in force of a treatment under the rule that its flow met, if any."""
    return treatment if rule is None else treatment.under(rule.act)
