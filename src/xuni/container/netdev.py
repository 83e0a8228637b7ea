"""Network interfaces that move from the host into the container (config-linux.md, "Network Devices"), by rtnetlink.

An interface loses its addresses when it changes its namespace; the permanent ones of global scope are put back, and it is
brought up. The move is the runtime's; the rest happens in the container's network namespace.
"""

from __future__ import annotations

import _socket
import os

from xuni.container.record import SpecError
from xuni.container.step import Run, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
NEWLINK, GETLINK, NEWADDR, GETADDR = 16, 18, 20, 22
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, CREATE, EXCL = 1, 4, 0x300, 0x400, 0x200
IFLA_IFNAME: Final = 3
IFLA_NET_NS_FD: Final = 28
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_PERMANENT: Final = 0x80
IFF_UP: Final = 1
NAME_SIZE: Final = 15


class Netlink:
    """A socket of NETLINK_ROUTE in the network namespace that we are in."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 0)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """The answers, as kind and body. Raises OSError with the kernel's errno."""
        self._sequence += 1
        header = ((16 + len(body)).to_bytes(4, "little") + kind.to_bytes(2, "little") + (flags | REQUEST).to_bytes(2, "little")
                  + self._sequence.to_bytes(4, "little") + bytes(4))  # fmt: skip
        self._socket.send(header + body)
        while True:
            said = self._socket.recv(1 << 16)
            while len(said) >= 16:
                size, what = int.from_bytes(said[:4], "little"), int.from_bytes(said[4:6], "little")
                content, said = said[16:size], said[(size + 3) & ~3 :]
                if what == DONE:
                    return
                if what == ERROR:
                    number = -int.from_bytes(content[:4], "little", signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield what, content
                if not flags & DUMP:
                    return

    def do(self, kind: int, flags: int, body: bytes) -> None:
        for _ in self.ask(kind, flags | ACK, body):
            pass


def attribute(kind: int, value: bytes) -> bytes:
    """struct rtattr and its value, padded."""
    return ((4 + len(value)).to_bytes(2, "little") + kind.to_bytes(2, "little") + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def attributes(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(raw) >= 4:
        size = int.from_bytes(raw[:2], "little")
        if size < 4:
            break
        found[int.from_bytes(raw[2:4], "little") & 0x3FFF] = raw[4:size]
        raw = raw[(size + 3) & ~3 :]
    return found


def _link(index: int, flags: int = 0, change: int = 0) -> bytes:
    """struct ifinfomsg."""
    return bytes(4) + index.to_bytes(4, "little") + flags.to_bytes(4, "little") + change.to_bytes(4, "little")


def find(netlink: Netlink, name: str) -> int:
    """The interface's index. Raises OSError ENODEV."""
    for _, body in netlink.ask(GETLINK, 0, _link(0) + attribute(IFLA_IFNAME, name.encode() + b"\0")):
        return int.from_bytes(body[4:8], "little")
    raise AssertionError("no answer")


def addresses(netlink: Netlink, index: int) -> list[bytes]:
    """RTM_NEWADDR bodies that give the interface its permanent global addresses again; the index is left 0."""
    found = []
    for kind, body in list(netlink.ask(GETADDR, DUMP, bytes(8))):
        if kind != NEWADDR or int.from_bytes(body[4:8], "little") != index:
            continue
        given = attributes(body[8:])
        flags = int.from_bytes(given.get(IFA_FLAGS, bytes((body[2], 0, 0, 0))), "little")
        if body[3] != 0 or not flags & IFA_F_PERMANENT:  # scope: RT_SCOPE_UNIVERSE
            continue
        kept = b"".join([attribute(each, given[each]) for each in (IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST) if each in given])
        found.append(body[:2] + bytes((0, 0)) + bytes(4) + kept)
    return found


def check_name(place: str, name: str) -> None:
    """Raises SpecError for what the kernel takes for no name of an interface."""
    if not name or len(name) > NAME_SIZE or name in (".", "..") or any(each in name for each in "/: \t\n%"):
        raise SpecError(f"{place}: invalid network device name {name!r}: 1 to {NAME_SIZE} characters without / : % and spaces")


class MoveInterface(Step):
    """Move the host's interface `name` into the container's network namespace, where it is `into`."""

    name: str
    into: str

    def apply(self, run: Run) -> None:
        netlink = Netlink()
        namespace = run.kernel.open(f"/proc/{run.pid}/ns/net", os.O_RDONLY)
        try:
            try:
                index = find(netlink, self.name)
            except OSError as error:
                raise SpecError(f"linux.netDevices: {self.name}: {error.strerror} on the host") from None
            given = addresses(netlink, index)
            netlink.do(NEWLINK, 0, _link(index, 0, IFF_UP))
            netlink.do(NEWLINK, 0, _link(index) + attribute(IFLA_NET_NS_FD, namespace.to_bytes(4, "little"))
                       + attribute(IFLA_IFNAME, self.into.encode() + b"\0"))  # fmt: skip
            self._settle(run, namespace, given)
        finally:
            netlink.close()
            os.close(namespace)

    def _settle(self, run: Run, namespace: int, given: list[bytes]) -> None:
        """In a child, which may enter the namespace."""
        from xuni.host.linux.kernel import CLONE_NEWNET

        pid, pidfd = run.kernel.clone3(0)
        if pid == 0:
            status = 1
            try:
                run.kernel.setns(namespace, CLONE_NEWNET, "network")
                inside = Netlink()
                index = find(inside, self.into)
                for body in given:
                    inside.do(NEWADDR, CREATE | EXCL, body[:4] + index.to_bytes(4, "little") + body[8:])
                inside.do(NEWLINK, 0, _link(index, IFF_UP, IFF_UP))
                status = 0
            except OSError as error:
                status = error.errno or 1
            finally:
                os._exit(status)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        number = os.waitstatus_to_exitcode(status)
        if number:
            raise OSError(number, f"linux.netDevices: {self.into}: {os.strerror(number)} in the container's network namespace")
