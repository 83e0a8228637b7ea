"""One test body, both engines: what `xuni.exits.Vcpu` promises, and the small guests of every mode."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator

import pytest

from tests.engines.assembler import BASE, assemble
from tests.engines.board import Board, image, limit, memory_of
from tests.engines.either import ENGINES, Engine, kvm
from tests.engines.guests import BODY_EVENTS, KINDS, Kind, events, guests
from xuni.exits import (
    Data,
    DebugCause,
    DebugControl,
    Debugged,
    EngineFailure,
    Exit,
    Halt,
    Inject,
    InterruptWindow,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortIn,
    PortOut,
    Refuse,
    Reply,
    Resume,
    Shutdown,
    Sliced,
    TprRead,
    TprWrite,
    Vcpu,
    Watchpoint,
)
from xuni.host.offers import KvmKind, kvm_kind
from xuni.isa.x86.cpustate import CpuState, data16, long_flat, real_mode
from xuni.machine.machine import CpuConfig
from xuni.memory.guest import GuestMemory

RESUME = Resume()
PVM = kvm_kind() is KvmKind.PVM
# What the kernel module kvm_pvm, whose host has no hardware virtualization, does not do; kinds that it cannot run at all.
PVM_CANNOT = {
    "protected16": "exceptions through 16-bit gates", "protected32": "software interrupts of user mode",
    "paging32": "32-bit paging", "pae": "PAE paging outside long mode", "long": "software interrupts of user mode",
}  # fmt: skip
TRAPS = {"1", "50"}
"""Events that it loses: debug registers' traps; an interrupt that becomes possible inside the code that it emulates."""


@functools.cache
def code(text: str, bits: int = 16) -> bytes:
    """Machine code for BASE."""
    return assemble([f".code{bits}\n{text}"])[0].data


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = request.param
    return made


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as made:
        yield made


def begin(engine: Engine, memory: GuestMemory, text: str, state: CpuState | None = None) -> Vcpu:
    """A virtual CPU before this code; real mode unless `state` says otherwise."""
    long = state is not None
    memory.write(BASE, code(text, 64 if long else 16))
    vcpu = engine(memory, CpuConfig())
    vcpu.start(state or real_mode(0, BASE))
    vcpu.set_deadline((1 << 63) - 1)
    return vcpu


def long_mode(memory: GuestMemory) -> CpuState:
    """64-bit mode; the first 2 MiB of linear addresses are physical ones, the next are devices at E000_0000."""
    for at, entry in ((0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x83), (0x12008, 0xE000_0083)):
        memory.write_u64(at, entry)
    state = long_flat(BASE, 0x10000, gdtr=real_mode(0, 0).gdtr, rsp=0x7000)
    return state


def go(vcpu: Vcpu, reply: Reply = RESUME) -> Exit:
    """To the next exit that is not a mere slice."""
    with limit(20):
        while isinstance(event := vcpu.run(reply), Sliced):
            reply = RESUME
    assert not isinstance(event, EngineFailure), event
    return event


# -- the guests of every mode ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_guest_sees_the_events_that_it_causes(engine: Engine, kind: Kind) -> None:
    limited = PVM and engine is kvm
    if limited and kind.name in PVM_CANNOT:
        pytest.skip(f"kvm_pvm has no {PVM_CANNOT[kind.name]}")
    guest = guests()[kind.name]
    with memory_of(guest) as memory:
        vcpu = engine(memory, CpuConfig())
        vcpu.start(guest.start)
        board = Board(vcpu)
        board.to_the_end()
        seen, expected = events(kind, image(memory)).split(), f"{BODY_EVENTS} {kind.events}".split()
    if limited:
        seen, expected = ([event for event in row if event not in TRAPS] for row in (seen, expected))
    assert seen == expected
    assert isinstance(board.exits[-1], PortOut)


