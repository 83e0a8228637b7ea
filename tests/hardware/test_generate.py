"""The generator: what it makes decodes to what was asked for, stays where it may, and covers every encoding."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from iced_x86 import Code, Decoder, OpKind

from xuni.isa.x86.encodings import parse
from xuni.isa.x86.instruction import Definition

from . import values
from .case import Case, Flag, Mode, Outcome
from .forms import Form, Vex, declared_forms, from_encoding, user_codes, user_forms
from .generate import Generator, matches
from .lengths import compare, random_code
from .oracle import HostCpu, modes, unavailable
from .sweep import main, sweep


def forms(pattern: str) -> list[Form]:
    return [form for form in user_forms() if form.name.startswith(pattern)]


def declared(text: str) -> Form:
    """The form of "NAME|ENCODING"."""
    name, encoding = text.split("|")
    definition = Definition(name, (encoding,), lambda: None, "base", False, "", False, False, False, "")
    return from_encoding(next(iter(parse(definition, encoding))))


def test_forms_are_made_of_declarations() -> None:
    assert declared("ADD|01 /r Ev Gv") == Form("ADD 01 /r Ev Gv", b"\x01", modrm=True)
    assert declared("IMUL|0F AF /r Gv Ev").opcode == b"\x0f\xaf"
    assert declared("SHL|C0 /4 Eb Ib").extension == 4
    assert declared("MOVSS|F3 0F 10 /r Vss Wss").prefix == 0xF3
    push = declared("PUSH|50+r Zv d64")
    assert (push.register_in_opcode, push.opcode, push.modrm) == (True, b"\x50", False)
    assert declared("LEA|8D /r Gv M").memory_only and declared("MOVMSKPS|NP 0F 50 /r Gy Ux").register_only
    andn = declared("ANDN|VEX.L0.NP.0F38.W0 F2 /r Gd By Ed")
    assert (andn.vex, andn.prefix, andn.opcode) == (Vex(2, 0, 0), 0, b"\xf2")
    assert declared("AAA|37 i64").modes == {Mode.PROTECTED_32, Mode.PROTECTED_16}
    wide = declared("CMPXCHG16B|REX.W 0F C7 /1 Mdq")
    assert wide.modes == {Mode.LONG} and wide.operand_size == 64
    fadd = declared("FADD|D8 C0+i ST0 STi")
    assert (fadd.opcode, fadd.register_in_opcode, fadd.modrm) == (b"\xd8\xc0", True, False)
    fsin = declared("FSIN|D9 FE ST0")
    assert (fsin.opcode, fsin.register_in_opcode, fsin.modrm) == (b"\xd9\xfe", False, False)


@pytest.mark.parametrize("text", ["ADD|01 /r Ev Gv", "POPCNT|F3 0F B8 /r Gv Ev", "BSWAP|0F C8+r Zv", "NEG|F7 /3 Ev"])
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name)
def test_declared_forms_make_cases_of_their_own_instruction(text: str, mode: Mode) -> None:
    name, form = text.split("|")[0], declared(text)
    cases = list(Generator(1).cases(form, mode, 40))
    assert len(cases) == 40
    for case in cases:
        instruction = Decoder(mode.value, case.code).decode()
        assert name.lower() in str(instruction).split()
        assert matches(form, instruction) and instruction.len == len(case.code)


def test_every_encoding_can_be_instantiated() -> None:
    generator = Generator(3)
    missing = [
        f"{mode.name} {form}"
        for form in user_forms()
        for mode in form.modes
        if not list(generator.cases(form, mode, 1)) and not list(generator.cases(form, mode, 1))
    ]
    assert missing == []
    assert len(user_forms()) > 1300 and len(user_codes()) == len(user_forms())


def test_every_declared_encoding_can_be_instantiated() -> None:
    generator = Generator(4)
    missing = [
        f"{mode.name} {form}"
        for form in declared_forms()
        for mode in form.modes & {Mode.LONG, Mode.PROTECTED_32}
        if not any(list(generator.cases(form, mode, 1)) for _ in range(4))
    ]
    assert missing == []


def test_the_same_seed_makes_the_same_cases() -> None:
    (form,) = forms("XADD r/m32")
    first, second = (list(Generator(7).cases(form, Mode.LONG, 20)) for _ in range(2))
    assert first == second


def test_instances_vary_in_every_field() -> None:
    (form,) = forms("ADD r/m32, r32")
    cases = list(Generator(5).cases(form, Mode.LONG, 400))
    seen = Counter(prefix for case in cases for prefix in case.code[:-2] if prefix in (0xF0, 0x67, 0x2E, 0x64, 0x65))
    assert set(seen) == {0xF0, 0x67, 0x2E, 0x64, 0x65}, "lock, address size and segments all occur"
    instructions = [Decoder(64, case.code).decode() for case in cases]
    assert {instruction.op0_kind for instruction in instructions} == {OpKind.REGISTER, OpKind.MEMORY}
    assert len({instruction.memory_base for instruction in instructions}) > 16
    assert len({instruction.memory_index for instruction in instructions}) > 10
    flags = 0
    for case in cases:
        flags |= case.rflags
    assert flags & Flag.CF and flags & Flag.OF and flags & Flag.DF


def test_undefined_flags_come_along() -> None:
    (form,) = forms("MUL r/m32")
    (case,) = Generator(1).cases(form, Mode.LONG, 1)
    assert case.undefined == Flag.SF | Flag.ZF | Flag.AF | Flag.PF


def test_fxsave_images_keep_the_summary_bit_true() -> None:
    random = Random(1)
    pending = 0
    for _ in range(500):
        image = values.fxsave(random, unmasked=True, x87=True)
        control, status = int.from_bytes(image[0:2], "little"), int.from_bytes(image[2:4], "little")
        assert bool(status & 0x80) == bool(status & ~control & 0x3F)
        assert int.from_bytes(image[24:28], "little") <= 0xFFFF
        pending += bool(status & 0x80)
    assert 10 < pending < 250


@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")
def test_the_host_agrees_with_itself() -> None:
    """Whatever an instruction reads is part of its case: two runs give the same outcomes, in any order."""
    chosen = user_forms()[::9]
    assert [str(wrong) for wrong in sweep(HostCpu(), chosen, modes(), 3)] == []


@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")
def test_a_wrong_target_is_caught() -> None:
    class Liar(HostCpu):
        name = "liar"

        def run(self, cases: Sequence[Case]) -> list[Outcome]:
            return [dataclasses.replace(outcome, rflags=outcome.rflags ^ Flag.CF) for outcome in super().run(cases)]

    wrong = list(sweep(Liar(), forms("ADD r/m32, r32"), [Mode.LONG], 5))
    assert len(wrong) == 5 and "CF" in str(wrong[0])


def test_the_command_line_names_an_unknown_target() -> None:
    with pytest.raises(SystemExit, match="unknown target 'nobody'"):
        main(["--target", "nobody"])


def test_lengths_of_iced_itself_agree_and_errors_are_found() -> None:
    def iced_length(code: bytes, bits: int) -> int | None:
        instruction = Decoder(bits, code).decode()
        return None if instruction.code == Code.INVALID else instruction.len

    assert list(compare(iced_length, 300)) == []
    off_by_one = list(compare(lambda code, bits: (iced_length(code, bits) or 0) + 1, 20))
    assert len(off_by_one) == 120
    assert "expected" in str(off_by_one[0])
    only_instructions = list(compare(lambda code, bits: None, 300))
    assert only_instructions and all(wrong.expected is not None for wrong in only_instructions)
    assert len(random_code(Random(1), 64)) == 15
