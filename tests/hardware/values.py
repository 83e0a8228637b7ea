"""Random machine state with a taste for edges: integers, floating point in its three sizes, FXSAVE images."""

from __future__ import annotations

from random import Random
from struct import Struct

from .case import WINDOW_SIZE

SINGLE_EDGES = (
    0x0000_0000, 0x8000_0000, 0x3F80_0000, 0xBF80_0000, 0x3F00_0000, 0x4000_0000, 0x7F80_0000, 0xFF80_0000,
    0x7FC0_0000, 0xFFC0_0000, 0x7F80_0001, 0xFFBF_FFFF, 0x7FFF_FFFF, 0x0000_0001, 0x807F_FFFF, 0x0080_0000,
    0x7F7F_FFFF, 0xFF7F_FFFF, 0x4EFF_FFFF, 0x4F00_0000, 0xCF00_0000, 0x5F00_0000, 0x4B00_0001, 0x3F7F_FFFF,
)  # fmt: skip
DOUBLE_EDGES = (
    0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 0x3FE0 << 48, 0x4000 << 48, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48,
    0xFFF8 << 48, 0x7FF0 << 48 | 1, 0xFFF7 << 48, 1, (1 << 63) + (1 << 52) - 1, 0x0010 << 48, (0x7FF0 << 48) - 1,
    (0xFFF0 << 48) - 1, 0x41DF_FFFF_FFC0_0000, 0x41E0 << 48, 0xC1E0 << 48, 0x43E0 << 48, 0xC3E0 << 48,
    0x47EF_FFFF_E000_0000, 0x3690 << 48, 0x36A0 << 48, 0x3FEF_FFFF_FFFF_FFFF, 0x4340_0000_0000_0001,
)  # fmt: skip
# Sign and exponent, significand: the last four classes are what SDM vol. 1, table 8-3 calls unsupported.
EXTENDED_EDGES = (
    (0, 0), (0x8000, 0), (0x3FFF, 1 << 63), (0xBFFF, 1 << 63), (0x3FFE, 1 << 63), (0x4000, 1 << 63),
    (0x7FFF, 1 << 63), (0xFFFF, 1 << 63), (0x7FFF, 3 << 62), (0xFFFF, 3 << 62), (0x7FFF, (1 << 63) + 1),
    (0, 1), (0x8000, (1 << 63) - 1), (0, 1 << 63), (1, 1 << 63), (0x7FFE, (1 << 64) - 1), (0xFFFE, (1 << 64) - 1),
    (0x401D, (1 << 64) - 1), (0x401E, 1 << 63), (0xC01E, 1 << 63), (0x403E, 1 << 63), (0xC03E, 1 << 63),
    (0x400E, 1 << 63), (0xC00E, 1 << 63), (0x3C00, 1 << 63), (0x43FF, 1 << 63), (0x3F6A, 1 << 63), (0x407F, 1 << 63),
    (0x4039, 0xDE0B_6B3A_763F_FFF0), (0x403A, 0xDE0B_6B3A_7640_0000),
    (0x3FFF, 1), (0x7FFF, 0), (0x7FFF, 1 << 62), (0x8001, (1 << 63) - 1),
)  # fmt: skip
ROUNDING_AND_PRECISION = (0x000, 0x200, 0x300, 0x400, 0x700, 0x800, 0xB00, 0xC00, 0xF00)
X87_EXCEPTIONS = 0x3F
ERROR_SUMMARY, BUSY = 0x80, 0x8000
HEADER = Struct("<HHBxHQQI")


def integer(random: Random, width: int = 64) -> int:
    """A value of `width` bits: an edge of some operand size, a small number, or anything."""
    match random.randrange(8):
        case 0:
            value = random.choice((0, 1, -1, 2, -2))
        case 1:
            size = random.choice((8, 16, 32, 64))
            value = random.choice((1 << size - 1, (1 << size - 1) - 1, (1 << size) - 1, 1 << size, -(1 << size - 1)))
        case 2:
            value = random.randrange(-128, 128)
        case 3:
            value = 1 << random.randrange(64)
        case 4:
            value = random.getrandbits(64) & random.getrandbits(64) & random.getrandbits(64)
        case _:
            value = random.getrandbits(64)
    return value & ((1 << width) - 1)


