"""A client of group `control`, a process of its own: adds and removes one socket over and over.

`python -m bench.client SOCKET`: says `ready`, then takes lines with a number of seconds, and answers each with a
line of JSON: the latencies of the pairs in microseconds.
"""

import json
import socket
import sys
import time

import qos2


def main() -> None:
    """Serve lines until the input ends."""
    with qos2.Handle(sys.argv[1]) as qos, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        print("ready", flush=True)
        for line in sys.stdin:
            pairs = []
            end = time.monotonic() + float(line)
            while (begin := time.monotonic()) < end:
                qos.add_socket(sock, qos2.TrafficType.VOICE).close()
                pairs.append(round((time.monotonic() - begin) * 1e6, 1))
            print(json.dumps(pairs), flush=True)


if __name__ == "__main__":
    main()
