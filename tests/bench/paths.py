"""Group `paths`: how soon congestion is told, and how good estimates of paths are, over real bottlenecks."""

from contextlib import closing

from bench import estimates, onset
from bench.figures import Result
from bench.grid import Ways
from bench.session import Session
from harness.congested import CongestedLab


def measure(session: Session) -> Result:
    """Steps of cross traffic, then the grid of estimates, each in a lab of its own."""
    session.tell("starting the daemon")
    with CongestedLab("qos2-bench") as lab:
        lab.reflector()
        episodes = onset.measure(lab, session)
    with CongestedLab("qos2-bench") as lab, closing(Ways(lab)) as ways:
        measured = estimates.Estimates(lab, ways, session)
        found, budgets = measured.grid(), measured.budgets()
        no_policer = measured.no_policer
    return Result(
        "paths",
        "Congestion and paths",
        "An application, a router and a peer in three network namespaces; the real daemon on the application's device, "
        "the bottleneck on the router's device towards the peer, cross traffic and the application's own in processes "
        "of their own. There is no delay but that of queues.",
        (onset.table(episodes), *estimates.tables(found, budgets, no_policer)),
        (*onset.targets(episodes), *estimates.targets(found, budgets)),
    )
