"""The bridge network: xuni0, an address for each container, NAT by nftables, published ports. It is there while a container
uses it, and gone with the last one.

links.py makes the interfaces, `nft` the rules; which addresses are taken, and by whom, is kept in /run/xuni.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xuni.server import ContainerError, where
from xuni.server.request import Port

if TYPE_CHECKING:
    import subprocess

BRIDGE: Final = "xuni0"
TABLE: Final = "xuni"
NETWORKS: Final = ("10.120.0.0/16", "172.29.0.0/16", "192.168.219.0/24")
NAME_SERVER: Final = "127.0.0.11"  # in the container's own loopback, as docker has it: names.py
FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")


class Held:
    """The published ports, taken from the host's other programs: to them, they are in use."""

    def __init__(self, ports: tuple[Port, ...]) -> None:
        """Raises ContainerError if one is in use already: what comes for it would be the container's from now on."""
        import socket

        self._sockets: list[socket.socket] = []
        for each in ports:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if each.protocol == "udp" else socket.SOCK_STREAM)
            self._sockets.append(made)
            try:
                made.bind((each.address, each.host))
            except OSError as error:
                self.close()
                place = f"{each.address}:{each.host}" if each.address else str(each.host)
                why = {errno.EADDRINUSE: "another program of this host has this port",
                       errno.EADDRNOTAVAIL: "this host has no such address"}  # fmt: skip
                raise ContainerError(f"-p {place}: {why.get(error.errno or 0, error.strerror)}") from None

    def join(self, selector: object) -> None:
        """There is nothing to serve: what comes is sent on before it arrives."""

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@dataclass(frozen=True, slots=True)
class Place:
    """A container's in the network."""

    address: str
    gateway: str
    held: Held


