"""Floating point on Python ints, exact to the bit and to the exception flag: IEEE 754 as x86 processors have it.

A value is decoded into a `Number` (class, sign, `significand * 2**exponent`); operations compute on exact integers, and
`Context.pack` rounds once. What differs from other processors, and is done here (SDM vol. 1, 4.8.3.5, 4.9, 8.5, 11.5):

* NaN results: an operand's NaN, made quiet, if there is one, else the default NaN (negative, only the quiet bit set);
* tininess is detected after rounding; a masked underflow is flagged only if the result is also inexact;
* denormal operands raise DE; DAZ reads them as zeros, FTZ writes zeros instead of denormal results (MXCSR only);
* the 80-bit format has an explicit integer bit: encodings without it (unnormals, pseudo-NaNs) are invalid operands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from math import isqrt


class Flag(IntFlag):
    """Exception flags, as bits 0-5 of MXCSR and of the x87 status word."""

    IE = 1 << 0
    DE = 1 << 1
    ZE = 1 << 2
    OE = 1 << 3
    UE = 1 << 4
    PE = 1 << 5


BEFORE = Flag.IE | Flag.DE | Flag.ZE  # detected before computing: unmasked, they suppress the others


class Rounding(IntEnum):
    """The RC field of MXCSR and of the x87 control word."""

    NEAREST, DOWN, UP, ZERO = range(4)


class Class(Enum):
    ZERO, FINITE, INFINITY, QNAN, SNAN, UNSUPPORTED = range(6)


@dataclass(frozen=True)
class Format:
    """A binary format: `precision` counts the integer bit, which is explicit in the 80-bit format."""

    name: str
    width: int
    precision: int
    exponent_bits: int
    explicit: bool = False

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def top(self) -> int:
        """The exponent field of infinities and NaNs."""
        return (1 << self.exponent_bits) - 1

    @property
    def fraction_bits(self) -> int:
        """How many bits lie below the exponent field."""
        return self.precision if self.explicit else self.precision - 1

    @property
    def quiet(self) -> int:
        """The bit that tells quiet NaNs from signalling ones."""
        return 1 << (self.precision - 2)

    @property
    def default_nan(self) -> int:
        return self.compose(1, self.top, self.quiet | self.integer)

    @property
    def integer(self) -> int:
        """The integer bit as the encoding has it."""
        return 1 << (self.precision - 1) if self.explicit else 0

    def compose(self, sign: int, exponent: int, fraction: int) -> int:
        return sign << (self.width - 1) | exponent << self.fraction_bits | fraction

    def zero(self, sign: int) -> int:
        return self.compose(sign, 0, 0)

    def infinity(self, sign: int) -> int:
        return self.compose(sign, self.top, self.integer)

    def largest(self, sign: int) -> int:
        """The finite value of the greatest magnitude."""
        return self.compose(sign, self.top - 1, (1 << self.fraction_bits) - 1)


F32 = Format("single", 32, 24, 8)
F64 = Format("double", 64, 53, 11)
X80 = Format("double extended", 80, 64, 15, explicit=True)


@dataclass(frozen=True)
class Number:
    """A decoded operand. Finite ones have a `significand` other than 0; `bits` are those of the encoding."""

    kind: Class
    sign: int
    significand: int
    exponent: int
    bits: int
    format: Format
    denormal: bool = False

    @property
    def is_nan(self) -> bool:
        return self.kind in (Class.QNAN, Class.SNAN)

    @property
    def is_zero(self) -> bool:
        return self.kind is Class.ZERO

    @property
    def is_infinite(self) -> bool:
        return self.kind is Class.INFINITY


def decode(bits: int, format: Format) -> Number:
    """An encoding taken apart."""
    sign = bits >> (format.width - 1) & 1
    exponent = bits >> format.fraction_bits & format.top
    fraction = bits & ((1 << format.fraction_bits) - 1)
    scale = exponent - format.bias - (format.precision - 1)
    if format.explicit and exponent and not fraction >> (format.precision - 1):
        return Number(Class.UNSUPPORTED, sign, 0, 0, bits, format)
    if exponent == format.top:
        payload = fraction & ~format.integer
        kind = Class.INFINITY if payload == 0 else Class.QNAN if payload & format.quiet else Class.SNAN
        return Number(kind, sign, 0, 0, bits, format)
    if exponent == 0:
        kind = Class.FINITE if fraction else Class.ZERO
        return Number(kind, sign, fraction, scale + 1, bits, format, denormal=bool(fraction))
    return Number(Class.FINITE, sign, fraction if format.explicit else fraction | 1 << (format.precision - 1), scale,
                  bits, format)


@dataclass
class Context:
    """Rounding and modes of one operation, and the flags that it raises.

    `precision` (x87 precision control) rounds significands shorter than the format has them. `masks` are the masked
    exceptions: an unmasked underflow or overflow gives the result scaled by `2**±scaling`, and is exact or not with an
    unbounded exponent.
    """

    rounding: Rounding = Rounding.NEAREST
    daz: bool = False
    ftz: bool = False
    precision: int | None = None
    masks: int = 0x3F
    flags: Flag = field(default=Flag(0))
    rounded_up: bool = False

    def raises(self, flag: Flag) -> None:
        self.flags |= flag

    # -- operands ------------------------------------------------------------------------------------------------------
    def read(self, bits: int | Number, format: Format) -> Number:
        """An operand, decoded already or not; DAZ has its effect, DE is raised by `note_denormals` only."""
        if isinstance(bits, Number):
            return bits
        number = decode(bits, format)
        if self.daz and number.denormal:
            return decode(format.zero(number.sign), format)
        return number

    def note_denormals(self, *numbers: Number) -> None:
        """DE: of lower priority than invalid operations and divisions by zero."""
        if any(n.denormal for n in numbers):
            self.raises(Flag.DE)

    def nan(self, a: Number, b: Number | None = None) -> int | None:
        """The result if an operand is a NaN or unsupported. SSE: the first one wins; x87: the larger significand."""
        numbers = (a,) if b is None else (a, b)
        format = a.format
        if any(n.kind is Class.UNSUPPORTED for n in numbers):
            self.raises(Flag.IE)
            return format.default_nan
        nans = [n for n in numbers if n.is_nan]
        if not nans:
            return None
        if any(n.kind is Class.SNAN for n in nans):
            self.raises(Flag.IE)
        chosen = nans[0]
        if format.explicit and len(nans) == 2:
            chosen = _x87_nan(*nans)
        return chosen.bits | format.quiet

    def invalid(self, format: Format) -> int:
        """The default answer to an invalid operation."""
        self.raises(Flag.IE)
        return format.default_nan

    # -- results -------------------------------------------------------------------------------------------------------
    def pack(self, sign: int, significand: int, exponent: int, format: Format) -> int:
        """`±significand * 2**exponent` rounded into the format; the significand is not 0.

        A caller with an infinite expansion gives enough bits and sets the lowest one for a remainder other than 0.
        """
        precision = self.precision or format.precision
        unused = format.precision - precision
        least = 1 - format.bias - (format.precision - 1)  # exponent of the last place of denormals
        # The scale of the last place: that of a normal result, or that of the denormals.
        place = significand.bit_length() + exponent - precision
        unbounded, inexact, up = self._round(sign, significand, exponent, place)
        grown = unbounded.bit_length() > precision
        top_exponent = place + precision - 1 + grown  # of the leading bit
        tiny = top_exponent < 1 - format.bias
        if tiny:
            if not self.masks & Flag.UE:
                self.raises(Flag.UE)
                return self._finish(sign, unbounded, place + _scaling(format), inexact, up, format)
            if self.ftz and self.masks & Flag.UE:
                self.raises(Flag.UE | Flag.PE)
                return format.zero(sign)
            place = least + unused
            unbounded, inexact, up = self._round(sign, significand, exponent, place)
            if inexact:
                self.raises(Flag.UE)
        elif top_exponent > format.bias:
            self.raises(Flag.OE)
            if not self.masks & Flag.OE:
                return self._finish(sign, unbounded, place - _scaling(format), inexact, up, format)
            self.raises(Flag.PE)
            self.rounded_up = self._away(sign)
            if self.rounded_up:
                return format.infinity(sign)
            return format.largest(sign) & ~((1 << unused) - 1)
        return self._finish(sign, unbounded, place, inexact, up, format)

    def _finish(self, sign: int, value: int, place: int, inexact: bool, up: bool, format: Format) -> int:
        if inexact:
            self.raises(Flag.PE)
        self.rounded_up = up
        if value == 0:
            return format.zero(sign)
        if place + value.bit_length() - 1 > format.bias:  # even scaled it does not fit: FSCALE
            self.raises(Flag.PE)
            self.rounded_up = True
            return format.infinity(sign)
        shift = format.precision - value.bit_length()
        least = 1 - format.bias - (format.precision - 1)
        shift = min(shift, place - least)
        if shift < -format.precision:
            self.raises(Flag.PE)
            self.rounded_up = False
            return format.zero(sign)
        value = value << shift if shift >= 0 else value >> -shift  # a carry out of the top leaves a zero below
        place -= shift
        normal = value >> (format.precision - 1)
        field_value = place + format.precision - 1 + format.bias if normal else 0
        fraction = value & ~(1 << (format.precision - 1)) | (format.integer if normal else 0)
        return format.compose(sign, field_value, fraction)

    def _round(self, sign: int, significand: int, exponent: int, place: int) -> tuple[int, bool, bool]:
        """The value in units of `2**place`; whether it is inexact; whether its magnitude grew."""
        drop = place - exponent
        if drop <= 0:
            return significand << -drop, False, False
        whole, rest = significand >> drop, significand & ((1 << drop) - 1)
        if rest == 0:
            return whole, False, False
        if self.rounding is Rounding.NEAREST:
            half = 1 << (drop - 1)
            up = rest > half or (rest == half and whole & 1 == 1)
        else:
            up = self.rounding is (Rounding.DOWN if sign else Rounding.UP)
        return whole + up, True, up

    def _away(self, sign: int) -> bool:
        """Whether an overflow rounds to infinity."""
        return self.rounding is Rounding.NEAREST or self.rounding is (Rounding.DOWN if sign else Rounding.UP)

    def exact_zero_sign(self) -> int:
        """The sign of `x - x`."""
        return int(self.rounding is Rounding.DOWN)


def _scaling(format: Format) -> int:
    """The bias adjustment of unmasked overflow and underflow: 3 * 2**(n - 2), IEEE 754-1985, 7.3."""
    return 3 << (format.exponent_bits - 2)


def _x87_nan(a: Number, b: Number) -> Number:
    """SDM vol. 1, table 4-7: a quiet NaN wins over a signalling one, then the larger significand, then the sign +."""
    if a.kind is not b.kind:
        return a if a.kind is Class.QNAN else b
    m = (1 << a.format.precision) - 1
    x, y = a.bits & m, b.bits & m
    if x != y:
        return a if x > y else b
    return a if a.sign <= b.sign else b


# -- arithmetic: each takes and gives encodings ------------------------------------------------------------------------
Operand = int | Number


def add(c: Context, x: Operand, y: Operand, format: Format, negate: bool = False) -> int:
    """`x + y`, or `x - y`."""
    a, b = c.read(x, format), c.read(y, format)
    nan = c.nan(a, b)
    if nan is not None:
        return nan
    b_sign = b.sign ^ negate
    if a.is_infinite and b.is_infinite and a.sign != b_sign:
        return c.invalid(format)
    c.note_denormals(a, b)
    if a.is_infinite or b.is_infinite:
        return format.infinity(a.sign if a.is_infinite else b_sign)
    if a.is_zero and b.is_zero:
        return format.zero(a.sign if a.sign == b_sign else c.exact_zero_sign())
    exponent = min(n.exponent for n in (a, b) if not n.is_zero)
    total = sum(
        (-n.significand if s else n.significand) << (n.exponent - exponent)
        for n, s in ((a, a.sign), (b, b_sign)) if not n.is_zero
    )  # fmt: skip
    if total == 0:
        return format.zero(c.exact_zero_sign())
    return c.pack(int(total < 0), abs(total), exponent, format)


def sub(c: Context, x: Operand, y: Operand, format: Format) -> int:
    return add(c, x, y, format, negate=True)


def mul(c: Context, x: Operand, y: Operand, format: Format) -> int:
    a, b = c.read(x, format), c.read(y, format)
    nan = c.nan(a, b)
    if nan is not None:
        return nan
    if (a.is_infinite and b.is_zero) or (a.is_zero and b.is_infinite):
        return c.invalid(format)
    c.note_denormals(a, b)
    sign = a.sign ^ b.sign
    if a.is_infinite or b.is_infinite:
        return format.infinity(sign)
    if a.is_zero or b.is_zero:
        return format.zero(sign)
    return c.pack(sign, a.significand * b.significand, a.exponent + b.exponent, format)


def div(c: Context, x: Operand, y: Operand, format: Format) -> int:
    a, b = c.read(x, format), c.read(y, format)
    nan = c.nan(a, b)
    if nan is not None:
        return nan
    if (a.is_infinite and b.is_infinite) or (a.is_zero and b.is_zero):
        return c.invalid(format)
    sign = a.sign ^ b.sign
    if b.is_zero and not a.is_infinite:
        c.raises(Flag.ZE)
        return format.infinity(sign)
    c.note_denormals(a, b)
    if a.is_infinite:
        return format.infinity(sign)
    if a.is_zero or b.is_infinite:
        return format.zero(sign)
    extra = 2 * format.precision + 4
    quotient, rest = divmod(a.significand << extra, b.significand)
    return c.pack(sign, quotient << 1 | (rest != 0), a.exponent - b.exponent - extra - 1, format)


def sqrt(c: Context, x: int, format: Format) -> int:
    a = c.read(x, format)
    nan = c.nan(a)
    if nan is not None:
        return nan
    if a.is_zero:
        return a.bits
    if a.sign:
        return c.invalid(format)
    c.note_denormals(a)
    if a.is_infinite:
        return a.bits
    extra = 2 * format.precision + 4
    extra += (a.exponent - extra) & 1
    scaled = a.significand << extra
    root = isqrt(scaled)
    return c.pack(0, root << 1 | (root * root != scaled), (a.exponent - extra) // 2 - 1, format)


class Order(IntEnum):
    """How two values compare."""

    LESS, EQUAL, GREATER, UNORDERED = range(4)


def compare(c: Context, x: Operand, y: Operand, format: Format, signalling: bool) -> Order:
    """IE for a signalling NaN, and for any NaN if the comparison is `signalling`."""
    a, b = c.read(x, format), c.read(y, format)
    unsupported = Class.UNSUPPORTED in (a.kind, b.kind)
    if a.is_nan or b.is_nan or unsupported:
        if signalling or unsupported or Class.SNAN in (a.kind, b.kind):
            c.raises(Flag.IE)
        return Order.UNORDERED
    c.note_denormals(a, b)
    p, q = _key(a), _key(b)
    return Order.LESS if p < q else Order.GREATER if p > q else Order.EQUAL


def _key(n: Number) -> int:
    """An integer that orders like the value."""
    if n.is_zero:
        return 0
    magnitude = n.bits & ((1 << (n.format.width - 1)) - 1)
    if n.format.explicit and n.denormal and n.significand >> (n.format.precision - 1):
        magnitude += 1 << n.format.fraction_bits  # a pseudo-denormal is a normal number
    return -magnitude if n.sign else magnitude


def minimum(c: Context, x: int, y: int, format: Format, largest: bool = False) -> int:
    """MINSD, MAXSD: the second operand if both are zeros or one is a NaN."""
    order = compare(c, x, y, format, signalling=True)
    a, b = c.read(x, format), c.read(y, format)
    wanted = Order.GREATER if largest else Order.LESS
    return a.bits if order is wanted else b.bits


def maximum(c: Context, x: int, y: int, format: Format) -> int:
    return minimum(c, x, y, format, largest=True)


# -- conversion --------------------------------------------------------------------------------------------------------
def widen(x: int, source: Format, target: Format) -> Number:
    """An operand of a narrower format as one of a wider format, not yet judged: a signalling NaN stays one."""
    a = decode(x, source)
    if a.is_nan:
        payload = x & ((1 << (source.precision - 1)) - 1)
        bits = target.compose(a.sign, target.top, payload << (target.precision - source.precision) | target.integer)
        return Number(a.kind, a.sign, 0, 0, bits, target)
    bits = convert(Context(), x, source, target)
    return Number(a.kind, a.sign, a.significand, a.exponent, bits, target, a.denormal)


def convert(c: Context, x: int, source: Format, target: Format) -> int:
    """Between formats; a NaN keeps the top of its payload."""
    a = c.read(x, source)
    if a.kind is Class.UNSUPPORTED:
        return c.invalid(target)
    if a.is_nan:
        if a.kind is Class.SNAN:
            c.raises(Flag.IE)
        payload = x & ((1 << (source.precision - 1)) - 1) | source.quiet
        shift = target.precision - source.precision
        payload = payload << shift if shift >= 0 else payload >> -shift
        return target.compose(a.sign, target.top, payload | target.integer)
    c.note_denormals(a)
    if a.is_infinite:
        return target.infinity(a.sign)
    if a.is_zero:
        return target.zero(a.sign)
    return c.pack(a.sign, a.significand, a.exponent, target)


def from_integer(c: Context, value: int, format: Format) -> int:
    """A signed integer."""
    return c.pack(int(value < 0), abs(value), 0, format) if value else format.zero(0)


def to_integer(c: Context, x: int, format: Format, width: int, truncate: bool = False) -> int:
    """A signed integer of `width` bits, in two's complement; else IE and the integer indefinite (only the top bit)."""
    a = c.read(x, format)
    indefinite = 1 << (width - 1)
    if a.kind not in (Class.ZERO, Class.FINITE):
        c.raises(Flag.IE)
        return indefinite
    if a.is_zero:
        return 0
    rounding = c.rounding
    if truncate:
        c.rounding = Rounding.ZERO
    magnitude, inexact, up = c._round(a.sign, a.significand, a.exponent, 0)
    c.rounding = rounding
    value = -magnitude if a.sign else magnitude
    if not -indefinite <= value < indefinite:
        c.raises(Flag.IE)
        return indefinite
    if inexact:
        c.raises(Flag.PE)
        c.rounded_up = up
    return value & ((1 << width) - 1)


def round_to_integral(c: Context, x: int, format: Format, quiet: bool = False) -> int:
    """An integral value in the same format; `quiet`: without PE."""
    a = c.read(x, format)
    nan = c.nan(a)
    if nan is not None:
        return nan
    if format.explicit:
        c.note_denormals(a)
    if a.kind is not Class.FINITE:
        return a.bits
    value, inexact, up = c._round(a.sign, a.significand, a.exponent, 0)
    if inexact and not quiet:
        c.raises(Flag.PE)
        c.rounded_up = up
    if value == 0:
        return format.zero(a.sign)
    exact = Context()
    return exact.pack(a.sign, value, 0, format)
