"""Software floating point against the host's own arithmetic, and against exact fractions."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.isa import softfloat
from xuni.isa.softfloat import F32, F64, X80, Class, Context, Flag, Format, Order, Rounding

doubles = st.integers(0, 2**64 - 1) | st.floats(width=64).map(lambda x: struct.unpack("<Q", struct.pack("<d", x))[0])
extended = st.builds(
    lambda sign, exponent, fraction: sign << 79 | exponent << 64 | fraction | (1 << 63 if exponent else 0),
    st.integers(0, 1), st.integers(0, 0x7FFE) | st.integers(0x3FF0, 0x4010), st.integers(0, 2**63 - 1),
)  # fmt: skip
EPSILON = {Rounding.NEAREST: Fraction(1, 2), Rounding.DOWN: 1, Rounding.UP: 1, Rounding.ZERO: 1}


def value(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def bits(x: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", x))[0])


def same(got: int, want: float) -> bool:
    return math.isnan(value(got)) if math.isnan(want) else got == bits(want)


@given(doubles, doubles)
def test_sums_and_products_of_doubles_are_the_hosts(x: int, y: int) -> None:
    assert same(softfloat.add(Context(), x, y, F64), value(x) + value(y))
    assert same(softfloat.sub(Context(), x, y, F64), value(x) - value(y))
    assert same(softfloat.mul(Context(), x, y, F64), value(x) * value(y))


@given(doubles, doubles)
def test_quotients_and_roots_of_doubles_are_the_hosts(x: int, y: int) -> None:
    a, b = value(x), value(y)
    if b != 0 and not math.isnan(b):
        assert same(softfloat.div(Context(), x, y, F64), a / b)
    if a >= 0:
        assert same(softfloat.sqrt(Context(), x, F64), math.sqrt(a))


@given(doubles)
def test_conversion_to_single_is_the_hosts(x: int) -> None:
    got = softfloat.convert(Context(), x, F64, F32)
    if math.isnan(value(x)):
        assert softfloat.decode(got, F32).kind is Class.QNAN
        return
    try:
        want = struct.unpack("<I", struct.pack("<f", value(x)))[0]
    except OverflowError:
        want = F32.infinity(int(value(x) < 0))
    assert got == want


@given(doubles, doubles)
def test_comparison_is_the_hosts(x: int, y: int) -> None:
    a, b = value(x), value(y)
    want = Order.UNORDERED if a != a or b != b else Order.LESS if a < b else Order.GREATER if a > b else Order.EQUAL
    assert softfloat.compare(Context(), x, y, F64, False) is want


def exact(raw: int, format: Format = X80) -> Fraction:
    n = softfloat.decode(raw, format)
    return Fraction(n.significand) * Fraction(2) ** n.exponent * (-1 if n.sign else 1)


@given(extended, extended, st.sampled_from(Rounding), st.sampled_from((24, 53, 64)))
def test_extended_products_are_rounded_from_the_exact_value(x: int, y: int, rounding: Rounding, precision: int) -> None:
    c = Context(rounding, precision=precision)
    got = softfloat.decode(softfloat.mul(c, x, y, X80), X80)
    want = exact(x) * exact(y)
    if c.flags & (Flag.OE | Flag.UE) or want == 0:
        return
    last_place = Fraction(2) ** (got.exponent + 64 - precision)
    error = exact(got.bits) - want
    assert abs(error) <= last_place * EPSILON[rounding]
    assert bool(c.flags & Flag.PE) == (error != 0)
    assert c.rounded_up == (error * (-1 if got.sign else 1) > 0)
    match rounding:
        case Rounding.DOWN:
            assert error <= 0
        case Rounding.UP:
            assert error >= 0
        case Rounding.ZERO:
            assert abs(exact(got.bits)) <= abs(want)


@pytest.mark.parametrize(("x", "y", "result", "flags"), [
    (0x7FF0 << 48, 0xFFF0 << 48, F64.default_nan, Flag.IE),
    (0x7FF0 << 48 | 1, 0x7FF8 << 48 | 5, 0x7FF8 << 48 | 1, Flag.IE),
    (0x7FF8 << 48 | 5, 0x7FF0 << 48 | 1, 0x7FF8 << 48 | 5, Flag.IE),
    (1, 1, 2, Flag.DE),
    (0x7FEF << 48 | (1 << 48) - 1, 0x7FEF << 48 | (1 << 48) - 1, 0x7FF0 << 48, Flag.OE | Flag.PE),
])  # fmt: skip
def test_special_sums(x: int, y: int, result: int, flags: Flag) -> None:
    c = Context()
    assert softfloat.add(c, x, y, F64) == result
    assert c.flags == flags


def test_a_masked_underflow_is_flagged_only_if_inexact() -> None:
    least = 0x0010 << 48
    c = Context()
    assert softfloat.mul(c, least, 0x3FE0 << 48, F64) == 1 << 51  # exact
    assert c.flags == Flag(0)
    c = Context()
    softfloat.mul(c, least | 1, 0x3FE0 << 48, F64)
    assert c.flags == Flag.UE | Flag.PE
    c = Context(masks=0x3F & ~Flag.UE)
    softfloat.mul(c, least, 0x3FE0 << 48, F64)
    assert c.flags == Flag.UE


def test_flushing_writes_zeros_and_reading_denormals_as_zeros_raises_nothing() -> None:
    c = Context(ftz=True)
    assert softfloat.mul(c, 0x8010 << 48, 0x3FE0 << 48, F64) == 1 << 63
    assert c.flags == Flag.UE | Flag.PE
    c = Context(daz=True)
    assert softfloat.add(c, 1, 0x3FF0 << 48, F64) == 0x3FF0 << 48
    assert c.flags == Flag(0)


def test_integers_that_do_not_fit_are_indefinite() -> None:
    c = Context()
    assert softfloat.to_integer(c, bits(2.0**31), F64, 32) == 1 << 31
    assert c.flags == Flag.IE
    c = Context()
    assert softfloat.to_integer(c, bits(-2.5), F64, 32) == 2**32 - 2
    assert c.flags == Flag.PE
