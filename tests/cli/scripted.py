"""`xuni` with a scripted processor in place of an engine: `python scripted.py GUEST vm run ...`.

A guest here is a Python generator that yields exits and gets the values it asked for; the board, the serial lines, the
keyboard and the exit status are the real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator

from xuni.exits import Data, EngineFailure, Exit, Halt, PortIn, PortOut, Reply, Shutdown, Sliced
from xuni.machine.machine import Engine

Script = Generator[Exit, int, None]
COM1, COM2, COM3, COM4 = 0x3F8, 0x2F8, 0x3E8, 0x2E8
POWER_OFF = PortOut(0x604, 2, 0x2000)
RESET = PortOut(0xCF9, 1, 0x06)


def say(port: int, text: bytes) -> Script:
    for byte in text:
        yield PortOut(port, 1, byte)


def listen(port: int) -> Script:
    """Switch the FIFOs and the receive interrupt on, as a driver does."""
    yield PortOut(port + 2, 1, 1)
    yield PortOut(port + 1, 1, 1)


def byte(port: int) -> Generator[Exit, int, int]:
    while not (yield PortIn(port + 5, 1)) & 1:
        yield Sliced()
    return (yield PortIn(port, 1))


def line(port: int) -> Generator[Exit, int, bytes]:
    got = b""
    while not got.endswith(b"\n"):
        got += bytes([(yield from byte(port))])
    return got


def exits(status: int) -> Script:
    yield from say(COM4, b'{"event":"exit","status":%d}\n' % status)
    yield POWER_OFF


def hello() -> Script:
    yield from say(COM1, b"booting\n")
    yield from say(COM2, b"out\n")
    yield from say(COM3, b"err\n")
    yield from exits(7)


def cat() -> Script:
    """Copies its standard input, as the init of a guest does: frame by frame."""
    yield from listen(COM2)
    while True:
        yield from say(COM4, b'{"event":"input"}\n')
        size = int((yield from line(COM2)))
        if not size:
            break
        for _ in range(size):
            yield PortOut(COM2, 1, (yield from byte(COM2)))
    yield from exits(0)


def echo() -> Script:
    """A console that echoes what it gets, until a q."""
    yield from listen(COM1)
    yield from say(COM1, b"ready\r\n")
    while (key := (yield from byte(COM1))) != ord("q"):
        yield from say(COM1, b"<%d>" % key)
    yield POWER_OFF


def panic() -> Script:
    yield from say(COM1, b"all is well\r\n\x1b[31mKernel panic\x1b[m\r\n")
    yield RESET


def triple() -> Script:
    yield Shutdown("#PF at 0x1234, then #DF")


def broken() -> Script:
    yield EngineFailure("no handler for 0f 0b")


def crash() -> Script:
    raise RuntimeError("a bug")
    yield Halt()


def forever() -> Script:
    yield from say(COM1, b"running\n")
    while True:
        yield Sliced()


def chatter() -> Script:
    while True:
        yield from say(COM1, b"x" * 99 + b"\n")


def debug_exit() -> Script:
    yield PortOut(0xF4, 4, 0x10)


class Vcpu:
    """The generator's exits, one a `run`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._began = False

    def start(self, at: object) -> None: pass

    def run(self, reply: Reply) -> Exit:
        if not self._began:
            self._began = True
            return next(self._script)
        event = self._script.send(reply.value if isinstance(reply, Data) else 0)
        if isinstance(event, Sliced):
            time.sleep(0.002)
        return event

    def now(self) -> int:
        return time.monotonic_ns()

    def set_deadline(self, nanoseconds: int) -> None: pass
    def set_interrupt(self, level: bool) -> None: pass
    def nmi(self) -> None: pass
    def init(self) -> None: pass
    def startup(self, vector: int) -> None: pass
    def kick(self) -> None: pass
    def set_now(self, nanoseconds: int) -> None: pass


if __name__ == "__main__":
    script = globals()[sys.argv.pop(1)]
    from xuni.cli import engines, launch
    from xuni.cli.main import main

    def soft(cpu: object) -> Engine:
        return lambda memory, config: Vcpu(script())  # type: ignore[return-value]

    engines.soft = soft
    launch.load = lambda *_: None  # type: ignore[assignment]
    main()
