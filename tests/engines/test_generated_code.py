"""What LLVM makes of hot handlers: no more instructions on the likely path than were measured, and no stack frame."""

from __future__ import annotations

import functools

import pytest
from iced_x86 import Decoder, FlowControl, Formatter, FormatterSyntax, Instruction, Register

from tests.engines.assembler import BASE, assemble
from tests.engines.board import MEMORY
from tests.engines.guests import DATA, guests
from xuni.engine.soft.records import OP_SIZE, Op, Trace
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.exits import Halt, Resume
from xuni.isa.struct import PlainPlace
from xuni.isa.x86.state import Gpr
from xuni.memory.guest import GuestMemory

# Guest instruction, and the most host instructions from a handler's entry to its jump to the next one. Measured on a
# processor with BMI2; a fused pair is one line.
GOLDEN = {
    "mov rcx, rdx": 7,
    "mov eax, ebx": 7,
    "add rcx, rdx": 10,
    "xor ecx, ecx": 11,
    "lea rax, [rdx+8]": 8,
    "mov rax, [rsi]": 20,
    "mov [rsi+8], eax": 20,
    "add eax, [rsi]": 24,
    "add [rsi], eax": 23,
    "mov rax, [rsi+rdi*8]": 27,
    "cmp rax, rbx; jne out": 19,
    "cmp byte ptr [rsi], 3; je out": 31,
    "test eax, eax; js out": 23,
    "jc out": 14,
    "push rax": 20,
    "pop rbx": 19,
    "call routine": 30,
    "routine: ret": 45,
}  # fmt: skip


@functools.cache
def likely_paths() -> dict[str, list[Instruction]]:
    """By guest instruction, the host instructions of the handler that the engine chose for it."""
    lines = [text for text in GOLDEN if not text.startswith("routine")]
    code = assemble([".code64\n" + "\n".join(lines).replace("; ", "\n") + "\nhlt\nout: hlt\nroutine: ret\n"])[0]
    guest, memory = guests()["long"], GuestMemory(MEMORY)
    for address, data in {**guest.memory, BASE: code.data}.items():
        memory.write(address, data)
    vcpu = SoftVcpu(memory)
    vcpu.start(guest.start)
    vcpu.state.gpr[Gpr.RSI], vcpu.state.gpr[Gpr.RBX] = DATA, 0
    assert isinstance(vcpu.run(Resume()), Halt)
    handlers: dict[int, int] = {}
    at, end = vcpu.cache.region.address_of("ops"), int(vcpu.cache.arena.next)
    while at < end:
        trace = Trace(PlainPlace(at))
        for number in range(int(trace.count)):
            op = Op(PlainPlace(at + Trace.SIZE + number * OP_SIZE))
            handlers.setdefault(int(trace.start) & ~0xFFF | int(op.offset), int(op.handler))
        at += Trace.SIZE + int(trace.count) * OP_SIZE
    starts, position = {}, BASE & 0xFFF
    decoder = iter(Decoder(64, code.data, ip=position))
    for line in lines:
        starts[line] = position
        for _ in line.split("; "):
            position = next(decoder).next_ip
    starts["routine: ret"] = code.labels["routine"] & 0xFFF
    region = vcpu.code.region
    paths = {}
    for line, start in starts.items():
        offset = handlers[start] - region.address
        paths[line] = _until_jump(region.map[offset : offset + 512], handlers[start])
    vcpu.close()
    memory.close()
    return paths


def _until_jump(code: bytes, address: int) -> list[Instruction]:
    """Up to the first jump that is always taken: LLVM puts the likely path first."""
    path = []
    for instruction in Decoder(64, code, ip=address):
        path.append(instruction)
        if instruction.flow_control in (
            FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN,
        ):  # fmt: skip
            return path
    raise AssertionError("a handler does not end")


def _listing(path: list[Instruction]) -> str:
    formatter = Formatter(FormatterSyntax.INTEL)
    return "\n".join(formatter.format(instruction) for instruction in path)


@pytest.mark.parametrize(("text", "most"), GOLDEN.items(), ids=GOLDEN)
def test_a_hot_handler_is_short(text: str, most: int) -> None:
    path = likely_paths()[text]
    assert len(path) <= most, _listing(path)


@pytest.mark.parametrize("text", GOLDEN)
def test_a_hot_handler_has_no_stack_frame(text: str) -> None:
    path = likely_paths()[text]
    assert path[-1].flow_control == FlowControl.INDIRECT_BRANCH, _listing(path)  # to the next handler, at once
    assert not any(i.is_stack_instruction or Register.RSP in (i.op0_register, i.memory_base) for i in path), _listing(path)
