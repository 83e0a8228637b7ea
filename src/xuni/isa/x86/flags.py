"""The arithmetic flags, and the one home of each flag formula.

Flags are lazy: an instruction records which formula applies and its operands, and the flags are computed when something
reads them. Three values say everything: `kind`, `a`, `b`.

    RAW          b is CF PF AF ZF SF OF at their places in EFLAGS
    RESULT       a is the result, sign-extended to 64 bits: ZF, SF and PF follow; b has CF, AF and OF at their places
    SUB8..SUB64  the flags of a - b, both zero-extended
    ADD8..ADD64  a is the sum, b one addend, both zero-extended

In handlers the three travel in machine registers; elsewhere they lie in the state.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from xuni.isa.bits import U64, Bits, const, select, u1, u64
from xuni.isa.stage import likely, native, pure, staged, staging

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


class Kind(IntEnum):
    RAW, RESULT, SUB8, SUB16, SUB32, SUB64, ADD8, ADD16, ADD32, ADD64 = range(10)


class Condition(IntEnum):
    """The low four bits of Jcc, SETcc and CMOVcc opcodes."""

    O, NO, B, AE, E, NE, BE, A, S, NS, P, NP, L, GE, LE, G = range(16)


_LOG2 = {8: 0, 16: 1, 32: 2, 64: 3}
CF, PF, AF, ZF, SF, OF = 0, 2, 4, 6, 7, 11  # bit numbers
FLAG_BITS = {"cf": CF, "pf": PF, "af": AF, "zf": ZF, "sf": SF, "of": OF}


def parity(value: Bits) -> Bits:
    """PF: 1 if the low byte has an even number of 1 bits."""
    low = value.trunc(8) if value.width > 8 else value
    for shift in (4, 2, 1):  # xor the byte onto its own bit 0
        low = low ^ (low >> shift)
    return ~low[0]


def overflow_add(a: Bits, b: Bits, r: Bits) -> Bits:
    return ((a ^ r) & (b ^ r))[-1]


def overflow_sub(a: Bits, b: Bits, r: Bits) -> Bits:
    return ((a ^ b) & (a ^ r))[-1]


def adjust(a: Bits, b: Bits, r: Bits) -> Bits:
    """AF: carry or borrow between bits 3 and 4."""
    return (a ^ b ^ r)[4]


class Flags:
    """The arithmetic flags of one processor."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.undefined: set[str] = set()

    # -- storage -------------------------------------------------------------------------------------------------------
    def _put(self, kind: Kind | Bits, a: Bits | int, b: Bits) -> None:
        stage = staging()
        kind = kind if isinstance(kind, Bits) else u64(kind)
        if stage is not None and "flag_kind" in stage.code.registers:
            stage.code.registers.update(flag_kind=kind, flag_b=b)
            if not isinstance(a, int):
                stage.code.registers["flag_a"] = a
            return
        s = self.cpu.s
        s.flag_kind = kind
        s.flag_a = a if isinstance(a, Bits) else u64(a)
        s.flag_b = b

    def _get(self) -> tuple[Bits, Bits, Bits]:
        stage = staging()
        if stage is not None and "flag_kind" in stage.code.registers:
            r = stage.code.registers
            return r["flag_kind"], r["flag_a"], r["flag_b"]
        s = self.cpu.s
        return s.flag_kind, s.flag_a, s.flag_b

    # -- setting -------------------------------------------------------------------------------------------------------
    def set_sub(self, a: Bits, b: Bits) -> None:
        """All six flags of `a - b` (SUB, CMP, NEG as 0 - b, CMPS, SCAS, CMPXCHG)."""
        self._put(Kind(Kind.SUB8 + _LOG2[a.width]), a.zext(64), b.zext(64))

    def set_add(self, b: Bits, r: Bits) -> None:
        """All six flags of the addition of `b` that gave `r` (ADD, XADD)."""
        self._put(Kind(Kind.ADD8 + _LOG2[b.width]), r.zext(64), b.zext(64))

    def set_logic(self, r: Bits) -> None:
        """AND, OR, XOR, TEST: CF = OF = 0, AF undefined (0 here, as processors do)."""
        self._put(Kind.RESULT, r.sext(64), u64(0))

    def set_result(self, r: Bits, cf: Bits | int, of: Bits | int, af: Bits | int = 0) -> None:
        """ZF, SF and PF of `r`; the other three as given."""
        rest = self._place(cf, CF) | self._place(of, OF) | self._place(af, AF)
        self._put(Kind.RESULT, r.sext(64), rest)

    def set_all(self, value: Bits) -> None:
        """The six flags from an EFLAGS image of 64 bits; other bits are ignored."""
        self._put(Kind.RAW, 0, value & 0x8D5)

    @staged
    def change(self, **flags: Bits | int) -> None:
        """Some flags (`cf=`, `zf=`, ...), the others as they are."""
        kind, a, b = self._get()
        clear, new = 0, u64(0)
        for name, flag in flags.items():
            clear |= 1 << FLAG_BITS[name]
            new = new | self._place(flag, FLAG_BITS[name])
        # RAW has all flags in b, RESULT has CF, AF and OF there.
        simple = Kind.RAW if clear & (1 << ZF | 1 << SF | 1 << PF) else Kind.RESULT
        if kind.known:
            if int(kind) <= simple:
                self._put(Kind(int(kind)), a, (b & ~clear) | new)
            else:
                self._put(Kind.RAW, 0, (_compute(Kind(int(kind)), a, b) & ~clear) | new)
        elif likely(kind <= simple):
            self._put(kind, a, (b & ~clear) | new)
        else:
            self._put(Kind.RAW, 0, (arithmetic_flags(self.cpu, kind, a, b) & ~clear) | new)

    def set_carry(self, cf: Bits) -> None:
        """CF; ZF stays, the others become undefined (BT and its kin)."""
        self._put(Kind.RESULT, _nonzero(*self._get()), self._place(cf, CF))

    def leave_undefined(self, *names: str) -> None:
        """Declare flags of the current instruction undefined: they keep whatever the formula gave; tests mask them."""
        self.undefined.update(names)

    @staticmethod
    def _place(flag: Bits | int, bit: int) -> Bits:
        if isinstance(flag, int):
            return u64(flag << bit)
        return flag.zext(64) << bit

    # -- reading -------------------------------------------------------------------------------------------------------
    @property
    def value(self) -> Bits:
        """The six flags at their places in EFLAGS, 64 bits wide."""
        kind, a, b = self._get()
        if kind.known:
            return _compute(Kind(int(kind)), a, b)
        return arithmetic_flags(self.cpu, kind, a, b)

    @property
    def cf(self) -> Bits:
        return self.condition(Condition.B)

    @property
    def zf(self) -> Bits:
        return self.condition(Condition.E)

    @property
    def sf(self) -> Bits:
        return self.condition(Condition.S)

    @property
    def of(self) -> Bits:
        return self.condition(Condition.O)

    @property
    def pf(self) -> Bits:
        return self.condition(Condition.P)

    @property
    def af(self) -> Bits:
        return self.value[AF]

    def condition(self, cc: int) -> Bits:
        """The condition that the low four bits of a Jcc opcode name, width 1."""
        kind, a, b = self._get()
        if kind.known:
            positive = _condition(Kind(int(kind)), cc >> 1, a, b)
        elif cc >> 1 in (1, 2, 3):
            positive = _quick_condition(cc >> 1, kind, a, b)
        else:
            positive = _raw_condition(cc >> 1, arithmetic_flags(self.cpu, kind, a, b))
        return ~positive if cc & 1 else positive


