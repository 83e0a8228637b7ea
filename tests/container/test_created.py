"""A container between create and start, what its groups must be, and who its process's filter and directory are for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, name, needs_root

pytestmark = needs_root


def status(bundle: Bundle) -> str:
    return str(json.loads(bundle.call("state", name(bundle)).stdout)["status"])


def until_stopped(bundle: Bundle) -> None:
    deadline = time.monotonic() + 10
    while status(bundle) != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_created_init_holds_only_what_it_waits_with(bundle: Bundle) -> None:
    bundle.write()
    inherited = os.open("/dev/zero", os.O_RDONLY)
    try:
        made = bundle.start("create", "--pid-file", "pid", name(bundle), pass_fds=(inherited,))
        assert made.wait(30) == 0
    finally:
        os.close(inherited)
    pid = int((bundle.path / "pid").read_text())
    held = {int(each): os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")}
    ours = [target for number, target in held.items() if number > 2]
    assert ours and all(target.startswith(("pipe:", "socket:")) for target in ours), held
    assert bundle.call("start", name(bundle)).returncode == 0
    until_stopped(bundle)
    made.communicate(timeout=10)


@pytest.mark.parametrize("number", ["TERM", "KILL", "INT"])
def test_a_created_container_can_be_killed(bundle: Bundle, number: str) -> None:
    """The first process of a PID namespace gets no signal that it does not handle."""
    bundle.write()
    made = bundle.start("create", name(bundle))
    assert made.wait(30) == 0
    assert bundle.call("kill", name(bundle), number).returncode == 0
    until_stopped(bundle)
    assert bundle.call("delete", name(bundle)).returncode == 0
    made.communicate(timeout=10)


def _group(bundle: Bundle) -> str:
    return f"/{name(bundle)}-own"


def test_a_group_in_use_is_left_alone(bundle: Bundle) -> None:
    """What ends a container ends its groups, so a failed create must not touch those of another."""
    bundle.config["linux"]["cgroupsPath"] = _group(bundle)
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    first = bundle.start("run", "--detach", name(bundle))
    assert first.wait(30) == 0
    try:
        second = bundle.call("create", name(bundle) + "-second")
        assert second.returncode == 1 and "container's cgroup is not empty" in second.stderr
        assert status(bundle) == "running"
        assert not (bundle.root / (name(bundle) + "-second")).exists()
    finally:
        bundle.call("delete", "--force", name(bundle))
        first.communicate(timeout=10)


def test_a_frozen_group_is_refused_and_kept(bundle: Bundle) -> None:
    v1 = Path("/sys/fs/cgroup/freezer").is_dir()
    group = Path(("/sys/fs/cgroup/freezer" if v1 else "/sys/fs/cgroup") + _group(bundle))
    group.mkdir()
    try:
        (group / ("freezer.state" if v1 else "cgroup.freeze")).write_text("FROZEN" if v1 else "1")
        bundle.config["linux"]["cgroupsPath"] = _group(bundle)
        bundle.write()
        done = bundle.call("create", name(bundle))
        assert done.returncode == 1 and "container's cgroup unexpectedly frozen" in done.stderr
        assert group.is_dir()
    finally:
        group.rmdir()


def test_the_working_directory_may_be_out_of_the_users_reach_or_of_roots(bundle: Bundle) -> None:
    (bundle.rootfs / "closed").mkdir(mode=0o700)
    done = bundle.run(
        "/bin/sh", "-c", "pwd", change=lambda config: config["process"].update(cwd="/closed", user={"uid": 7, "gid": 7})
    )
    assert done.returncode == 0 and done.stdout == "/closed\n", done.stderr


@pytest.mark.parametrize(("capabilities", "status"), [([], 1), (["CAP_DAC_OVERRIDE"], 0)])
def test_capabilities_count_for_who_may_execute_a_file(bundle: Bundle, capabilities: list[str], status: int) -> None:
    (bundle.rootfs / "own").mkdir()
    (bundle.rootfs / "own/busybox").write_bytes((bundle.rootfs / "bin/busybox").read_bytes())
    (bundle.rootfs / "own/busybox").chmod(0o744)

    def change(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 7, "gid": 7}
        config["process"]["capabilities"] = dict.fromkeys(
            ("bounding", "effective", "inheritable", "permitted", "ambient"), capabilities
        )

    done = bundle.run("/own/busybox", "true", change=change)
    assert done.returncode == status, done.stderr


def test_a_hook_in_the_container_is_under_its_filter(bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
        config["hooks"] = {"startContainer": [{"path": "/bin/busybox", "args": ["mkdir", "/dev/shm/x"]}]}

    done = bundle.run("/bin/true", change=change)
    assert done.returncode == 1
    assert "error running startContainer hook #0" in done.stderr and "bad system call" in done.stderr


def test_a_filter_that_forbids_what_hooks_take_says_so(bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        rule = {"names": ["pidfd_open"], "action": "SCMP_ACT_ERRNO"}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        config["hooks"] = {"startContainer": [{"path": "/bin/busybox", "args": ["true"]}]}

    done = bundle.run("/bin/true", change=change)
    assert done.returncode == 1 and "under the container's seccomp filter" in done.stderr


def test_without_a_pid_namespace_kill_ends_all(bundle: Bundle) -> None:
    """Else whoever init has begun would stay behind."""

    def no_pid(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]

    no_pid(bundle.config)
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "sleep 100 & sleep 100 & wait"]
    bundle.write()
    first = bundle.start("run", "--detach", name(bundle))
    assert first.wait(30) == 0
    pids: list[int] = []
    deadline = time.monotonic() + 10
    while len(pids) < 3 and time.monotonic() < deadline:
        pids = json.loads(bundle.call("ps", "-f", "json", name(bundle)).stdout)
    assert len(pids) == 3
    assert bundle.call("kill", name(bundle), "KILL").returncode == 0
    until_stopped(bundle)
    for pid in pids:  # gone, or a zombie of whoever adopted it
        deadline = time.monotonic() + 10
        while _lives(pid):
            assert time.monotonic() < deadline, pid
            time.sleep(0.02)
    first.communicate(timeout=10)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
