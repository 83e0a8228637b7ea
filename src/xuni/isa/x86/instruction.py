"""What an instruction definition is: a name, its encodings, and a function that gives its meaning.

    @instruction("IMUL", "0F AF /r Gv Ev", "69 /r Gv Ev Iz", "6B /r Gv Ev Ibs")
    def imul(cpu: Cpu, dst: Operand, left: Operand, right: Operand) -> None: ...

An encoding is, in this order and separated by blanks:

    prefixes   NP 66 F3 F2 (mandatory prefixes of 0F maps; without one, 66 and F3/F2 mean operand size and REP),
               REX.W / REX.W0 (only with / without REX.W), or VEX.L0.66.0F38.W0 (L0 L1 LIG; NP 66 F3 F2; 0F 0F38 0F3A;
               W0 W1 WIG)
    opcode     hexadecimal bytes; `40+r` takes a register from the low three bits; a byte after the opcode that is C0 or
               more is a fixed ModRM byte, `D8 C0+i` fixes its upper five bits
    ModRM      /r, or /0 ... /7 when ModRM.reg extends the opcode
    operands   codes in the style of SDM vol. 2, appendix A, in the order the function takes them (destination first;
               an instruction with an implicit third operand lists it):
        Eb Ew Ed Eq Ev Ey   ModRM.rm: general register or memory (v: 16/32/64 by operand size, y: 32/64, z: 16/32;
                            Ez too)
        Gb Gw Gd Gq Gv Gy   ModRM.reg: general register           Rv Ry Rd Rq: ModRM.rm, register only
        M Mb Mw Md Mq Mv My Mdq Mp Ms   ModRM.rm: memory only (M: address only; Mdq, Mx: 128 bits, read as 2 lanes of
                            64, Mx aligned; Mt: 80 bits, the same with 16 bits in use in the upper lane)
        Zv Zb               register in the opcode's low three bits     By: VEX.vvvv general register Ib Iw Iz Iv Ibs
        Ibu Iwb  immediate: Iz is 16/32 bits sign-extended to v; Ibs is 8 bits sign-extended to the operand
                            size; Iwb is a word and a byte, 24 bits
        1 AL CL AX DX EAX rAX            fixed operands Xb Xv Yb Yv         memory at rSI (DS unless overridden) and at
        ES:rDI, by address size Ob Ov               memory at an immediate address      Ap: far pointer      Jb Jz:
        branch displacement Sw Cy Dy            segment, control, debug register number (ModRM.reg): `.index` is a Bits
        of 8 Vx Wx Ux            XMM register (ModRM.reg) / XMM or 128-bit memory / XMM in ModRM.rm only: 2 lanes of 64
        Vss Vsd Vd Vq Wss Wsd Wd Wq Ww Wb Ud Uq   the low 32, 64 ... bits of the same (writing a register keeps the
        rest) Wxu                 as Wx without the alignment check (MOVUPS ...) Pq Qq Nq Pd Qd      MMX register / MMX
        or 64-bit memory / register only STi                 x87 stack register by ModRM.rm: `.index` is its number (see
        x87_stack.py)
    mode       i64 (invalid in 64-bit mode), o64 (only there), d64 (64-bit operand size by default there), f64 (always)

`cpu.osize`, `cpu.asize`, `cpu.long`, `cpu.rep`, `cpu.lock` are known when the function runs.

To add an instruction: write it in its family's file beside its encodings, and its test in tests/isa; nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from xuni.isa.bits import Bits
from xuni.isa.stage import staged


class Operand(Protocol):
    """What an encoding's operand code becomes. `width` is in bits and known now."""

    width: int
    lanes: int
    is_memory: bool

    def read(self) -> Bits:
        """The value: `width` bits, or `lanes` of them."""
        ...

    def write(self, value: Bits) -> None:
        """Store. A 32-bit general register is zero-extended; an XMM register keeps bits above `width * lanes`."""
        ...

    @property
    def offset(self) -> Bits:
        """Memory only: the effective address (64 bits, already cut to the address size), before segmentation."""
        ...

    def displaced(self, by: Bits) -> Operand:
        """Memory only: the operand of the same width `by` bytes (64 bits, signed) away."""
        ...

    @property
    def segment(self) -> Bits:
        """Memory only: the segment register's number (8 bits)."""
        ...

    @property
    def index(self) -> Bits:
        """Register number (8 bits), for segment, control and debug registers."""
        ...


@dataclass(frozen=True, slots=True)
class Definition:
    """One instruction: `encodings` as written, `run(cpu, *operands)` its meaning."""

    name: str
    encodings: tuple[str, ...]
    run: Callable[..., None]
    feature: str
    lock: bool
    rep: str
    ends: bool
    cold: bool
    condition: bool
    fpu: str


DEFINITIONS: list[Definition] = []
F = TypeVar("F", bound=Callable[..., Any])


def instruction(name: str, *encodings: str, feature: str = "base", lock: bool = False, rep: str = "",
                ends: bool = False, cold: bool = False, condition: bool = False, fpu: str = "") -> Callable[[F], F]:
    """Register the meaning of an instruction.

    feature    the CPUID feature (features.py) without which the encoding is #UD
    lock       LOCK is allowed with a memory destination (first operand): its read and write become one atomic update
    rep        "rep": REP allowed (INS, OUTS, MOVS, LODS, STOS); "repe": REPE/REPNE allowed (CMPS, SCAS)
    ends       ends a decoded block: it may change RIP, the mode, privilege, page tables, or whether interrupts are
               taken
    cold       rare: compiled small (flags live in the state, memory operands take the out-of-line path)
    condition  reads flags on a hot path: variants are made for the common producers of flags
    fpu        "x87", "mmx" or "sse": which availability check comes first (CR0.EM/TS, CR4.OSFXSR)
    """

    def register(function: F) -> F:
        run = cast(F, staged(function))
        DEFINITIONS.append(Definition(name, encodings, run, feature, lock, rep, ends, cold, condition, fpu))
        return run

    return register
