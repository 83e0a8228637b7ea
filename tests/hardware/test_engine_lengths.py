"""The soft engine's decoder against iced-x86's: which bytes are an instruction, and how many of them."""

from __future__ import annotations

from random import Random

import pytest
from iced_x86 import CpuidFeature, Instruction

from .case import WINDOW_SIZE, Case, Mode
from .engine import Decoding, SoftTarget
from .lengths import WrongLength, compare, is_ordinary
from .values import fxsave

ABSENT = frozenset((CpuidFeature.SMX, CpuidFeature.RTM, CpuidFeature.HLE_OR_RTM, CpuidFeature.MONITOR))

INVALID_OPCODE = 6


def is_ours(instruction: Instruction) -> bool:
    return is_ordinary(instruction) and not set(instruction.cpuid_features()) & ABSENT


def is_refused_later(wrong: WrongLength, target: SoftTarget) -> bool:
    """Bytes that the decoder takes for an instruction, which then is #UD: a segment register that does not exist, say."""
    if wrong.expected is not None:
        return False
    state = Case(wrong.code, (0,) * 16, 0, fxsave(Random(0), unmasked=False, x87=False), bytes(WINDOW_SIZE), Mode(wrong.bits))
    return target.run_one(state).vector == INVALID_OPCODE


def check(count: int, seed: int) -> None:
    target = SoftTarget()
    found = [
        wrong for wrong in compare(Decoding().length_of, count, seed, is_ours) if not is_refused_later(wrong, target)
    ]
    assert not found, "\n".join(map(str, [len(found), *found[:20]]))


def test_lengths_of_random_bytes() -> None:
    check(20_000, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_lengths_of_millions_of_random_bytes() -> None:
    check(1_000_000, seed=2)


def test_a_decoder_that_errs_is_found_out() -> None:
    decoding = Decoding()

    def short(code: bytes, bits: int) -> int | None:
        length = decoding.length_of(code, bits)
        return length and length - (code[0] == 0x66)

    assert len(list(compare(short, 2_000, 3, is_ours))) > 100