def _raw_condition(which: int, value: Bits) -> Bits:
    match which:
        case 0:
            return value[OF]
        case 1:
            return value[CF]
        case 2:
            return value[ZF]
        case 3:
            return (value & (1 << CF | 1 << ZF)) != 0
        case 4:
            return value[SF]
        case 5:
            return value[PF]
        case 6:
            return value[SF] ^ value[OF]
    return (value[SF] ^ value[OF]) | value[ZF]


def _nonzero(kind: Bits, a: Bits, b: Bits) -> Bits:
    """A value that is 0 exactly if ZF is set, for any formula: the operands of all others but RAW are zero-extended."""
    difference = a - select(kind - Kind.SUB8 < Kind.ADD8 - Kind.SUB8, b, 0)
    return select(kind == Kind.RAW, ~b & (1 << ZF), difference)


def _quick_condition(which: int, kind: Bits, a: Bits, b: Bits) -> Bits:
    """CF, ZF, or either of them, for any formula. A sum carried if it is less than an addend."""
    carry = select(kind <= Kind.RESULT, b[CF], a < b)
    if which == 1:
        return carry
    zero = _nonzero(kind, a, b) == 0
    return zero if which == 2 else carry | zero


def _condition(kind: Kind, which: int, a: Bits, b: Bits) -> Bits:
    """One of the eight positive conditions, for a formula that is known now."""
    if kind == Kind.RAW:
        return _raw_condition(which, b)
    if kind == Kind.RESULT:
        zero, sign = a == 0, a[63]
        match which:
            case 0:
                return b[OF]
            case 1:
                return b[CF]
            case 2:
                return zero
            case 3:
                return b[CF] | zero
            case 4:
                return sign
            case 5:
                return parity(a)
            case 6:
                return sign ^ b[OF]
        return (sign ^ b[OF]) | zero
    if kind >= Kind.ADD8:
        width = 8 << (kind - Kind.ADD8)
        r, y = a.trunc(width), b.trunc(width)
        match which:
            case 1:
                return r < y
            case 2:
                return r == 0
            case 4:
                return r[-1]
            case 5:
                return parity(r)
        return _raw_condition(which, _compute(kind, a, b))
    width = 8 << (kind - Kind.SUB8)
    x, y = a.trunc(width), b.trunc(width)
    match which:
        case 0:
            return overflow_sub(x, y, x - y)
        case 1:
            return x < y
        case 2:
            return x == y
        case 3:
            return x <= y
        case 4:
            return (x - y)[-1]
        case 5:
            return parity(x - y)
        case 6:
            return x.slt(y)
    return x.sle(y)


