"""Transcendental functions for plain Python, on integers: correctly rounded up to rare ties of approximation.

Processors' own results may differ in the last bit (SDM vol. 1, 8.3.10). Trigonometric functions reduce their arguments
by a pi of 66 bits, as processors do. Fixed-point values have `bits` fraction bits.
"""

from __future__ import annotations

from functools import cache

Fixed = int
PI_66 = 0x3243F6A8885A308D3 << 1  # pi/2 in units of 2**-66: processors reduce arguments by this
WORK = 160  # fraction bits beyond the leading zeros of a result


@cache
def pi(bits: int) -> Fixed:
    """Machin: 16 atan(1/5) - 4 atan(1/239)."""
    extra = bits + 16
    return (16 * _atan_inverse(5, extra) - 4 * _atan_inverse(239, extra)) >> 16


def _atan_inverse(n: int, bits: int) -> Fixed:
    term = (1 << bits) // n
    total, k, square = term, 1, n * n
    while term:
        term //= square
        k += 2
        total += term // k if k % 4 == 1 else -(term // k)
    return total


@cache
def ln2(bits: int) -> Fixed:
    """2 atanh(1/3)."""
    return 2 * _atanh((1 << bits + 16) // 3, bits + 16) >> 16


def _atanh(z: Fixed, bits: int) -> Fixed:
    square = z * z >> bits
    term = total = z
    k = 1
    while term:
        term = term * square >> bits
        k += 2
        total += _divide(term, k)
    return total


def _divide(a: int, b: int) -> int:
    """Quotient rounded toward zero, so that series of negative terms end."""
    return a // b if a >= 0 else -(-a // b)


def ln1p(z: Fixed, bits: int) -> Fixed:
    """ln(1 + z) for -1 < z <= 1: 2 atanh(z / (2 + z))."""
    return 2 * _atanh_signed((z << bits) // ((2 << bits) + z), bits)


def _atanh_signed(z: Fixed, bits: int) -> Fixed:
    return _atanh(z, bits) if z >= 0 else -_atanh(-z, bits)


def expm1(z: Fixed, bits: int) -> Fixed:
    """exp(z) - 1 for |z| < 1."""
    negative, z = z < 0, abs(z)
    term = total = z
    k = 1
    while term:
        k += 1
        term = (term * z >> bits) // k
        total += term
    if negative:  # exp(-z) - 1 = -(exp(z) - 1) / exp(z)
        return -((total << bits) // (total + (1 << bits)))
    return total


def sin_cos(z: Fixed, bits: int) -> tuple[Fixed, Fixed]:
    """sin and cos for 0 <= z <= pi/4, by their series."""
    square = z * z >> bits
    term = sine = z
    k = 1
    while term:
        term = (term * square >> bits) // ((k + 1) * (k + 2))
        k += 2
        sine += term if k % 4 == 1 else -term
    term = cosine = 1 << bits
    k = 0
    while term:
        term = (term * square >> bits) // ((k + 1) * (k + 2))
        k += 2
        cosine += term if k % 4 == 0 else -term
    return sine, cosine


def atan(z: Fixed, bits: int) -> Fixed:
    """atan for 0 <= z <= 1: halved three times, then by its series."""
    from math import isqrt

    one = 1 << bits
    for _ in range(3):  # atan z = 2 atan(z / (1 + sqrt(1 + z^2)))
        z = (z << bits) // (one + isqrt((one << bits) + z * z))
    square = z * z >> bits
    term = total = z
    k = 1
    while term:
        term = term * square >> bits
        k += 2
        total += term // k if k % 4 == 1 else -(term // k)
    return 8 * total


# -- functions of `significand * 2**exponent`; the result is a signed integer and its exponent -------------------------
Value = tuple[int, int]


def _fixed(value: Value, bits: int) -> Fixed:
    significand, exponent = value
    shift = exponent + bits
    return significand << shift if shift >= 0 else significand >> -shift


def _leading(value: Value) -> int:
    """Exponent of the leading bit."""
    return abs(value[0]).bit_length() + value[1] - 1


def _precision(value: Value) -> int:
    return WORK + max(0, -_leading(value))


def two_to_minus_one(x: Value) -> Value:
    """2**x - 1 for |x| <= 1."""
    if _leading(x) < -WORK:
        return x[0] * ln2(WORK), x[1] - WORK
    bits = _precision(x)
    z = _fixed(x, bits) * ln2(bits) >> bits
    return expm1(z, bits), -bits


def log2(x: Value) -> Value:
    """log2(x) for x > 0."""
    significand, exponent = x
    length = significand.bit_length()
    power = exponent + length - 1
    # Into [3/4, 3/2), so that no cancellation happens but where the result itself is near 0.
    if significand * 2 >= 3 << (length - 1):
        power += 1
    offset = (significand, exponent - power)
    bits = 4 * WORK
    z = _fixed(offset, bits) - (1 << bits)
    return (power << bits) + (ln1p(z, bits) << bits) // ln2(bits), -bits


def log2_of_one_plus(x: Value) -> Value:
    """log2(1 + x) for |x| < 1."""
    if _leading(x) < -WORK:
        return (x[0] << WORK) * (1 << WORK) // ln2(WORK), x[1] - WORK
    bits = _precision(x)
    return (ln1p(_fixed(x, bits), bits) << bits) // ln2(bits), -bits


def sine_cosine(x: Value) -> tuple[Value, Value]:
    """sin(x) and cos(x) for |x| < 2**63."""
    if _leading(x) < -WORK // 2:  # sin x is just below x, cos x just below 1
        return ((x[0] << WORK) + (1 if x[0] < 0 else -1), x[1] - WORK), ((1 << WORK) - 1, -WORK)
    bits = 3 * WORK + max(0, -_leading(x))
    sign, z = (-1 if x[0] < 0 else 1), _fixed((abs(x[0]), x[1]), bits)
    quarter = PI_66 << (bits - 66)  # pi/2
    quadrant, z = divmod(z, quarter)
    swap = z * 2 > quarter
    s, c = sin_cos(quarter - z if swap else z, bits)
    if swap:
        s, c = c, s
    match quadrant % 4:
        case 1:
            s, c = c, -s
        case 2:
            s, c = -s, -c
        case 3:
            s, c = -c, s
    return (sign * s, -bits), (c, -bits)


def tangent(x: Value) -> Value:
    (s, e), (c, f) = sine_cosine(x)
    return (s << 4 * WORK) // c, e - f - 4 * WORK


def arctangent(y: Value, x: Value) -> Value:
    """The angle of the point (x, y), neither being 0; in (-pi, pi)."""
    distance = _leading(y) - _leading(x)
    bits = WORK + abs(distance) + 64
    a, b = abs(y[0]), abs(x[0])
    shift = y[1] - x[1]
    a, b = (a << shift, b) if shift >= 0 else (a, b << -shift)
    if a <= b:
        if distance < -4 * WORK and x[0] > 0:
            angle = (a << bits) // b  # atan z = z as far as anyone can see
        else:
            angle = atan((a << bits) // b, bits)
    else:
        angle = (pi(bits) >> 1) - atan((b << bits) // a, bits)
    if x[0] < 0:
        angle = pi(bits) - angle
    return (-angle if y[0] < 0 else angle), -bits
