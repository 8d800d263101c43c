"""Whether a flow may have the rate it asks for, by what is known of its path."""

from qos2.errors import NetworkBusy, Retry
from qos2.model import FlowFundamentals


def decide(estimate: FlowFundamentals | None, settled: bool, held: int, wanted: int) -> None:
    """Returns where the flow, which holds `held` bits/s of the promised rates, may have `wanted` in total.

    Only a measurement refuses: of a lower bound it is known that there may be more, and refusing by it would
    forbid what the path may well carry. So a path that cannot be measured admits everything, as Windows does.
    `settled`: no measurement is to be expected soon.

    Raises NetworkBusy where the path was measured and has too little, Retry where it is still being measured.
    """
    available = None if estimate is None else estimate.available
    if estimate is not None and available is not None:
        if available + held < wanted:
            statement = estimate.statements.get("available")
            how = "" if statement is None else f", measured by {statement.method} {statement.age_s:.1f} s ago"
            raise NetworkBusy(
                f"the path cannot carry {wanted} bits/s",
                f"{available} bits/s are available beside the {held} that the flow holds{how}: "
                f"ask for at most {available + held}, or wait until they are available",
            )
        return
    if not settled:
        raise Retry(f"too little is known yet to admit {wanted} bits/s", "ask again in a second")
