"""Whole containers on this host, and bundles that mean harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, groups_left, name, needs_root

pytestmark = needs_root


def test_a_process_its_output_and_its_status(bundle: Bundle) -> None:
    done = bundle.run("/bin/sh", "-c", "id -u; echo $0; exit 7", "zero")
    assert (done.returncode, done.stdout) == (7, "0\nzero\n"), done.stderr
    assert not groups_left(name(bundle))


def test_the_stages_of_a_life(bundle: Bundle) -> None:
    container = name(bundle)
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "touch /tmp/began; sleep 100"]
    bundle.config["root"]["readonly"] = False
    bundle.write()

    def status() -> str:
        return str(json.loads(bundle.call("state", container).stdout)["status"])

    made = bundle.start("create", "--pid-file", "pid", container)
    assert made.wait(30) == 0
    assert status() == "created" and not (bundle.rootfs / "tmp/began").exists()
    assert json.loads(bundle.call("state", container).stdout)["pid"] == int((bundle.path / "pid").read_text())
    assert "already exists" in bundle.call("create", container).stderr
    assert "that is not stopped: created" in bundle.call("delete", container).stderr
    assert bundle.call("start", container).returncode == 0
    assert status() == "running"
    assert "cannot start a container that is running" in bundle.call("start", container).stderr
    assert bundle.call("exec", container, "/bin/sh", "-c", "exit 5").returncode == 5
    assert "that is not stopped: running" in bundle.call("delete", container).stderr
    assert bundle.call("pause", container).returncode == 0 and status() == "paused"
    assert bundle.call("resume", container).returncode == 0 and status() == "running"
    assert bundle.call("kill", container, "KILL").returncode == 0
    deadline = time.monotonic() + 10
    while status() != "stopped" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bundle.call("delete", container).returncode == 0
    assert "does not exist" in bundle.call("state", container).stderr
    assert not groups_left(container)
    made.communicate(timeout=10)


def test_the_pidfd_of_init_goes_to_whoever_listens(bundle: Bundle, tmp_path: Path) -> None:
    container, place = name(bundle), tmp_path / "pidfd.sock"
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen()
        listener.settimeout(30)
        made = bundle.start("create", "--pidfd-socket", str(place), container)
        peer, _ = listener.accept()
        with peer:
            kind, descriptors, _, _ = socket.recv_fds(peer, 100, 1)
        assert made.wait(30) == 0
    try:
        assert kind == b"standard"
        pid = json.loads(bundle.call("state", container).stdout)["pid"]
        assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{descriptors[0]}").read_text()
    finally:
        os.close(descriptors[0])
        bundle.call("delete", "--force", container)
        made.communicate(timeout=10)
    done = bundle.call("create", "--pidfd-socket", str(tmp_path / "nobody"), name(bundle) + "x")
    assert done.returncode == 1 and "--pidfd-socket: nobody listens" in done.stderr


def test_a_program_that_is_not_there_is_told_by_create(bundle: Bundle) -> None:
    done = bundle.run("/no/such")
    assert done.returncode == 1 and 'exec: "/no/such' in done.stderr
    assert 'executable file not found in $PATH' in bundle.run("nosuch").stderr


def test_user_namespace(bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        config["linux"] |= {"uidMappings": maps, "gidMappings": maps}

    done = bundle.run("/bin/sh", "-c", "id -u; cat /proc/self/uid_map", change=change)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "100000", "65536"]


def test_seccomp_refuses_with_the_errno_asked_for(bundle: Bundle) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    done = bundle.run("/bin/sh", "-c", "busybox mkdir /tmp/x", change=lambda config: config["linux"].update(
        seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))  # fmt: skip
    assert "No space left on device" in done.stderr


# ---- harm


@pytest.mark.parametrize("target", ["/", "/etc", "../../../../../../etc"])
def test_links_on_mount_targets_stay_inside(bundle: Bundle, target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The root's `data` leads out; the mount below it must not be made on the host."""
    (bundle.rootfs / "data").symlink_to(target)
    mark = f"xuni-{os.getpid()}-mark"
    bundle.config["root"]["readonly"] = False
    bundle.config["mounts"].append({"destination": f"/data/{mark}", "type": "tmpfs", "source": "tmpfs"})
    done = bundle.run("/bin/true")
    assert done.returncode == 0, done.stderr
    assert not Path("/", mark).exists() and not Path("/etc", mark).exists()


