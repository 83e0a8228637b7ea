"""What the soft engine makes of several instructions at once: handlers for known producers of flags, fused branches."""

from __future__ import annotations

import re

import pytest

from .case import Mode
from .engine import SoftTarget
from .oracle import HostCpu, modes
from .sequences import SequenceGenerator, compare
from .test_engine_cases import forms

INTEGER = re.compile(r"^(?!F[A-Z0-9]+ D)(?!.* (NP|66|F2|F3) 0F)(?!UD|HLT|INTO|STI|CLI|IN|OUT|WBINVD|PUSHF|POPF)")
TRANSFER = re.compile(r"^(J|LOOP|CALL|RET)")
READER = re.compile(r"^(J|SET|CMOV|LOOP|ADC|SBB|RC|INC|DEC|LAHF|CMC|SA|SH|RO)")
FLAG_SETTER = re.compile(r"^(CMP|TEST|SUB|ADD|AND|OR|XOR|INC|DEC|NEG|SHL|SHR) ")
CONDITIONAL = re.compile(r"^(J|SET|CMOV)")


def check(mode: Mode, firsts: re.Pattern[str], seconds: re.Pattern[str], count: int, length: int, seed: int) -> None:
    if mode not in modes():
        pytest.skip(f"the host does not offer {mode.name}")
    known = [form for form in forms() if INTEGER.match(form.name)]
    generator = SequenceGenerator(
        [form for form in known if firsts.match(form.name) and not TRANSFER.match(form.name)],
        [form for form in known if seconds.match(form.name)],
        seed,
    )
    chains = list(generator.sequences(mode, count, length))
    assert len(chains) > count * 9 // 10
    found = list(compare(chains, HostCpu(), SoftTarget(stepping=False).run_code))
    lines = [f"{chain}\n    " + "\n    ".join(differing) for chain, differing in found[:10]]
    assert not found, f"{len(found)} disagreements\n" + "\n".join(lines)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_conditions_after_what_sets_flags(mode: Mode) -> None:
    check(mode, FLAG_SETTER, CONDITIONAL, 1500, 2, seed=1)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_readers_of_flags_after_anything(mode: Mode) -> None:
    check(mode, INTEGER, READER, 600, 3, seed=2)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_sequences_thousands_of_times(mode: Mode) -> None:
    for seed in range(10, 16):
        check(mode, FLAG_SETTER, CONDITIONAL, 10_000, 2, seed)
        check(mode, INTEGER, READER, 4_000, 5, seed)
