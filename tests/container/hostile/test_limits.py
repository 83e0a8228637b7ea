"""Containers that take all they can get: memory, processes, files, disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, left_over, name, needs_root
from xuni.container.cgroup import hierarchy

pytestmark = needs_root


def controller(wanted: str) -> pytest.MarkDecorator:
    there = {key for each in hierarchy.mounted() for key in each.keys}
    with contextlib.suppress(OSError):
        there.update(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    return pytest.mark.skipif(wanted not in there, reason=f"this host has no {wanted} controller")


def limits(**given: Any) -> Any:
    return lambda config: config["linux"]["resources"].update(given)


@controller("memory")
def test_a_memory_hog_is_killed_and_events_say_so(bundle: Bundle) -> None:
    """The container goes on; `events` has the kill, and its numbers the limit."""
    fifo = bundle.rootfs / "go"
    os.mkfifo(fifo, 0o666)
    bundle.config["root"]["readonly"] = False
    script = "echo ready; cat /go; (tail -c 99999999 /dev/zero); echo $? > /said; cat /go"
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    limits(memory={"limit": 32 << 20, "swap": 32 << 20})(bundle.config)
    bundle.write()
    container = name(bundle)
    with bundle.start("run", container) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            with bundle.start("events", "--interval", "100ms", container) as events:
                assert events.stdout is not None
                assert json.loads(events.stdout.readline())["type"] == "stats"
                fifo.write_text("")
                found = next(said for line in events.stdout if (said := json.loads(line))["type"] == "oom")
                assert found == {"type": "oom", "id": container}
                events.kill()
            assert json.loads(bundle.call("state", container).stdout)["status"] == "running"
            usage = json.loads(bundle.call("events", "--stats", container).stdout)["data"]["memory"]["usage"]
            assert usage["limit"] == 32 << 20 and usage["usage"] <= 32 << 20
        finally:
            bundle.call("delete", "--force", container)
            process.kill()
    assert (bundle.rootfs / "said").read_text() == "137\n"


@controller("memory")
@pytest.mark.parametrize("limit", [4096, 1 << 19])
def test_memory_too_small_to_begin_with(bundle: Bundle, limit: int) -> None:
    done = bundle.run("/bin/true", change=limits(memory={"limit": limit, "swap": limit}))
    assert done.returncode == 1 and "memory limit" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not left_over(bundle)


@controller("pids")
def test_a_fork_bomb_stops_and_can_be_removed(bundle: Bundle) -> None:
    """The real one: each process makes two, for ever."""
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "b() { b | b & b; }; echo ready; b 2>/dev/null & exec sleep 60"]
    limits(pids={"limit": 24})(bundle.config)
    bundle.write()
    container = name(bundle)
    with bundle.start("run", container, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(5):
            current = json.loads(bundle.call("events", "--stats", container).stdout)["data"]["pids"]
            assert current["limit"] == 24 and current["current"] <= 24
        done = bundle.call("exec", container, "/bin/true")
        assert done.returncode == 0 or "no more processes: linux.resources.pids.limit" in done.stderr, done.stderr
        assert bundle.call("delete", "--force", container).returncode == 0
        process.communicate(timeout=10)
    assert not left_over(bundle)


@controller("pids")
def test_no_process_to_begin_with(bundle: Bundle) -> None:
    """The limit counts init, which is one; a hook inside would be another."""
    hook = {"path": "/bin/true", "timeout": 10}
    done = bundle.run("/bin/sh", "-c", "echo began; sleep 0 & wait", change=limits(pids={"limit": 1}))
    assert done.stdout == "began\n" and "fork" in done.stderr
    done = bundle.run("/bin/true", change=lambda config: config.update(hooks={"createContainer": [hook]}))
    assert done.returncode == 1 and "createContainer" in done.stderr and "temporarily unavailable" in done.stderr, done.stderr
    assert "pids" in done.stderr and done.stderr.count("\n") == 1


# ---- disks


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "xuni-small", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError), open(directory / "filler", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_container_that_fills_its_disk(bundle: Bundle) -> None:
    """It gets ENOSPC; what comes after, `exec` and the removal, does not need room there."""
    rootfs = bundle.rootfs
    moved = rootfs.rename(bundle.path / "content")
    rootfs.mkdir()
    with small_disk(rootfs, "4m,nr_inodes=64"):
        subprocess.run(["cp", "-a", f"{moved}/.", str(rootfs)], check=True)
        bundle.config["root"]["readonly"] = False
        bundle.config["process"]["args"] = ["/bin/sh", "-c", "cat /dev/zero > /filler; echo full; sleep 60"]
        bundle.write()
        container = name(bundle)
        with bundle.start("run", container) as process:
            assert process.stdout is not None and process.stdout.readline() == "full\n"
            assert bundle.call("exec", container, "/bin/echo", "still").stdout == "still\n"
            assert bundle.call("delete", "--force", container).returncode == 0
            assert "No space left on device" in process.communicate(timeout=10)[1]
        # And one that begins on the full disk: what has to be made there is named.
        bundle.config["mounts"].append({"destination": "/new/place", "type": "tmpfs", "source": "tmpfs"})
        with contextlib.suppress(OSError):
            for each in range(100):
                (rootfs / f"full{each}").touch()
        done = bundle.run("/bin/true")
        assert done.returncode == 1 and 'mkdirat(' in done.stderr and "No space left on device" in done.stderr, done.stderr
        assert '"new"' in done.stderr and "[step Filesystem(target='/new/place'" in done.stderr


def test_no_room_for_the_state(bundle: Bundle) -> None:
    bundle.root.mkdir()
    with small_disk(bundle.root, "16k"):
        fill(bundle.root)
        bundle.config["process"]["args"] = ["/bin/true"]
        bundle.write()
        done = bundle.call("run", name(bundle))
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
        assert f"{bundle.root}/{name(bundle)}/" in done.stderr and done.stderr.count("\n") == 1
        assert os.listdir(bundle.root) == ["filler"]
        (bundle.root / "filler").unlink()
        assert bundle.call("run", name(bundle)).returncode == 0
        assert os.listdir(bundle.root) == []


def test_no_room_for_the_log_and_the_pid(bundle: Bundle) -> None:
    """A log that cannot be written does not keep a container from running; a pid file that cannot does."""
    full = bundle.path / "full"
    full.mkdir()
    with small_disk(full, "16k"):
        (full / "log").write_text("")
        fill(full)
        bundle.config["process"]["args"] = ["/bin/echo", "began"]
        bundle.config["process"]["capabilities"]["ambient"] = ["CAP_SYS_ADMIN"]  # worth a warning
        bundle.write()
        command = ("--log", str(full / "log"), "--debug", "run")
        done = bundle.call(*command, name(bundle))
        assert (done.returncode, done.stdout) == (0, "began\n"), done.stderr
        done = bundle.call("run", "--pid-file", str(full / "pid"), name(bundle))
        assert done.returncode == 1 and "No space left on device" in done.stderr and "pid" in done.stderr, done.stderr
        assert sorted(os.listdir(full)) == ["filler", "log"]


# ---- what a caller without CAP_SYS_RESOURCE may not ask for

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.parametrize("kind", ["RLIMIT_NOFILE", "RLIMIT_NPROC"])
def test_a_limit_above_our_own(bundle: Bundle, kind: str) -> None:
    hard = resource.getrlimit(getattr(resource, kind))[1]
    if hard == resource.RLIM_INFINITY or int(_capabilities(), 16) >> 24 & 1:
        pytest.skip(f"this caller may set {kind} as it likes (CAP_SYS_RESOURCE, or no limit)")
    for wanted, status in ((hard, 0), (hard + 1, 1)):
        bundle.config["process"]["rlimits"] = [{"type": kind, "soft": wanted, "hard": wanted}]
        done = bundle.run("/bin/sh", "-c", "ulimit -n")
        assert done.returncode == status, done.stderr
        if status:
            assert f'"{kind}"' in done.stderr and f"hard={wanted}" in done.stderr and "CAP_SYS_RESOURCE" in done.stderr
            assert "ask for at most the limit we have" in done.stderr and done.stderr.count("\n") == 1
    assert not left_over(bundle)


def _capabilities() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("CapEff:"))
