"""Connections: one client after another, none of which can make us hold more than we want."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xuni.debug import endpoint as module
from xuni.debug.address import Address, Kind
from xuni.debug.endpoint import Endpoint, HangUp, Link

PATIENCE = 20


class Echo:
    """Sends back what comes, many times over."""

    def __init__(self, link: Link, log: list[str]) -> None:
        self.link, self.log = link, log
        log.append("open")
        link.send(b"hello\n")

    def receive(self, data: bytes) -> None:
        if data.startswith(b"bye"):
            self.link.send(b"bye\n")
            raise HangUp("it said bye")
        if data.startswith(b"flood"):
            for _ in range(10_000):
                self.link.send(b"x" * 10_000)
        self.link.send(data)

    def wake(self) -> None:
        self.link.send(b"woken\n")

    def close(self) -> None:
        self.log.append("close")


class Served:
    def __init__(self, address: Address) -> None:
        self.log: list[str] = []
        self.links: list[Link] = []
        self.endpoint = Endpoint(address, self.make, "echo")
        self.endpoint.open()

    def make(self, link: Link) -> Echo:
        self.links.append(link)
        return Echo(link, self.log)

    def until(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.log) < count:
            assert time.monotonic() < end, self.log
            time.sleep(0.001)


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Served]:
    served = Served(Address(Kind.UNIX, path=tmp_path / "socket"))
    yield served
    served.endpoint.close()


def client(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(path))
    return connection


def line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            break
        data += part
    return data


def test_clients_are_served_one_after_another(unix: Served) -> None:
    path = unix.endpoint.address.path
    assert os.stat(path).st_mode & 0o777 == 0o700
    with client(path) as first, client(path) as second:
        assert line(first) == b"hello\n"
        first.sendall(b"one\n")
        assert line(first) == b"one\n"
        second.settimeout(0.05)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(PATIENCE)
        assert line(second) == b"hello\n"
    unix.until(4)
    assert unix.log == ["open", "close"] * 2
    assert unix.endpoint.connected.is_set()


def test_a_session_may_hang_up_with_a_reason(unix: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with client(unix.endpoint.address.path) as one:
        one.sendall(b"bye")
        assert line(one) + line(one) + line(one) == b"hello\nbye\n"
    unix.until(2)
    assert "xuni: echo at unix:" in capfd.readouterr().err


def test_who_reads_nothing_is_left(unix: Served, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL", 0.05)
    with client(unix.endpoint.address.path) as one:
        one.sendall(b"flood")
        unix.until(2)
    assert "leaves more than 4 MiB of answers unread" in capfd.readouterr().err


def test_who_reads_slowly_is_not_read_from_meanwhile(unix: Served) -> None:
    with client(unix.endpoint.address.path) as one:
        line(one)
        total = 3 << 20
        writer = threading.Thread(target=one.sendall, args=(b"y" * total,), daemon=True)
        writer.start()
        time.sleep(0.2)
        assert writer.is_alive()  # our buffers and the host's are full
        got = 0
        while got < total:
            got += len(one.recv(1 << 16))
        writer.join(PATIENCE)
    unix.until(2)


def test_a_poke_from_another_thread_wakes_the_session_and_after_its_end_does_nothing(unix: Served) -> None:
    with client(unix.endpoint.address.path) as one:
        assert line(one) == b"hello\n"
        threading.Thread(target=unix.links[0].poke).start()
        assert line(one) == b"woken\n"
    unix.until(2)
    for _ in range(3):
        unix.links[0].poke()


def test_closing_says_goodbye_and_removes_the_socket(tmp_path: Path) -> None:
    served = Served(Address(Kind.UNIX, path=tmp_path / "socket"))
    descriptors = len(os.listdir("/proc/self/fd"))
    with client(tmp_path / "socket") as one:
        assert line(one) == b"hello\n"
        served.endpoint.close()
        assert line(one) == b"woken\n"
        assert line(one) == b""
    assert not (tmp_path / "socket").exists()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_stale_socket_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    served = Served(Address(Kind.UNIX, path=path))
    with pytest.raises(OSError, match="Address already in use"):
        Served(Address(Kind.UNIX, path=path))
    served.endpoint.close()
    path.write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        Served(Address(Kind.UNIX, path=path))
    assert path.read_text() == "precious"


def test_tcp_is_for_this_host_unless_told_otherwise() -> None:
    served = Served(Address(Kind.TCP))
    try:
        with socket.create_connection(("127.0.0.1", served.endpoint.port)) as one:
            assert line(one) == b"hello\n"
            assert one.getpeername()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            Served(Address(Kind.TCP, port=served.endpoint.port))
    finally:
        served.endpoint.close()


def test_we_may_be_the_one_who_connects(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "theirs"))
        listener.listen()
        served = Served(Address(Kind.UNIX, path=tmp_path / "theirs", server=False))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert line(connection) == b"hello\n"
        served.endpoint.close()
    assert (tmp_path / "theirs").exists()
    (tmp_path / "theirs").unlink()
    with pytest.raises(OSError, match="No such file"):
        Served(Address(Kind.UNIX, path=tmp_path / "theirs", server=False))


ON_STDIO = """
import time
from xuni.debug.address import Address, Kind
from xuni.debug.endpoint import Endpoint, HangUp

class Upper:
    def __init__(self, link):
        self.link = link
        link.send(b"ready\\n")
    def receive(self, data):
        self.link.send(data.upper())
    def wake(self): pass
    def close(self): print("closed", flush=True)

endpoint = Endpoint(Address(Kind.STDIO), Upper, "upper")
endpoint.open()
endpoint.connected.wait(60)
endpoint._thread.join(60)
"""


def test_standard_input_and_output_are_a_connection() -> None:
    done = subprocess.run([sys.executable, "-c", ON_STDIO], input=b"hello\n", capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"ready\nHELLO\nclosed\n", b"")
