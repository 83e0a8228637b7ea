"""Guest values: fixed-width unsigned integers that are either known now (Python ints) or later (LLVM values).

`Bits` is the only value type that instruction semantics see. An operation asks the operands' backend: `Ints` computes
at once, a compiling backend (`xuni.isa.stage`) appends an LLVM instruction. An `Ints` value inside compiled code is a
constant, so constant folding needs no extra code.

Rules that hold for both backends:

* values are unsigned, in `[0, 2**width)`; `+ - *` wrap; `< <= > >=` compare unsigned, `slt sle sgt sge` signed;
* the operands of a binary operation have the same width; a Python int is lifted to the other's width;
* a shift count may have any width; a count of `width` or more gives 0 (`sar`: the sign);
* comparisons give `Bits` of width 1; `&`, `|`, `~` combine them, and `if` accepts them (compiled code only in functions
  marked `@staged`);
* `lanes` > 1 is a vector: every operation works lane by lane (`v.as_lanes(32)` re-slices a 128-bit value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

Raw = Any  # an int, a tuple of ints (lanes), or a backend's own value


def mask(width: int) -> int:
    """The largest value of `width` bits."""
    return (1 << width) - 1


def signed(value: int, width: int) -> int:
    """Two's complement reading of an unsigned `value`."""
    return value - ((value >> (width - 1)) << width)


