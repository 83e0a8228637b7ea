"""`xuni vm run` from outside: streams, exit statuses, signals. The processor is scripted, see scripted.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from .conftest import SCRIPTED, Xuni

KERNEL = ("vm", "run", "--kernel", os.devnull)


def test_a_commands_output_and_status_are_ours(scripted: Xuni) -> None:
    done = scripted("hello", "vm", "run", "debian", "--", "true", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_the_guests_name_may_be_left_out(scripted: Xuni) -> None:
    assert scripted("hello", "vm", "run", "--", "true").returncode == 7


def test_verbose_shows_the_boot_messages_on_stderr(scripted: Xuni) -> None:
    done = scripted("hello", "vm", "run", "debian", "-v", "--", "true")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert re.fullmatch(rb"xuni: engine (soft|kvm): .+\nbooting\nerr\n", done.stderr)


def test_the_console_can_go_to_a_file(scripted: Xuni, tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    done = scripted("hello", "vm", "run", "--serial", f"file:{log}", "--", "true")
    assert (done.returncode, done.stderr, log.read_bytes()) == (7, b"err\n", b"booting\n")


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 10_000])
def test_a_command_gets_standard_input_and_its_end(scripted: Xuni, size: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    done = scripted("cat", "vm", "run", "debian", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_without_a_terminal_the_shell_gets_standard_input(scripted: Xuni) -> None:
    done = scripted("cat", "vm", "run", "debian", stdin=b"uname -a\n")
    assert (done.returncode, done.stdout) == (0, b"uname -a\n")


def test_a_kernel_of_ones_own_has_the_console_on_standard_output(scripted: Xuni) -> None:
    done = scripted("echo", *KERNEL, stdin=b"aq")
    assert (done.returncode, done.stdout) == (0, b"ready\r\n<97>")


def test_the_serial_line_can_end_nowhere(scripted: Xuni) -> None:
    done = scripted("hello", *KERNEL, "--serial", "null")
    assert done.stdout == b"out\n"  # the second line is not the console


@pytest.mark.parametrize(("guest", "status", "message"), [
    ("triple", 125, "triple fault: #PF at 0x1234, then #DF"),
    ("broken", 122, "the engine failed: no handler for 0f 0b"),
    ("debug_exit", 0x21, ""),
    ("panic", 0, ""),
])
def test_how_the_guest_ended(scripted: Xuni, guest: str, status: int, message: str) -> None:
    done = scripted(guest, *KERNEL, stdin=None)
    assert done.returncode == status
    assert done.stderr.decode() == (f"xuni: {message}\n" if message else "")


def test_a_guest_that_dies_before_its_command_ends_shows_its_last_words(scripted: Xuni) -> None:
    done = scripted("panic", "vm", "run", "--", "true", stdin=None)
    assert done.returncode == 121
    assert done.stderr.decode().splitlines() == [
        "guest: all is well", "guest: [31mKernel panic[m", "xuni: the guest reset the machine",
    ]


def test_the_time_limit(scripted: Xuni) -> None:
    done = scripted("forever", *KERNEL, "--timeout", "0.2", stdin=None)
    assert (done.returncode, done.stdout) == (124, b"running\n")
    assert done.stderr == b"xuni: the guest was still running after 0.2 s\n"


def test_events_go_to_standard_error(scripted: Xuni) -> None:
    done = scripted("debug_exit", *KERNEL, "--trace", "vcpu_*", stdin=None)
    lines = done.stderr.decode().splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["vcpu_exit cpu=0 exit=PortOut(port=244, size=4, data=16)"]


def test_a_bug_of_ours_is_said_in_one_line(scripted: Xuni) -> None:
    done = scripted("crash", *KERNEL, stdin=None)
    assert done.returncode == 70
    assert b"a bug in xuni: RuntimeError: a bug" in done.stderr and b"Traceback" not in done.stderr


def start(environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(SCRIPTED), *arguments], env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupting_twice_ends_it(environment: Mapping[str, str]) -> None:
    with start(environment, "forever", *KERNEL) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"\n"
        assert process.stderr.readline() == b"xuni: press Ctrl-C again to end the guest\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_at_once(environment: Mapping[str, str], number: signal.Signals) -> None:
    with start(environment, "forever", *KERNEL) as process:
        assert process.stdout and process.stdout.readline() == b"running\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_a_reader_that_goes_away_ends_it(environment: Mapping[str, str]) -> None:
    with start(environment, "chatter", *KERNEL) as process:
        assert process.stdout and process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(("arguments", "message"), [
    (["--kernel", "k", "debian"], "a guest's name and --kernel exclude each other"),
    (["--kernel", "k", "--multiboot", "m"], "--kernel and --multiboot exclude each other"),
    (["--kernel", "k", "--", "ls"], "only guests whose init is xuni's take a command"),
    (["debian", "--initrd", "i"], "a named guest has its own initrd"),
    (["debian", "ls"], "unexpected extra argument"),
    (["debian", "--"], "there is no command after --"),
    (["nosuch"], "there is no guest named 'nosuch'; there are debian"),
    (["--memory", "lots"], "'lots' is not a size; write 512M or 2G"),
    (["--memory", "0"], "a guest needs some memory"),
    (["--serial", "tcp:1"], "write stdio, file:PATH or null"),
    (["--serial", "file:/nonexistent/x", "--", "true"], "serial line to /nonexistent/x: No such file or directory"),
    (["--timeout", "-1"], "not a positive number of seconds"),
    (["--cpus", "0"], "0 is not in the range"),
    (["--trace", "nosuch", "--", "true"], "--trace: no probe matches 'nosuch'; there are kvm_differs, kvm_fallback"),
    (["--memory", "900000T", "--", "true"], "943718400000 MiB of guest memory cannot be had"),
])
def test_bad_input_is_refused_with_its_name(scripted: Xuni, arguments: list[str], message: str) -> None:
    done = scripted("hello", "vm", "run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr and not done.stdout
