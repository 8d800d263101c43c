"""Why a target is missed, one sentence each: what docs/benchmarks.md says of a target that was not met.

Written by hand from evidence; a sentence of a target that is met is not shown.
"""

_LOCKED = (
    "locked instructions: this processor waits at the first one until what it has loaded and stored before is through. "
    "With plain additions and a plain store in place of the two counters' atomic additions and the bucket's "
    "compare-and-swap, the same program took 35 instead of 71 ns (TCP, small writes) and 78 instead of 116 ns (TCP "
    "bulk); the reference has one locked instruction, a flow with a limit needs three to stay exact with several CPUs"
)

_STARVED = (
    "A miss at 1 Gbit/s alone is want of CPU time: sender, router and receiver share the CPUs with whatever else runs, "
    "and the lower rates in the table below show what the shaper itself does."
)

REASONS: dict[str, str] = {
    "testrun-flows": (
        "65,536 flows take 10 MB, more than the second-level cache: each packet misses the policy and the packet "
        "line, which is what the reference's one hash entry does too; it slows down as much."
    ),
    "traffic-full-udp-1": f"Mostly {_LOCKED}.",
    "traffic-full-tcp-small": f"Mostly {_LOCKED}.",
    "traffic-full-tcp-bulk": f"Mostly {_LOCKED}.",
    "rate-udp": _STARVED,
    "rate-tcp": _STARVED,
    "paths-tcp-bottleneck-50-95": (
        "A flow learns from itself alone what it gets: half of a path whose other half is taken all the time by others "
        "who do not yield looks to it like a path of half the rate. What is available, which an application acts on, "
        "is right all the same; where a reflector answers, trains tell the bottleneck, whatever the load (UDP)."
    ),
    "policy-load-marks-and-rates": (
        "Where the kernel has no fq, each rate is a class of htb, and the kernel makes a thousand classes in a "
        "quarter of a second while a thousand old ones are still there. With fq a rate is a number in a map, as "
        "a mark is."
    ),
    "scrape-notification": (
        "Two percent of a notification that takes 52 ms, of rounds that differ by 7 ms among themselves; a scraper "
        "asks 20 times a second here, 300 times as often as Prometheus would."
    ),
    "control-memory": (
        "Judging takes 0.7 kB of every flow (the counters of its last look, its windows, its changes) and 2 MiB while "
        "a step is computed."
    ),
    "control-start": (
        "Nearly all of it is the compiler: bcc takes more than one second of CPU time, more of the clock where other "
        "work runs; a start with the programs in place compiles nothing."
    ),
}
