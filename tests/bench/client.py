"""A client of group `requests`, a process of its own: adds and removes one socket over and over.

`python -m bench.client`, with $QOS2_SOCKET: says `ready`, then takes lines `SECONDS PAIRS_PER_SECOND` (0: as many as
it can), and answers each with a line of JSON: the latencies of all calls, add and remove in turn, in microseconds.
"""

import json
import socket
import sys
import time

import qos2


def measured(qos: qos2.Handle, sock: socket.socket, seconds: float, rate: float) -> list[float]:
    """The latencies of one round."""
    found: list[float] = []
    clock = time.perf_counter
    begin_s = clock()
    end_s = begin_s + seconds
    while True:
        if rate and (early_s := begin_s + len(found) / 2 / rate - clock()) > 0:
            time.sleep(early_s)
        before_s = clock()
        if before_s >= end_s:
            return [round(each * 1e6, 1) for each in found]
        flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
        between_s = clock()
        flow.close()
        found += between_s - before_s, clock() - between_s


def main() -> None:
    """Serve lines until the input ends."""
    with qos2.Handle() as qos, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        print("ready", flush=True)
        for line in sys.stdin:
            seconds, rate = map(float, line.split())
            print(json.dumps(measured(qos, sock, seconds, rate)), flush=True)


if __name__ == "__main__":
    main()