@pytest.mark.parametrize("special", ["proc", "sys"])
def test_proc_and_sys_are_not_mounted_through_links(bundle: Bundle, special: str) -> None:
    (bundle.rootfs / special).rmdir()
    (bundle.rootfs / special).symlink_to("/tmp")
    done = bundle.run("/bin/true")
    assert done.returncode == 1 and "must be mounted on ordinary directory" in done.stderr


def test_masked_paths_hide_and_a_planted_null_is_not_used(bundle: Bundle) -> None:
    """CVE-2025-31133: the image's /dev/null led elsewhere, and that was bound over masked files."""
    (bundle.rootfs / "dev/null").symlink_to("/proc/sysrq-trigger")
    (bundle.rootfs / "secret").write_text("secret")
    bundle.config["linux"]["maskedPaths"] += ["/secret", "/etc"]
    (bundle.rootfs / "etc/inside").write_text("x")
    done = bundle.run("/bin/sh", "-c", "cat /secret; ls /etc; test -c /secret && echo character")
    assert done.stdout == "character\n"


@pytest.mark.parametrize("args", [["/evil.sh"], ["/proc/self/exe", "-c", "print('ours')"], ["/link"]])
def test_our_own_program_cannot_be_reached_as_proc_self_exe(bundle: Bundle, args: list[str]) -> None:
    """CVE-2019-5736."""
    (bundle.rootfs / "evil.sh").write_text("#!/proc/self/exe -c print('ours')\n")
    (bundle.rootfs / "evil.sh").chmod(0o755)
    (bundle.rootfs / "link").symlink_to("/proc/self/exe")
    done = bundle.run(*args)
    assert done.returncode == 126 and "ours" not in done.stdout


def test_no_descriptor_of_ours_is_left_in_the_process(bundle: Bundle) -> None:
    """CVE-2024-21626. 3 is what `ls` itself opens."""
    done = bundle.run("/bin/ls", "/proc/self/fd")
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr


@pytest.mark.parametrize("number", range(3, 12))
def test_a_working_directory_in_a_leaked_descriptor(bundle: Bundle, number: int) -> None:
    done = bundle.run("/bin/sh", "-c", "pwd; ls", change=lambda config: config["process"].update(cwd=f"/proc/self/fd/{number}"))
    if done.returncode == 0:  # a descriptor of the container's own root
        assert done.stdout.split() == ["/", "bin", "dev", "etc", "proc", "sys", "tmp"]
    else:
        assert done.stdout == ""


def test_a_hook_that_hangs_is_ended_and_nothing_is_left(bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}

    done = bundle.run("/bin/true", change=change)
    assert done.returncode == 1 and "createRuntime hook #0" in done.stderr and "timeout of 1 s" in done.stderr
    assert not groups_left(name(bundle))


def test_a_fork_bomb_against_its_limit(bundle: Bundle) -> None:
    if not Path("/sys/fs/cgroup/pids").exists() and "pids" not in Path("/sys/fs/cgroup/cgroup.controllers").read_text():
        pytest.skip("no pids controller here")
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done"
    done = bundle.run("/bin/sh", "-c", bomb, change=lambda config: config["linux"]["resources"].update(pids={"limit": 20}))
    assert "can't fork" in done.stderr or "Resource temporarily unavailable" in done.stderr


def test_signals_reach_the_process(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.1; done"]
    bundle.write()
    command = bundle.start("run", name(bundle))
    assert command.stdout is not None and command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    out, _ = command.communicate(timeout=20)
    assert (command.returncode, out) == (3, "got\n")
