"""Hooks that hang, flood, fail strangely, or leave something behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.container.bundle import Bundle, left_over, name, needs_root, processes

pytestmark = needs_root

OUTSIDE = ("prestart", "createRuntime", "createContainer", "poststart")  # run by files of the host


def hook(bundle: Bundle, point: str, script: str, **more: Any) -> Callable[[dict[str, Any]], None]:
    shell = "/bin/sh" if point != "startContainer" else "/bin/busybox"
    given = {"path": shell, "args": ["sh", "-c", script], "env": [f"BUNDLE={bundle.path}", "PATH=/bin:/usr/bin"], **more}
    return lambda config: config.update(hooks={point: [given]})


@pytest.mark.parametrize("point", [*OUTSIDE, "startContainer"])
def test_a_hook_that_hangs_is_ended_with_all_it_started(bundle: Bundle, point: str) -> None:
    done = bundle.run("/bin/sleep", "60", change=hook(bundle, point, "sleep 60 & sleep 60; true", timeout=1))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{point} hook #0" in done.stderr and "timeout of 1 s" in done.stderr, done.stderr
    assert not left_over(bundle)


@pytest.mark.parametrize(("point", "groups"), [("createRuntime", True), ("createContainer", True), ("startContainer", True),
                                               ("createContainer", False)])  # fmt: skip
def test_a_hook_that_hangs_without_a_timeout_can_be_ended(bundle: Bundle, point: str, groups: bool) -> None:
    """`delete --force` from elsewhere, or SIGKILL to the runtime: the hook goes too, even where no control group has it."""
    if not groups:
        bundle.options = ("--cgroup-manager", "disabled")
        bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["type"] != "cgroup"]
    bundle.config["process"]["args"] = ["/bin/true"]
    hook(bundle, point, "exec sleep 60")(bundle.config)
    bundle.write()
    for by_force in (True, False):
        command = bundle.start("run", name(bundle))
        deadline = time.monotonic() + 20
        while not any(said.startswith("sleep 60") for _, said in processes(str(bundle.path))):
            assert time.monotonic() < deadline and command.poll() is None, command.communicate()
            time.sleep(0.01)
        if not by_force:
            command.send_signal(signal.SIGKILL)
        done = bundle.call("delete", "--force", name(bundle))
        assert done.returncode == 0, done.stderr
        command.communicate(timeout=20)
        assert not (left := left_over(bundle)), left


@pytest.mark.parametrize("limited", [False, True], ids=["ends", "never ends"])
def test_a_hook_that_floods(bundle: Bundle, limited: bool) -> None:
    """Its output is taken and dropped but for the beginning; talking does not keep it from its timeout."""
    script = "while :; do echo flood; done" if limited else "yes flood | head -c 3000000; exit 4"
    done = bundle.run("/bin/true", change=hook(bundle, "createRuntime", script, timeout=1 if limited else 20))
    assert done.returncode == 1 and "createRuntime hook #0" in done.stderr
    assert ("timeout of 1 s" in done.stderr) is limited and ("exit code 4" in done.stderr) is not limited
    assert len(done.stderr) < 5000 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("point", ["createRuntime", "createContainer", "startContainer"])
def test_what_a_hook_says_is_shown_and_does_nothing_to_a_terminal(bundle: Bundle, point: str) -> None:
    script = r"printf 'one\000two\033[31m\nthree\377'; exit 9"
    done = bundle.run("/bin/true", change=hook(bundle, point, script))
    assert done.returncode == 1 and "failed with exit code 9" in done.stderr, done.stderr
    assert r"one\0two\x1b[31m\nthree\xff" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("given", "said"), [
    ({"path": "/no/such"}, "No such file or directory"),
    ({"path": "/"}, "Permission denied"),
    ({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}, "killed by signal 9"),
    ({"path": "/bin/sh", "args": ["sh", "-c", "exec <&- >&- 2>&-; exit 3"]}, "exit code 3"),
    ({"path": "/bin/sh", "args": [""], "env": ["=x", "y", "A=" + "x" * 140000]}, "Argument list too long"),
    ({"path": "/bin/false", "timeout": 1 << 62}, "exit code 1"),
])  # fmt: skip
def test_a_hook_that_fails_says_why(bundle: Bundle, given: dict[str, Any], said: str) -> None:
    done = bundle.run("/bin/true", change=lambda config: config.update(hooks={"createRuntime": [given]}))
    assert done.returncode == 1 and "createRuntime hook #0" in done.stderr and said in done.stderr, done.stderr


def test_a_hook_that_reads_nothing_and_one_that_leaves_a_daemon(bundle: Bundle) -> None:
    """A daemon that a hook leaves on purpose stays: it is the host's own. It does not hold up the container."""
    bundle.config["annotations"] = {"much": "x" * 300000}
    script = "exec <&-; setsid sleep 20 & exit 0"
    done = bundle.run("/bin/echo", "began", change=hook(bundle, "createRuntime", script))
    assert (done.returncode, done.stdout) == (0, "began\n"), done.stderr
    left = [pid for pid, said in processes(str(bundle.path)) if said.startswith("sleep 20")]
    assert len(left) == 1
    os.kill(left[0], signal.SIGKILL)