class Backend(Protocol):
    """What computes. `width` is the operands' width in bits, `lanes` their number of lanes."""

    known: bool

    def binary(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw: ...
    def compare(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw: ...
    def unary(self, op: str, a: Raw, width: int, lanes: int) -> Raw: ...
    def resize(self, op: str, a: Raw, width: int, to: int, lanes: int) -> Raw: ...
    def select(self, c: Raw, a: Raw, b: Raw, width: int, lanes: int, one: bool) -> Raw: ...
    def relane(self, a: Raw, width: int, lanes: int, to_width: int, to_lanes: int) -> Raw: ...
    def lane(self, a: Raw, index: int, width: int, lanes: int) -> Raw: ...
    def gather(self, parts: Sequence[Raw], width: int) -> Raw: ...
    def shuffle(self, a: Raw, b: Raw, indexes: Sequence[int], width: int, lanes: int) -> Raw: ...
    def permute(self, a: Raw, control: Raw) -> Raw: ...
    def shift_all(self, op: str, a: Raw, count: Raw, width: int, lanes: int) -> Raw: ...
    def lift(self, value: Bits) -> Raw: ...


def _sar(a: int, n: int, width: int) -> int:
    return signed(a, width) >> min(n, width - 1)


def _sdiv(a: int, b: int, width: int) -> int:
    x, y = signed(a, width), signed(b, width)
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def _srem(a: int, b: int, width: int) -> int:
    x, y = signed(a, width), signed(b, width)
    return abs(x) % abs(y) * (-1 if x < 0 else 1)


def _signed_limit(value: int, width: int) -> int:
    return max(-1 << (width - 1), min(value, mask(width - 1)))


_BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul": lambda a, b, w: a * b,
    "and": lambda a, b, w: a & b,
    "or": lambda a, b, w: a | b,
    "xor": lambda a, b, w: a ^ b,
    "shl": lambda a, b, w: a << b if b < w else 0,
    "lshr": lambda a, b, w: a >> b if b < w else 0,
    "ashr": _sar,
    "udiv": lambda a, b, w: a // b,
    "urem": lambda a, b, w: a % b,
    "sdiv": _sdiv,
    "srem": _srem,
    "rotl": lambda a, b, w: a << b % w | a >> (w - b % w),
    "umin": lambda a, b, w: min(a, b),
    "umax": lambda a, b, w: max(a, b),
    "smin": lambda a, b, w: a if signed(a, w) < signed(b, w) else b,
    "smax": lambda a, b, w: b if signed(a, w) < signed(b, w) else a,
    "uadd.sat": lambda a, b, w: min(a + b, mask(w)),
    "usub.sat": lambda a, b, w: max(a - b, 0),
    "sadd.sat": lambda a, b, w: _signed_limit(signed(a, w) + signed(b, w), w),
    "ssub.sat": lambda a, b, w: _signed_limit(signed(a, w) - signed(b, w), w),
}
_COMPARE: dict[str, Callable[[int, int, int], bool]] = {
    "eq": lambda a, b, w: a == b,
    "ne": lambda a, b, w: a != b,
    "ult": lambda a, b, w: a < b,
    "ule": lambda a, b, w: a <= b,
    "slt": lambda a, b, w: signed(a, w) < signed(b, w),
    "sle": lambda a, b, w: signed(a, w) <= signed(b, w),
}
_UNARY: dict[str, Callable[[int, int], int]] = {
    "not": lambda a, w: ~a,
    "popcount": lambda a, w: a.bit_count(),
    "ctz": lambda a, w: (a & -a).bit_length() - 1 if a else w,
    "clz": lambda a, w: w - a.bit_length(),
    "bswap": lambda a, w: int.from_bytes(a.to_bytes(w // 8, "little"), "big"),
}


class Ints:
    """Now: a value is a Python int, or a tuple of them for several lanes."""

    known = True

    def binary(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw:
        f, m = _BINARY[op], mask(width)
        if lanes == 1:
            return f(a, b, width) & m
        return tuple(f(x, y, width) & m for x, y in zip(a, b, strict=True))

    def compare(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw:
        f = _COMPARE[op]
        if lanes == 1:
            return int(f(a, b, width))
        return tuple(int(f(x, y, width)) for x, y in zip(a, b, strict=True))

    def unary(self, op: str, a: Raw, width: int, lanes: int) -> Raw:
        f, m = _UNARY[op], mask(width)
        return f(a, width) & m if lanes == 1 else tuple(f(x, width) & m for x in a)

    def resize(self, op: str, a: Raw, width: int, to: int, lanes: int) -> Raw:
        if lanes == 1:
            return (signed(a, width) if op == "sext" else a) & mask(to)
        return tuple((signed(x, width) if op == "sext" else x) & mask(to) for x in a)

    def select(self, c: Raw, a: Raw, b: Raw, width: int, lanes: int, one: bool) -> Raw:
        if lanes == 1 or one:
            return a if c else b
        return tuple(x if k else y for k, x, y in zip(c, a, b, strict=True))

    def relane(self, a: Raw, width: int, lanes: int, to_width: int, to_lanes: int) -> Raw:
        whole = a if lanes == 1 else sum(x << (i * width) for i, x in enumerate(a))
        if to_lanes == 1:
            return whole
        return tuple(whole >> (i * to_width) & mask(to_width) for i in range(to_lanes))

    def lane(self, a: Raw, index: int, width: int, lanes: int) -> Raw:
        return a[index] if lanes > 1 else a

    def gather(self, parts: Sequence[Raw], width: int) -> Raw:
        return tuple(parts)

    def shuffle(self, a: Raw, b: Raw, indexes: Sequence[int], width: int, lanes: int) -> Raw:
        both = a + b
        return tuple(both[i] for i in indexes)

    def permute(self, a: Raw, control: Raw) -> Raw:
        return tuple(0 if c & 0x80 else a[c & 15] for c in control)

    def shift_all(self, op: str, a: Raw, count: Raw, width: int, lanes: int) -> Raw:
        return tuple(_BINARY[op](x, count, width) & mask(width) for x in a)

    def lift(self, value: Bits) -> Raw:
        return value.raw


INTS = Ints()


class Bits:
    """A guest value of `width` bits a lane. See the module's docstring for the rules."""

    __slots__ = ("backend", "lanes", "raw", "width")

    def __init__(self, backend: Backend, width: int, raw: Raw, lanes: int = 1) -> None:
        self.backend = backend
        self.width = width
        self.raw = raw
        self.lanes = lanes

    # -- what is known -------------------------------------------------------------------------------------------------
    @property
    def known(self) -> bool:
        """Whether the value is a Python int now."""
        return self.backend.known

    def __int__(self) -> int:
        if not self.backend.known:
            raise TypeError("this guest value is known only when compiled code runs; it cannot become a Python int")
        assert self.lanes == 1
        return int(self.raw)

    __index__ = __int__

    def __bool__(self) -> bool:
        if not self.backend.known:
            raise TypeError(
                "a guest value that is known later cannot decide a Python branch here; "
                "mark the function @staged, or use select(condition, a, b)"
            )
        return bool(self.raw)

    def __repr__(self) -> str:
        lanes = f"x{self.lanes}" if self.lanes > 1 else ""
        return f"u{self.width}{lanes}({self.raw if not isinstance(self.raw, int) else hex(self.raw)})"

    # -- arithmetic ----------------------------------------------------------------------------------------------------
    def _other(self, other: Bits | int) -> Bits:
        if isinstance(other, Bits):
            if other.width != self.width or other.lanes != self.lanes:
                raise TypeError(f"operand widths differ: {self!r} and {other!r}; use zext, sext or trunc")
            return other
        value = int(other) & mask(self.width)  # a plain int: `~` on an IntFlag knows only its named bits
        return Bits(INTS, self.width, value if self.lanes == 1 else (value,) * self.lanes, self.lanes)

    def _known(self, other: Bits | int) -> int | None:
        """The value of the second operand where both are plain ints: most operations of plain code."""
        if self.backend is not INTS or self.lanes > 1:
            return None
        if isinstance(other, Bits):
            return other.raw if other.backend is INTS and other.width == self.width and other.lanes == 1 else None
        return int(other) & ((1 << self.width) - 1)

    def _binary(self, op: str, other: Bits | int) -> Bits:
        known = self._known(other)
        if known is not None:
            return Bits(INTS, self.width, _BINARY[op](self.raw, known, self.width) & ((1 << self.width) - 1))
        other = self._other(other)
        backend = self.backend if not self.backend.known else other.backend
        raw = backend.binary(op, backend.lift(self), backend.lift(other), self.width, self.lanes)
        return Bits(backend, self.width, raw, self.lanes)

    def _compare(self, op: str, other: Bits | int) -> Bits:
        known = self._known(other)
        if known is not None:
            return Bits(INTS, 1, int(_COMPARE[op](self.raw, known, self.width)))
        other = self._other(other)
        backend = self.backend if not self.backend.known else other.backend
        raw = backend.compare(op, backend.lift(self), backend.lift(other), self.width, self.lanes)
        return Bits(backend, 1, raw, self.lanes)

    def _count(self, count: Bits | int) -> Bits | int:
        """A shift count in the width of the value; a count too big for that width stays too big."""
        if isinstance(count, int):
            return min(count, self.width)
        if count.lanes != self.lanes:
            assert count.lanes == 1
            return splat(self._count_width(count), self.lanes)
        return self._count_width(count)

    def _count_width(self, count: Bits) -> Bits:
        if count.width < self.width:
            return count.zext(self.width)
        if count.width > self.width:
            limit = min(self.width, mask(self.width))
            return select(count < limit, count, Bits(INTS, count.width, limit)).trunc(self.width)
        return count

    def __add__(self, other: Bits | int) -> Bits:
        return self._binary("add", other)

    def __radd__(self, other: int) -> Bits:
        return self._other(other)._binary("add", self)

    def __sub__(self, other: Bits | int) -> Bits:
        return self._binary("sub", other)

    def __rsub__(self, other: int) -> Bits:
        return self._other(other)._binary("sub", self)

    def __mul__(self, other: Bits | int) -> Bits:
        return self._binary("mul", other)

    def __and__(self, other: Bits | int) -> Bits:
        return self._binary("and", other)

    __rand__ = __and__

    def __or__(self, other: Bits | int) -> Bits:
        return self._binary("or", other)

    __ror__ = __or__

    def __xor__(self, other: Bits | int) -> Bits:
        return self._binary("xor", other)

    __rxor__ = __xor__

    def __invert__(self) -> Bits:
        return self._unary("not")

    def __neg__(self) -> Bits:
        return self._other(0)._binary("sub", self)

    def __lshift__(self, count: Bits | int) -> Bits:
        return self._binary("shl", self._count(count))

    def __rshift__(self, count: Bits | int) -> Bits:
        return self._binary("lshr", self._count(count))

    def sar(self, count: Bits | int) -> Bits:
        """Arithmetic shift right."""
        return self._binary("ashr", self._count(count))

    def rotl(self, count: Bits | int) -> Bits:
        """Rotate left; the count is taken modulo the width."""
        return self._binary("rotl", self._count(count) if isinstance(count, Bits) else count % self.width)

    def rotr(self, count: Bits | int) -> Bits:
        """Rotate right; the count is taken modulo the width (a power of two)."""
        if isinstance(count, int):
            return self.rotl(-count % self.width)
        return self.rotl(-count)

    def udiv(self, other: Bits | int) -> Bits:
        """Unsigned quotient; the divisor is not 0 (up to 64 bits in compiled code)."""
        return self._binary("udiv", other)

    def urem(self, other: Bits | int) -> Bits:
        """Unsigned remainder; the divisor is not 0."""
        return self._binary("urem", other)

    def sdiv(self, other: Bits | int) -> Bits:
        """Signed quotient, truncated; the divisor is not 0 and the quotient fits."""
        return self._binary("sdiv", other)

    def srem(self, other: Bits | int) -> Bits:
        """Signed remainder with the dividend's sign."""
        return self._binary("srem", other)

    def umin(self, other: Bits | int) -> Bits:
        return self._binary("umin", other)

    def umax(self, other: Bits | int) -> Bits:
        return self._binary("umax", other)

    def smin(self, other: Bits | int) -> Bits:
        return self._binary("smin", other)

    def smax(self, other: Bits | int) -> Bits:
        return self._binary("smax", other)

    def add_saturated(self, other: Bits | int, is_signed: bool) -> Bits:
        """Sum; one that does not fit becomes the nearest value that does."""
        return self._binary("sadd.sat" if is_signed else "uadd.sat", other)

    def sub_saturated(self, other: Bits | int, is_signed: bool) -> Bits:
        """Difference; one that does not fit becomes the nearest value that does."""
        return self._binary("ssub.sat" if is_signed else "usub.sat", other)

    def _unary(self, op: str) -> Bits:
        return Bits(self.backend, self.width, self.backend.unary(op, self.raw, self.width, self.lanes), self.lanes)

    def popcount(self) -> Bits:
        """Number of 1 bits, in the same width."""
        return self._unary("popcount")

    def ctz(self) -> Bits:
        """Index of the lowest 1 bit; the width for 0."""
        return self._unary("ctz")

    def clz(self) -> Bits:
        """Number of leading 0 bits; the width for 0."""
        return self._unary("clz")

    def bswap(self) -> Bits:
        """Bytes reversed."""
        return self._unary("bswap")

    # -- comparison ----------------------------------------------------------------------------------------------------
    def __eq__(self, other: Bits | int) -> Bits:  # type: ignore[override]
        return self._compare("eq", other)

    def __ne__(self, other: Bits | int) -> Bits:  # type: ignore[override]
        return self._compare("ne", other)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Bits | int) -> Bits:
        return self._compare("ult", other)

    def __le__(self, other: Bits | int) -> Bits:
        return self._compare("ule", other)

    def __gt__(self, other: Bits | int) -> Bits:
        return self._other(other)._compare("ult", self)

    def __ge__(self, other: Bits | int) -> Bits:
        return self._other(other)._compare("ule", self)

    def slt(self, other: Bits | int) -> Bits:
        return self._compare("slt", other)

    def sle(self, other: Bits | int) -> Bits:
        return self._compare("sle", other)

    def sgt(self, other: Bits | int) -> Bits:
        return self._other(other)._compare("slt", self)

    def sge(self, other: Bits | int) -> Bits:
        return self._other(other)._compare("sle", self)

    # -- width ---------------------------------------------------------------------------------------------------------
    def _resize(self, op: str, to: int) -> Bits:
        if to == self.width:
            return self
        return Bits(self.backend, to, self.backend.resize(op, self.raw, self.width, to, self.lanes), self.lanes)

    def zext(self, to: int) -> Bits:
        """Zero-extended to `to` >= width bits."""
        assert to >= self.width, f"zext from {self.width} to {to}"
        return self._resize("zext", to)

    def sext(self, to: int) -> Bits:
        """Sign-extended to `to` >= width bits."""
        assert to >= self.width, f"sext from {self.width} to {to}"
        return self._resize("sext", to)

    def trunc(self, to: int) -> Bits:
        """The low `to` <= width bits."""
        assert to <= self.width, f"trunc from {self.width} to {to}"
        return self._resize("trunc", to)

    def __getitem__(self, bit: int) -> Bits:
        """One bit, width 1; negative indexes count from the top."""
        at = bit % self.width
        return self._resize("trunc", 1) if at == 0 else (self >> at)._resize("trunc", 1)

    def field(self, low: int, width: int) -> Bits:
        """`width` bits from bit `low` upward."""
        return (self >> low if low else self).trunc(width)

    def bit(self, index: Bits) -> Bits:
        """The bit at a dynamic index, width 1."""
        return (self >> index).trunc(1)

    # -- lanes ---------------------------------------------------------------------------------------------------------
    def as_lanes(self, width: int) -> Bits:
        """The same bits as lanes of another width (lane 0 is the least significant); one lane gives a plain value."""
        total = self.width * self.lanes
        if width == self.width:
            return self
        raw = self.backend.relane(self.raw, self.width, self.lanes, width, total // width)
        return Bits(self.backend, width, raw, total // width)

    def lane(self, index: int) -> Bits:
        """One lane as a plain value."""
        return Bits(self.backend, self.width, self.backend.lane(self.raw, index, self.width, self.lanes))

    def shuffle(self, indexes: Sequence[int], other: Bits | None = None) -> Bits:
        """A vector of the lanes that `indexes` (two or more) name; the lanes of `other` are numbered after those of
        `self`.
        """
        assert self.lanes > 1 and len(indexes) > 1
        b = self if other is None else self._other(other)
        backend = self.backend if not self.backend.known else b.backend
        raw = backend.shuffle(backend.lift(self), backend.lift(b), indexes, self.width, self.lanes)
        return Bits(backend, self.width, raw, len(indexes))

    def permute(self, control: Bits) -> Bits:
        """16 lanes of 8 bits, chosen at run time: lane `control[i] & 15`, or 0 where bit 7 of `control[i]` is 1."""
        assert (self.width, self.lanes) == (control.width, control.lanes) == (8, 16)
        backend = self.backend if not self.backend.known else control.backend
        return Bits(backend, 8, backend.permute(backend.lift(self), backend.lift(control)), 16)

    def shift_all(self, op: str, count: Bits) -> Bits:
        """All lanes of 128 bits (lanes of 16, 32 or 64) shifted by one count of 64 bits; `op` is shl, lshr or ashr."""
        assert self.width * self.lanes == 128 and count.width == 64 and count.lanes == 1
        backend = self.backend if not self.backend.known else count.backend
        raw = backend.shift_all(op, backend.lift(self), backend.lift(count), self.width, self.lanes)
        return Bits(backend, self.width, raw, self.lanes)


A = TypeVar("A")

# Annotations of parameters and results: `def f(cpu: Cpu, address: U64) -> U32`. The compiler reads the
# width off the name.
U1 = Annotated[Bits, 1]
U8 = Annotated[Bits, 8]
U16 = Annotated[Bits, 16]
U32 = Annotated[Bits, 32]
U64 = Annotated[Bits, 64]
U128 = Annotated[Bits, 128]


def const(value: int, width: int) -> Bits:
    """A value that is known now."""
    return Bits(INTS, width, int(value) & mask(width))


def u1(value: int) -> Bits:
    return const(value, 1)


def u8(value: int) -> Bits:
    return const(value, 8)


def u16(value: int) -> Bits:
    return const(value, 16)


def u32(value: int) -> Bits:
    return const(value, 32)


def u64(value: int) -> Bits:
    return const(value, 64)


def lanes_of(width: int, *values: int) -> Bits:
    """Values known now as lanes of `width` bits, the first one least significant."""
    return Bits(INTS, width, tuple(v & mask(width) for v in values), len(values))


def splat(value: Bits, lanes: int) -> Bits:
    """The same value in every lane."""
    return vector([value] * lanes)


def vector(parts: Sequence[Bits]) -> Bits:
    """Plain values as lanes, the first one least significant."""
    first = next((p for p in parts if not p.known), parts[0])
    backend = first.backend
    return Bits(backend, first.width, backend.gather([backend.lift(p) for p in parts], first.width), len(parts))


def select(condition: Bits, a: Bits | int, b: Bits | int) -> Bits:
    """`a` where `condition` (width 1; one, or one a lane) is 1, else `b`. Both are evaluated."""
    if isinstance(a, int):
        assert isinstance(b, Bits), "select needs one operand with a width"
        a = b._other(a)
    b = a._other(b)
    if condition.known and condition.lanes == 1:
        return a if condition.raw else b
    backend = next((x.backend for x in (condition, a, b) if not x.known), condition.backend)
    one = condition.lanes == 1
    raw = backend.select(backend.lift(condition), backend.lift(a), backend.lift(b), a.width, a.lanes, one)
    return Bits(backend, a.width, raw, a.lanes)


def concat(high: Bits, low: Bits) -> Bits:
    """`high` above `low`."""
    width = high.width + low.width
    return high.zext(width) << low.width | low.zext(width)
