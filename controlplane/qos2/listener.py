"""The daemon's address: a listening socket at a path, and nobody else's file overwritten for it."""

import os
import socket
import stat

from qos2.errors import AlreadyRunning, ConfigError

_BACKLOG = 1024


def listen_at(path: str, mode: int) -> socket.socket:
    """A listening socket at `path` with these permissions; its directory is made, a dead daemon's file replaced.

    Raises AlreadyRunning where somebody answers there, ConfigError where the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        clear_stale(path)
        listener.bind(path)
        # Nobody can connect before listen(), so nobody comes in under the wrong permissions.
        os.chmod(path, mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {path}: {error.strerror or error}", "choose another with `socket` or --socket"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def clear_stale(path: str) -> None:
    """Remove the socket file of a daemon that is gone. Two daemons starting in the same instant are not told apart.

    Raises AlreadyRunning where somebody answers there, ConfigError where the path is no socket.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigError(f"{path} exists and is no socket", "choose another with `socket` or --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is there
    raise AlreadyRunning(f"a daemon answers at {path}", "stop it first, or choose another with --socket")
