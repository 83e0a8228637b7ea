"""--gdb, --qmp and --paused: what is refused, and that the servers are there and gone again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTED = Path(__file__).with_name("scripted.py")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.touch()
    return path


def start(guest: str, kernel: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTED), guest, "vm", "run", "--kernel", str(kernel), *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def run(*arguments: str, kernel: Path) -> tuple[int, str, str]:
    with start("hello", kernel, *arguments) as process:
        out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


@pytest.mark.parametrize(("arguments", "says"), [
    (("--gdb", "1234"), "--gdb 1234: write tcp:HOST:PORT, unix:PATH or stdio; HOST may be left out"),
    (("--gdb", ":70000"), "--gdb :70000: a port is at most 65535"),
    (("--qmp", "here"), "--qmp here: write tcp:HOST:PORT, unix:PATH or stdio"),
    (("--qmp", "unix:a,wait=perhaps"), "wait=perhaps is not known here"),
    (("--qmp", "stdio"), "standard input and output can serve one"),
    (("--qmp", "stdio", "--gdb", "stdio", "--serial", "null"), "standard input and output can serve one"),
    (("--paused",), "needs --gdb or --qmp: nobody could start it"),
    (("--gdb", "unix:/no/such/directory/socket"), "gdb stub at unix:/no/such/directory/socket: No such file or directory"),
    (("--qmp", "unix:/no/such/socket"), "QMP at unix:/no/such/socket: No such file or directory"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_2(kernel, arguments, says):
    status, out, errors = run(*arguments, kernel=kernel)
    assert (status, out) == (2, "")
    assert says in errors and errors.count("\n") == 1


def test_a_port_that_is_taken(kernel):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, errors = run("--gdb", f":{taken.getsockname()[1]}", kernel=kernel)
    assert status == 2 and "in use" in errors and "name another address" in errors


def test_a_monitor_starts_and_ends_the_machine_and_its_socket_goes(kernel, tmp_path):
    path = tmp_path / "qmp"
    with start("forever", kernel, "--qmp", f"unix:{path},server=on,wait=off", "--paused") as process:
        try:
            end = time.monotonic() + 60
            while not path.exists():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.01)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(path))
                requests = ("qmp_capabilities", "query-status", "cont", "query-kvm", "quit")
                connection.sendall(b"".join(json.dumps({"execute": name}).encode() for name in requests))
                with connection.makefile() as file:
                    lines = [json.loads(line) for line in file]
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    assert [line.get("event") for line in lines if "event" in line] == ["RESUME", "SHUTDOWN"]
    returned = [line["return"] for line in lines if "return" in line]
    assert returned[1]["status"] == "prelaunch" and len(returned) == 5
    assert not path.exists()


def test_a_machine_may_wait_for_its_first_client(kernel, tmp_path):
    path = tmp_path / "qmp"
    with start("hello", kernel, "--qmp", f"unix:{path},server=on,wait=on", "--serial", "null") as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"xuni: waiting for a client at unix:{path}\n"
            time.sleep(0.2)
            assert process.poll() is None
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.settimeout(60)
                assert b"QMP" in connection.recv(1000)
                process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 7


def test_a_signal_ends_a_machine_that_is_paused(kernel, tmp_path):
    with start("forever", kernel, "--gdb", f"unix:{tmp_path / 'gdb'}", "-S") as process:
        try:
            end = time.monotonic() + 60
            while not (tmp_path / "gdb").exists():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.01)
            time.sleep(0.3)  # for its signal handlers
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "gdb").exists()