# -- devices -----------------------------------------------------------------------------------------------------------
def test_ports_of_every_size(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, """
        mov eax, 0x11223344
        out 0x10, al
        out 0x11, ax
        out 0x12, eax
        mov dx, 0x3f8
        in al, dx
        in ax, dx
        in eax, dx
        mov [0x500], eax
        hlt""")
    assert go(vcpu) == PortOut(0x10, 1, 0x44)
    assert go(vcpu) == PortOut(0x11, 2, 0x3344)
    assert go(vcpu) == PortOut(0x12, 4, 0x11223344)
    assert go(vcpu) == PortIn(0x3F8, 1)
    assert go(vcpu, Data(0x1FF)) == PortIn(0x3F8, 2)
    assert go(vcpu, Data(0x2FFFF)) == PortIn(0x3F8, 4)
    assert go(vcpu, Data(0x1_8765_4321)) == Halt()
    assert memory.read_u32(0x500) == 0x8765_4321


def test_strings_of_ports_are_one_access_after_the_other(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, """
        mov si, 0x500
        mov cx, 3
        mov dx, 0x10
        rep outsw
        mov di, 0x600
        mov cx, 3
        rep insb
        hlt""")
    memory.write(0x500, bytes.fromhex("112233445566"))
    assert [go(vcpu) for _ in range(3)] == [PortOut(0x10, 2, 0x2211), PortOut(0x10, 2, 0x4433), PortOut(0x10, 2, 0x6655)]
    event, reply = go(vcpu), 0xA0
    while event == PortIn(0x10, 1):
        reply += 1
        event = go(vcpu, Data(reply))
    assert event == Halt() and memory.read(0x600, 4) == b"\xa1\xa2\xa3\0"


def test_device_memory(engine: Engine, memory: GuestMemory) -> None:
    state = long_mode(memory)
    vcpu = begin(engine, memory, """
        mov eax, [0x200010]
        mov [0x200020], rax
        mov byte ptr [0x200031], 7
        hlt""", state)
    assert go(vcpu) == MmioRead(0xE000_0010, 4)
    assert go(vcpu, Data(0x1_8000_0001)) == MmioWrite(0xE000_0020, 8, 0x8000_0001)
    assert go(vcpu) == MmioWrite(0xE000_0031, 1, 7)
    assert go(vcpu) == Halt()


def test_rom_is_read_and_its_writes_go_nowhere(engine: Engine, memory: GuestMemory) -> None:
    memory.add_rom(0x20000, b"\x5a" * 4096)
    vcpu = begin(engine, memory, """
        mov ax, 0x2000
        mov ds, ax
        mov al, [5]
        out 0x10, al
        mov byte ptr [6], 1
        hlt""")
    assert go(vcpu) == PortOut(0x10, 1, 0x5A)
    event = go(vcpu)
    if event == MmioWrite(0x20006, 1, 1):  # one engine tells the board of it, the other drops it
        event = go(vcpu)
    assert event == Halt() and memory.read_u8(0x20006) == 0x5A


def test_memory_that_comes_and_goes(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, """
        mov ax, 0x3000
        mov ds, ax
    1:  mov al, [0]
        out 0x10, al
        jmp 1b""")
    assert go(vcpu) == PortOut(0x10, 1, 0)
    memory.add_hole(0x30000, 0x1000)
    assert go(vcpu) == MmioRead(0x30000, 1)
    assert go(vcpu, Data(9)) == PortOut(0x10, 1, 9)
    memory.add_ram(0x30000, 0x1000)
    memory.write(0x30000, b"\x33")
    assert go(vcpu) == PortOut(0x10, 1, 0x33)


# -- the local APIC's registers in the processor -------------------------------------------------------------------------
def test_msrs_of_the_local_apic_are_the_boards(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, """
        mov ecx, 0x1b
        rdmsr
        wrmsr
        mov ecx, 0x6e0
        wrmsr
        mov ecx, 0x808
        wrmsr
        rdmsr
        out 0x10, eax
        hlt""")
    assert go(vcpu) == MsrRead(0x1B)
    assert go(vcpu, Data(0xFEE00900)) == MsrWrite(0x1B, 0xFEE00900)
    assert go(vcpu) == MsrWrite(0x6E0, 0xFEE00900)
    assert go(vcpu) == MsrWrite(0x808, 0xFEE00900)
    event = go(vcpu)
    if event == TprRead():  # an engine that keeps a copy asks
        event = go(vcpu, Data(0))
    assert event == MsrRead(0x808)
    assert go(vcpu, Data(0x77)) == PortOut(0x10, 4, 0x77)


