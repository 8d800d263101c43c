"""The receiver: accepts TCP, reads UDP, throws everything away: `python -m demo.sink --tcp PORT... --udp PORT...`.

Listens on all addresses of both families. Writes `ready` when it does, and ends with its standard input.
"""

import argparse
import selectors
import socket
import sys
from contextlib import ExitStack

_BUFFER = bytearray(1 << 18)


def main(argv: list[str] | None = None) -> int:
    """Receive until the standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m demo.sink")
    parser.add_argument("--tcp", type=int, nargs="*", default=[])
    parser.add_argument("--udp", type=int, nargs="*", default=[])
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        watch = stack.enter_context(selectors.DefaultSelector())
        watch.register(sys.stdin, selectors.EVENT_READ)
        for port in options.tcp:
            listener = stack.enter_context(
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            )
            watch.register(listener, selectors.EVENT_READ, "accept")
        for port in options.udp:
            receiver = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            receiver.bind(("::", port))
            watch.register(receiver, selectors.EVENT_READ, "read")
        print("ready", flush=True)
        while True:
            for key, _ in watch.select():
                sock = key.fileobj
                if not isinstance(sock, socket.socket):
                    return 0
                if key.data == "accept":
                    connection = stack.enter_context(sock.accept()[0])
                    watch.register(connection, selectors.EVENT_READ, "drain")
                elif key.data == "read":
                    sock.recv_into(_BUFFER)
                elif not _drain(sock):
                    watch.unregister(sock)
                    sock.close()


def _drain(connection: socket.socket) -> bool:
    """Read what has come; whether more can come."""
    try:
        return connection.recv_into(_BUFFER) > 0
    except ConnectionResetError:
        return False


if __name__ == "__main__":
    sys.exit(main())
