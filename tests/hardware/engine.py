"""The soft engine as a `Target`: one virtual CPU, whose state is overwritten before each case.

Each case runs at CPL 3 under page tables that map its two pages and a kernel half, which has only what delivers an
exception: an IDT whose gates lead to HLTs, others for each vector. So an exception leaves its frame on the kernel
stack, and the vector in RIP; what completes is found by single-stepping (`SoftVcpu.state.steps`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from xuni.engine.soft.records import Op
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.isa.x86.cpustate import CpuState, Cr0, Segment, TableRegister
from xuni.isa.x86.flags import Kind
from xuni.isa.x86.state import ARITHMETIC, Cr4, Efer, Eflags, ExitKind, State
from xuni.memory.guest import GuestMemory

from .case import CODE, DATA, FS_BASE, GS_BASE, PAGE, PUSHES_ERROR_CODE, WINDOW_SIZE, Case, Mode, Outcome
from .oracle import is_repeated

KERNEL = 0xFFFF_8000_0000_0000
"""Where the first 2 MiB of guest memory are mapped, for the supervisor only."""
PML4, PDPT, DIRECTORY, TABLE, KERNEL_PDPT, KERNEL_DIRECTORY = range(0x1000, 0x7000, 0x1000)
IDT, GDT, TSS, STUBS, STACK_TOP, CODE_FRAME, DATA_FRAME = 0x7000, 0x8000, 0x9000, 0xA000, 0xD000, 0x1_0000, 0x1_1000
HLT = b"\xf4"
"""What surrounds the instruction: #GP at CPL 3, and a stop in the kernel's stubs."""
CODE_AREA = 64
ITERATIONS = 4096
MAX_LENGTH = 15
KERNEL_CS = 8
ELSEWHERE = 0x7000_0000_0000
"""Where no case accesses memory."""
GATE = Struct("<HHHHII")
FRAME = Struct("<5Q")
WORDS = Struct("<16Q")
FPU = Struct("<IHHH")  # mxcsr, fpu_control, fpu_status, fpu_tag, as in State
HEADER = Struct("<HHBxHQQI")  # of an FXSAVE image
FLAT = 0xFFFF_FFFF
CLEARED, SET_FLAGS = int(Eflags.RF | Eflags.TF), int(Eflags.FIXED | Eflags.IF)


class Path(Enum):
    """How memory is reached, so that each of a handler's variants has its turn."""

    WARM = "the TLB knows the pages already"
    COLD = "it does not"
    WATCHED = "the data lies in the same page as the code, so that writes must look whether they hit it"
    OUT_OF_LINE = "no access may be direct, since a data breakpoint is armed somewhere"


def code_segment(mode: Mode) -> Segment:
    match mode:
        case Mode.LONG:
            return Segment(0x33, 0, FLAT, type=0xB, dpl=3, l=1, g=1)
        case Mode.PROTECTED_32:
            return Segment(0x23, 0, FLAT, type=0xB, dpl=3, db=1, g=1)
    return Segment(0x07, CODE, PAGE - 1, type=0xB, dpl=3)


def data_segment(mode: Mode) -> Segment:
    if mode is Mode.PROTECTED_16:
        return Segment(0x0F, DATA, PAGE - 1, type=0x3, dpl=3)
    return Segment(0x2B, 0, FLAT, type=0x3, dpl=3, db=1, g=1)


def null_segment(base: int) -> Segment:
    return Segment(0, base, FLAT, type=3, dpl=3, db=1, g=1)


def start_state(mode: Mode) -> CpuState:
    """Everything that cases of a mode have in common."""
    data = data_segment(mode)
    return CpuState(
        mode.rip,
        code_segment(mode),
        ss=data,
        ds=data,
        es=data,
        fs=null_segment(FS_BASE),
        gs=null_segment(GS_BASE),
        cr0=int(Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG),
        cr3=PML4,
        cr4=int(Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.FSGSBASE),
        efer=int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE),
        gdtr=TableRegister(KERNEL + GDT, 0xFFF),
        idtr=TableRegister(KERNEL + IDT, 0xFFF),
        tr=Segment(0x40, KERNEL + TSS, 0x67, type=0xB, s=0),
    )


class EngineFailed(AssertionError):
    """The engine left for a reason that no case has."""


@dataclass(frozen=True, slots=True)
class Places:
    """Offsets in `State` that every case touches, in bytes."""

    flags: int = State.offset_of("flag_kind")  # then flag_a, flag_b
    xmm: int = State.offset_of("xmm")
    st: int = State.offset_of("st")
    fpu: int = State.offset_of("mxcsr")
    end: int = State.offset_of("mode")
    """What lies before it is set up anew for each case."""


