"""The depth of a rate contract's bucket: one figure, used by the datapath's policy and by htb alike.

Pure arithmetic. The buckets themselves are elsewhere: `bpf/bucket.h` for fq and for policing, the
kernel's htb where it shapes.
"""

#: How much of the rate may leave at once: enough to absorb late timers, short beside a video frame.
DEPTH_MS = 10


def bucket_depth_bytes(bandwidth: int, mtu: int = 1500) -> int:
    """How many bytes at IP level may leave back to back under a contract of `bandwidth` bits/s.

    The larger of two packets of `mtu` bytes (one leaves while the next is prepared) and 10 ms of the
    rate, rounded up. Microsoft does not document a depth; the sender in its QoS2 sample works in ticks
    of 25 ms, which a bucket this shallow still smooths.

    Raises ValueError unless both are positive.
    """
    if bandwidth <= 0 or mtu <= 0:
        raise ValueError(f"a bucket needs a positive rate and MTU, not {bandwidth} bits/s and {mtu} bytes")
    return max(2 * mtu, -(-bandwidth * DEPTH_MS // 8_000))
