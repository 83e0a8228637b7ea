"""The name server of a container: its messages, and the ways to the host's servers."""

from __future__ import annotations

import os
import selectors
import socket
import struct
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.server import names, network
from xuni.server.visitors import leave

KNOWN = {"web": "10.120.0.2"}


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes((len(each),)) + each.encode() for each in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0" + struct.pack(">HH", kind, 1)


def known(name: str) -> str:
    return KNOWN.get(name, "")


def test_a_container() -> None:
    said = names.reply(question("WEB"), known)
    assert said and said[:2] == b"\x12\x34" and said[2:4] == b"\x85\x80" and said[-4:] == bytes((10, 120, 0, 2))
    assert int.from_bytes(said[6:8], "big") == 1


def test_a_container_has_no_other_address() -> None:
    """And nobody else is asked for one: an empty answer."""
    said = names.reply(question("web", 28), known)
    assert said and said[3] & 15 == 0 and said[6:8] == b"\0\0"


def test_what_others_may_know() -> None:
    assert names.reply(question("example.org"), known) is None


@given(st.binary(max_size=300))
def test_anything_is_answered_or_not(data: bytes) -> None:
    names.reply(data, known)
    names.reply(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + data, known)


def test_labels_out_of_bounds() -> None:
    assert names.reply(b"\0\0\1\0\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1", known) == b""
    assert names.reply(b"\0\0\1\0\0\1" + bytes(6) + b"\3web", known) == b""


def test_resolv_conf(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ["# of the host", "search a.example", "options ndots:2", "nameserver 127.0.0.53", "nameserver 10.0.0.1"]
    monkeypatch.setattr(network, "_host_resolv_conf", lambda: host)
    assert network.host_servers() == ("127.0.0.53", "10.0.0.1")
    assert network.resolv_conf(("127.0.0.11",)) == "nameserver 127.0.0.11\nsearch a.example\noptions ndots:2\n"
    assert network.resolv_conf(("1.1.1.1",), (".",), ("rotate",)) == "nameserver 1.1.1.1\noptions rotate\n"


def test_ways_out() -> None:
    """A server of the host that fails, one that answers; over UDP and over TCP."""
    if os.geteuid() != 0:
        pytest.skip("needs root to enter a network namespace")
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    for each in (udp, tcp):
        each.bind(("127.0.0.1", 0 if each is udp else udp.getsockname()[1]))
        each.settimeout(20)
    tcp.listen()
    asked: list[bytes] = []

    def serve() -> None:
        said, client = udp.recvfrom(4096)
        asked.append(said)
        udp.sendto(said[:2] + b"\x81\x80" + b"udp answer", client)
        made, _ = tcp.accept()
        with made:
            made.recv(4096)
            made.send(b"\0\x05again")

    port, names.PORT = names.PORT, udp.getsockname()[1]  # type: ignore[misc]
    server = Thread(target=serve)
    server.start()
    try:
        resolver = names.Resolver(os.getpid(), known, ("127.0.0.1",))
        selector = selectors.DefaultSelector()
        resolver.join(selector)

        def served(made: socket.socket) -> bytes:
            made.settimeout(0.01)
            for _ in range(2000):
                for key, _mask in selector.select(0.01):
                    key.data()
                try:
                    return made.recv(4096)
                except TimeoutError:
                    continue
            raise AssertionError("no answer")

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((names.ADDRESS, names.PORT))
            client.send(question("web"))
            assert served(client)[-4:] == bytes((10, 120, 0, 2))
            client.send(question("example.org"))
            assert served(client) == b"\x12\x34\x81\x80udp answer" and asked == [question("example.org")]
        for name, end in (("web", bytes((10, 120, 0, 2))), ("example.org", b"again")):
            with socket.create_connection((names.ADDRESS, names.PORT)) as stream:
                stream.send(len(question(name)).to_bytes(2, "big") + question(name))
                assert served(stream).endswith(end)
        resolver.close()
        assert not selector.get_map()
    finally:
        server.join(30)
        names.PORT = port  # type: ignore[misc]
        udp.close()
        tcp.close()


@pytest.mark.parametrize(("typed", "to_the_container", "left"), [
    ([b"ls\r"], b"ls\r", False), ([b"a\x10\x11b"], b"a", True), ([b"\x10", b"\x11"], b"", True),
    ([b"\x10", b"x"], b"\x10x", False), ([b"\x10\x10\x11"], b"\x10", True),
])  # fmt: skip
def test_leaving(typed: list[bytes], to_the_container: bytes, left: bool) -> None:
    said, halfway, gone = b"", False, False
    for each in typed:
        piece, halfway, gone = leave(each, halfway)
        said += piece
    assert (said, gone) == (to_the_container, left)