class SoftTarget:
    """Runs cases on the soft engine.

    `stepping`: one instruction at a time (one iteration, if it is repeated), as on the host. Otherwise the engine runs
    freely until an exception, which a completed instruction meets behind itself; a jump to itself would then not end.
    """

    name = "soft"
    modes: tuple[Mode, ...] = tuple(Mode)
    kernel = KERNEL
    frame = FRAME

    def __init__(self, path: Path = Path.WARM, stepping: bool = True) -> None:
        self.path, self.stepping = path, stepping
        self.memory = GuestMemory(2 << 20)
        self._data_frame = CODE_FRAME if path is Path.WATCHED else DATA_FRAME
        self._write_tables()
        self.vcpu = SoftVcpu(self.memory)
        self._flush_tlb = self.vcpu.code.function("flush_tlb")
        self._arithmetic_flags = self.vcpu.code.function("arithmetic_flags", *[ctypes.c_uint64] * 3)
        self._state = memoryview(self.vcpu.region.map)[: State.SIZE]
        self._words = self.vcpu.q
        # SAFETY: the guest memory belongs to this object, as the vCPU does.
        whole = (ctypes.c_char * self.memory.size).from_address(self.memory.slots[0].host_address)
        self._guest = memoryview(whole).cast("B")
        self._templates = {mode: self._template(mode) for mode in self.modes}

    def _write_tables(self) -> None:
        write = self.memory.write
        user, kernel = 7, 3  # present, writable, user
        no_execute = 1 << 63
        for at, entry in (
            (PML4, PDPT | user), (PML4 + 8 * 256, KERNEL_PDPT | kernel), (PDPT, DIRECTORY | user),
            (DIRECTORY + 8 * (CODE >> 21 & 511), TABLE | user), (TABLE + 8 * (CODE >> 12 & 511), CODE_FRAME | user),
            (TABLE + 8 * (DATA >> 12 & 511), self._data_frame | user | no_execute), (KERNEL_PDPT, KERNEL_DIRECTORY | kernel),
            (KERNEL_DIRECTORY, 0x80 | kernel),
        ):  # fmt: skip
            write(at, entry.to_bytes(8, "little"))
        kernel_code = Segment(KERNEL_CS, 0, FLAT, type=0xB, l=1, g=1)
        write(GDT + KERNEL_CS, kernel_code.descriptor().to_bytes(8, "little"))
        write(TSS + 4, (KERNEL + STACK_TOP).to_bytes(8, "little"))
        for vector in range(32):
            stub = KERNEL + STUBS + 2 * vector
            gate = GATE.pack(stub & 0xFFFF, KERNEL_CS, 0xEE00, stub >> 16 & 0xFFFF, stub >> 32, 0)
            write(IDT + 16 * vector, gate)
        write(STUBS, HLT * 256)
        write(CODE_FRAME, HLT * PAGE)

    def _start_state(self, mode: Mode) -> CpuState:
        return start_state(mode)

    def _template(self, mode: Mode) -> bytes:
        vcpu = self.vcpu
        vcpu.start(self._start_state(mode))
        if self.path is Path.OUT_OF_LINE:
            vcpu.state.dr[0], vcpu.state.dr[7] = ELSEWHERE, 0x10401  # L0, one byte, writes
        return bytes(self._state[: PLACES.end])

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        return [self.run_one(case) for case in cases]

    def run_one(self, case: Case) -> Outcome:
        """Raises EngineFailed when the engine ends in no architectural way."""
        return self.run_code(case, case.code)

    def run_code(self, case: Case, code: bytes) -> Outcome:
        """As `run_one`, for other code (at most 64 bytes) in the state of the case."""
        mode, state, words = case.mode, self._state, self._words
        self.memory.write(CODE_FRAME, code.ljust(CODE_AREA, HLT))
        self._put_window(case.memory)
        state[: PLACES.end] = self._templates[mode]
        state[: WORDS.size] = WORDS.pack(*case.gpr)
        words[RIP] = mode.rip
        words[EFLAGS] = case.rflags & ~ARITHMETIC & ~CLEARED | SET_FLAGS
        words[FLAG_KIND], words[FLAG_A], words[FLAG_B] = int(Kind.RAW), 0, case.rflags & ARITHMETIC
        self._load_fxsave(case.fxsave)
        self._prepare(case)
        if self.path is Path.COLD:
            self._flush_tlb(self.vcpu.region.address)
        for _ in range(ITERATIONS if self.stepping and is_repeated(case.code, mode) else 1):
            words[STEPS] = self.stepping
            self.vcpu._call()
            if words[RIP] != mode.rip:
                break
        return self._outcome(case)

    def _outcome(self, case: Case) -> Outcome:
        words = self._words
        if words[EXIT_KIND] not in (ExitKind.SLICED, ExitKind.HALT):
            raise EngineFailed(f"{self.vcpu._exit()} in {case.name} ({case.mode.name}): {case.code.hex(' ')}")
        gpr = list(WORDS.unpack(self._state[: WORDS.size]))
        rip, vector, error = words[RIP], None, 0
        flags = words[FLAG_B]
        if words[FLAG_KIND] != Kind.RAW:
            flags = self._arithmetic_flags(self.vcpu.region.address, words[FLAG_KIND], words[FLAG_A], flags)
        rflags = words[EFLAGS] & ~ARITHMETIC | flags
        if words[CPL] == 0:
            vector = (rip - (self.kernel + STUBS)) // 2  # where the step after the fault has gone on already, or not
            frame = STACK_TOP - self.frame.size
            rip, _, rflags, gpr[4], _ = self.frame.unpack_from(self._guest, frame)
            if vector in PUSHES_ERROR_CODE:
                error = int.from_bytes(self._guest[frame - self.frame.size // 5 : frame], "little")
            if not self.stepping and rip != case.mode.rip:
                vector = None  # of what came after the instruction
        fxsave = self._save_fxsave(case.fxsave)
        return Outcome(tuple(gpr), rip, rflags, fxsave, self._window(), vector, error, words[CR2])

    def _prepare(self, case: Case) -> None:
        """What else a case needs."""

    def _put_window(self, data: bytes) -> None:
        self._guest[self._data_frame + PAGE - WINDOW_SIZE : self._data_frame + PAGE] = data

    def _window(self) -> bytes:
        return bytes(self._guest[self._data_frame + PAGE - WINDOW_SIZE : self._data_frame + PAGE])

    # -- x87 and SSE ---------------------------------------------------------------------------------------------------
    def _load_fxsave(self, image: bytes) -> None:
        state = self._state
        control, status, tags, _, _, _, mxcsr = HEADER.unpack_from(image)
        top = (status >> 11 & 7) * 16
        stack = image[32:160]
        state[PLACES.st : PLACES.st + 128] = stack[128 - top :] + stack[: 128 - top]
        state[PLACES.xmm : PLACES.xmm + 256] = image[160:416]
        FPU.pack_into(state, PLACES.fpu, mxcsr, control, status, FULL_TAGS[tags])

    def _save_fxsave(self, before: bytes) -> bytes:
        state = self._state
        mxcsr, control, status, tags = FPU.unpack_from(state, PLACES.fpu)
        top = (status >> 11 & 7) * 16
        abridged = sum((tags >> 2 * n & 3 != 3) << n for n in range(8))
        header = HEADER.pack(control, status, abridged, 0, 0, 0, mxcsr)
        st, xmm = bytes(state[PLACES.st : PLACES.st + 128]), bytes(state[PLACES.xmm : PLACES.xmm + 256])
        return header + before[len(header) : 32] + st[top:] + st[:top] + xmm + before[416:]


def _word(name: str) -> int:
    return State.offset_of(name) // 8


PLACES = Places()
RIP, EFLAGS, STEPS, EXIT_KIND, CPL, CR2 = map(_word, ("rip", "eflags", "steps", "exit_kind", "cpl", "cr2"))
FLAG_KIND, FLAG_A, FLAG_B = map(_word, ("flag_kind", "flag_a", "flag_b"))
FULL_TAGS = [sum((0 if tags >> n & 1 else 3) << 2 * n for n in range(8)) for tags in range(256)]


class Decoding:
    """The compiled decoder by itself."""

    def __init__(self) -> None:
        self._vcpu = SoftVcpu(GuestMemory(1 << 20))
        self._code = ctypes.create_string_buffer(64)
        self._op = ctypes.create_string_buffer(Op.SIZE)
        self._decode = self._vcpu.code.function("decode", *[ctypes.c_uint64] * 5)
        self._invalid = self._vcpu.code.handlers[0]

    def length_of(self, code: bytes, bits: int) -> int | None:
        """Length in bytes of the instruction at the start of `code`, for code segments of 16, 32 or 64 bits; None:
        #UD.
        """
        ctypes.memset(self._code, 0, 64)
        ctypes.memmove(self._code, code, len(code))
        places = ctypes.addressof(self._code), ctypes.addressof(self._op)
        # The first of the values that `decode` returns comes back where a C function's only one would.
        length = self._decode(self._vcpu.region.address, *places, 0, (16, 32, 64).index(bits), 0)
        handler = int.from_bytes(self._op.raw[:8], "little")
        return None if length > MAX_LENGTH or handler == self._invalid else length
