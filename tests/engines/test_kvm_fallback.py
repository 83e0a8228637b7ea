"""Where KVM gives up, our semantics go on; and they agree with KVM's on what both can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.assembler import BASE, assemble
from tests.engines.board import Board, limit, memory_of
from tests.engines.either import kvm, needs_kvm
from tests.engines.guests import guests
from xuni import trace
from xuni.engine.kvm.vcpu import KvmVcpu
from xuni.exits import EngineFailure, Exit, MmioWrite, PortIn, PortOut, Resume, Sliced
from xuni.host.kvm import reasons
from xuni.isa.x86.cpustate import long_flat, real_mode
from xuni.machine.machine import CpuConfig
from xuni.memory.guest import GuestMemory

pytestmark = needs_kvm
RESUME = Resume()
DEVICE = 0xE000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as made:
        yield made


def start(memory: GuestMemory, text: str, handed: tuple[str, ...] = ()) -> KvmVcpu:
    """A virtual CPU in 64-bit mode, with a device at 200000h."""
    for at, entry in ((0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x83), (0x12008, DEVICE | 0x83)):
        memory.write_u64(at, entry)
    memory.write(BASE, assemble([f".code64\n{text}"])[0].data)
    vcpu = kvm(memory, CpuConfig())
    assert isinstance(vcpu, KvmVcpu)
    vcpu.start(replace(long_flat(BASE, 0x10000, gdtr=real_mode(0, 0).gdtr, rsp=0x7000), cr4=0x620))
    return vcpu


def next_exit(vcpu: KvmVcpu) -> Exit:
    with limit(20):
        while isinstance(event := vcpu.run(RESUME), Sliced):
            pass
    return event


def give_up(vcpu: KvmVcpu) -> Exit:
    """As if KVM had said that it cannot emulate the next instruction."""
    return vcpu._rare(reasons.EmulationFailure(b""))


def test_one_instruction_is_executed_and_counted(memory: GuestMemory) -> None:
    vcpu = start(memory, "mov ebx, 5\nmovq xmm3, rbx\nout 0x10, al\nmov eax, ebx\nout 0x11, al")
    with trace.listen(["kvm_fallback"], (seen := []).append):
        assert give_up(vcpu) == Sliced()
    assert vcpu.kvm.regs().rip == BASE + 5 and vcpu.kvm.regs().rbx == 5
    assert vcpu.fallback.count == 1 and vcpu.fallback.instructions == {"bb 05 00 00": 1}
    assert [event.values[1:] for event in seen] == [(BASE, "bb 05 00 00", 1)]
    assert give_up(vcpu) == Sliced()
    assert vcpu.save().fxsave[160 + 48] == 5
    assert next_exit(vcpu) == PortOut(0x10, 1, 0)
    assert next_exit(vcpu) == PortOut(0x11, 1, 5)


def test_its_device_accesses_are_the_same_exits(memory: GuestMemory) -> None:
    vcpu = start(memory, "mov edi, 0x200010\nmov rax, rsp\nstosq\nin al, 0x10\nout 0x11, al")
    for _ in range(2):
        give_up(vcpu)
    assert give_up(vcpu) == MmioWrite(DEVICE + 0x10, 8, 0x7000)
    event = vcpu.run(RESUME)
    while event == Sliced():
        event = vcpu.run(RESUME)
    assert event == PortIn(0x10, 1)
    assert vcpu.kvm.regs().rdi == 0x200018 and not vcpu.fallback.active


def test_code_that_kvm_wrote_is_seen(memory: GuestMemory) -> None:
    text = "1: mov al, 1\nout 0x10, al\ninc byte ptr [rip+1b+1]\njmp 1b"
    vcpu = start(memory, text)
    seen = []
    for _ in range(3):
        give_up(vcpu)  # mov al, N: by our engine, from what KVM wrote
        seen.append(next_exit(vcpu))
        with limit(20):
            while vcpu.kvm.regs().rip != BASE:
                vcpu.kvm.run_page.immediate_exit = 0
                vcpu.debugger.control(replace(vcpu.debugger._wanted, step=True))
                vcpu.run(RESUME)
        vcpu.debugger.control(replace(vcpu.debugger._wanted, step=False))
    assert seen == [PortOut(0x10, 1, n) for n in (1, 2, 3)]


def test_a_hang_that_nothing_moves_is_a_failure(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu = start(memory, "mov eax, ebx\nhlt")
    vcpu.run_bound()
    monkeypatch.setattr(vcpu.kvm, "run", lambda: False)
    monkeypatch.setattr("xuni.engine.kvm.watchdog.PATIENCE", 0)
    monkeypatch.setattr("xuni.engine.kvm.watchdog.LONGEST", 30_000)
    monkeypatch.setattr(vcpu.fallback, "begin", lambda instruction: Sliced())  # not even this helps
    with limit(20):
        seen = [vcpu.watchdog.look() for _ in range(6)]
    failure = seen[-1]
    assert isinstance(failure, EngineFailure)
    assert failure.reason == f"KVM_RUN makes no progress at RIP {BASE:#x}, instruction bytes {memory.read(BASE, 15).hex(' ')}"


def test_a_jump_to_itself_is_no_hang(memory: GuestMemory) -> None:
    vcpu = start(memory, "1: jmp 1b")
    vcpu.set_deadline(vcpu.now() + 20_000_000)
    end = vcpu.now() + 500_000_000
    with limit(20):
        while vcpu.now() < end:
            assert vcpu.run(RESUME) == Sliced()
            vcpu.set_deadline(vcpu.now() + 20_000_000)
    assert vcpu.fallback.count == 0


def test_a_loop_that_polls_memory_is_no_hang(memory: GuestMemory) -> None:
    vcpu = start(memory, "1: cmp byte ptr [0x500], 0\nje 1b\nout 0x10, al")
    vcpu.set_deadline(vcpu.now() + 20_000_000)
    end = vcpu.now() + 500_000_000
    with limit(20):
        while vcpu.now() < end:
            assert vcpu.run(RESUME) == Sliced()
            vcpu.set_deadline(vcpu.now() + 20_000_000)
        memory.write(0x500, b"\1")
        assert next_exit(vcpu) == PortOut(0x10, 1, 0)


# -- the differential test -----------------------------------------------------------------------------------------------



def test_a_wrong_result_would_be_seen(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu = start(memory, "mov eax, 5\nadd eax, 6\nmov [0x500], eax\nout 0x10, al")
    original = vcpu.comparison._differences
    monkeypatch.setattr(vcpu.comparison, "_differences", lambda theirs, ours, copy, flags: original(
        replace(theirs, registers=replace(theirs.registers, rax=theirs.registers.rax ^ 1)), ours, copy, flags))
    with trace.listen(["kvm_differs"], (seen := []).append):
        assert next_exit(vcpu) == PortOut(0x10, 1, 11)
    assert [event.values[3] for event in seen][:2] == ["rax: KVM 0x4, ours 0x5", "rax: KVM 0xa, ours 0xb"]
    assert vcpu.comparison.compared == vcpu.comparison.differences == 3


@pytest.mark.parametrize("name", ["compatibility", "long"])
def test_our_semantics_agree_with_kvm_on_the_small_guests(name: str) -> None:
    """Up to the part where traps begin: there the engines differ in what they may."""
    guest = guests()[name]
    end = guest.labels["interrupts"]
    with memory_of(guest) as memory:
        vcpu = kvm(memory, CpuConfig())
        assert isinstance(vcpu, KvmVcpu)
        vcpu.start(guest.start)
        board = Board(vcpu)
        with limit(120), trace.listen(["kvm_differs"], (seen := []).append):
            while not board.done and vcpu.linear_rip() != end:
                board.run()
        compared = vcpu.comparison.compared
    assert compared > 300
    assert [f"{event.values[1]:#x} {event.values[2][:23]} {event.values[3]}" for event in seen] == []
