"""What a judge of congestion is given of a flow: counters of the datapath at one moment, many flows at once.

All counters are since the flow began; bytes at IP level. The fields of TCP are those of the flow's socket and
0 where it has none.
"""

import numpy as np
from numpy.typing import NDArray

SIGNALS = np.dtype(
    [
        ("bytes", np.uint64),
        ("packets", np.uint64),
        ("delayed_packets", np.uint64),  # by its own contract
        ("delay_ns", np.uint64),  # sum over these
        ("dropped_packets", np.uint64),  # by its own contract, in the datapath
        ("srtt_us", np.uint32),
        ("min_rtt_us", np.uint32),
        ("retransmits", np.uint32),
        ("lost", np.uint32),
        ("delivered", np.uint32),  # segments
        ("delivered_ce", np.uint32),  # of these
    ]
)

Slots = NDArray[np.intp]
Signals = NDArray[np.void]  #: of SIGNALS
