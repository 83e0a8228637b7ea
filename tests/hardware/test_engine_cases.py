"""Every encoding that the soft engine decodes, against the host's processor: single instructions from random states."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest

from xuni.isa.x86.encodings import all_encodings

from .case import Case, Flag, Mode, Target, differences
from .crossing import CrossingTarget, crossings
from .engine import Path, SoftTarget
from .forms import Form, declared_forms
from .generate import Generator
from .legacy import LegacyTarget
from .oracle import BATCH, HostCpu, modes, unavailable
from .sweep import Disagreement, compare

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "none")

# Where processors differ in the last places, and in what they do with arguments out of range: tests/isa_fp judges them.
BEYOND = frozenset("FSIN FCOS FSINCOS FPTAN FPATAN F2XM1 FYL2X FYL2XP1 FSCALE FPREM FPREM1".split())
BRANCHES = ("J", "CALL", "RET", "LOOP")
ADDRESS_FAULTS = (12, 13, 14)
LINUX_NAMES = {"lzcnt": "abm"}
QUICK = (
    (Mode.LONG, Path.WARM, 5, 0.03),
    (Mode.LONG, Path.COLD, 2, 0.3),
    (Mode.LONG, Path.WATCHED, 2, 0.03),
    (Mode.LONG, Path.OUT_OF_LINE, 3, 0.3),
    (Mode.PROTECTED_32, Path.WARM, 3, 0.1),
    (Mode.PROTECTED_32, Path.OUT_OF_LINE, 1, 0.3),
    (Mode.PROTECTED_16, Path.COLD, 3, 0.1),
)
LEGACY_MODES = (Mode.PROTECTED_32, Mode.PROTECTED_16)


@functools.cache
def host_features() -> frozenset[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        lines = [line for line in file.read().split("\n\n")[0].splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split(":")[1].split()) if lines else frozenset()


@functools.cache
def forms() -> tuple[Form, ...]:
    """The declared encodings that the host's processor has too."""
    declared = declared_forms()
    needed = {f"{e.definition.name} {e.text}": e.definition.feature for e in all_encodings()}
    present = host_features() | {"base"}
    return tuple(
        form
        for form in declared
        if LINUX_NAMES.get(needed[form.name], needed[form.name]) in present and form.name.split()[0] not in BEYOND
    )


@functools.cache
def soft(path: Path, stepping: bool = True) -> SoftTarget:
    return SoftTarget(path, stepping)


@functools.cache
def host() -> HostCpu:
    return HostCpu()


def batches(cases: Iterable[Case]) -> Iterator[list[Case]]:
    batch: list[Case] = []
    for case in cases:
        batch.append(case)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def disagreements(cases: Iterable[Case], target: Target) -> list[Disagreement]:
    return [found for batch in batches(cases) for found in compare(batch, host(), target)]


def report(found: Sequence[object]) -> str:
    return f"{len(found)} disagreements\n" + "\n".join(str(one) for one in found[:10])


def offered(mode: Mode) -> None:
    if mode not in modes():
        pytest.skip(f"the host does not offer {mode.name}")


def check_all(mode: Mode, target: SoftTarget, count: int, faults: float, seed: int) -> None:
    offered(mode)
    generator = Generator(seed, faults=faults)
    cases = [case for form in forms() for case in generator.cases(form, mode, count)]
    assert {case.name for case in cases} == {form.name for form in forms() if mode in form.modes}
    found = disagreements(cases, target)
    assert not found, report(found)


@pytest.mark.parametrize(("mode", "path", "count", "faults"), QUICK, ids=lambda value: getattr(value, "name", str(value)))
def test_every_encoding_does_what_the_processor_does(mode: Mode, path: Path, count: int, faults: float) -> None:
    check_all(mode, soft(path), count, faults, seed=1)