def test_a_refused_msr_is_a_general_protection(engine: Engine, memory: GuestMemory) -> None:
    memory.write(4 * 13, (0x700).to_bytes(4, "little"))
    memory.write(0x700, code("out 0x13, al\nhlt"))
    vcpu = begin(engine, memory, "mov sp, 0x7000\nmov ecx, 0x1b\nwrmsr\nhlt")
    assert go(vcpu) == MsrWrite(0x1B, 0)
    assert go(vcpu, Refuse()) == PortOut(0x13, 1, 0)


def test_the_task_priority_in_cr8(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, """
        mov eax, 5
        mov cr8, rax
        mov rbx, cr8
        mov eax, ebx
        out 0x10, al
        hlt""", long_mode(memory))
    seen: list[Exit] = []
    reply: Reply = RESUME
    while Halt() not in seen:
        event = go(vcpu, reply)
        reply = Data(5) if event == TprRead() else RESUME
        seen.append(event)
    assert TprWrite(5) in seen and seen[-2:] == [PortOut(0x10, 1, 5), Halt()]
    assert seen.index(TprWrite(5)) < seen.index(PortOut(0x10, 1, 5))


# -- interrupts ----------------------------------------------------------------------------------------------------------
def handler(memory: GuestMemory, vector: int, port: int) -> None:
    """A handler in real mode that writes to a port and returns."""
    at = 0x700 + vector * 16
    memory.write(4 * vector, at.to_bytes(4, "little"))
    memory.write(at, code(f"out {port:#x}, al\niret"))


def test_an_interrupt_waits_for_its_window(engine: Engine, memory: GuestMemory) -> None:
    handler(memory, 0x40, 0x40)
    vcpu = begin(engine, memory, "mov sp, 0x7000\nout 0x10, al\nout 0x11, al\nsti\nnop\nhlt\nout 0x12, al\nhlt")
    assert go(vcpu) == PortOut(0x10, 1, 0)
    vcpu.set_interrupt(True)
    assert go(vcpu) == PortOut(0x11, 1, 0)  # interrupts are off
    event = go(vcpu)
    while event == Halt():
        event = go(vcpu)
    assert event == InterruptWindow()
    vcpu.set_interrupt(False)
    assert go(vcpu, Inject(0x40)) == PortOut(0x40, 1, 0)
    event = go(vcpu)
    assert event in (Halt(), PortOut(0x12, 1, 0))  # before or after the first HLT


def test_a_window_that_nobody_uses(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, "sti\nnop\nout 0x10, al\nout 0x11, al\nhlt")
    assert go(vcpu) == PortOut(0x10, 1, 0)
    vcpu.set_interrupt(True)
    assert go(vcpu) == InterruptWindow()
    vcpu.set_interrupt(False)
    assert go(vcpu, RESUME) == PortOut(0x11, 1, 0)


def test_a_halted_processor_wakes_for_an_interrupt(engine: Engine, memory: GuestMemory) -> None:
    handler(memory, 0x40, 0x40)
    vcpu = begin(engine, memory, "mov sp, 0x7000\nsti\nhlt\nout 0x10, al\nhlt")
    assert go(vcpu) == Halt()
    assert go(vcpu) == Halt()  # and stays halted
    vcpu.set_interrupt(True)
    assert go(vcpu) == InterruptWindow()
    vcpu.set_interrupt(False)
    assert go(vcpu, Inject(0x40)) == PortOut(0x40, 1, 0)
    assert go(vcpu) == PortOut(0x10, 1, 0)


def test_a_halted_processor_with_interrupts_off_wakes_for_an_nmi_alone(engine: Engine, memory: GuestMemory) -> None:
    handler(memory, 2, 0x42)
    vcpu = begin(engine, memory, "mov sp, 0x7000\ncli\nhlt\nout 0x10, al\nhlt")
    assert go(vcpu) == Halt()
    vcpu.set_interrupt(True)
    assert go(vcpu) == Halt()
    vcpu.nmi()
    assert go(vcpu) == PortOut(0x42, 1, 0)
    assert go(vcpu) == PortOut(0x10, 1, 0)


