"""The bridge and each container's pair of interfaces, by rtnetlink: a few messages where `ip` would be a process each.

Message bodies are those of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/veth.h.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from xuni.container.netdev import CREATE, EXCL, IFA_ADDRESS, IFA_LOCAL, IFF_UP, IFLA_IFNAME, NEWADDR, NEWLINK, Netlink, attribute
from xuni.host.linux.kernel import CLONE_NEWNET, Linux

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network

DELLINK, NEWROUTE = 17, 24
IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD = 10, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_GROUP: Final = 27
GROUP: Final = 0x78756E69  # of the bridge and all that is at it ("xuni"): the kernel removes a group in the time of one interface
RTA_GATEWAY: Final = 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
INSIDE: Final = "eth0"


def index(name: str) -> int:
    """In our own network namespace, whatever /sys shows; 0 if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


@contextmanager
def inside(pid: int) -> Iterator[int]:
    """Be in the network namespace of a process; its descriptor. What is opened there stays there. One thread only."""
    kernel = Linux()
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(there, CLONE_NEWNET, "network")
            try:
                yield there
            finally:
                kernel.setns(home, CLONE_NEWNET, "network")
        finally:
            os.close(there)
    finally:
        os.close(home)


def bridge(name: str, address: IPv4Interface) -> None:
    """Make a bridge with an address, up. Raises OSError."""
    with _netlink() as netlink:
        netlink.do(NEWLINK, CREATE | EXCL, _link(up=True) + _name(name) + _group() + _kind("bridge"))
        _give(netlink, index(name), address)
        netlink.do(NEWLINK, 0, _link(index("lo"), up=True))


def remove(name: str) -> None:
    """An interface, and the other end of its pair. One that is not there is fine."""
    number = index(name)
    if number:
        with _netlink() as netlink:
            netlink.do(DELLINK, 0, _link(number))


def remove_all(bridge: str) -> None:
    """The bridge and every pair at it, with one wait for all (each alone takes the kernel an RCU grace period or two)."""
    try:
        with _netlink() as netlink:
            netlink.do(DELLINK, 0, _link() + _group())
    finally:
        remove(bridge)


def join(bridge: str, name: str, pid: int, address: IPv4Interface, gateway: IPv4Address) -> None:
    """A pair of interfaces: `name` at the bridge, `eth0` with the address where the process is. Raises OSError."""
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = _link() + _name(INSIDE) + attribute(IFLA_NET_NS_FD, there.to_bytes(4, "little"))
        data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
        with _netlink() as netlink:
            netlink.do(NEWLINK, CREATE | EXCL, _link(up=True) + _name(name) + _group()
                       + attribute(IFLA_MASTER, index(bridge).to_bytes(4, "little")) + _kind("veth", data))  # fmt: skip
    finally:
        os.close(there)
    with inside(pid), _netlink() as netlink:
        netlink.do(NEWLINK, 0, _link(index("lo"), up=True))
        number = index(INSIDE)
        _give(netlink, number, address)
        netlink.do(NEWLINK, 0, _link(number, up=True))
        route = bytes((socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST)) + bytes(4)
        netlink.do(NEWROUTE, CREATE | EXCL, route + attribute(RTA_GATEWAY, gateway.packed))


def routes() -> list[IPv4Network]:
    """The networks that this host has routes to, but for the default ones."""
    from ipaddress import IPv4Network

    with open("/proc/self/net/route") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    found = []
    for row in rows:
        destination, mask = (int.from_bytes(bytes.fromhex(row[column]), "little") for column in (1, 7))
        if mask:
            found.append(IPv4Network((destination, mask.bit_count())))
    return found


@contextmanager
def _netlink() -> Iterator[Netlink]:
    netlink = Netlink()
    try:
        yield netlink
    finally:
        netlink.close()


def _link(number: int = 0, *, up: bool = False) -> bytes:
    """struct ifinfomsg."""
    flags = (IFF_UP if up else 0).to_bytes(4, "little")
    return bytes(4) + number.to_bytes(4, "little") + flags + flags


def _group() -> bytes:
    return attribute(IFLA_GROUP, GROUP.to_bytes(4, "little"))


def _name(name: str) -> bytes:
    return attribute(IFLA_IFNAME, name.encode() + b"\0")


def _kind(kind: str, data: bytes = b"") -> bytes:
    return attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind.encode()) + data)


def _give(netlink: Netlink, number: int, address: IPv4Interface) -> None:
    """struct ifaddrmsg and its attributes."""
    header = bytes((socket.AF_INET, address.network.prefixlen, 0, 0)) + number.to_bytes(4, "little")
    packed = address.ip.packed
    netlink.do(NEWADDR, CREATE | EXCL, header + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed))
