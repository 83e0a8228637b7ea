"""A virtual CPU that follows a script, and machines around it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Condition

import pytest

from xuni.exits import DebugControl, Exit, Reply, Sliced
from xuni.isa.x86.cpustate import CpuState
from xuni.machine.machine import CpuConfig
from xuni.machine.pc import Pc, PcConfig
from xuni.memory.guest import GuestMemory

Script = Generator[Exit, Reply, None]


class ScriptedCpu:
    """Plays a generator: what it yields are exits, what it receives are the replies. The clock moves when told to."""

    def __init__(self, script: Callable[[ScriptedCpu], Script]) -> None:
        self.clock = 0
        self.pin = False
        self.deadline = 0
        self.log: list[object] = []
        self.kicked = False
        self.started: int | None = None
        self._script = script(self)
        self._begun = False
        self._held: list[Reply] = []

    def run(self, reply: Reply) -> Exit:
        reply = self._held.pop() if self._held else reply
        if self.kicked:
            self.kicked = False
            self._held.append(reply)  # an engine would complete the instruction before it notices
            return Sliced()
        if not self._begun:
            self._begun = True
            return next(self._script)
        return self._script.send(reply)

    def set_deadline(self, nanoseconds: int) -> None:
        self.deadline = nanoseconds

    def set_interrupt(self, level: bool) -> None:
        self.pin = level

    def nmi(self) -> None:
        self.log.append("nmi")

    def init(self) -> None:
        self.log.append("init")

    def start(self, at: CpuState) -> None:
        self.log.append(at)

    def startup(self, vector: int) -> None:
        self.log.append(("startup", vector))
        self.started = vector

    def kick(self) -> None:
        self.kicked = True

    def now(self) -> int:
        return self.clock

    def set_now(self, nanoseconds: int) -> None:
        self.log.append(("clock", nanoseconds))

    def debug(self, control: DebugControl) -> None:
        if len(control.watchpoints) > 4:
            raise ValueError("four watchpoints")
        self.log.append(control)


MakePc = Callable[..., Pc]


@pytest.fixture
def pc() -> Generator[MakePc, None, None]:
    """Make a PC whose processors follow scripts; a halted one advances the clock instead of sleeping."""
    memories = []

    def make(*scripts: Callable[[ScriptedCpu], Script], config: PcConfig | None = None, **options: object) -> Pc:
        memory = GuestMemory(1 << 20)
        memories.append(memory)

        def engine(memory: GuestMemory, config: CpuConfig) -> ScriptedCpu:
            return ScriptedCpu(scripts[config.index])

        machine = Pc(memory, engine, config or PcConfig(cpus=len(scripts)), **options)  # type: ignore[arg-type]
        first = machine.vcpus[0]
        assert isinstance(first, ScriptedCpu)

        def jump(condition: Condition, seconds: float | None) -> None:
            if seconds is None:
                condition.wait(5)
            else:
                first.clock = machine.bus.timers.deadline

        machine.wait_for = jump
        return machine

    yield make
    for memory in memories:
        memory.close()