def test_init_and_startup(engine: Engine, memory: GuestMemory) -> None:
    memory.write(0x9000, code("mov ax, cs\nout 0x10, ax\nhlt"))
    vcpu = begin(engine, memory, "in al, 0x10\nhlt")
    assert go(vcpu) == PortIn(0x10, 1)
    vcpu.init()
    vcpu.startup(9)
    assert go(vcpu) == PortOut(0x10, 2, 0x900)
    assert go(vcpu) == Halt()


def test_a_triple_fault(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, "ud2", long_mode(memory))
    event = go(vcpu)
    assert isinstance(event, Shutdown) and "RIP" in event.reason


# -- threads and time ------------------------------------------------------------------------------------------------------
SPIN = "1: jmp 1b"


def test_the_deadline_ends_run(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, SPIN)
    vcpu.set_deadline(vcpu.now() + 20_000_000)
    end = vcpu.now() + 20_000_000
    with limit(20):
        while vcpu.now() < end:
            assert vcpu.run(RESUME) == Sliced()
    assert vcpu.now() < end + 2_000_000_000


@pytest.mark.parametrize("before", [True, False], ids=["before", "during"])
def test_a_kick_ends_run(engine: Engine, memory: GuestMemory, before: bool) -> None:
    vcpu = begin(engine, memory, SPIN)
    kicker = threading.Thread(target=lambda: (time.sleep(0 if before else 0.1), vcpu.kick()))
    if before:
        kicker.run()
    else:
        kicker.start()
    with limit(20):
        assert vcpu.run(RESUME) == Sliced()
    if not before:
        kicker.join()


def test_an_interrupt_from_another_thread(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, f"sti\n{SPIN}")
    raiser = threading.Thread(target=lambda: (time.sleep(0.1), vcpu.set_interrupt(True)))
    raiser.start()
    assert go(vcpu) == InterruptWindow()
    raiser.join()


def test_run_may_move_to_another_thread(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, f"out 0x10, al\n{SPIN}")
    assert go(vcpu) == PortOut(0x10, 1, 0)
    vcpu.kick()
    with limit(20):
        assert vcpu.run(RESUME) == Sliced()
        found: list[Exit] = []
        runner = threading.Thread(target=lambda: found.append(vcpu.run(RESUME)))
        runner.start()
        time.sleep(0.1)
        vcpu.kick()
        runner.join()
    assert found == [Sliced()]


# -- state -----------------------------------------------------------------------------------------------------------------
def test_state_goes_to_another_processor(engine: Engine, memory: GuestMemory) -> None:
    text = "mov ebx, 0x12345678\nmov bp, 0x77\nfld1\n1: jmp 1b\nmov eax, ebx\nout 0x10, eax\nmov ax, bp\nout 0x11, ax\nhlt"
    vcpu = begin(engine, memory, text)
    vcpu.set_deadline(vcpu.now() + 20_000_000)
    with limit(20):
        while vcpu.run(RESUME) != Sliced() or vcpu.save().registers.rbp != 0x77:
            vcpu.set_deadline(vcpu.now() + 20_000_000)
    state = vcpu.save()
    at = state.registers.rip
    assert memory.read(at, 2) == b"\xeb\xfe" and state.registers.rbx == 0x12345678
    memory.write(at, b"\x90\x90")
    other = engine(memory, CpuConfig())
    other.set_deadline((1 << 63) - 1)
    other.load(state)
    event = go(other)
    if event == TprRead():  # an engine that keeps a copy of the task priority asks for it
        event = go(other, Data(0))
    assert event == PortOut(0x10, 4, 0x12345678)
    assert go(other) == PortOut(0x11, 2, 0x77)
    assert state.fxsave[32:42] == bytes.fromhex("0000000000000080ff3f")  # ST0 is 1