@pytest.mark.parametrize("mode", LEGACY_MODES, ids=lambda mode: mode.name)
def test_every_encoding_does_so_without_long_mode(mode: Mode) -> None:
    check_all(mode, LegacyTarget(Path.COLD), 2, 0.1, seed=6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", list(Path), ids=lambda path: path.name)
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_every_encoding_does_so_a_hundred_times(mode: Mode, path: Path) -> None:
    for seed in range(10, 14):
        check_all(mode, soft(path), 30, 0.1, seed)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", LEGACY_MODES, ids=lambda mode: mode.name)
def test_every_encoding_does_so_without_long_mode_a_hundred_times(mode: Mode) -> None:
    target = LegacyTarget(Path.COLD)
    for seed in range(30, 33):
        check_all(mode, target, 30, 0.1, seed)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_free_running_code_does_the_same_as_stepped_code(mode: Mode) -> None:
    """Repeated instructions take their whole windows at once; what comes next is reached."""
    offered(mode)
    generator = Generator(2)
    chosen = [form for form in forms() if not form.name.startswith(BRANCHES)]
    cases = [case for form in chosen for case in generator.cases(form, mode, 2)]
    strings = [form for form in chosen if form.name.split()[0] in ("MOVS", "STOS", "LODS", "CMPS", "SCAS")]
    cases += [case for form in strings for case in generator.cases(form, mode, 60)]
    assert len(strings) == 10
    for path in (Path.WARM, Path.OUT_OF_LINE):
        found = disagreements(cases, soft(path, stepping=False))
        assert not found, report(found)


def test_most_encodings_complete_and_change_something() -> None:
    """The sweeps would not notice much if all their cases faulted, or if their instructions did nothing."""
    generator = Generator(3, faults=0, unmasked=False)
    cases = [case for form in forms() if Mode.LONG in form.modes for case in generator.cases(form, Mode.LONG, 8)]
    idle = {case.name for case in cases}
    for case, outcome in zip(cases, host().run(cases), strict=True):
        nothing = replace(outcome, gpr=case.gpr, rflags=case.rflags | Flag.FIXED, fxsave=case.fxsave, memory=case.memory)
        if outcome.vector is None and (differences(case, nothing, outcome) or outcome.rip != case.mode.rip + len(case.code)):
            idle.discard(case.name)
    harmless = ("NOP", "PREFETCH", "FNOP", "PAUSE", "CLFLUSH", "CLWB", "LFENCE", "SFENCE", "MFENCE", "UD", "HLT", "EMMS")
    refused = {name for name in idle if not name.startswith(harmless)}
    assert len(refused) < len(forms()) // 20, sorted(refused)


# -- AC ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [Mode.LONG, Mode.PROTECTED_32], ids=lambda mode: mode.name)
def test_alignment_checks(mode: Mode) -> None:
    """With EFLAGS.AC every access at CPL 3 goes out of line, and a misaligned one is #AC."""
    offered(mode)
    generator = Generator(4, faults=0.3)
    names = ("MOV ", "ADD", "CMP", "XCHG", "PUSH ", "POP ", "IMUL", "MOVZX", "CMPXCHG", "MOVS ", "STOS", "SET", "BTS")
    # Which of the two operands of CMPS is looked at first is not told.
    chosen = [form for form in forms() if form.name.startswith(names) and not form.name.startswith("CMPS ")]
    cases = [replace(case, rflags=case.rflags | Flag.AC) for form in chosen for case in generator.cases(form, mode, 8)]
    assert sum(outcome.vector == 17 for outcome in host().run(cases)) > len(cases) // 20
    found = disagreements(cases, soft(Path.WARM))
    assert not found, report(found)


# -- page crossings ----------------------------------------------------------------------------------------------------
def check_crossings(mode: Mode, path: Path, count: int, seed: int) -> None:
    offered(mode)
    generator, target = Generator(seed, faults=0), crossing_target(path)
    cases = (case for form in forms() for case in generator.cases(form, mode, count))
    made = list(crossings(cases, Random(seed)))
    assert len({crossing.case.name for crossing in made}) > 200
    found = []
    for crossing, outcome in zip(made, host().run([crossing.case for crossing in made]), strict=True):
        if outcome.vector not in ADDRESS_FAULTS:
            actual = target.run_crossing(crossing)
            if differing := differences(crossing.case, outcome, actual):
                found.append(Disagreement(crossing.case, outcome, actual, differing))
    assert not found, report(found)


@functools.cache
def crossing_target(path: Path) -> CrossingTarget:
    return CrossingTarget(path)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_operands_that_lie_in_two_pages(mode: Mode) -> None:
    check_crossings(mode, Path.WARM, 3, seed=5)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [Path.COLD, Path.OUT_OF_LINE], ids=lambda path: path.name)
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_operands_that_lie_in_two_pages_a_hundred_times(mode: Mode, path: Path) -> None:
    for seed in range(20, 23):
        check_crossings(mode, path, 20, seed)
