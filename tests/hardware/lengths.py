"""Compares a decoder's instruction lengths with iced-x86's, over random bytes and over random instructions.

    for wrong in compare(length_of, bytes_count=10_000, seed=1): print(wrong)

`length_of(code, bits)` gives the length of the instruction at the start of `code` in a 16, 32 or 64-bit code segment,
or None where the bytes are no instruction (#UD).
"""
# mypy: disable-error-code="unreachable, arg-type, assignment, call-overload"
# iced-x86's stubs call its constants enumerations; they are ints, and are used as such here.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from iced_x86 import Code, CpuidFeature, Decoder, DecoderOptions, Instruction

from .forms import FEATURES

LengthOf = Callable[[bytes, int], int | None]
BITS = (16, 32, 64)
MAX_LENGTH = 15

SYSTEM = frozenset(
    getattr(CpuidFeature, name)
    for name in (
        "CPUID MSR TSC RDTSCP RDPID RDRAND RDSEED RDPMC SEP SYSCALL FXSR XSAVE XSAVEC XSAVEOPT XSAVES SMAP INVPCID PKU "
        "MONITOR SMX HLE RTM HLE_OR_RTM WBNOINVD CLDEMOTE"
    ).split()
)
LEGACY_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
ESCAPES = (b"", b"", b"", b"\x0f", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a")


@dataclass(frozen=True, slots=True)
class WrongLength:
    """One disagreement; a length of None means: no instruction."""

    code: bytes
    bits: int
    expected: int | None
    actual: int | None
    instruction: str

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.code.hex(' ')}: expected {self.expected} ({self.instruction}), got {self.actual}"


def random_code(random: Random, bits: int) -> bytes:
    """15 bytes that mostly begin with an instruction: prefixes, an escape, an opcode, then anything."""
    code = bytearray(random.choices(LEGACY_PREFIXES, k=random.choice((0, 0, 0, 1, 1, 2, 3))))
    if bits == 64 and random.randrange(3) == 0:
        code.append(random.randrange(0x40, 0x50))
    return bytes(code + random.choice(ESCAPES) + random.randbytes(MAX_LENGTH))[:MAX_LENGTH]


def compare(
    length_of: LengthOf,
    count: int,
    seed: int = 0,
    expects: Callable[[Instruction], bool] | None = None,
) -> Iterator[WrongLength]:
    """`count` strings of each kind in each of the three code sizes.

    A length that differs is always reported, and so is an instruction where iced-x86 knows of none. Bytes that only
    iced-x86 calls an instruction are reported where `expects` says the decoder ought to know it (default: those whose
    CPUID features are in FEATURES or SYSTEM).
    """
    random, expects = Random(seed), expects or is_ordinary
    for bits in BITS:
        for structured in (True, False):
            for _ in range(count):
                code = random_code(random, bits) if structured else random.randbytes(MAX_LENGTH)
                # Also the encodings that Intel's manual calls reserved but every processor executes.
                instruction = Decoder(bits, code, DecoderOptions.NONE).decode()
                expected = None if instruction.code == Code.INVALID else instruction.len
                actual = length_of(code, bits)
                unknown = actual is None and expected is not None and not expects(instruction)
                if actual != expected and not unknown:
                    yield WrongLength(code, bits, expected, actual, str(instruction))


def is_ordinary(instruction: Instruction) -> bool:
    """Whether a machine with the features of FEATURES and SYSTEM has this instruction."""
    return set(instruction.cpuid_features()) <= FEATURES | SYSTEM
