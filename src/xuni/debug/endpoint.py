"""Connections: a thread that listens, serves one client after another, and never holds more of one than it must.

A session gets what its client sends, and answers through a `Link`. All its methods are called in the endpoint's thread;
`Link.poke` alone may be called from others, to have `Session.wake` called there.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Final, Protocol

from xuni.debug.address import Address, Kind

CHUNK: Final = 1 << 16  # bytes read at once
HIGH_WATER: Final = 1 << 18
"""While so many bytes wait for the client to read them, we do not read from it."""
LIMIT: Final = 1 << 22
"""A client for which more bytes wait than this has gone astray, and is left."""
FAREWELL: Final = 1.0  # seconds that a client has to take the last bytes


class HangUp(Exception):
    """The session is over; the text says why if it is the client's fault."""


class Session(Protocol):
    """One side of a conversation, from its client's arrival to its leave."""

    def receive(self, data: bytes) -> None:
        """The client sent this. Raises HangUp to end the conversation."""
        ...

    def wake(self) -> None:
        """`Link.poke` was called, perhaps several times."""
        ...

    def close(self) -> None:
        """The client has gone, or must go."""
        ...


class Link:
    """A session's way to its client."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._out = bytearray()
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = Lock()  # a byte must not go to a number that was closed and given to another file
        self._closed = False

    def send(self, data: bytes) -> None:
        """Send it when the client takes it. Raises HangUp if the client takes nothing any more."""
        self._out += data
        if len(self._out) > LIMIT:
            raise HangUp(f"it leaves more than {LIMIT >> 20} MiB of answers unread")

    def poke(self) -> None:
        """Have `Session.wake` called. From any thread; never blocks."""
        with self._lock:
            if self._closed:
                return
            try:
                os.write(self._wake[1], b"\0")
            except BlockingIOError:
                pass  # a full pipe wakes as well

    def serve(self, session: Session) -> None:
        """Carry bytes until either side ends it. Raises HangUp with the client's fault, or OSError."""
        while not self._turn(session):
            pass

    def flush(self) -> None:
        """Give the client a moment to take what is left."""
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        while self._out and poll.poll(FAREWELL * 1000):
            self._write()

    def close(self) -> None:
        """Forget the client; its descriptors belong to the caller."""
        with self._lock:
            self._closed = True
            for descriptor in self._wake:
                os.close(descriptor)

    def _turn(self, session: Session) -> bool:
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        interest: dict[int, int] = {}
        if len(self._out) < HIGH_WATER:
            interest[self._source] = select.POLLIN
        if self._out:
            interest[self._sink] = interest.get(self._sink, 0) | select.POLLOUT
        for descriptor, events in interest.items():
            poll.register(descriptor, events)
        ready = dict(poll.poll())
        if self._wake[0] in ready:
            os.read(self._wake[0], CHUNK)
            session.wake()
        if self._out and ready.get(self._sink, 0) & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            self._write()
        if interest.get(self._source, 0) & select.POLLIN and ready.get(self._source, 0) & ~select.POLLOUT:
            try:
                data = os.read(self._source, CHUNK)
            except BlockingIOError:
                return False
            if not data:
                return True
            session.receive(data)
            if self._out:
                self._write()
        return False

    def _write(self) -> None:
        try:
            del self._out[: os.write(self._sink, self._out)]
        except BlockingIOError:
            pass


class Endpoint:
    """Serves the clients at an address, each with a session that `make` makes."""

    def __init__(self, address: Address, make: Callable[[Link], Session], name: str) -> None:
        self.address = address
        self.connected = Event()
        """Set when there was a client."""
        self._make = make
        self._name = name
        self._listener: socket.socket | None = None
        self._first: socket.socket | None = None
        self._link: Link | None = None
        self._closing = False
        self._stop = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def open(self) -> None:
        """Listen (or connect) and begin to serve. Raises OSError with the address if that cannot be."""
        try:
            match self.address.kind:
                case Kind.STDIO: pass
                case _ if self.address.server: self._listener = self._listen()
                case _: self._first = self._connect()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.address)) from error
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port that we listen on, where the address left it to the host."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """End the conversation, after a moment for the last words, and listen no more."""
        self._closing = True
        os.write(self._stop[1], b"\0")
        link = self._link
        if link is not None:
            link.poke()
        if self._thread.is_alive():
            self._thread.join(2 * FAREWELL)
        if self._listener is not None:
            self._listener.close()
            if self.address.kind is Kind.UNIX:
                self.address.path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        if self.address.kind is Kind.UNIX:
            _remove_stale(str(self.address.path))
            listener = socket.socket(socket.AF_UNIX)
            try:
                before = os.umask(0o077)  # who can connect controls the machine
                try:
                    listener.bind(str(self.address.path))
                finally:
                    os.umask(before)
                listener.listen(1)
            except OSError:
                listener.close()
                raise
            return listener
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        return socket.create_server((self.address.host, self.address.port), family=family, backlog=1)

    def _connect(self) -> socket.socket:
        if self.address.kind is Kind.UNIX:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.address.path))
            except OSError:
                connection.close()
                raise
            return connection
        return socket.create_connection((self.address.host, self.address.port))

    def _run(self) -> None:
        if self.address.kind is Kind.STDIO:
            self._serve(0, 1)
        elif self._first is not None:
            with self._first:
                self._serve_socket(self._first)
        while self._listener is not None and not self._closing:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            poll.register(self._stop[0], select.POLLIN)
            if any(descriptor == self._stop[0] for descriptor, _ in poll.poll()):
                break
            try:
                client, _ = self._listener.accept()
            except OSError:  # it went away again
                continue
            with client:
                self._serve_socket(client)

    def _serve_socket(self, client: socket.socket) -> None:
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._serve(client.fileno(), client.fileno())

    def _serve(self, source: int, sink: int) -> None:
        link = Link(source, sink)
        session = _Closable(self._make(link), self)
        self._link = link
        self.connected.set()
        try:
            link.serve(session)
            link.flush()
        except HangUp as reason:
            try:
                link.flush()
            except OSError:
                pass
            if str(reason) and not self._closing:
                print(f"xuni: {self._name} at {self.address}: the client is left: {reason}", file=sys.stderr)
        except OSError:
            pass  # the client went away, as it may
        finally:
            self._link = None
            session.close()
            link.close()


class _Closable:
    """A session that ends when its endpoint closes."""

    def __init__(self, session: Session, endpoint: Endpoint) -> None:
        self._session, self._endpoint = session, endpoint
        self.receive, self.close = session.receive, session.close

    def wake(self) -> None:
        self._session.wake()
        if self._endpoint._closing:
            raise HangUp


def _remove_stale(path: str) -> None:
    """A socket that nobody listens on any more is in the way of ours; anything else there stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass
