"""An application that is never worse off than without QoS: it sends from the beginning, marked as soon as it can be.

50 datagrams a second to $DESTINATION (ADDRESS:PORT), as voice. Once a second it looks whether it is still marked.
Where no daemon answers, or one goes away, it goes on sending and asks again with the next look.
"""

import os
import signal
import socket
import sys
import time

import qos2

PAUSE_S = 0.02
LOOK_S = 1.0


def connected(destination: str) -> socket.socket:
    """A UDP socket to ADDRESS:PORT."""
    address, _, port = destination.rpartition(":")
    host = address.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, int(port)))
    return sock


def marked(sock: socket.socket) -> tuple[qos2.Handle, qos2.Flow] | None:
    """The socket as a flow of voice, with the handle that it ends with; None where that cannot be had now."""
    try:
        handle = qos2.Handle()
    except qos2.QosError as error:
        say(f"unmarked: {error}")
        return None
    try:
        flow = handle.add_socket(sock, qos2.TrafficType.VOICE)
    except qos2.QosError as error:
        handle.close()
        say(f"unmarked: {error}")
        return None
    say("marked as voice")
    return handle, flow


def ended(flow: qos2.Flow) -> bool:
    """Whether a flow is no more, mostly because its daemon is gone."""
    try:
        flow.stats()
    except qos2.QosError as error:
        say(f"ended: {error}")
        return True
    return False


_said = ""


def say(text: str) -> None:
    """A line into the pod's log, unless it is the one before."""
    global _said
    if text != _said:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    _said = text


def main() -> None:
    """Sends until it is told to stop."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    sock = connected(os.environ["DESTINATION"])
    mark: tuple[qos2.Handle, qos2.Flow] | None = None
    look_s = 0.0
    while not stopped:
        now_s = time.monotonic()
        if now_s >= look_s:
            look_s = now_s + LOOK_S
            if mark is not None and ended(mark[1]):
                mark[0].close()
                mark = None
            if mark is None:
                mark = marked(sock)
        try:
            sock.send(bytes(160))
        except OSError as error:  # nobody listens there, or the way is gone for now
            say(f"not sent: {error.strerror}")
        time.sleep(PAUSE_S)
    if mark is not None:
        mark[0].close()


if __name__ == "__main__":
    main()
