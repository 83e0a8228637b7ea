"""x87: remainder, scaling, exponent and significand, and the transcendental functions.

Compiled code uses the host's instructions, plain Python the series of `x87_series`; their last bits may differ.
In compiled code an unmasked underflow gives the masked result, but for FSCALE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa import softfloat
from xuni.isa.bits import Bits, const, select, u16, u64, vector
from xuni.isa.softfloat import X80, Class, Context, Flag, Number
from xuni.isa.stage import staged, staging, unlikely
from xuni.isa.x86 import x87_fp as fp
from xuni.isa.x86 import x87_series as series
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.mmx_state import check_pending
from xuni.isa.x86.x87_series import Value
from xuni.isa.x86.x87_stack import C0, C1, C2, C3, CODES, FLAGS, INDEFINITE, has_operand, offset
from xuni.isa.x86.x87_verdict import BEFORE, compute, settle

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Function = Callable[[Context, int], int]
Function2 = Callable[[Context, int, int], int]  # of ST(0) and ST(1)
PI = (series.pi(256), -256)


def _number(c: Context, raw: int) -> Number:
    return c.read(raw, X80)


def _value(n: Number) -> Value:
    return (-n.significand if n.sign else n.significand), n.exponent


def _round(c: Context, value: Value) -> int:
    """An inexact result."""
    significand, exponent = value
    return c.pack(int(significand < 0), abs(significand) << 1 | 1, exponent - 1, X80)


# -- one operand -------------------------------------------------------------------------------------------------------
def _f2xm1(c: Context, raw: int) -> int:
    a = _number(c, raw)
    nan = c.nan(a)
    if nan is not None:
        return nan
    c.note_denormals(a)
    if a.is_zero:
        return raw
    if a.is_infinite:
        return X80.compose(1, 0x3FFF, X80.integer) if a.sign else raw
    if a.significand.bit_length() + a.exponent > 0:  # 1 and more, where the result is undefined: the operand
        c.raises(Flag.PE)
        return X80.compose(1, 0x3FFE, X80.integer) if raw == _MINUS_ONE else raw
    return _round(c, series.two_to_minus_one(_value(a)))


def _trigonometric(which: Callable[[Value], Value], at_zero: int | None) -> Function:
    def function(c: Context, raw: int) -> int:
        a = _number(c, raw)
        nan = c.nan(a)
        if nan is not None:
            return nan
        if a.is_infinite:
            return c.invalid(X80)
        c.note_denormals(a)
        if a.is_zero:
            return raw if at_zero is None else at_zero
        return _round(c, which(_value(a)))

    return function


_MINUS_ONE = X80.compose(1, 0x3FFF, X80.integer)
_ONE = X80.compose(0, 0x3FFF, X80.integer)
_sine = _trigonometric(lambda x: series.sine_cosine(x)[0], None)
_cosine = _trigonometric(lambda x: series.sine_cosine(x)[1], _ONE)
_tangent = _trigonometric(series.tangent, None)


# -- two operands: ST(0) and ST(1) -------------------------------------------------------------------------------------
def _product(c: Context, factor: Number, logarithm: Value) -> int:
    significand, exponent = logarithm
    value = (factor.significand * significand * (-1 if factor.sign else 1), factor.exponent + exponent)
    return _round(c, value)


def _fyl2x(c: Context, raw: int, factor: int) -> int:
    """ST(1) * log2(ST(0))."""
    x, y = _number(c, raw), _number(c, factor)
    nan = c.nan(y, x)
    if nan is not None:
        return nan
    if x.sign and not x.is_zero:
        return c.invalid(X80)
    one = raw == _ONE
    if (y.is_zero and (x.is_zero or x.is_infinite)) or (y.is_infinite and one):
        return c.invalid(X80)
    if x.is_zero and not y.is_infinite:
        c.raises(Flag.ZE)
        return X80.infinity(1 - y.sign)
    c.note_denormals(x, y)
    below = x.is_zero or (x.kind is Class.FINITE and x.significand.bit_length() + x.exponent <= 0)
    if x.is_infinite or y.is_infinite:
        return X80.infinity(y.sign ^ below)
    if y.is_zero or one:
        return X80.zero(y.sign ^ (below and not one))
    if x.significand & (x.significand - 1) == 0:  # a power of two: exact
        power = x.significand.bit_length() - 1 + x.exponent
        c.raises(Flag.PE)
        return c.pack(y.sign ^ (power < 0), y.significand * abs(power), y.exponent, X80)
    return _product(c, y, series.log2(_value(x)))


def _fyl2xp1(c: Context, raw: int, factor: int) -> int:
    """ST(1) * log2(ST(0) + 1), for |ST(0)| < 1 - sqrt(1/2)."""
    x, y = _number(c, raw), _number(c, factor)
    nan = c.nan(y, x)
    if nan is not None:
        return nan
    if x.is_infinite:
        return c.invalid(X80) if x.sign or y.is_zero else X80.infinity(y.sign)
    if x.sign and x.significand.bit_length() + x.exponent > 0:  # -1 and less, where the result is undefined
        c.raises(Flag.PE)
        return raw
    if y.is_infinite:
        return c.invalid(X80) if x.is_zero else X80.infinity(y.sign ^ x.sign)
    c.note_denormals(x, y)
    if x.is_zero or y.is_zero:
        return X80.zero(x.sign ^ y.sign)
    if x.significand.bit_length() + x.exponent > 0:
        total = softfloat.add(Context(), raw, _ONE, X80)
        return _product(c, y, series.log2(_value(_number(c, total))))
    return _product(c, y, series.log2_of_one_plus(_value(x)))


def _fpatan(c: Context, raw: int, other: int) -> int:
    """The angle of the point (ST(0), ST(1))."""
    x, y = _number(c, raw), _number(c, other)
    nan = c.nan(y, x)
    if nan is not None:
        return nan
    c.note_denormals(x, y)
    significand, exponent = PI
    if y.is_zero or (x.is_infinite and not y.is_infinite):
        if not x.sign:
            return X80.zero(y.sign)
        quarters = 4
    elif x.is_zero or not (x.is_infinite or y.is_infinite):
        if not x.is_zero and not y.is_infinite:
            return _round(c, series.arctangent(_value(y), _value(x)))
        quarters = 2
    else:
        quarters = (3 if x.sign else 1) if x.is_infinite else 2
    return _round(c, (significand * quarters * (-1 if y.sign else 1), exponent - 2))


def _fscale(c: Context, raw: int, other: int) -> int:
    """ST(0) times 2 to the power of ST(1), truncated."""
    a, b = _number(c, raw), _number(c, other)
    nan = c.nan(a, b)
    if nan is not None:
        return nan
    if b.is_infinite and (a.is_infinite if b.sign else a.is_zero):
        return c.invalid(X80)
    c.note_denormals(a, b)
    if b.is_infinite:
        return X80.zero(a.sign) if b.sign else X80.infinity(a.sign)
    if a.is_zero or a.is_infinite or b.is_zero:
        return a.bits
    length = b.significand.bit_length() + b.exponent
    power = 1 << 17 if length > 17 else b.significand >> -b.exponent if b.exponent < 0 else b.significand << b.exponent
    c.precision = None
    return c.pack(a.sign, a.significand, a.exponent + (-power if b.sign else power), X80)


def _remainder(c: Context, raw: int, other: int, nearest: bool) -> tuple[int, int]:
    """ST(0) modulo ST(1), and the condition codes. At most 63 bits of quotient at once: C2 says that more are left."""
    a, b = _number(c, raw), _number(c, other)
    nan = c.nan(a, b)
    if nan is not None:
        return nan, 0
    if a.is_infinite or b.is_zero:
        return c.invalid(X80), 0
    c.note_denormals(a, b)
    if a.is_zero or b.is_infinite:
        return a.bits, 0
    distance = (a.significand.bit_length() + a.exponent) - (b.significand.bit_length() + b.exponent)
    c.precision = None
    if distance < -1 or (distance < 0 and not nearest):
        return c.pack(a.sign, a.significand, a.exponent, X80), 0
    exponent = min(a.exponent, b.exponent)
    x, y = a.significand << a.exponent - exponent, b.significand << b.exponent - exponent
    if distance >= 64:
        step = distance - (32 + distance % 32)
        rest = x % (y << step)
        return (c.pack(a.sign, rest, exponent, X80) if rest else X80.zero(a.sign)), C2
    quotient, rest = divmod(x, y)
    sign = a.sign
    if nearest and (2 * rest > y or (2 * rest == y and quotient & 1)):
        quotient, rest, sign = quotient + 1, y - rest, 1 - sign
    codes = (C1 if quotient & 1 else 0) | (C3 if quotient & 2 else 0) | (C0 if quotient & 4 else 0)
    return (c.pack(sign, rest, exponent, X80) if rest else X80.zero(a.sign)), codes


_PARTIAL = ("fsin", "fcos")  # C2 tells that the argument is out of range


# -- running them ------------------------------------------------------------------------------------------------------
def _unary(cpu: Cpu, op: str, function: Function, result: Bits, a: Bits) -> Bits:
    if staging() is None:
        c = fp.context(cpu)
        c.precision = None
        fp.store_plain(cpu, result, function(c, fp.load_plain(cpu, a)))
        return fp.raised(c)
    text = f"fldt {{0}}; {op}; fnstsw %ax; fstpt {{1}}"
    return fp.host_x87(text, fp.address(cpu, a), fp.address(cpu, result)) & (FLAGS | C1 | (C2 if op in _PARTIAL else 0))


def _binary(cpu: Cpu, op: str, function: Function2, result: Bits, a: Bits, b: Bits, keeps: bool) -> Bits:
    """`keeps`: the instruction leaves ST(1) where it is."""
    if staging() is None:
        c = fp.context(cpu)
        c.precision = None
        fp.store_plain(cpu, result, function(c, fp.load_plain(cpu, a), fp.load_plain(cpu, b)))
        return fp.raised(c)
    text = f"fldt {{1}}; fldt {{0}}; {op}; fnstsw %ax; fstpt {{2}}" + ("; fstp %st(0)" if keeps else "")
    return fp.host_x87(text, fp.address(cpu, a), fp.address(cpu, b), fp.address(cpu, result)) & (FLAGS | C1)


@staged
def _modulo(cpu: Cpu, op: str, result: Bits, a: Bits, b: Bits) -> Bits:
    if staging() is None:
        c = fp.context(cpu)
        value, codes = _remainder(c, fp.load_plain(cpu, a), fp.load_plain(cpu, b), op == "fprem1")
        fp.store_plain(cpu, result, value)
        raised = u16(int(c.flags) | codes)
    else:
        text = f"fldt {{1}}; fldt {{0}}; {op}; fnstsw %ax; fstpt {{2}}; fstp %st(0)"
        raised = fp.host_x87(text, fp.address(cpu, a), fp.address(cpu, b), fp.address(cpu, result))
    # A NaN leaves C0 and C3 alone.
    nan = cpu.s.place.load(result, 64, 2).lane(1) & 0x7FFF == 0x7FFF
    return raised & (FLAGS | C1 | C2) | select(nan, cpu.s.fpu_status, raised) & (C0 | C3)


@staged
def has_both(cpu: Cpu, result: int, pops: int) -> Bits:
    if not has_operand(cpu, 0, result, pops):
        return const(0, 1)
    return has_operand(cpu, 1, result, pops)


def _define_unary(name: str, encoding: str, function: Function) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        if has_operand(cpu, 0, 0):
            a = offset(cpu, 0)
            compute(cpu, a, lambda where: _unary(cpu, name.lower(), function, where, a))


def _define_popping(name: str, encoding: str, function: Function2) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        if has_both(cpu, 1, 1):
            a, b = offset(cpu, 0), offset(cpu, 1)
            if compute(cpu, b, lambda where: _binary(cpu, name.lower(), function, where, a, b, False)):
                stack.pop(cpu)


def _define_modulo(name: str, encoding: str) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        stack.set_codes(cpu, C2, 0)
        if has_both(cpu, 0, 0):
            a, b = offset(cpu, 0), offset(cpu, 1)
            compute(cpu, a, lambda where: _modulo(cpu, name.lower(), where, a, b), CODES)


_define_unary("F2XM1", "D9 F0", _f2xm1)
_define_popping("FYL2X", "D9 F1", _fyl2x)
_define_popping("FPATAN", "D9 F3", _fpatan)
_define_modulo("FPREM1", "D9 F5")
_define_modulo("FPREM", "D9 F8")
_define_popping("FYL2XP1", "D9 F9", _fyl2xp1)


@instruction("FSCALE", "D9 FD", feature="fpu", fpu="x87")
def fscale(cpu: Cpu) -> None:
    check_pending(cpu)
    if has_both(cpu, 0, 0):
        a, b = offset(cpu, 0), offset(cpu, 1)
        compute(cpu, a, lambda where: _binary(cpu, "fscale", _fscale, where, a, b, True),
                scaled=lambda where, up: _scale_again(cpu, where, a, b, up))  # fmt: skip


@staged
def _scale_again(cpu: Cpu, result: Bits, a: Bits, b: Bits, up: Bits) -> Bits:
    """Compiled code: the result of an unmasked overflow (or, `up`, underflow), see `x87_fp.scaled_binary`.

    One that does not fit even so is infinite, or zero.
    """
    power, _ = fp.store(cpu, "m64int", b, truncate=True)
    negative = cpu.s.place.load(b, 64, 2).lane(1)[15]
    limited = power.smax(-65536).smin(65536)
    limited = select(power == 1 << 63, select(negative, u64(-65536), u64(65536)), limited)
    raised = fp.scale(cpu, a, result, (limited + select(up, u64(24576), u64(-24576))).trunc(32))
    if ((raised & int(Flag.OE)) != 0) | fp.is_tiny(cpu, result) | ((raised & int(Flag.UE)) != 0):
        sign = cpu.s.place.load(a, 64, 2).lane(1) & 0x8000
        infinity = vector([u64(1 << 63), sign | 0x7FFF])
        cpu.s.place.store(result, select(up, vector([u64(0), sign]), infinity))
        raised = select(up, u16(int(Flag.PE)), u16(int(Flag.PE) | C1))
    return raised


# -- sine and cosine ---------------------------------------------------------------------------------------------------
def out_of_range(cpu: Cpu) -> Bits:
    """Whether ST(0) is finite and 2**63 or more, or less than -2**63: these are left alone, with C2 set.

    Compiled code asks the host, which may know better for the largest ones.
    """
    if staging() is not None:
        return const(0, 1)
    exponent = stack.read(cpu, 0).lane(1) & 0x7FFF
    return (exponent >= 0x3FFF + 63) & (exponent != 0x7FFF)


def _define_trigonometric(name: str, encoding: str, function: Function) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        stack.set_codes(cpu, C2, 0)
        if has_operand(cpu, 0, 0):
            if unlikely(out_of_range(cpu)):
                stack.set_codes(cpu, C1 | C2, C2)
            else:
                a = offset(cpu, 0)
                compute(cpu, a, lambda where: _unary(cpu, name.lower(), function, where, a), C1 | C2)


_define_trigonometric("FSIN", "D9 FE", _sine)
_define_trigonometric("FCOS", "D9 FF", _cosine)


# -- instructions with two results: one replaces ST(0), the other is pushed --------------------------------------------
@staged
def has_operand_and_room(cpu: Cpu) -> Bits:
    """The masked response gives the default NaN twice."""
    empty = stack.is_empty(cpu, 0)
    if unlikely(empty | ~stack.is_empty(cpu, 7)):
        if stack.stack_fault(cpu, overflow=~empty):
            stack.write(cpu, 0, INDEFINITE)
            stack.push(cpu, INDEFINITE)
        return const(0, 1)
    return const(1, 1)


@staged
def put_both(cpu: Cpu, action: Callable[[Bits, Bits], Bits]) -> None:
    """Run `action(replaced, pushed)` on two places, and put what it leaves there on the stack."""
    first, second = u64(stack.SCRATCH), u64(stack.SCRATCH + 64)
    if unlikely(~stack.is_masked(cpu)):
        fp.clear_host(cpu)
    raised = action(first, second)
    if unlikely(raised & C2 != 0):  # nothing was pushed
        fp.clear_host(cpu)
        stack.set_codes(cpu, C1 | C2, C2)
        return
    if unlikely(~stack.is_masked(cpu)):
        fp.clear_host(cpu)
        if staging() is not None:
            raised = raised | select(fp.is_tiny(cpu, first), u16(int(Flag.UE)), u16(0)) & ~cpu.s.fpu_control
        if settle(cpu, raised, BEFORE, C1):
            _put(cpu, first, second)
    else:
        cpu.s.fpu_status = cpu.s.fpu_status & ~C1 | raised
        _put(cpu, first, second)


def _put(cpu: Cpu, first: Bits, second: Bits) -> None:
    stack.write(cpu, 0, cpu.s.place.load(first, 64, 2))
    stack.push(cpu, cpu.s.place.load(second, 64, 2))


def _two_results(cpu: Cpu, op: str, functions: tuple[Function, Function], first: Bits, second: Bits, a: Bits) -> Bits:
    if staging() is None:
        c = fp.context(cpu)
        c.precision = None
        raw = fp.load_plain(cpu, a)
        fp.store_plain(cpu, first, functions[0](c, raw))
        fp.store_plain(cpu, second, functions[1](c, raw))
        return fp.raised(c)
    text = f"fldt {{0}}; {op}; fnstsw %ax; fstpt {{1}}; fstpt {{2}}"
    codes = FLAGS | C1 | (0 if op == "fxtract" else C2)
    return fp.host_x87(text, fp.address(cpu, a), fp.address(cpu, second), fp.address(cpu, first)) & codes


def _one_or_nan(c: Context, raw: int) -> int:
    """What FPTAN pushes."""
    value = _tangent(c, raw)
    return value if softfloat.decode(value, X80).is_nan else _ONE


def _define_pushing(name: str, encoding: str, functions: tuple[Function, Function]) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        stack.set_codes(cpu, C2, 0)
        if has_operand_and_room(cpu):
            if unlikely(out_of_range(cpu)):
                stack.set_codes(cpu, C1 | C2, C2)
            else:
                a = offset(cpu, 0)
                put_both(cpu, lambda one, two: _two_results(cpu, name.lower(), functions, one, two, a))


_define_pushing("FSINCOS", "D9 FB", (_sine, _cosine))
_define_pushing("FPTAN", "D9 F2", (_tangent, _one_or_nan))


def _exponent(c: Context, raw: int) -> int:
    a = _number(c, raw)
    nan = c.nan(a)
    if nan is not None:
        return nan
    if a.is_zero:
        c.raises(Flag.ZE)
        return X80.infinity(1)
    c.note_denormals(a)
    if a.is_infinite:
        return X80.infinity(0)
    return softfloat.from_integer(Context(), a.significand.bit_length() - 1 + a.exponent, X80)


def _significand(c: Context, raw: int) -> int:
    a = _number(c, raw)
    nan = c.nan(a)
    if nan is not None:
        return nan
    if a.kind is not Class.FINITE:
        return raw
    return Context().pack(a.sign, a.significand, 1 - a.significand.bit_length(), X80)


@instruction("FXTRACT", "D9 F4", feature="fpu", fpu="x87")
def fxtract(cpu: Cpu) -> None:
    """The exponent replaces ST(0), the significand is pushed."""
    check_pending(cpu)
    if has_operand_and_room(cpu):
        a = offset(cpu, 0)
        put_both(cpu, lambda one, two: _two_results(cpu, "fxtract", (_exponent, _significand), one, two, a))
