"""NOTIFY_SOCKET: what the container says of its readiness arrives, and what is not for it to say does not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.bundle import Bundle, name, needs_root

pytestmark = needs_root


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "manager.sock"))
        listener.settimeout(20)
        yield listener


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager.sock")}


def say(bundle: Bundle, message: bytes) -> None:
    """As the process in the container does: its directory is this one."""
    deadline = time.monotonic() + 20
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                directory = os.open(bundle.root / name(bundle) / "notify", os.O_PATH)
                try:
                    speaker.sendto(message, f"/proc/self/fd/{directory}/notify")  # paths of sockets are short
                finally:
                    os.close(directory)
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_process_sees_a_socket_of_ours(bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "echo $NOTIFY_SOCKET; ls -l $NOTIFY_SOCKET; touch ${NOTIFY_SOCKET%/*}/x"]
    bundle.write()
    done = bundle.call("run", name(bundle), env=environment(tmp_path))
    said = done.stdout.splitlines()
    assert said[0] == f"{tmp_path}/manager.sock/notify" and said[1].startswith("srwxrwxrwx")
    assert "Read-only file system" in done.stderr
    assert not (bundle.root / name(bundle)).exists()


def test_run_passes_on_what_is_about_the_service(bundle: Bundle, manager: socket.socket, tmp_path: Path) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    running = bundle.start("run", name(bundle), env=environment(tmp_path))
    say(bundle, b"MAINPID=1\nREADY=1\nFDSTORE=1\nSTATUS=well")
    assert manager.recv(4096) == b"READY=1\nSTATUS=well"
    say(bundle, b"FDSTORE=1")
    say(bundle, b"STOPPING=1")
    assert manager.recv(4096) == b"STOPPING=1"
    bundle.call("kill", name(bundle), "KILL")
    assert running.wait(20) == 137
    running.communicate()


@pytest.mark.parametrize("command", ["run", "create"])
def test_a_runtime_that_does_not_stay_waits_for_readiness(bundle: Bundle, manager: socket.socket, tmp_path: Path,
                                                          command: str) -> None:  # fmt: skip
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.write()
    if command == "create":
        made = bundle.start("create", name(bundle), env=environment(tmp_path))
        assert made.wait(20) == 0
        waiting = bundle.start("start", name(bundle), env=environment(tmp_path))
    else:
        made = waiting = bundle.start("run", "--detach", name(bundle), env=environment(tmp_path))
    say(bundle, b"STATUS=nearly")
    assert manager.recv(4096) == b"STATUS=nearly"
    assert waiting.poll() is None
    say(bundle, b"READY=1")
    pid = json.loads(bundle.call("state", name(bundle)).stdout)["pid"]
    assert manager.recv(4096) == b"READY=1\nMAINPID=%d" % pid
    message, descriptors, _, _ = socket.recv_fds(manager, 4096, 1)
    assert message == b"BARRIER=1" and len(descriptors) == 1
    assert waiting.poll() is None
    os.close(descriptors[0])
    assert waiting.wait(20) == 0
    bundle.call("delete", "--force", name(bundle))
    for each in {made, waiting}:
        each.communicate(timeout=20)


def test_who_ends_without_a_word_is_not_waited_for(bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["args"] = ["/bin/true"]
    bundle.write()
    running = bundle.start("run", "--detach", name(bundle), env=environment(tmp_path))
    assert running.wait(20) == 0
    bundle.call("delete", "--force", name(bundle))
    running.communicate(timeout=20)
