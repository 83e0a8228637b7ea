"""docker's flags, and the bundle that they make."""

from __future__ import annotations

from typing import Any

import pytest

from xuni.image.spec import Config
from xuni.server import ContainerError, bundle, network, request
from xuni.server.bundle import Identity
from xuni.server.request import Device, Limit, Port, Rate, Request, Volume

IMAGE = Config(diff_ids=(), entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/p", "X=image"), cwd="/work")


def config(image: Config = IMAGE, **fields: Any) -> dict[str, Any]:
    return bundle.config(Request("i", **fields), image, Identity(home="/root"), "c" * 64, "/root", {"/etc/hosts": "/h"})


@pytest.mark.parametrize(("text", "size"), [
    ("512m", 512 << 20), ("1g", 1 << 30), ("1.5GB", 3 << 29), ("100", 100), ("-1", -1), ("8k", 8192),
])  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert request.size(text, "-m") == size


@pytest.mark.parametrize("text", ["", "m", "12x", "1g1", "-5"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ContainerError, match="a size like 512m"):
        request.size(text, "-m")


@pytest.mark.parametrize(("text", "found"), [
    ("80", (Port(80, 80),)), ("8080:80", (Port(8080, 80),)), ("127.0.0.1:53:5353/udp", (Port(53, 5353, "udp", "127.0.0.1"),)),
    ("0.0.0.0:1:2", (Port(1, 2),)), ("8000-8001:80-81", (Port(8000, 80), Port(8001, 81))),
    ("127.0.0.1::80", (Port(80, 80, "tcp", "127.0.0.1"),)),
])  # fmt: skip
def test_ports(text: str, found: tuple[Port, ...]) -> None:
    assert request.ports(text) == found


@pytest.mark.parametrize("text", ["", "x", "80:", "0", "65536", "1-3:1-2", "80/sctp", "80/", "::1:80:80", "3-1"])
def test_wrong_ports(text: str) -> None:
    with pytest.raises(ContainerError, match="-p "):
        request.ports(text)


def test_volumes() -> None:
    assert request.volume("/a:/b") == Volume("/a", "/b")
    assert request.volume("/a:/b/../c:ro,z") == Volume("/a", "/c", ("ro",))
    assert request.volume("data:/b:nocopy") == Volume("", "/b", ("nocopy",), "data") and request.volume("/b") == Volume("", "/b")
    for text, said in ((":/a", "belongs there"), ("a", "belongs there"), ("/a:b", "belongs there"),
                       ("a b:/b", "no volume's name"), ("/a:/", "the image's"),
                       ("/a:/b:rx", "no option")):  # fmt: skip
        with pytest.raises(ContainerError, match=said):
            request.volume(text)


def test_mounts() -> None:
    assert request.mount("type=bind,src=/a,dst=/b,ro") == Volume("/a", "/b", ("ro",))
    assert request.mount("source=data,target=/b,volume-nocopy=true") == Volume("", "/b", ("nocopy",), "data")
    assert request.mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700") == "/t:size=1m,mode=700"
    for text, said in (("type=bind,dst=/b", "source="), ("type=volume,src=/a,dst=/b", "type=bind"), ("src=a", "target="),
                       ("type=x,dst=/b", "are known"), ("dst=/b,speed=9", "'speed' is not known")):  # fmt: skip
        with pytest.raises(ContainerError, match=said):
            request.mount(text)


def test_limits_and_devices() -> None:
    assert request.ulimit("nofile=1:2") == Limit("RLIMIT_NOFILE", 1, 2) and request.ulimit("core=-1").hard == -1
    assert request.device("/dev/a:/dev/b:r") == Device("/dev/a", "/dev/b", "r")
    assert request.device("/dev/a:rw") == Device("/dev/a", "/dev/a", "rw")
    assert request.rate("throttleReadBpsDevice", "/dev/a:1m") == Rate("throttleReadBpsDevice", "/dev/a", 1 << 20)
    assert request.host("db:::1") == ("db", "::1") and request.host("db=10.0.0.1") == ("db", "10.0.0.1")
    for wrong in (lambda: request.ulimit("x=1"), lambda: request.ulimit("nofile=x"), lambda: request.device("/dev/a:/b:q"),
                  lambda: request.rate("throttleReadBpsDevice", "1m"), lambda: request.host("db"),
                  lambda: request.pair("a", "--sysctl")):  # fmt: skip
        with pytest.raises(ContainerError):
            wrong()


def test_what_is_shared() -> None:
    made = config(pid="host", ipc="container:x", uts="host", network="container:x")
    assert "hostname" not in made and {"type": "pid"} not in made["linux"]["namespaces"]
    shown = bundle.Given(joined={"ipc": "/proc/7/ns/ipc", "network": "/proc/7/ns/net"})
    request = Request("i", ipc="container:x", network="container:x")
    found = bundle.config(request, IMAGE, Identity(), "c" * 64, "/root", {}, shown)
    assert {"type": "network", "path": "/proc/7/ns/net"} in found["linux"]["namespaces"]
    assert "/dev/shm" not in [each["destination"] for each in found["mounts"]]


def test_a_first_process() -> None:
    given = bundle.Given(init="/usr/bin/tini")
    made = bundle.config(Request("i", command=("c",)), IMAGE, Identity(), "c" * 64, "/root", {}, given)
    assert made["process"]["args"] == ["/dev/init", "--", "/entry", "c"]
    assert made["mounts"][-1]["source"] == "/usr/bin/tini"


@pytest.mark.parametrize(("fields", "said"), [
    ({"pid": "x"}, "--pid"), ({"uts": "host", "hostname": "h"}, "rename the host"), ({"oom_score": 2000}, "--oom-score-adj"),
    ({"blkio_weight": 5}, "--blkio-weight"), ({"memory": 1 << 25, "memory_reservation": 1 << 26}, "--memory-reservation"),
    ({"dns": ("x",)}, "--dns"), ({"dns_search": ("a b",)}, "--dns-search"),
    ({"name": "a b"}, "--name"), ({"network": "x"}, "bridge, none, host"), ({"memory": 1 << 20}, "6 MiB"),
    ({"memory_swap": 1 << 30}, "takes -m"), ({"cpus": -1}, "--cpus"),
    ({"network": "none", "ports": (Port(1, 1),)}, "-p publishes"),
])  # fmt: skip
def test_contradictions(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ContainerError, match=said):
        Request("i", **fields)


def test_entrypoint_and_command() -> None:
    assert config()["process"]["args"] == ["/entry", "a", "b"]
    assert config(command=("c",))["process"]["args"] == ["/entry", "c"]
    assert config(entrypoint=("/e",))["process"]["args"] == ["/e"]
    assert config(entrypoint=("/e",), command=("c",))["process"]["args"] == ["/e", "c"]
    with pytest.raises(ContainerError, match="names no command"):
        config(Config(diff_ids=()))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "here")
    monkeypatch.delenv("NOT_THERE", raising=False)
    found = dict(each.split("=", 1) for each in config(env=("X=mine", "FROM_HOST", "NOT_THERE"), tty=True)["process"]["env"])
    assert found == {"PATH": "/p", "HOSTNAME": "c" * 12, "X": "mine", "FROM_HOST": "here", "TERM": "xterm", "HOME": "/root"}


def test_limits() -> None:
    made = config(memory=64 << 20, cpus=0.5, pids=20, cpuset="0", cpu_shares=512)["linux"]["resources"]
    assert made["memory"] == {"limit": 64 << 20, "swap": 128 << 20} and made["pids"] == {"limit": 20}
    assert bundle.resources(Request("i", memory=64 << 20), bundle.Given(accounts_swap=False))["memory"] == {"limit": 64 << 20}
    assert made["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"}
    assert config()["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}


def test_capabilities() -> None:
    assert "CAP_SYS_ADMIN" not in config()["process"]["capabilities"]["bounding"]
    assert config(cap_drop=("ALL",), cap_add=("net_admin",))["process"]["capabilities"]["bounding"] == ["CAP_NET_ADMIN"]
    with pytest.raises(ContainerError, match="no such capability"):
        config(cap_add=("FLY",))


def test_what_a_container_may_not_see_or_call() -> None:
    made = config()["linux"]
    assert "/proc/kcore" in made["maskedPaths"] and "mount" in made["seccomp"]["syscalls"][0]["names"]
    assert "seccomp" not in config(privileged=True)["linux"] and "maskedPaths" not in config(privileged=True)["linux"]


def test_the_network_namespace() -> None:
    assert {"type": "network"} in config()["linux"]["namespaces"]
    assert {"type": "network"} not in config(network="host")["linux"]["namespaces"]


def test_parents_are_mounted_before_children() -> None:
    found = [each["destination"] for each in config(volumes=(Volume("/a", "/x/y"), Volume("/b", "/x")))["mounts"]]
    assert found.index("/x") < found.index("/x/y") and found[0] == "/proc" and "/etc/hosts" in found


def test_rules_for_published_ports() -> None:
    ports = [[8080, 80, "tcp", ""], [53, 53, "udp", "127.0.0.1"]]
    state = {"network": "10.1.0.0/16", "addresses": {"c": "10.1.0.2"}, "ports": {"c": ports}}
    text = network.rules(state)
    assert "fib daddr type local tcp dport 8080 dnat to 10.1.0.2:80" in text
    assert "ip daddr 127.0.0.1 udp dport 53 dnat to 10.1.0.2:53" in text
    assert 'ip saddr 10.1.0.0/16 oifname != "xuni0" masquerade' in text
