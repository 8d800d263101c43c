"""`qos2 reflector`: answers the probes of other hosts, in the foreground. Needs no daemon."""

import os
import select
import signal
from argparse import ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import FrameType

from qos2.paths.reflector import LOCAL_NETWORKS, Network, Reflector

EVERYWHERE = (IPv4Address("0.0.0.0"), IPv6Address("::"))


def address(text: str) -> IPv4Address | IPv6Address:
    """Raises ArgumentTypeError for what is no literal address."""
    try:
        return ip_address(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no address such as 192.0.2.1 or 2001:db8::1") from error


def network(text: str) -> Network:
    """Raises ArgumentTypeError for what is no prefix."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no network such as 192.0.2.0/24 or 2001:db8::/32") from error


def port(text: str) -> int:
    """Raises ArgumentTypeError outside 0 .. 65535; 0 lets the kernel choose."""
    if not (text.isascii() and text.isdigit() and int(text) <= 0xFFFF):
        raise ArgumentTypeError(f"{text!r} is no port, 0 to 65535")
    return int(text)


def rate(text: str) -> float:
    """Raises ArgumentTypeError outside 1 .. 1,000,000 packets per second."""
    try:
        packets = float(text)
    except ValueError:
        packets = 0.0
    if not 1 <= packets <= 1e6:
        raise ArgumentTypeError(f"{text!r} is not between 1 and 1000000 packets per second")
    return packets


def execute(arguments: Namespace) -> int:
    """Answer until SIGINT or SIGTERM. Raises ConfigError where it cannot listen."""
    allowed: Sequence[Network] = arguments.allow or LOCAL_NETWORKS
    with ExitStack() as stack:
        reflectors = []
        for each in arguments.listen or EVERYWHERE:
            made = Reflector(each, arguments.port, allowed=allowed, packets_per_s=arguments.rate)
            reflectors.append(stack.enter_context(closing(made)))
        ports = ", ".join(f"{each.address} port {each.port}" for each in reflectors)
        with _told_by_signal(reflectors) as asked:
            print(f"reflecting STAMP at {ports} for {', '.join(map(str, allowed))}", flush=True)
            _serve(reflectors, asked)
    return 0


def _serve(reflectors: Sequence[Reflector], asked: int) -> None:
    poll = select.poll()
    by_descriptor = {each.fileno(): each for each in reflectors}
    for descriptor in (asked, *by_descriptor):
        poll.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _events in poll.poll():
            if descriptor == asked:
                os.eventfd_read(asked)
                _tell(reflectors)
            else:
                by_descriptor[descriptor].reflect()


@contextmanager
def _told_by_signal(reflectors: Sequence[Reflector]) -> Iterator[int]:
    """SIGTERM ends as SIGINT does, and the end prints the counters; SIGUSR1, to ask for them, makes this readable.

    Nothing is printed by a handler, which the next signal would interrupt, and so on without end.
    """
    asked = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda _number, _frame: os.eventfd_write(asked, 1)),
    }
    try:
        yield asked
    except KeyboardInterrupt:
        _tell(reflectors)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(asked)


def _tell(reflectors: Sequence[Reflector]) -> None:
    total: Counter[str] = Counter()
    for each in reflectors:
        total += each.counters
    print(" ".join(f"{name}={number}" for name, number in sorted(total.items())) or "nothing yet", flush=True)