@contextmanager
def _state() -> Iterator[dict[str, Any]]:
    """{"network", "forward", "addresses": {container: …}, "ports": {container: […]}}, held alone and written back."""
    kept = _kept()
    with open(f"{where.run_directory()}/network.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            state: dict[str, Any] = json.loads(kept.read_bytes())
        except (FileNotFoundError, ValueError):
            state = {}
        yield state
        if state:
            scratch = kept.with_suffix(".new")
            scratch.write_text(json.dumps(state))
            scratch.rename(kept)
        else:
            kept.unlink(missing_ok=True)


def _kept() -> Path:
    """One file for each network namespace that has a bridge of ours."""
    return Path(where.run_directory(), f"network-{os.stat('/proc/self/ns/net').st_ino}.json")


def attach(container: str, pid: int, ports: tuple[Port, ...], names: tuple[str, ...] = ()) -> Place:
    """Give the container's network namespace an interface. `names` are what the others call it. Raises ContainerError with
    nothing left behind."""
    from ipaddress import IPv4Interface, IPv4Network

    from xuni.server import links

    with _state() as state:
        if not links.index(BRIDGE):
            state.clear()  # what is noted is of another network namespace that had this number, or of before an accident
        _check_ports(state, ports)
        held = Held(ports)  # before anything is led past the host's programs
        new = "network" not in state
        if new:
            try:
                _up(state)
            except BaseException:
                held.close()
                _down(state)
                raise
        network = IPv4Network(state["network"])
        taken = set(state["addresses"].values())
        hosts = network.hosts()
        gateway = next(hosts)
        address = next((str(each) for each in hosts if str(each) not in taken), "")
        if not address:
            held.close()
            raise ContainerError(f"all addresses of {network} are taken")
        state["addresses"][container] = address
        state["ports"][container] = [[each.host, each.container, each.protocol, each.address] for each in ports]
        state.setdefault("names", {})[container] = [each.lower() for each in names]
        try:
            nft = _nft(state) if new or ports else None  # which takes as long as the rest
            try:
                links.join(BRIDGE, _veth(container), pid, IPv4Interface(f"{address}/{network.prefixlen}"), gateway)
            except OSError as error:
                raise ContainerError(f"the container's network interface cannot be made: {error.strerror}; "
                                     "--network none and --network host do without") from None  # fmt: skip
            finally:
                if nft:
                    _done(nft)
        except BaseException:
            held.close()
            _forget(state, container)
            raise
        return Place(address, str(gateway), held)


def detach(container: str) -> None:
    """Repeating it is fine."""
    if not _kept().exists():
        return
    with _state() as state:
        if container in state.get("addresses", {}):
            _forget(state, container)


def rename(container: str, names: tuple[str, ...]) -> None:
    """What the others call it from now on."""
    if _kept().exists():
        with _state() as state:
            if container in state.get("names", {}):
                state["names"][container] = [each.lower() for each in names]


def names() -> Callable[[str], str]:
    """Who asks for a name gets the container's address, or "". What comes and goes meanwhile is seen."""
    kept = _kept()
    seen: tuple[int, dict[str, str]] = 0, {}

    def look_up(name: str) -> str:
        nonlocal seen
        try:
            stamp = os.stat(kept).st_mtime_ns
            if stamp != seen[0]:
                state = json.loads(kept.read_bytes())
                seen = stamp, {each: state["addresses"][container] for container, called in state.get("names", {}).items()
                               for each in called}  # fmt: skip
        except (OSError, ValueError, KeyError):
            return ""
        return seen[1].get(name, "")

    return look_up


def _veth(container: str) -> str:
    return f"xv{container[:12]}"  # an interface's name has at most 15 bytes


def _forget(state: dict[str, Any], container: str) -> None:
    from xuni.server import links

    state["addresses"].pop(container, None)
    state.get("names", {}).pop(container, None)
    published = state["ports"].pop(container, None)
    if not state["addresses"]:
        _down(state)
        return
    with contextlib.suppress(OSError):
        links.remove(_veth(container))
    if published:
        _done(_nft(state))


def _down(state: dict[str, Any]) -> None:
    import subprocess

    from xuni.server import links

    nft = None
    with contextlib.suppress(FileNotFoundError):
        nft = subprocess.Popen(("nft", "delete", "table", "ip", TABLE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(OSError):
        links.remove_all(BRIDGE)
    if nft:
        nft.wait()
    if state.get("forward") == "0":
        FORWARD.write_text("0")
    state.clear()


def _up(state: dict[str, Any]) -> None:
    from ipaddress import IPv4Interface, IPv4Network

    from xuni.server import links

    used = links.routes()
    network = next((each for each in map(IPv4Network, NETWORKS) if not any(each.overlaps(other) for other in used)), None)
    if network is None:
        raise ContainerError(f"this host has routes to all of {', '.join(NETWORKS)}, so there is no room for a bridge network")
    if not links.index(BRIDGE):
        try:
            links.bridge(BRIDGE, IPv4Interface(f"{next(network.hosts())}/{network.prefixlen}"))
        except OSError as error:
            raise ContainerError(f"the bridge {BRIDGE} cannot be made: {error.strerror}; "
                                 "--network none and --network host do without") from None  # fmt: skip
    state |= {"network": str(network), "forward": FORWARD.read_text().strip(), "addresses": {}, "ports": {}, "names": {}}
    if state["forward"] == "0":
        FORWARD.write_text("1")
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet").write_text("1")  # 127.0.0.1:PORT is forwarded, too


def rules(state: dict[str, Any]) -> str:
    """The whole table, as `nft -f` takes it: replaced in one transaction."""
    network = state["network"]
    forwards = []
    for container, published in sorted(state["ports"].items()):
        inside = state["addresses"].get(container)
        for host, port, protocol, address in published:
            where = f"ip daddr {address}" if address else "fib daddr type local"
            forwards.append(f"{where} {protocol} dport {host} dnat to {inside}:{port}")
    listed = "".join(f"    {each}\n" for each in forwards)
    return (f"table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n"
            f"  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n{listed}  }}\n"
            f"  chain output {{\n    type nat hook output priority -100;\n{listed}  }}\n"
            f"  chain postrouting {{\n    type nat hook postrouting priority srcnat;\n"
            f"    ip saddr {network} oifname != \"{BRIDGE}\" masquerade\n"
            # Back to itself through its published port, and from this host's loopback: the answer must come back here.
            f"    ip saddr 127.0.0.0/8 oifname \"{BRIDGE}\" masquerade\n"
            f"    ip saddr {network} ip daddr {network} ct status dnat masquerade\n  }}\n}}\n")  # fmt: skip


def _nft(state: dict[str, Any]) -> subprocess.Popen[str]:
    """Begin to give the kernel the rules. Raises ContainerError."""
    import subprocess

    try:
        nft = subprocess.Popen(("nft", "-f", "-"), text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    except FileNotFoundError:
        raise ContainerError("a bridge network takes `nft`, which is not installed (apt-get install nftables); "
                             "--network none and --network host do without") from None  # fmt: skip
    assert nft.stdin
    with contextlib.suppress(BrokenPipeError):  # it says why when it ends
        nft.stdin.write(rules(state))
        nft.stdin.close()
    return nft


def _done(nft: subprocess.Popen[str]) -> None:
    """Raises ContainerError with what it said."""
    assert nft.stderr
    with nft.stderr:
        said = nft.stderr.read()
    if nft.wait():
        raise ContainerError(f"nft: {'; '.join(said.strip().splitlines()[:2]) or 'failed'}")


def _check_ports(state: dict[str, Any], ports: tuple[Port, ...]) -> None:
    taken = {(host, protocol): container for container, published in state.get("ports", {}).items()
             for host, _, protocol, _ in published}  # fmt: skip
    for each in ports:
        if (each.host, each.protocol) in taken:
            raise ContainerError(f"-p {each.host}: container {taken[each.host, each.protocol][:12]} has this port already")


def resolv_conf(servers: tuple[str, ...], search: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> str:
    """The host's, with these servers instead of its own; what of it is given is not taken from the host's."""
    kept = []
    for line in _host_resolv_conf():
        word = line.partition(" ")[0]
        if word in ("search", "domain") and not search or word in ("options", "sortlist") and not options:
            kept.append(line)
    kept += [f"search {' '.join(search)}"] if search and search != (".",) else []
    kept += [f"options {' '.join(options)}"] if options else []
    return "".join(f"{line}\n" for line in (*(f"nameserver {each}" for each in servers), *kept))


def host_servers() -> tuple[str, ...]:
    """The host's name servers, those on its loopback included: whoever asks them is on the host."""
    words = [line.split() for line in _host_resolv_conf()]
    return tuple(each[1] for each in words if len(each) > 1 and each[0] == "nameserver")[:3]  # MAXNS of <resolv.h>


def _host_resolv_conf() -> list[str]:
    try:
        return Path("/etc/resolv.conf").read_text(errors="replace").replace("\t", " ").splitlines()
    except OSError:
        return []