def _image(cf: Bits, of: Bits, af: Bits, r: Bits) -> Bits:
    return (
        cf.zext(64) | of.zext(64) << OF | af.zext(64) << AF
        | (r == 0).zext(64) << ZF | r[-1].zext(64) << SF | parity(r).zext(64) << PF
    )  # fmt: skip


def _compute(kind: Kind, a: Bits, b: Bits) -> Bits:
    """The EFLAGS image of a formula that is known now."""
    if kind == Kind.RAW:
        return b
    if kind == Kind.RESULT:
        return b | (a == 0).zext(64) << ZF | a[63].zext(64) << SF | parity(a).zext(64) << PF
    if kind >= Kind.ADD8:
        width = 8 << (kind - Kind.ADD8)
        r, y = a.trunc(width), b.trunc(width)
        x = r - y
        return _image(r < y, overflow_add(x, y, r), adjust(x, y, r), r)
    width = 8 << (kind - Kind.SUB8)
    x, y = a.trunc(width), b.trunc(width)
    r = x - y
    return _image(x < y, overflow_sub(x, y, r), adjust(x, y, r), r)


@staged
def _arithmetic_flags(kind: Bits, a: Bits, b: Bits) -> Bits:
    if kind == Kind.RAW:
        return b
    if kind == Kind.RESULT:
        return _compute(Kind.RESULT, a, b)
    if kind >= Kind.ADD8:
        # Scale the operands to the top of 64 bits; AF and PF need them where they are.
        shift = u64(64) - (u64(8) << (kind - Kind.ADD8))
        return _scaled(u1(1), (a - b) << shift, b << shift, a << shift, a - b, b, a)
    shift = u64(64) - (u64(8) << (kind - Kind.SUB8))
    return _scaled(u1(0), a << shift, b << shift, (a - b) << shift, a, b, a - b)


def _scaled(addition: Bits, x: Bits, y: Bits, r: Bits, low_x: Bits, low_y: Bits, low_r: Bits) -> Bits:
    cf = select(addition, r < y, x < y)
    of = select(addition, overflow_add(x, y, r), overflow_sub(x, y, r))
    return (
        cf.zext(64) | of.zext(64) << OF | adjust(low_x, low_y, low_r).zext(64) << AF
        | (r == 0).zext(64) << ZF | r[63].zext(64) << SF | parity(low_r).zext(64) << PF
    )  # fmt: skip


@pure
@native
def arithmetic_flags(cpu: Cpu, kind: U64, a: U64, b: U64) -> U64:
    """The six flags at their places in EFLAGS, for any formula."""
    return _arithmetic_flags(kind, a, b)


def pack(value: int) -> tuple[int, int, int]:
    """`kind, a, b` for an EFLAGS image, for code outside the processor."""
    return Kind.RAW, 0, value & 0x8D5


def unpack(kind: int, a: int, b: int) -> int:
    """The EFLAGS image of lazy flags, for code outside the processor."""
    return int(_compute(Kind(kind), const(a, 64), const(b, 64)))
