"""A sender in a process of its own, on a connected socket that it inherits: `python -m harness.flood FD BYTES [RATE]`.

Writes blocks of BYTES as fast as the socket takes them, or, with RATE, that many bits of payload per second.
Begins with the first line on its standard input, ends with the end of that input, and then writes how many
blocks it sent. It never talks to the daemon.
"""

import os
import select
import socket
import sys
import time


def main() -> None:
    """Send until told to end."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    block = bytes(int(sys.argv[2]))
    period = len(block) * 8 / float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    sock.setblocking(False)
    os.read(0, 64)
    begin = time.monotonic()
    sent = 0
    while True:
        wait = max(0.0, begin + sent * period - time.monotonic()) if period else None
        ordered, writable, _ = select.select([0], [] if wait else [sock], [], wait)
        if ordered:
            break
        if writable:
            try:
                sock.send(block)
            except BlockingIOError:  # room, but not for a whole datagram
                select.select([0], [], [], 0.0005)
                continue
            sent += 1
    os.write(1, b"%d\n" % sent)
    sock.detach()


if __name__ == "__main__":
    main()
