"""The interactive console on a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from .conftest import SCRIPTED

PATIENCE = 60.0  # seconds, for a busy host


@dataclass
class Screen:
    """A terminal with `xuni` on it."""

    master: int
    slave: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""

    def expect(self, text: bytes) -> None:
        """Read until `text` shows, and forget what came before."""
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], PATIENCE)
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


@pytest.fixture
def screen(environment: Mapping[str, str], request: pytest.FixtureRequest) -> Iterator[Screen]:
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, str(SCRIPTED), *request.param], stdin=slave, stdout=slave, stderr=slave,
                               env=environment, start_new_session=True,
                               preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)))  # its controlling one
    try:
        yield Screen(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


echo = pytest.mark.parametrize("screen", [("echo", "vm", "run", "--kernel", os.devnull)], indirect=True)


@echo
def test_keys_reach_the_guest_one_by_one_and_ctrl_c_too(screen: Screen) -> None:
    screen.expect(b"ready")
    assert screen.raw
    screen.type(b"a")
    screen.expect(b"<97>")
    screen.type(b"\x03\x1a")
    screen.expect(b"<3><26>")
    screen.type(b"q")
    assert screen.process.wait(PATIENCE) == 0
    assert not screen.raw


@echo
def test_the_escape_key_helps_passes_itself_on_and_leaves(screen: Screen) -> None:
    screen.expect(b"ready")
    screen.type(b"\x01h")
    screen.expect(b"Ctrl-A x   leave")
    screen.type(b"\x01a")
    screen.expect(b"<1>")
    screen.type(b"\x01x")
    assert screen.process.wait(PATIENCE) == 0
    assert not screen.raw


@echo
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal(screen: Screen, number: signal.Signals) -> None:
    screen.expect(b"ready")
    screen.process.send_signal(number)
    assert screen.process.wait(PATIENCE) == 128 + number
    assert not screen.raw


@pytest.mark.parametrize("screen", [("crash", "vm", "run", "--kernel", os.devnull)], indirect=True)
def test_a_bug_of_ours_restores_the_terminal(screen: Screen) -> None:
    screen.expect(b"a bug in xuni")
    assert screen.process.wait(PATIENCE) == 70
    assert not screen.raw


@pytest.mark.parametrize("screen", [("cat", "vm", "run", "debian", "--", "cat")], indirect=True)
def test_a_command_gets_lines_from_a_terminal_that_stays_cooked(screen: Screen) -> None:
    screen.type(b"one\n\x04")
    screen.expect(b"one\r\n")  # the terminal's echo
    screen.expect(b"one\r\n")  # the guest's
    assert screen.process.wait(PATIENCE) == 0
