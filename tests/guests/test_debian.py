"""Debian's kernel, as it is, on xuni's engine: what a user of `xuni vm run debian` sees. Needs the host's apt."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from xuni.guest import catalogue

XUNI = (sys.executable, "-m", "xuni")
RUN = (*XUNI, "vm", "run", "debian", "--timeout", "240")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def debian() -> catalogue.Guest:
    """On this disk, so that no test's time is spent on fetching."""
    return catalogue.ensure("debian")


def run(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    if stdin is None:
        return subprocess.run([*RUN, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return subprocess.run([*RUN, *arguments], input=stdin, capture_output=True, check=False)


def test_a_command_in_debian(debian: catalogue.Guest) -> None:
    done = run("--", "sh", "-c", "uname -r; echo problem >&2; exit 7")
    release = next(name for name in debian.packages if name.startswith("linux-image-")).removeprefix("linux-image-")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (7, release + "\n", b"problem\n")


def test_bytes_survive_the_way_in_and_out() -> None:
    data = bytes(range(256)) * 40
    word = bytes(byte for byte in range(1, 256)).decode("utf-8", "surrogateescape")
    done = run("--", "sh", "-c", 'printf %s "$1"; cat', "sh", word, stdin=data)
    assert (done.returncode, done.stdout) == (0, bytes(range(1, 256)) + data)


def test_without_a_terminal_the_shell_reads_standard_input() -> None:
    done = run(stdin=b"echo $((6 * 7))\nexit 3\n")
    assert (done.returncode, done.stdout) == (3, b"42\n")
    assert b"Linux version" in done.stderr


def test_a_missing_program_is_127() -> None:
    done = run("--", "nosuchprogram")
    assert done.returncode == 127 and b"nosuchprogram" in done.stderr


def test_four_processors_work_together() -> None:
    """Online, interrupting each other, taken offline and started again; and no count of theirs is lost."""
    script = """
        for i in 1 2 3; do echo 0 > /sys/devices/system/cpu/cpu2/online; echo 1 > /sys/devices/system/cpu/cpu2/online; done
        work() { n=0; while [ $n -lt 15 ]; do n=$((n+1)); echo $n | tr 0-9 a-j | md5sum >/dev/null || exit 1; done; echo done; }
        work & work & work & work & wait
        nproc; cat /sys/devices/system/cpu/online /sys/devices/system/clocksource/clocksource0/current_clocksource
        dmesg | grep -c -i -E 'bug:|lockup|stall|call trace|unstable'
    """
    done = run("--cpus", "4", "--", "sh", "-c", script)
    assert done.stdout.split() == [b"done"] * 4 + [b"4", b"0-3", b"tsc", b"0"], done.stderr


def test_a_panic_shows_the_last_messages() -> None:
    done = run("--", "sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    assert done.returncode == 121
    assert b"Kernel panic" in done.stderr and b"the guest reset the machine" in done.stderr


@pytest.fixture
def terminal() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    master, slave = pty.openpty()
    process = subprocess.Popen(RUN, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)))  # its controlling one
    os.close(slave)
    try:
        yield master, process
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_shell_on_the_terminal(terminal: tuple[int, subprocess.Popen[bytes]]) -> None:
    master, process = terminal
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            ready, _, _ = select.select([master], [], [], 240)
            assert ready, f"waited for {text!r}, saw {seen[-2000:]!r}"
            seen += os.read(master, 4096)
        seen = seen.partition(text)[2]

    expect(b"Linux version")
    expect(b"# ")
    os.write(master, b"echo run''ning; sleep 1000\r")
    expect(b"running\r\n")  # the shell has given the terminal back: Ctrl-C is a signal now
    os.write(master, b"\x03")
    expect(b"# ")
    os.write(master, b"echo $((6 * 7)); tty\r")
    expect(b"42\r\n/dev/ttyS0\r\n")
    os.write(master, b"exit 5\r")
    assert process.wait(240) == 5
