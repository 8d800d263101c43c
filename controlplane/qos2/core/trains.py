"""Arithmetic over one train of probes: how far the way spread it out, and what that says about the bottleneck.

Nothing is remembered here, and times are compared only with others of the same clock: the reflector's has an
unknown offset. Rates are bits/s at IP level.

A bottleneck of capacity C with a queue sends the packets of a BURST out one after another, so their distance
at the reflector is L / C whatever else it carries: what comes meanwhile queues behind them. Of a PACED train,
sent at rate r while others send X, only the share C / (r + X) arrives in the time of sending, as long as the
queue never runs empty; lost packets count the same way, so a policer tells as much. Sending times are the real
ones, so the pacing need not be exact.

Token buckets: what the bucket holds passes at line rate. Where a train is longer than the bucket, the rest of
it tells the sustained rate; a bucket that holds a whole train is invisible, and the line rate behind it is taken
for the capacity. What TCP flows are carried at shows the difference.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket

#: A slope over fewer packets is more noise than slope.
MIN_SLOPE_PACKETS = 4
#: So many of a train that is being dropped from must come through.
MIN_PASSED_PACKETS = 3
#: One loss in a train of 8 to 20 says nothing of a policer.
MIN_LOST_PACKETS = 2
#: Of a burst so much must be lost to look like a policer: a queue that is nearly full loses a few.
POLICED_LOSS = 0.25
#: A stamp later than the next ones allow by this much was late itself; less is ordinary noise (10-30 us).
LATE_NS = 60_000
#: Packets this much closer than the capacity allows prove it wrong.
TOO_CLOSE = 0.9
#: The sender's own pauses: from so many gaps on, the queue may have run empty in between.
PAUSE_GAPS = 3
#: What is slowed down by less was not slowed down: noise of a train of a few milliseconds.
HELD_RATIO = 1.05


@dataclass(frozen=True, slots=True)
class Burst:
    """What packets sent back to back showed. `head` of them passed before the queue began (a token bucket's)."""

    capacity: float
    head: int


@dataclass(frozen=True, slots=True)
class Paced:
    """What packets sent at `rate` showed: they arrived at rate / `ratio`."""

    rate: float
    ratio: float  #: 1: the way carried what was sent
    span_s: float  #: from the first to the last that counted
    lossy: bool

    @property
    def held(self) -> bool:
        """Whether the way carried less than was sent; if not, it might carry more."""
        return self.ratio > HELD_RATIO

    @property
    def arrived(self) -> float:
        return self.rate / self.ratio

    def spare(self, capacity: float) -> float:
        """What this bottleneck had left over; where the train was not held back, the train's own rate at least.

        It may come out below 0 or above the capacity, so that errors to both sides cancel in a mean; by no more
        than half of the capacity.
        """
        cross = capacity * self.ratio - self.rate
        return min(1.5 * capacity, max(-0.5 * capacity, capacity - cross))


def burst(outcome: ProbeOutcome) -> Burst | None:
    """The capacity that a BURST shows; None where too few arrived, or all in one moment of the reflector's clock.

    A line is laid through the arrival times by the median of the slopes of all pairs (Theil 1950, Sen 1968), which
    bears 29 % of wrong stamps. Its head, where packets came faster, is left out. Where it was `policed`, what passed
    may have passed at line rate.
    """
    reached = [packet.reached_ns for packet in outcome.packets if packet is not None]
    if len(reached) < MIN_SLOPE_PACKETS:
        return None
    head = _head(reached)
    gap_ns = _slope(reached[head:])
    if gap_ns <= 0:
        return None
    return Burst(outcome.plan.ip_bytes * 8e9 / gap_ns, head)


def policed(outcome: ProbeOutcome) -> bool:
    """Whether a BURST lost so much that a bucket without a queue may have been in its way.

    A queue shorter than the burst, or a full one, does the same, and one burst cannot tell; unless a bucket's head
    was followed by packets that had to wait.
    """
    lost = outcome.plan.count - outcome.answered
    if outcome.answered == 0 or lost < POLICED_LOSS * outcome.plan.count:
        return False
    passed = burst(outcome)
    return passed is None or passed.head == 0


def paced(outcome: ProbeOutcome, capacity: float | None, head: int = 0) -> Paced | None:
    """What a PACED train shows; None where too little of it arrived.

    `capacity` as far as known lets late stamps be told from late packets. `head`: that of bursts on this way; then
    only what comes after a bucket of that kind has run out is looked at, if anything does.
    """
    bits = outcome.plan.ip_bytes * 8
    service_ns = _service_ns(outcome, bits * 1e9 / capacity) if capacity else 0.0
    lossy = outcome.plan.count - outcome.answered >= MIN_LOST_PACKETS
    # From the first loss on a bucket is empty, or a queue is full: what was before that tells nothing.
    run = _longest_run(outcome.packets[outcome.packets.index(None) :] if lossy else outcome.packets)
    there = [packet for packet in run if packet is not None]
    if not lossy and there:  # of a policer packets may come as close as they were sent
        del there[_before_last_stall([packet.reached_ns for packet in there], service_ns) :]
    if len(there) < (MIN_PASSED_PACKETS if lossy else MIN_SLOPE_PACKETS):
        return None
    reached = [packet.reached_ns for packet in there]
    if not lossy:
        reached = _without_late_stamps(reached, service_ns)
    first = _bucket_empty(there, reached, service_ns, head) if head >= 2 and not lossy else 0
    sent_ns, reached_ns = there[-1].sent_ns - there[first].sent_ns, reached[-1] - reached[first]
    if sent_ns <= 0 or reached_ns <= 0:
        return None
    among = run.index(there[-1]) - run.index(there[first])
    dropping = among / (len(there) - 1) if lossy else 1.0  # a single loss may be anybody's
    return Paced(among * bits * 1e9 / sent_ns, dropping * reached_ns / sent_ns, sent_ns / 1e9, lossy)


def rtt_us(outcome: ProbeOutcome) -> int | None:
    """The round trip time of the packets that came back, without the reflector's own time; None: none did.

    The least of single ones; of a train that of the first, which alone has nothing of its own train before it.
    """
    times_ns = [
        packet.received_ns - packet.sent_ns - (packet.returned_ns - packet.reached_ns)
        for packet in outcome.packets
        if packet is not None
    ]
    if not times_ns:
        return None
    return max(1, (min(times_ns) if outcome.plan.kind is ProbeKind.SINGLE else times_ns[0]) // 1000)


def _slope(times: list[int]) -> float:
    """Nanoseconds from packet to packet."""
    slopes = [
        (times[later] - times[earlier]) / (later - earlier)
        for later in range(1, len(times))
        for earlier in range(later)
    ]
    return median(slopes)


def _head(times: list[int]) -> int:
    """How many of the first packets came faster than the last half did: those that a bucket let pass.

    Drawn backwards, the line of the rest would have them earlier than they came by half a gap at least.
    """
    middle = len(times) // 2
    if len(times) - middle < MIN_SLOPE_PACKETS:
        return 0
    gap_ns = _slope(times[middle:])
    late_quarter = times[-max(MIN_SLOPE_PACKETS, len(times) // 4) :]
    if (quarter_ns := _slope(late_quarter)) > 1.5 * gap_ns:  # the bucket held more than half of the burst
        gap_ns = quarter_ns
        middle = len(times) - len(late_quarter)
    anchor_ns = median(time - number * gap_ns for number, time in enumerate(times[middle:], middle))
    head = 0
    while head < middle and times[head] - (anchor_ns + head * gap_ns) > gap_ns / 2:
        head += 1
    return head


def _longest_run(packets: tuple[ProbePacket | None, ...]) -> list[ProbePacket | None]:
    """The longest part that was sent without a pause, from one packet that arrived to another."""
    numbers = [number for number, packet in enumerate(packets) if packet is not None]
    if len(numbers) < 2:
        return []
    there = [packet for packet in packets if packet is not None]
    per_packet = (there[-1].sent_ns - there[0].sent_ns) / (numbers[-1] - numbers[0])
    begin, best = 0, (0, 0)
    for here, (before, after) in enumerate(pairwise(there)):
        pause = PAUSE_GAPS * per_packet * (numbers[here + 1] - numbers[here])
        if after.sent_ns - before.sent_ns > pause:
            begin = here + 1
        best = max(best, (here + 1 - begin, begin))
    length, begin = best
    return list(packets[numbers[begin] : numbers[begin + length] + 1])


def _service_ns(outcome: ProbeOutcome, service_ns: float) -> float:
    """How far apart packets must leave the bottleneck by its capacity; 0 where they did not: then it has grown.

    Packets that waited for their stamps come at once, in less than a quarter of that time.
    """
    reached = [packet.reached_ns for packet in outcome.packets if packet is not None]
    closer = sum(service_ns / 4 < after - before < TOO_CLOSE * service_ns for before, after in pairwise(reached))
    return 0.0 if closer > len(reached) / 4 else service_ns


def _without_late_stamps(reached: list[int], service_ns: float) -> list[int]:
    """A bottleneck lets packets out `service_ns` apart at least, so a stamp later than that before the next is late."""
    cleaned = list(reached)
    for number in range(len(reached) - 2, -1, -1):
        latest_ns = cleaned[number + 1] - service_ns
        if cleaned[number] > latest_ns + LATE_NS:
            cleaned[number] = round(latest_ns)
    return cleaned


def _before_last_stall(reached: list[int], service_ns: float) -> int:
    """How many packets to keep: those closer together than the bottleneck can send them have waited for their stamps.

    Further ahead, later stamps put them right; at the end, there are none.
    """
    end = len(reached)
    while end > MIN_SLOPE_PACKETS and reached[end - 1] - reached[end - 2] < service_ns / 4:
        end -= 1
    # The first of them has waited longest.
    return end - 1 if MIN_SLOPE_PACKETS < end < len(reached) else end


def _bucket_empty(there: list[ProbePacket], reached: list[int], service_ns: float, head: int) -> int:
    """The first packet that met an empty bucket for certain, if enough come after it; else the first that had to wait.

    The bucket of `head` packets is emptied by the train alone, as fast as that exceeds the capacity. Where to begin
    must not depend on what others send: right after one of their packets, too few would seem to come.
    """
    gap_ns = (there[-1].sent_ns - there[0].sent_ns) / (len(there) - 1)
    if gap_ns < service_ns:
        certain = math.ceil(head / (1 - gap_ns / service_ns))
        if certain < len(there) - MIN_SLOPE_PACKETS:
            return certain
    delays = [after - packet.sent_ns for packet, after in zip(there, reached, strict=True)]
    least_ns = delays[0]
    for number, delay_ns in enumerate(delays[: -MIN_SLOPE_PACKETS - 1]):
        least_ns = min(least_ns, delay_ns)
        if delay_ns - least_ns > max(service_ns / 2, LATE_NS):
            return number
    return 0
