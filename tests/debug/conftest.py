"""Machines under control with small guests, and clients of both protocols that say what they expect."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest

from tests.engines.assembler import Code, assemble
from tests.engines.either import needs_kvm
from xuni.boot import BootConfig, Format, load
from xuni.debug.address import Address, Kind
from xuni.debug.endpoint import Endpoint
from xuni.debug.gdb import GdbSession
from xuni.debug.qmp import QmpSession
from xuni.debug.qmp_commands import Facts
from xuni.debug.registers import describe
from xuni.engine.kvm.engine import KvmEngine
from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu
from xuni.isa.x86.features import choose
from xuni.machine.control import Controller, Event
from xuni.machine.machine import CpuConfig
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import Stopped
from xuni.memory.guest import GuestMemory

PATIENCE = 30
COUNTER, FLAG = 0x9000, 0x9008

LOOP = """
.code64
start:
  mov eax, 5
again:
  inc rax
  mov [0x9000], rax
stored:
  mov rbx, [0x9008]
  call function
returned:
  jmp again
function:
  push rbp
  mov rbp, rsp
  nop
  pop rbp
  ret
"""
"""Counts in memory, and calls."""

SECOND = """
.code64
start:
  mov rdi, 0xfee00000
  mov dword ptr [rdi + 0xf0], 0x1ff
  mov dword ptr [rdi + 0x300], 0xc4500
  mov dword ptr [rdi + 0x300], 0xc4609
spin:
  inc qword ptr [0xa000]
  jmp spin
"""
"""Starts the second processor at 9000h, where a test puts real-mode code."""
SECOND_CODE = bytes.fromhex("ff 06 08 a0 eb fa")  # l: inc word [a008]; jmp l

HALT = """
.code64
start:
  cli
  hlt
"""

TRIPLE = """
.code64
start:
  lidt [empty]
  ud2
empty: .quad 0, 0
"""


@pytest.fixture(scope="session")
def guests() -> dict[str, Code]:
    """The guests by name."""
    texts = {"loop": LOOP, "second": SECOND, "halt": HALT, "triple": TRIPLE}
    return dict(zip(texts, assemble(list(texts.values())), strict=True))


@dataclass
class Rig:
    """A machine in its thread."""

    machine: Pc
    control: Controller
    code: Code
    events: list[Event] = field(default_factory=list)
    result: Stopped | BaseException | None = None
    thread: Thread = field(default_factory=Thread)

    def run(self) -> None:
        try:
            self.result = self.control.run(PATIENCE)
        except BaseException as error:
            self.result = error

    def end(self) -> Stopped | BaseException | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.result

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end and self.thread.is_alive(), "it did not happen"
            time.sleep(0.001)

    @property
    def names(self) -> list[str]:
        return [event.name.value for event in self.events]


MakeRig = Callable[..., Rig]


@pytest.fixture
def engine() -> str:
    """Who executes the guests. A test or a file that shall have both says so (`ON_BOTH`)."""
    return "soft"


# Watchpoints are not among it: KVM's emulator, which executes ring 0 where KVM has no hardware virtualization to use, looks
# at the breakpoints for code alone.
ON_BOTH = pytest.mark.parametrize("engine", ["soft", pytest.param("kvm", marks=needs_kvm)])


@pytest.fixture
def rig(guests: dict[str, Code], engine: str) -> Iterator[MakeRig]:
    """Make a machine with a guest; it waits for its start, and is gone after the test."""
    made: list[Rig] = []
    memories: list[GuestMemory] = []

    def make(guest: str = "loop", cpus: int = 1, *, paused: bool = True, long_mode: bool = True, code: bytes = b"",
             format: Format = Format.LONG) -> Rig:
        memory = GuestMemory(4 << 20)
        memories.append(memory)
        features = choose() if long_mode else choose(minus={"lm"})

        def soft(memory: GuestMemory, config: CpuConfig) -> SoftVcpu:
            return SoftVcpu(memory, SoftConfig(features, config.index, config.count))

        machine = Pc(memory, soft if engine == "soft" else KvmEngine(features), PcConfig(cpus=cpus))

        def reload() -> None:
            machine.vcpus[0].start(load(memory, BootConfig(code or guests[guest].data, format=format)))
            memory.write(0x9000, SECOND_CODE if guest == "second" else bytes(6))

        reload()
        machine.reload = reload
        new = Rig(machine, Controller(machine, paused=paused), guests[guest])
        new.control.listeners.append(new.events.append)
        new.thread = Thread(target=new.run, daemon=True)
        new.thread.start()
        made.append(new)
        return new

    yield make
    for one in made:
        one.control.quit()
        one.thread.join(PATIENCE)
        assert not one.thread.is_alive()  # its memory must not go
        for vcpu in one.machine.vcpus:
            vcpu.close()  # type: ignore[attr-defined]
    for memory in memories:
        memory.close()


class GdbClient:
    """Speaks gdb's protocol over a socket, byte by byte as the test says."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def packet(self, data: bytes) -> None:
        self.send(b"$%b#%02x" % (data, sum(data) & 0xFF))

    def receive(self) -> bytes:
        """The next packet's data; acknowledgements before it are dropped."""
        while not (match := re.match(rb"[+]*\$([^#]*)#(..)", self.buffer, re.DOTALL)):
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        assert int(match[2], 16) == sum(match[1]) & 0xFF
        self.buffer = self.buffer[match.end() :]
        return match[1]

    def ask(self, data: bytes) -> bytes:
        self.packet(data)
        return self.receive()

    def closed(self) -> bool:
        """Whether the other side hung up, whatever it said before."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True


class QmpClient:
    """Speaks QMP over a socket."""

    def __init__(self, connection: socket.socket, negotiate: bool = True) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE)
        self.file = connection.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self.greeting = self.receive()
        if negotiate:
            assert self.ask("qmp_capabilities") == {"return": {}}

    def receive(self) -> dict[str, Any]:
        line = self.file.readline()
        if not line:
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def raw(self, data: bytes) -> dict[str, Any]:
        """Send bytes; the answer, events put aside."""
        self.socket.sendall(data)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        while "event" in (message := self.receive()):
            self.events.append(message)
        return message

    def ask(self, command: str, /, **arguments: object) -> dict[str, Any]:
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.raw(json.dumps(request).encode())

    def say(self, command: str, /, **arguments: object) -> Any:
        """A command that succeeds."""
        answer = self.ask(command, **arguments)
        assert "return" in answer, answer
        return answer["return"]


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """Serve a rig over a loopback port, and connect to it: `connect(rig)` for gdb, `connect(rig, facts)` for QMP."""
    with ExitStack() as stack:

        def serve(rig: Rig, facts: Facts | None = None, long_mode: bool = True) -> Endpoint:
            if facts is None:
                make = lambda link: GdbSession(link, rig.control, describe(long_mode))  # noqa: E731
            else:
                make = lambda link: QmpSession(link, rig.control, facts)  # noqa: E731
            endpoint = Endpoint(Address(Kind.TCP), make, "test")
            endpoint.open()
            stack.callback(endpoint.close)
            return endpoint

        def connect(rig: Rig, facts: Facts | None = None, **options: Any) -> Any:
            connection = socket.create_connection(("127.0.0.1", serve(rig, facts, **options).port))
            stack.callback(connection.close)
            return GdbClient(connection) if facts is None else QmpClient(connection)

        connect.serve = serve  # type: ignore[attr-defined]
        yield connect
