"""Names in a container: a DNS server (RFC 1035) at 127.0.0.11 of its own network, served by whoever attends it.

It knows the other containers of the bridge by name and by the beginning of their ids. What else is asked for goes to the
host's name servers, from the host: those on its loopback are reached, too. There is no process for it, and it ends with
the container. What comes from the container is hostile: each message, what waits, and every connection are bounded.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from xuni.server import links
from xuni.server.network import NAME_SERVER as ADDRESS

PORT: Final = 53
MOST_WAITING: Final = 64  # questions
MOST_CONNECTIONS: Final = 16
PATIENCE: Final = 10.0  # seconds that a question waits for an answer
MESSAGE: Final = 4096  # bytes, over UDP with EDNS(0)
LIFE: Final = 5  # seconds that an answer may be kept; containers come and go
TYPE_A, TYPE_AAAA, CLASS_IN = 1, 28, 1
ANSWER, NO_ANSWER = 0x8580, 0x8180  # QR AA RD RA, QR RD RA
SERVER_FAILED, REFUSED = 2, 5


@dataclass(slots=True)
class Question:
    """One of the container's that somebody else answers: our sockets to the servers that were asked."""

    query: bytes
    client: tuple[str, int]
    since: float
    asked: list[socket.socket] = field(default_factory=list)


@dataclass(slots=True)
class Connection:
    """Of TCP: the container's end and, once it has asked, a server's. What one says is given to the other."""

    client: socket.socket
    since: float
    heard: bytes = b""
    server: socket.socket | None = None


