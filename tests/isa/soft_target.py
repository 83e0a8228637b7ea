"""The soft engine as a target that the host's processor can be compared with.

Each case runs at CPL 3 under page tables that map its two pages and nothing else. Every exception goes to a stub of the
kernel half that writes its vector to a port, and so the engine returns. A case that completes meets the UD2 behind it;
with `step` it runs under TF instead and ends with #DB, as on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack, unpack
from typing import Any

from tests.hardware.case import CODE, DATA, FS_BASE, GPR_NAMES, GS_BASE, PAGE, WINDOW, WINDOW_SIZE, Case, Mode, Outcome
from tests.hardware.oracle import is_repeated
from tests.isa_fp import image
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.exits import PortOut, Resume
from xuni.isa.x86.cpustate import CpuState, Cr0, Segment, TableRegister
from xuni.isa.x86.state import Cr4, Efer, Eflags
from xuni.memory.guest import GuestMemory

KERNEL = 0xFFFF_8000_0000_0000
"""Where the first 2 MiB of guest memory are mapped, for the supervisor only."""
PML4, PDPT, DIRECTORY, TABLE, KERNEL_PDPT, KERNEL_DIRECTORY = range(0x1000, 0x7000, 0x1000)
IDT, GDT, TSS, STUBS, STACK_TOP, CODE_FRAME, DATA_FRAME = 0x7000, 0x8000, 0x9000, 0xA000, 0xD000, 0x1_0000, 0x1_1000
DEBUG, INVALID_OPCODE = 1, 6
HAS_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
FILLER = b"\x0f\x0b" * 8  # UD2
ITERATIONS = 64
"""More than any repeated case does."""


def code_segment(mode: Mode) -> Segment:
    match mode:
        case Mode.LONG:
            return Segment(0x33, 0, 0xFFFF_FFFF, type=0xB, dpl=3, l=1, g=1)
        case Mode.PROTECTED_32:
            return Segment(0x23, 0, 0xFFFF_FFFF, type=0xB, dpl=3, db=1, g=1)
    return Segment(0x07, CODE, PAGE - 1, type=0xB, dpl=3)


def data_segment(mode: Mode) -> Segment:
    if mode is Mode.PROTECTED_16:
        return Segment(0x0F, DATA, PAGE - 1, type=0x3, dpl=3)
    return Segment(0x2B, 0, 0xFFFF_FFFF, type=0x3, dpl=3, db=1, g=1)


class SoftTarget:
    """Runs cases on one virtual CPU."""

    name = "soft"

    def __init__(self, step: bool = False) -> None:
        self.step = step
        self.memory = GuestMemory(2 << 20)
        self._prepare()
        self.vcpu = SoftVcpu(self.memory)

    def _prepare(self) -> None:
        write = self.memory.write
        user, kernel = 7, 3  # present, writable, user
        for at, entry in (
            (PML4, PDPT | user), (PML4 + 8 * 256, KERNEL_PDPT | kernel), (PDPT, DIRECTORY | user),
            (DIRECTORY + 8 * (CODE >> 21 & 511), TABLE | user), (TABLE + 8 * (CODE >> 12 & 511), CODE_FRAME | user),
            (TABLE + 8 * (DATA >> 12 & 511), DATA_FRAME | user), (KERNEL_PDPT, KERNEL_DIRECTORY | kernel),
            (KERNEL_DIRECTORY, 0x80 | kernel),
        ):  # fmt: skip
            write(at, entry.to_bytes(8, "little"))
        write(GDT + 8, Segment(8, 0, 0xFFFF_FFFF, type=0xB, l=1, g=1).descriptor().to_bytes(8, "little"))
        write(TSS + 4, (KERNEL + STACK_TOP).to_bytes(8, "little"))
        for vector in range(32):
            stub = KERNEL + STUBS + 4 * vector
            gate = pack("<HHHHII", stub & 0xFFFF, 8, 0xEE00, stub >> 16 & 0xFFFF, stub >> 32, 0)
            write(IDT + 16 * vector, gate)
            write(STUBS + 4 * vector, bytes((0xE6, vector, 0xEB, 0xFC)))  # OUT, and again
        write(CODE_FRAME, FILLER * (PAGE // len(FILLER)))

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        return [self.run_one(case) for case in cases]

    def run_one(self, case: Case) -> Outcome:
        vcpu, s = self.vcpu, self.vcpu.state
        self.memory.write(CODE_FRAME, (case.code + FILLER)[: len(FILLER)])
        self.memory.write(DATA_FRAME, bytes(PAGE - WINDOW_SIZE) + case.memory)
        gpr: dict[str, Any] = dict(zip(GPR_NAMES, case.gpr, strict=True))
        rip, flags = case.mode.rip, case.rflags
        data = data_segment(case.mode)
        fs = Segment(0, FS_BASE, 0xFFFF_FFFF, type=3, dpl=3, db=1, g=1)
        gs = Segment(0, GS_BASE, 0xFFFF_FFFF, type=3, dpl=3, db=1, g=1)
        image.load(s, case.fxsave)
        for _ in range(ITERATIONS):
            rflags = flags & ~Eflags.RF | Eflags.FIXED | Eflags.IF | (Eflags.TF if self.step else 0)
            vcpu.start(CpuState(
                rip, code_segment(case.mode), data, data, data, fs, gs, **gpr, rflags=int(rflags),
                cr0=int(Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG), cr3=PML4,
                cr4=int(Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT), efer=int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE),
                gdtr=TableRegister(KERNEL + GDT, 0xFFF), idtr=TableRegister(KERNEL + IDT, 0xFFF),
                tr=Segment(0x40, KERNEL + TSS, 0x67, type=0xB, s=0),
            ))  # fmt: skip
            s.replay_count = s.replay_next = 0
            vector = self._until_exception(case)
            error, frame = 0, STACK_TOP - 40
            if vector in HAS_ERROR_CODE:
                error = self.memory.read_u64(frame - 8)
            rip, _, flags, rsp, _ = unpack("<5Q", self.memory.read(frame, 40))
            gpr = {name: int(s.gpr[n]) for n, name in enumerate(GPR_NAMES)}
            gpr["rsp"] = rsp
            iterating = vector == DEBUG and rip == case.mode.rip and is_repeated(case.code, case.mode)
            if not iterating:
                break
        done = vector == DEBUG if self.step else vector == INVALID_OPCODE and rip == case.mode.rip + len(case.code)
        return Outcome(
            tuple(gpr.values()), rip, flags, image.store(s, case.fxsave),
            self.memory.read(DATA_FRAME + WINDOW - DATA, WINDOW_SIZE),
            None if done else vector, error, int(s.cr2),
        )  # fmt: skip

    def _until_exception(self, case: Case) -> int:
        leave = self.vcpu.run(Resume())
        assert isinstance(leave, PortOut), f"{case.name}: {leave}"
        return leave.port
