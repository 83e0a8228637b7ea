"""Conversions between v1's and v2's units, and how mounts and lists are read."""

from __future__ import annotations

import pytest

from xuni.container.cgroup import files, hierarchy, units
from xuni.container.record import SpecError


@pytest.mark.parametrize(("shares", "weight"), [
    (2, 1), (1024, 100), (262144, 10000), (512, 59), (2048, 174), (1, 1), (1 << 30, 10000),
])  # fmt: skip
def test_weight_of_shares(shares: int, weight: int) -> None:
    assert units.weight_of_shares(shares) == weight


def test_weights_grow_with_shares() -> None:
    weights = [units.weight_of_shares(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)


@pytest.mark.parametrize(("weight", "io"), [(10, 1), (1000, 10000), (500, 4950)])
def test_io_weight(weight: int, io: int) -> None:
    assert units.io_weight(weight) == io


@pytest.mark.parametrize(("limit", "swap", "apart"), [
    (100, 150, 50), (100, 100, 0), (100, -1, -1), (100, 0, None), (-1, 0, -1), (0, 0, None), (0, -1, -1),
])  # fmt: skip
def test_swap_max(limit: int, swap: int, apart: int | None) -> None:
    assert units.swap_max(limit, swap) == apart


def test_swap_below_memory_is_refused() -> None:
    with pytest.raises(SpecError, match="cannot be below"):
        units.swap_max(100, 50)
    with pytest.raises(SpecError, match=r"takes a memory\.limit"):
        units.swap_max(0, 50)


HYBRID = r"""
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,release_agent=/lib/agent,name=systemd
34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
35 31 0:31 /docker/x /mnt/with\040space rw - cgroup2 cgroup2 rw
"""


def test_mounts_of_a_hybrid_host() -> None:
    found = {each.name: each for each in hierarchy.mounted(HYBRID)}
    assert list(found) == ["cpu,cpuacct", "systemd", "unified"]
    assert found["cpu,cpuacct"].keys == ("cpu", "cpuacct") and found["cpu,cpuacct"].data == "cpu,cpuacct"
    assert found["systemd"].keys == ("name=systemd",) and found["systemd"].data == "none,name=systemd"
    assert found["unified"].v2 and found["unified"].data == ""


def test_a_mount_that_shows_a_part() -> None:
    (mount,) = hierarchy.mounted(HYBRID.strip().splitlines()[-1])
    assert mount.point == "/mnt/with space"
    assert mount.directory("/docker/x/y") == "/mnt/with space/y"
    assert mount.directory("/docker/x") == "/mnt/with space"
    assert mount.directory("/docker/xy") == "" and mount.directory("/") == ""


def test_a_pure_v2_host() -> None:
    (mount,) = hierarchy.mounted("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot")
    assert mount.v2 and mount.name == "" and mount.directory("/") == "/sys/fs/cgroup"
    assert mount.directory("/../outside") == ""


def test_lists() -> None:
    assert files.numbers("0-2,7\n") == (0, 1, 2, 7) and files.numbers("") == ()
    with pytest.raises(ValueError, match="too long"):
        files.numbers("0-99999999")
    assert files.number("max") is None and files.number("9223372036854771712") is None and files.number("42") == 42
    assert dict(files.nested("8:0 rbytes=1 wbytes=2\n")) == {"8:0": {"rbytes": "1", "wbytes": "2"}}