def test_what_is_loaded_is_what_is_saved(engine: Engine, memory: GuestMemory) -> None:
    from dataclasses import replace

    vcpu = begin(engine, memory, "hlt", long_mode(memory))
    before = vcpu.save()
    fxsave = bytearray(before.fxsave)
    fxsave[160:176] = bytes(range(16))
    wanted = replace(
        before, registers=replace(before.registers, r9=0x1234_5678_9ABC_DEF0, cr2=0x5000, ds=replace(data16(0x33), p=1)),
        debug=(0x1000, 0x2000, 0, 0x3000), dr7=0x400, fxsave=bytes(fxsave), nmi_blocked=True,
        msrs={**before.msrs, 0xC000_0082: 0xFFFF_8000_0000_1000, 0xC000_0081: 0x23 << 48, 0x277: 0x0007_0406_0007_0406},
    )  # fmt: skip
    vcpu.load(wanted)
    found = vcpu.save()
    assert found.registers.r9 == 0x1234_5678_9ABC_DEF0 and found.registers.cr2 == 0x5000
    assert found.registers.ds == wanted.registers.ds
    assert found.debug == wanted.debug and found.fxsave[160:176] == bytes(range(16)) and found.nmi_blocked
    assert {index: found.msrs[index] for index in (0xC000_0081, 0xC000_0082)} == {
        index: wanted.msrs[index] for index in (0xC000_0081, 0xC000_0082)
    }


def test_a_state_that_cannot_be_is_refused(engine: Engine, memory: GuestMemory) -> None:
    from dataclasses import replace

    vcpu = begin(engine, memory, "hlt")
    with pytest.raises(ValueError, match="fxsave: 3 bytes"):
        vcpu.load(replace(vcpu.save(), fxsave=b"abc"))
    with pytest.raises(ValueError, match="0xdeadbeef"):
        vcpu.load(replace(vcpu.save(), msrs={0xDEADBEEF: 5}))


def test_translation(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, "hlt", long_mode(memory))
    assert vcpu.translate(0x1234) == 0x1234
    assert vcpu.translate(0x20_0010) == 0xE000_0010
    assert vcpu.translate(0x40_0000) is None


# -- debuggers ---------------------------------------------------------------------------------------------------------------
def test_single_steps(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, "nop\nmov ax, 5\nout 0x10, al\nnop\nhlt")
    vcpu.debug(DebugControl(step=True))
    assert go(vcpu) == Debugged(DebugCause.STEP, BASE + 1)
    assert go(vcpu) == Debugged(DebugCause.STEP, BASE + 4)
    assert go(vcpu) == PortOut(0x10, 1, 5)
    assert go(vcpu) == Debugged(DebugCause.STEP, BASE + 6)
    vcpu.debug(DebugControl())
    assert go(vcpu) == Halt()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_breakpoints_without_limit(engine: Engine, memory: GuestMemory, count: int) -> None:
    vcpu = begin(engine, memory, "nop\n" * 10 + "hlt")
    points = [BASE + 1 + n for n in range(count)]
    vcpu.debug(DebugControl(breakpoints=frozenset(points)))
    assert [go(vcpu) for _ in points] == [Debugged(DebugCause.BREAKPOINT, at) for at in points]
    assert vcpu.save().registers.rip == points[-1]
    assert go(vcpu) == Halt()


def test_watchpoints(engine: Engine, memory: GuestMemory) -> None:
    if PVM and engine is kvm:
        pytest.skip("kvm_pvm has no data breakpoints")
    vcpu = begin(engine, memory, "mov al, [0x500]\nmov [0x502], al\nnop\nmov al, [0x500]\nhlt")
    vcpu.debug(DebugControl(watchpoints=(Watchpoint(0x500, 4),)))
    assert go(vcpu) == Debugged(DebugCause.WATCHPOINT, 0x500)
    assert vcpu.save().registers.rip == BASE + 6
    assert go(vcpu) == Halt()


def test_watchpoints_that_no_register_holds(engine: Engine, memory: GuestMemory) -> None:
    vcpu = begin(engine, memory, "hlt")
    with pytest.raises(ValueError):
        vcpu.debug(DebugControl(watchpoints=tuple(Watchpoint(8 * n, 8) for n in range(5))))