def single(random: Random) -> int:
    """The bits of a 32-bit float; exponents near each other, so that additions interact."""
    if random.randrange(3) == 0:
        return random.choice(SINGLE_EDGES)
    if random.randrange(8) == 0:
        return random.getrandbits(32)
    return random.getrandbits(1) << 31 | random.randrange(117, 160) << 23 | _fraction(random, 23)


def double(random: Random) -> int:
    """The bits of a 64-bit float."""
    if random.randrange(3) == 0:
        return random.choice(DOUBLE_EDGES)
    if random.randrange(8) == 0:
        return random.getrandbits(64)
    return random.getrandbits(1) << 63 | random.randrange(1013, 1090) << 52 | _fraction(random, 52)


def extended(random: Random) -> int:
    """The bits of an 80-bit float."""
    if random.randrange(3) == 0:
        head, significand = random.choice(EXTENDED_EDGES)
        return head << 64 | significand
    if random.randrange(8) == 0:
        return random.getrandbits(80)
    exponent = random.randrange(0x3FF0, 0x4048) if random.randrange(4) else random.randrange(1, 0x7FFF)
    return random.getrandbits(1) << 79 | exponent << 64 | 1 << 63 | _fraction(random, 63)


def _fraction(random: Random, width: int) -> int:
    if random.randrange(2):
        return random.getrandbits(width)
    return (random.getrandbits(width) << random.randrange(width)) & ((1 << width) - 1)


def vector(random: Random) -> bytes:
    """16 bytes for an XMM register or its operand in memory."""
    match random.randrange(4):
        case 0:
            return b"".join(single(random).to_bytes(4, "little") for _ in range(4))
        case 1:
            return b"".join(double(random).to_bytes(8, "little") for _ in range(2))
        case 2:
            return random.randbytes(16)
        case _:
            return b"".join(integer(random).to_bytes(8, "little") for _ in range(2))


def memory(random: Random) -> bytes:
    """The window: 16-byte pieces, each of one taste; now and then a few distinct bytes, for comparisons of strings."""
    if random.randrange(6) == 0:
        alphabet = random.randbytes(2)
        return bytes(random.choices(alphabet, weights=(9, 1), k=WINDOW_SIZE))
    pieces = [vector(random) for _ in range(8)] + [random.randbytes(16) for _ in range(8)]
    return b"".join(random.choices(pieces, k=WINDOW_SIZE // 16))


def fxsave(random: Random, *, unmasked: bool, x87: bool) -> bytes:
    """An FXSAVE64 image. `unmasked`: exceptions may be enabled, and x87 ones pending; `x87`: registers in use.

    Without `x87` the stack is empty and in its initial state, as most code leaves it.
    """
    image = bytearray(512)
    control, status, tags = 0x37F, 0, 0
    if x87:
        control = 0x40 | random.choice(ROUNDING_AND_PRECISION) | _masks(random, unmasked)
        status = random.getrandbits(16) & ~(ERROR_SUMMARY | BUSY)
        if not unmasked or random.randrange(4):
            status &= ~(X87_EXCEPTIONS & ~control)  # nothing pending
        if status & ~control & X87_EXCEPTIONS:
            status |= ERROR_SUMMARY | BUSY
        tags = random.choice((0xFF, 0xFF, 0xFF, 0, random.getrandbits(8), random.getrandbits(8)))
        for at in range(32, 160, 16):
            image[at : at + 10] = extended(random).to_bytes(10, "little")
    rounding, ftz, daz = random.getrandbits(2) << 13, random.getrandbits(1) << 15, random.getrandbits(1) << 6
    mxcsr = 0x1F80 | random.getrandbits(6)
    if random.randrange(2):
        mxcsr = mxcsr & 0x3F | _masks(random, unmasked) << 7 | rounding | ftz | daz
    HEADER.pack_into(image, 0, control, status, tags, 0, 0, 0, mxcsr)
    for at in range(160, 416, 16):
        image[at : at + 16] = vector(random)
    return bytes(image)


def _masks(random: Random, unmasked: bool) -> int:
    return random.getrandbits(6) if unmasked and random.randrange(3) == 0 else X87_EXCEPTIONS
