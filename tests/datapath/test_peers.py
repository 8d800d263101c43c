"""The namespace of a client, as the kernel tells it of the connection: that in which it called connect()."""

import socket
from pathlib import Path

import pytest

from qos2.datapath.links import Namespace
from qos2.sockets import peer_of

pytestmark = pytest.mark.datapath


def test_a_peer_is_in_the_namespace_that_it_connected_from(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(path)
        return client

    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        Namespace() as here,
        Namespace.fresh() as there,
    ):
        listener.bind(path)
        listener.listen()
        found = []
        for namespace in (here, there):
            with namespace.run(connect), listener.accept()[0] as accepted:
                found.append(peer_of(accepted, None, stranger=-1).netns_cookie)
        assert found == [here.cookie, there.cookie]
        assert here.cookie != there.cookie