class Resolver:
    def __init__(self, pid: int, look_up: Callable[[str], str], servers: tuple[str, ...]) -> None:
        """Listen in the network namespace of the process. Raises OSError."""
        self._look_up, self._servers = look_up, servers
        self._questions: list[Question] = []
        self._connections: list[Connection] = []
        with links.inside(pid):
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for each in (self._udp, self._tcp):
            each.setblocking(False)
            each.bind((ADDRESS, PORT))
        self._tcp.listen(MOST_CONNECTIONS)
        self._selector: selectors.BaseSelector | None = None

    def join(self, selector: selectors.BaseSelector) -> None:
        """Be served by it: what it finds ready has the function to call as its data."""
        self._selector = selector
        selector.register(self._udp, selectors.EVENT_READ, self._asked)
        selector.register(self._tcp, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for question in self._questions[:]:
            self._forget(question)
        for connection in self._connections[:]:
            self._end(connection)
        for each in (self._udp, self._tcp):
            self._close(each)

    # ---- UDP

    def _asked(self) -> None:
        self._expire()
        for _ in range(MOST_WAITING):  # then it is somebody else's turn
            try:
                query, client = self._udp.recvfrom(MESSAGE)
            except OSError:
                return
            known = reply(query, self._look_up)
            if known:
                self._tell(known, client)
            elif known is None:
                self._forward(Question(query, client, time.monotonic()))

    def _forward(self, question: Question) -> None:
        """All servers are asked; who answers first is believed."""
        if len(self._questions) >= MOST_WAITING:
            self._forget(self._questions[0])
        for address in self._servers:
            made = _socket(address, socket.SOCK_DGRAM)
            if made is None:
                continue
            try:
                made.connect((address, PORT))  # no other's answer is heard
                made.send(question.query)
            except OSError:
                made.close()
                continue
            question.asked.append(made)
            self._watch(made, partial(self._answered, question, made))
        if question.asked:
            self._questions.append(question)
        else:
            self._tell(failure(question.query), question.client)

    def _answered(self, question: Question, server: socket.socket) -> None:
        if server not in question.asked:
            return  # another answer came in the same moment
        try:
            said = server.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            said = b""
        if said and said[:2] != question.query[:2]:
            return
        refused = len(said) < 12 or said[3] & 15 in (SERVER_FAILED, REFUSED)
        if refused and len(question.asked) > 1:
            question.asked.remove(server)
            self._close(server)
            return
        self._tell(said if len(said) >= 12 else failure(question.query), question.client)
        self._forget(question)

    def _tell(self, message: bytes, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(message, client)

    def _forget(self, question: Question) -> None:
        for each in question.asked:
            self._close(each)
        question.asked.clear()
        if question in self._questions:
            self._questions.remove(question)

    # ---- TCP: two bytes of length before each message

    def _accept(self) -> None:
        self._expire()
        try:
            client, _ = self._tcp.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(self._connections) >= MOST_CONNECTIONS:
            self._end(self._connections[0])
        connection = Connection(client, time.monotonic())
        self._connections.append(connection)
        self._watch(client, lambda: self._heard(connection))

    def _heard(self, connection: Connection) -> None:
        said = _receive(connection.client) if connection in self._connections else None
        if said is None:
            return
        connection.heard += said
        size = int.from_bytes(connection.heard[:2], "big")
        if not said or size > MESSAGE:
            self._end(connection)
            return
        if connection.server is None and len(connection.heard) >= 2 + size:
            known = reply(connection.heard[2 : 2 + size], self._look_up)
            if known is not None:
                with contextlib.suppress(OSError):
                    connection.client.send(len(known).to_bytes(2, "big") + known)
                self._end(connection)
                return
            self._connect(connection)
        elif connection.server is not None:
            self._pass_on(connection, connection.server, said)

    def _connect(self, connection: Connection) -> None:
        address = next(iter(self._servers), "")
        made = _socket(address, socket.SOCK_STREAM) if address else None
        if made is None or made.connect_ex((address, PORT)) not in (0, errno.EINPROGRESS):
            if made is not None:
                made.close()
            self._end(connection)
            return
        connection.server = made
        assert self._selector is not None
        self._selector.register(made, selectors.EVENT_WRITE, lambda: self._connected(connection))

    def _connected(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        assert self._selector is not None and connection.server is not None
        self._selector.modify(connection.server, selectors.EVENT_READ, lambda: self._served(connection))
        self._pass_on(connection, connection.server, connection.heard)

    def _served(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        assert connection.server is not None
        said = _receive(connection.server)
        if said:
            self._pass_on(connection, connection.client, said)
        elif said is not None:
            self._end(connection)

    def _pass_on(self, connection: Connection, target: socket.socket, said: bytes) -> None:
        """What the kernel does not hold for one answer is more than one answer."""
        try:
            sent = target.send(said)
        except OSError:
            sent = -1
        if sent != len(said):
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        for each in (connection.client, connection.server):
            if each is not None:
                self._close(each)
        if connection in self._connections:
            self._connections.remove(connection)

    # ---- both

    def _expire(self) -> None:
        old = time.monotonic() - PATIENCE
        for question in [each for each in self._questions if each.since < old]:
            self._forget(question)
        for connection in [each for each in self._connections if each.since < old]:
            self._end(connection)

    def _watch(self, made: socket.socket, served: Callable[[], None]) -> None:
        assert self._selector is not None
        self._selector.register(made, selectors.EVENT_READ, served)

    def _close(self, made: socket.socket) -> None:
        if self._selector is not None and made.fileno() >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(made)
        made.close()


def _socket(address: str, kind: socket.SocketKind) -> socket.socket | None:
    try:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    except OSError:
        return None
    made.setblocking(False)
    return made


def _receive(made: socket.socket) -> bytes | None:
    """None if nothing has come yet, nothing at the end."""
    try:
        return made.recv(1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def reply(query: bytes, look_up: Callable[[str], str]) -> bytes | None:
    """The answer, if we know it; nothing to say to what is no question; None for what others may know."""
    if len(query) < 12 or query[2] & 0xF8 or int.from_bytes(query[4:6], "big") != 1:  # QR, OPCODE, QDCOUNT
        return b""
    labels, at = [], 12
    while at < len(query) and query[at]:
        size = query[at]
        if size > 63 or at + size > 267:
            return b""
        labels.append(query[at + 1 : at + 1 + size])
        at += 1 + size
    question = query[12 : at + 5]
    if len(question) != at + 5 - 12:
        return b""
    kind, family = int.from_bytes(question[-4:-2], "big"), int.from_bytes(question[-2:], "big")
    address = look_up(b".".join(labels).decode("ascii", "replace").lower()) if family == CLASS_IN else ""
    if not address:
        return None
    found = b""
    if kind == TYPE_A:
        found = (b"\xc0\x0c" + kind.to_bytes(2, "big") + family.to_bytes(2, "big") + LIFE.to_bytes(4, "big")
                 + (4).to_bytes(2, "big") + socket.inet_aton(address))  # fmt: skip
    return _header(query, ANSWER, 1 if found else 0) + question + found


def failure(query: bytes) -> bytes:
    """SERVFAIL, without the question."""
    return query[:2] + (NO_ANSWER | SERVER_FAILED).to_bytes(2, "big") + bytes(8)


def _header(query: bytes, flags: int, answers: int) -> bytes:
    return query[:2] + flags.to_bytes(2, "big") + (1).to_bytes(2, "big") + answers.to_bytes(2, "big") + bytes(4)
