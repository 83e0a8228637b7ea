"""A guest stopped in the middle of a computation under one engine finishes it under the other, its devices with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.assembler import BASE, assemble
from tests.engines.board import limit
from tests.engines.either import Engine, kvm, needs_kvm, soft
from xuni.devices.test_ports import DebugExitConfig
from xuni.isa.x86.cpustate import long_flat, real_mode
from xuni.machine.handover import hand_over
from xuni.machine.machine import CpuConfig
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import DebugExit, Paused, Timeout
from xuni.memory.guest import GuestMemory

STEPS = 200_000
# A sum over STEPS steps in real mode, while the timer interrupts; both counts are in memory, and every tick is printed.
GUEST = f"""
  mov sp, 0x7000
  mov eax, 1
  mov ecx, {STEPS}
  fld1
  sti
1: imul eax, eax, 1664525
  add eax, 1013904223
  dec ecx
  jnz 1b
  cli
  mov [0x600], eax
  fistp dword ptr [0x604]
  mov al, 0x21
  out 0xf4, al
  hlt
"""
HANDLER = """
  push ax
  push dx
  inc word ptr [0x500]
  mov dx, 0x3f8
  mov al, 0x2e
  out dx, al
  mov al, 0x20
  out 0x20, al
  pop dx
  pop ax
  iret
"""
WAIT = """
  mov sp, 0x7000
  sti
1: hlt
  cmp word ptr [0x500], 30
  jb 1b
  mov al, 5
  out 0xf4, al
"""
HANDLER_AT = 0x1000


def expected() -> int:
    value = 1
    for _ in range(STEPS):
        value = value * 1664525 + 1013904223 & 0xFFFF_FFFF
    return value


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as made:
        yield made


def machine(memory: GuestMemory, engine: Engine, printed: list[bytes]) -> Pc:
    guest, handler = (code.data for code in assemble([f".code16\n{GUEST}", f".code16\n{HANDLER}"]))
    memory.write(BASE, guest)
    memory.write(HANDLER_AT, handler)
    memory.write(4 * 8, HANDLER_AT.to_bytes(4, "little"))
    pc = Pc(memory, engine, PcConfig(debug_exit=DebugExitConfig()), (printed.append,))
    pc.legacy_firmware_state()
    with pc.bus.lock:
        pc.pit.write(3, 0x34)  # counter 0, rate generator: a thousand times a second
        pc.pit.write(0, 1193 & 0xFF)
        pc.pit.write(0, 1193 >> 8)
    pc.vcpus[0].start(real_mode(0, BASE))
    return pc


@needs_kvm
@pytest.mark.parametrize(
    "engines", [(kvm, soft), (soft, kvm), (kvm, soft, kvm, soft)], ids=["to-soft", "to-kvm", "there-and-back"]
)
def test_a_computation_goes_on(memory: GuestMemory, engines: tuple[Engine, ...]) -> None:
    printed: list[bytes] = []
    pc = machine(memory, engines[0], printed)
    with limit():
        for engine in engines[1:]:
            kvm_is_slow = 0.02 if type(pc.vcpus[0]).__name__ == "KvmVcpu" else 0.0002
            stopped = pc.run(kvm_is_slow)
            assert isinstance(stopped, Timeout), stopped
            ticks, begun = memory.read_u16(0x500), pc.now()
            hand_over(pc, engine)
            assert begun <= pc.now() < begun + 10**10
            assert memory.read_u16(0x500) >= ticks
        assert pc.run(30) == DebugExit(0x21)
    assert memory.read_u32(0x600) == expected()
    assert memory.read_u32(0x604) == 1  # ST0 went along
    pc.idle()
    assert b"".join(printed) == b"." * memory.read_u16(0x500) != b""


@needs_kvm
@pytest.mark.parametrize(("first", "second"), [(kvm, soft), (soft, kvm)], ids=["to-soft", "to-kvm"])
def test_a_halted_guest_is_woken_by_its_chips(memory: GuestMemory, first: Engine, second: Engine) -> None:
    printed: list[bytes] = []
    pc = machine(memory, first, printed)
    memory.write(BASE, assemble([f".code16\n{WAIT}"])[0].data)
    with limit():
        assert isinstance(pc.run(0.005), Timeout)
        hand_over(pc, second)
        assert pc.run(30) == DebugExit(5)
    assert memory.read_u16(0x500) >= 30


@needs_kvm
def test_an_engine_that_cannot_take_the_state_changes_nothing(memory: GuestMemory) -> None:
    pc = machine(memory, kvm, [])

    class Refusing:
        def __init__(self, *_: object) -> None:
            self.inner = soft(memory, CpuConfig())

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def load(self, state: object) -> None:
            raise ValueError("no")

    before = pc.vcpus[0]
    with limit():
        pc.run(0.005)
        with pytest.raises(ValueError, match="no"):
            hand_over(pc, Refusing)  # type: ignore[arg-type]
        assert pc.vcpus[0] is before
        assert pc.run(30) == DebugExit(0x21)
    assert memory.read_u32(0x600) == expected()


@needs_kvm
@pytest.mark.parametrize(("first", "second"), [(kvm, soft), (soft, kvm)], ids=["to-soft", "to-kvm"])
def test_64_bit_mode_and_its_page_tables(memory: GuestMemory, first: Engine, second: Engine) -> None:
    for at, entry in ((0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x83)):
        memory.write_u64(at, entry)
    text = f"""
      mov eax, 1
      mov ecx, {STEPS}
    1: imul eax, eax, 1664525
      add eax, 1013904223
      mov [0x20000], rax
      push rcx
      pop rcx
      dec rcx
      jnz 1b
      mov [0x600], eax
      mov al, 0x21
      out 0xf4, al
    """
    memory.write(BASE, assemble([f".code64\n{text}"])[0].data)
    pc = Pc(memory, first, PcConfig(debug_exit=DebugExitConfig()))
    pc.vcpus[0].start(long_flat(BASE, 0x10000, gdtr=real_mode(0, 0).gdtr, rsp=0x7000))
    with limit():
        stopped = pc.run(0.02 if first is kvm else 0.0002)
        assert isinstance(stopped, Timeout), stopped
        hand_over(pc, second)
        assert pc.run(30) == DebugExit(0x21)
    assert memory.read_u32(0x600) == expected()


def test_settled_before(memory: GuestMemory) -> None:
    """`Paused` is what a machine that settles returns, and it does not stay."""
    pc = machine(memory, soft, [])
    pc.settle()
    assert pc.stopped is None and not isinstance(pc.run(0.001), Paused)
