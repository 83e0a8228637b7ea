"""The bridge network: xuni0, an address for each container, NAT by nftables, published ports. It is there while a container
uses it, and gone with the last one.

`ip` and `nft` do the work, one call each for a container; which addresses are taken is kept in /run/xuni.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from xuni.server import ContainerError
from xuni.server.request import Port

BRIDGE: Final = "xuni0"
TABLE: Final = "xuni"
NETWORKS: Final = ("10.120.0.0/16", "172.29.0.0/16", "192.168.219.0/24")
STATE: Final = Path("/run/xuni")
FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")


@contextmanager
def _state() -> Iterator[dict[str, Any]]:
    """{"network", "forward", "addresses": {container: …}, "ports": {container: […]}}, held alone and written back."""
    STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
    kept = _kept()
    with open(STATE / "network.lock", "w") as lock:
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
    return STATE / f"network-{os.stat('/proc/self/ns/net').st_ino}.json"


def _tool(*command: str, text: str = "") -> str:
    """Raises ContainerError with what it said."""
    import shutil
    import subprocess

    if shutil.which(command[0]) is None:
        package = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}[command[0]]
        raise ContainerError(f"a bridge network takes `{command[0]}`, which is not installed (apt-get install {package}); "
                             "--network none and --network host do without")  # fmt: skip
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise ContainerError(f"{' '.join(command)}: {'; '.join(done.stderr.strip().splitlines()[:2]) or 'failed'}")
    return done.stdout


def attach(container: str, pid: int, ports: tuple[Port, ...]) -> str:
    """Give the container's network namespace an interface; its address. Raises ContainerError with nothing left behind."""
    import ipaddress

    with _state() as state:
        _check_ports(state, ports)
        if "network" not in state or not _exists(BRIDGE):
            try:
                _up(state)
            except BaseException:
                _down(state)
                raise
        network = ipaddress.ip_network(state["network"])
        taken = set(state["addresses"].values())
        hosts = network.hosts()
        gateway = str(next(hosts))
        address = next((str(each) for each in hosts if str(each) not in taken), "")
        if not address:
            raise ContainerError(f"all addresses of {network} are taken")
        state["addresses"][container] = address
        state["ports"][container] = [[each.host, each.container, each.protocol, each.address] for each in ports]
        try:
            veth = _veth(container)
            _tool("ip", "-batch", "-", text=(
                f"link add {veth} type veth peer name eth0 netns {pid}\n"
                f"link set {veth} master {BRIDGE}\nlink set {veth} up\n"
            ))  # fmt: skip
            _tool("nsenter", "-t", str(pid), "-n", "ip", "-batch", "-", text=(
                f"link set lo up\naddress add {address}/{network.prefixlen} dev eth0\nlink set eth0 up\n"
                f"route add default via {gateway}\n"
            ))  # fmt: skip
            if ports:
                _rules(state)
        except BaseException:
            _forget(state, container)
            raise
        return address


def detach(container: str) -> None:
    """Repeating it is fine."""
    if not _kept().exists():
        return
    with _state() as state:
        if container in state.get("addresses", {}):
            _forget(state, container)


def _exists(interface: str) -> bool:
    """In our own network namespace; /sys may show another's."""
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def _veth(container: str) -> str:
    return f"xv{container[:12]}"  # an interface's name has at most 15 bytes


def _forget(state: dict[str, Any], container: str) -> None:
    state["addresses"].pop(container, None)
    published = state["ports"].pop(container, None)
    veth = _veth(container)
    if _exists(veth):
        import subprocess

        subprocess.run(["ip", "link", "del", veth], capture_output=True, check=False)
    if not state["addresses"]:
        _down(state)
    elif published:
        _rules(state)


def _down(state: dict[str, Any]) -> None:
    import subprocess

    for command in (("ip", "link", "del", BRIDGE), ("nft", "delete", "table", "ip", TABLE)):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(command, capture_output=True, check=False)
    if state.get("forward") == "0":
        FORWARD.write_text("0")
    state.clear()


def _up(state: dict[str, Any]) -> None:
    import ipaddress

    used = [ipaddress.ip_network(line.split()[0], strict=False) for line in _tool("ip", "-4", "route").splitlines()
            if line and line[0].isdigit()]  # fmt: skip
    free = [each for each in map(ipaddress.ip_network, NETWORKS) if not any(each.overlaps(other) for other in used)]
    network = next(iter(free), None)
    if network is None:
        raise ContainerError(f"this host has routes to all of {', '.join(NETWORKS)}, so there is no room for a bridge network")
    gateway = next(network.hosts())
    if not _exists(BRIDGE):
        _tool("ip", "-batch", "-", text=(
            f"link add {BRIDGE} type bridge\naddress add {gateway}/{network.prefixlen} dev {BRIDGE}\n"
            f"link set {BRIDGE} up\nlink set lo up\n"
        ))  # fmt: skip
    state |= {"network": str(network), "forward": FORWARD.read_text().strip(), "addresses": {}, "ports": {}}
    if state["forward"] == "0":
        FORWARD.write_text("1")
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet").write_text("1")  # 127.0.0.1:PORT is forwarded, too
    _rules(state)


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


def _rules(state: dict[str, Any]) -> None:
    _tool("nft", "-f", "-", text=rules(state))


def _check_ports(state: dict[str, Any], ports: tuple[Port, ...]) -> None:
    taken = {(host, protocol): container for container, published in state.get("ports", {}).items()
             for host, _, protocol, _ in published}  # fmt: skip
    for each in ports:
        if (each.host, each.protocol) in taken:
            raise ContainerError(f"-p {each.host}: container {taken[each.host, each.protocol][:12]} has this port already")


def resolv_conf() -> str:
    """The host's, without servers on its loopback, which the container has not."""
    try:
        lines = Path("/etc/resolv.conf").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return "".join(f"{line}\n" for line in lines if not line.startswith("nameserver 127.") and line != "nameserver ::1")
