"""SIGKILL of the runtime at any moment leaves nothing that `delete --force` does not remove."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, left_over, name, needs_root

pytestmark = needs_root


def plain(bundle: Bundle, config: dict[str, Any]) -> None:
    pass


def rich(bundle: Bundle, config: dict[str, Any]) -> None:
    """Limits, hooks at every point, binds, devices, a filter, parameters."""
    given = bundle.path / "given"
    given.mkdir()
    config["mounts"] += [{"destination": f"/given/{at}", "type": "bind", "source": str(given), "options": ["rbind", "ro"]}
                         for at in range(3)]  # fmt: skip
    config["root"]["readonly"] = False
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.02"], "env": [f"BUNDLE={bundle.path}", "PATH=/bin"], "timeout": 20}
    config["hooks"] = {point: [hook] for point in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")}
    config["linux"]["resources"] |= {"memory": {"limit": 1 << 28}, "pids": {"limit": 50}, "cpu": {"shares": 512}}
    config["linux"]["devices"] = [{"type": "c", "path": "/dev/more", "major": 1, "minor": 5}]
    config["linux"]["sysctl"] = {"kernel.shmmni": "1000"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW",
                                  "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip


def users(bundle: Bundle, config: dict[str, Any]) -> None:
    """All of it in a user namespace, with its id maps and nodes made by the runtime."""
    rich(bundle, config)
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    kinds = {each["type"]: each for each in [*config["linux"]["namespaces"], {"type": "user"}, {"type": "cgroup"}]}
    config["linux"]["namespaces"] = list(kinds.values())
    config["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    del config["linux"]["sysctl"]
    for at in range(3):
        (bundle.rootfs / f"given/{at}").mkdir(parents=True)  # in which its root may make nothing


def bare(bundle: Bundle, config: dict[str, Any]) -> None:
    """Without a PID namespace, whose end would end the others."""
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]
    config["process"]["args"] = ["/bin/sh", "-c", "sleep 100 & sleep 100"]


KINDS: tuple[Callable[[Bundle, dict[str, Any]], None], ...] = (plain, rich, users, bare)


def killed_after(command: subprocess.Popen[str], seconds: float) -> None:
    time.sleep(seconds)
    command.kill()
    command.wait(10)


def killed_runtime(bundle: Bundle, kind: Callable[[Bundle, dict[str, Any]], None], rounds: int, seed: int) -> None:
    """Each round kills a create or run, or a delete of what was made, or both, somewhere between beginning and end."""
    chance, container = random.Random(seed), name(bundle)
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    kind(bundle, bundle.config)
    bundle.write()
    began = time.monotonic()
    with open(bundle.path / "said", "w+") as said:
        done = bundle.call("run", "--detach", container, stdout=subprocess.DEVNULL, stderr=said)
        length = time.monotonic() - began
        assert done.returncode == 0, (bundle.path / "said").read_text()
    for at in range(rounds):
        what = chance.choice(("create", "run", "both", "delete"))
        if what != "delete" or at == 0:
            bundle.call("delete", "--force", container)
            command = bundle.start(*(("create",) if what == "create" else ("run", "--detach")), container)
            killed_after(command, chance.uniform(0, length * 1.1))
        else:
            bundle.call("run", "--detach", container, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            command = None
        if what in ("both", "delete"):
            removal = bundle.start("delete", "--force", container, stdout=subprocess.DEVNULL)
            killed_after(removal, chance.uniform(0, length))
        done = bundle.call("delete", "--force", container)
        assert done.returncode == 0, (at, what, done.stderr)
        assert not (left := left_over(bundle)), (at, what, left)
        assert "state" not in bundle.call("list", "--quiet").stdout
        if command:
            command.communicate(timeout=10)  # its pipes close once init is gone


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_killed_runtime_leaves_nothing_that_delete_cannot_remove(bundle: Bundle, kind: Callable[..., None]) -> None:
    killed_runtime(bundle, kind, 4, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_runtime_killed_a_hundred_times(bundle: Bundle, kind: Callable[..., None]) -> None:
    killed_runtime(bundle, kind, 100, 2)


def test_a_killed_exec_leaves_no_process(bundle: Bundle) -> None:
    """Whoever was on the way into the container gives up."""
    chance, container = random.Random(3), name(bundle)
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    bundle.call("run", "--detach", container, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    assert bundle.call("exec", container, "/bin/true").returncode == 0
    length = time.monotonic() - began
    for _ in range(8):
        command = bundle.start("exec", container, "/bin/sleep", "0.02")
        killed_after(command, chance.uniform(0, length))
        command.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while len(left := json.loads(bundle.call("ps", "--format", "json", container).stdout)) > 1:
        assert time.monotonic() < deadline, left
    assert json.loads(bundle.call("state", container).stdout)["status"] == "running"


@pytest.mark.parametrize("damage", ["empty", "half", "nothing", "other"])
def test_a_container_whose_state_cannot_be_read_is_removed_by_force(bundle: Bundle, damage: str) -> None:
    """Nothing we write is ever half there, but somebody else may write there, too."""
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    container = name(bundle)
    bundle.call("run", "--detach", container, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = Path(bundle.root, container, "state.json")
    kept = place.read_text()
    place.write_text({"empty": "", "half": kept[: len(kept) // 2], "nothing": "null", "other": '{"id": 7}'}[damage])
    done = bundle.call("delete", container)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "bug" not in done.stderr
    assert bundle.call("delete", "--force", container).returncode == 0
    assert not (left := left_over(bundle)), left
