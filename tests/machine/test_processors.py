"""A machine of several processors on either engine: INIT and start-up IPIs, interrupts between them, and their end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.assembler import BASE, assemble
from tests.engines.board import limit
from tests.engines.either import ENGINES, Engine
from xuni.devices.test_ports import DebugExitConfig
from xuni.isa.x86.cpustate import long_flat, real_mode
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import DebugExit, Timeout
from xuni.memory.guest import GuestMemory

CPUS = 3
STARTED, WOKEN, NUMBER, COUNT = 0x500, 0x504, 0x508, 0x50C
TRAMPOLINE, VECTOR = 0x9000, 0x40
TURNS = 2000
FIRST = f"""
  mov ebx, 0x200000
  mov dword ptr [rbx + 0x300], 0xC4500
  mov dword ptr [rbx + 0x300], 0xC4609
1: pause
  cmp dword ptr [{STARTED}], {CPUS - 1}
  jne 1b
  mov dword ptr [rbx + 0x300], 0xC4000 + {VECTOR}
2: pause
  cmp dword ptr [{WOKEN}], {CPUS - 1}
  jne 2b
  mov ecx, {TURNS}
3: lock inc dword ptr [{COUNT}]
  loop 3b
4: pause
  cmp dword ptr [{COUNT}], {CPUS * TURNS}
  jne 4b
  mov al, 3
  out 0xf4, al
5: jmp 5b
"""
OTHERS = f"""
  xor ax, ax
  mov ds, ax
  mov ss, ax
  mov ax, 1
  lock xadd [{NUMBER}], ax
  inc ax
  shl ax, 8
  add ax, 0x6000
  mov sp, ax
  mov ecx, 0x1b
  rdmsr
  or eax, 0xc00
  wrmsr
  mov ecx, 0x80f
  mov eax, 0x1ff
  xor edx, edx
  wrmsr
  lock inc dword ptr [{STARTED}]
  sti
1: hlt
  jmp 1b
.p2align 6
handler:
  lock inc dword ptr [{WOKEN}]
  mov cx, {TURNS}
2: lock inc dword ptr [{COUNT}]
  loop 2b
  iret
"""


@pytest.fixture(params=ENGINES)
def machine(request: pytest.FixtureRequest) -> Iterator[Pc]:
    engine: Engine = request.param
    first, others = (assemble([f".code{bits}\n{text}"])[0] for bits, text in ((64, FIRST), (16, OTHERS)))
    with GuestMemory(1 << 20) as memory:
        for at, entry in ((0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x83), (0x12008, 0xFEE0_0000 | 0x83)):
            memory.write_u64(at, entry)
        memory.write(BASE, first.data)
        memory.write(TRAMPOLINE, others.data)
        memory.write_u32(4 * VECTOR, (TRAMPOLINE >> 4) << 16 | others.labels["handler"] - BASE)
        pc = Pc(memory, engine, PcConfig(cpus=CPUS, debug_exit=DebugExitConfig()))
        pc.legacy_firmware_state()
        with pc.bus.lock:
            pc.pic.initialize(0x08, 0x70, masks=(0xFF, 0xFF))
        pc.vcpus[0].start(long_flat(BASE, 0x10000, gdtr=real_mode(0, 0).gdtr, rsp=0x7000))
        yield pc


def test_they_start_wake_and_count_together(machine: Pc) -> None:
    with limit():
        assert machine.run(40) == DebugExit(3)
    memory = machine.memory
    assert [memory.read_u32(at) for at in (STARTED, WOKEN, COUNT)] == [CPUS - 1, CPUS - 1, CPUS * TURNS]


def test_a_machine_that_stops_in_between_goes_on(machine: Pc) -> None:
    with limit():
        stopped = machine.run(0.001)
        while isinstance(stopped, Timeout):
            stopped = machine.run(0.05)
        assert stopped == DebugExit(3)
    assert machine.memory.read_u32(COUNT) == CPUS * TURNS
