"""Encodings as the generator sees them: the fixed bytes of one, and which of its fields are free.

A form is made from one of the project's encodings ("01 /r Ev Gv"), or from iced-x86's tables, which know every
instruction there is.
"""
# mypy: disable-error-code="unreachable, arg-type, assignment, call-overload"
# iced-x86's stubs call its constants enumerations; they are ints, and are used as such here.

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import iced_x86 as iced
from iced_x86 import Code, CpuidFeature, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind

import xuni.isa.x86
from xuni.isa.x86.encodings import Encoding, all_encodings

from .case import Mode

ESCAPES = {
    OpCodeTableKind.NORMAL: b"",
    OpCodeTableKind.T0F: b"\x0f",
    OpCodeTableKind.T0F38: b"\x0f\x38",
    OpCodeTableKind.T0F3A: b"\x0f\x3a",
}
MANDATORY = {MandatoryPrefix.P66: 0x66, MandatoryPrefix.PF3: 0xF3, MandatoryPrefix.PF2: 0xF2}
VEX_PP = {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}


@dataclass(frozen=True, slots=True)
class Vex:
    """What a VEX prefix fixes (SDM vol. 2A, section 2.3); W and L are None where either value is the same."""

    map: int
    w: int | None
    l: int | None


@dataclass(frozen=True, slots=True)
class Form:
    """One encoding: prefix that belongs to the opcode, escape and opcode bytes, and how ModRM may vary.

    `register_in_opcode`: the low three bits of the last opcode byte number a register. `modrm`: one follows;
    `extension` fixes its reg field; `memory_only` and `register_only` its mod field. `operand_size` and
    `address_size`, in bits, are None where the generator may choose. `code` is iced-x86's number for it, when known.
    """

    name: str
    opcode: bytes
    prefix: int = 0
    register_in_opcode: bool = False
    modrm: bool = False
    extension: int | None = None
    memory_only: bool = False
    register_only: bool = False
    operand_size: int | None = None
    address_size: int | None = None
    vex: Vex | None = None
    modes: frozenset[Mode] = frozenset(Mode)
    code: int | None = None

    def __str__(self) -> str:
        return self.name


# ---- the project's own encodings ----


def from_encoding(encoding: Encoding) -> Form:
    """The form of a declared encoding. Operands and immediates are skipped: decoding finds them anew."""
    opcode, modrm, in_opcode = bytearray((encoding.opcode,)), encoding.modrm, encoding.opcode_register
    memory_only, register_only = encoding.memory is True, encoding.memory is False
    if encoding.modrm and register_only and encoding.reg is not None and FIXED_MODRM.search(encoding.text):
        opcode.append(0xC0 | encoding.reg << 3 | (encoding.rm or 0))
        modrm, in_opcode = False, encoding.rm is None
    modes = frozenset(Mode)
    if encoding.long is not None:
        modes = frozenset({Mode.LONG}) if encoding.long else modes - {Mode.LONG}
    vex = None
    if encoding.vex:
        vex = Vex(encoding.map - 3, encoding.rexw, encoding.vexl)
        modes -= {Mode.PROTECTED_16}
    elif encoding.rexw:
        modes &= {Mode.LONG}
    return Form(
        f"{encoding.definition.name} {encoding.text}",
        (b"" if vex else MAP_BYTES[encoding.map]) + opcode,
        (0, 0x66, 0xF3, 0xF2)[encoding.prefix or 0],
        in_opcode,
        modrm,
        encoding.reg if modrm else None,
        memory_only and modrm,
        register_only and modrm,
        64 if encoding.rexw and not vex else None,
        vex=vex,
        modes=modes,
    )


MAP_BYTES = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
FIXED_MODRM = re.compile(r"[0-9A-F]{2} [C-F][0-9A-F](\+i)?( |$)")


@functools.cache
def declared_forms() -> tuple[Form, ...]:
    """One form for each encoding that the project declares and CPL 3 may execute on the host."""
    for module in pkgutil.iter_modules(xuni.isa.x86.__path__):
        importlib.import_module(f"xuni.isa.x86.{module.name}")
    forms = {from_encoding(encoding): None for encoding in all_encodings()}
    return tuple(form for form in forms if any(_may_run(form, mode) for mode in form.modes))


def _may_run(form: Form, mode: Mode) -> bool:
    """Whether iced-x86 counts the form's opcode among what `user_forms` lists."""
    return any(
        mode in user.modes
        and user.opcode == form.opcode
        and user.prefix == form.prefix
        and (user.vex is None) == (form.vex is None)
        and (user.vex is None or form.vex is None or user.vex.map == form.vex.map)
        and (form.extension is None or user.extension in (None, form.extension))
        for user in _user_forms_by_opcode().get(form.opcode, ())
    )


@functools.cache
def _user_forms_by_opcode() -> dict[bytes, list[Form]]:
    found: dict[bytes, list[Form]] = {}
    for form in user_forms():
        for low in range(8 if form.register_in_opcode else 1):
            opcode = form.opcode[:-1] + bytes((form.opcode[-1] | low,))
            found.setdefault(opcode, []).append(replace(form, opcode=opcode))
    return found


def undeclared() -> list[Form]:
    """What `user_forms` lists and no declared encoding covers: instructions that the project lacks."""
    declared: dict[bytes, list[Form]] = {}
    for form in declared_forms():
        declared.setdefault(form.opcode, []).append(form)
    return [
        user
        for user in user_forms()
        if not any(
            user.prefix == form.prefix
            and (user.vex and user.vex.map) == (form.vex and form.vex.map)
            and form.extension in (None, user.extension)
            for form in declared.get(user.opcode, ())
        )
    ]


# ---- iced-x86's tables ----

FEATURES = frozenset(
    getattr(CpuidFeature, name)
    for name in (
        "INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 FPU FPU287 FPU387 MMX SSE SSE2 SSE3 SSSE3 SSE4_1 SSE4_2 AES "
        "PCLMULQDQ SHA BMI1 BMI2 ADX MOVBE POPCNT LZCNT CMOV CX8 CMPXCHG16B MULTIBYTENOP PAUSE PREFETCHW CLFSH "
        "CLFLUSHOPT CLWB FSGSBASE"
    ).split()
)
# Not for the host: the operating system or its tables answer them, or they leave the segments of the case.
SKIPPED = frozenset(
    """
    INT INT1 INT3 IRETW IRETD IRETQ SYSCALL SYSENTER SYSEXITD SYSEXITQ SYSRETD SYSRETQ SGDT SIDT SLDT STR SMSW
    LAR LSL VERR VERW LDS LES LFS LGS LSS CPUID RDTSC RDTSCP RDPMC RDRAND RDSEED RDPID WRFSBASE WRGSBASE
    MONITORW MWAIT RSM LOADALL286 LOADALL386 STOREALL UMOV XBTS IBTS JMPE FXSAVE FXSAVE64 FXRSTOR FXRSTOR64
    RDMSR WRMSR SWAPGS RETFW RETFD RETFQ UD0 UD1 RESERVEDNOP ALTINST FRSTPM FSTDW FSTSG FNSTDW FNSTSG FRINEAR
    FRINT2 FRICHOP FSTPNCE FTSTP FNSETPM FSETPM FNDISI FDISI FNENI FENI CCS CPU
    """.split()
)
FAR = frozenset((OpCodeOperandKind.FARBR2_2, OpCodeOperandKind.FARBR4_2))
SEGMENT_OPERANDS = frozenset(
    getattr(OpCodeOperandKind, name)
    for name in ("SEG_REG", "ES", "CS", "SS", "DS", "FS", "GS")
    if hasattr(OpCodeOperandKind, name)
)
CODE_NAMES = {value: name for name, value in vars(Code).items() if isinstance(value, int)}


@functools.cache
def user_codes() -> frozenset[int]:
    """iced-x86's numbers of what `user_forms` lists."""
    return frozenset(form.code for form in user_forms() if form.code is not None)


@functools.cache
def user_forms(*, privileged: bool = False) -> tuple[Form, ...]:
    """Every legacy encoding that can run at CPL 3 without the operating system's help, and BMI's VEX-coded ones.

    With `privileged`: instead those that CPL 3 must refuse with #GP(0).
    """
    return tuple(form for code in sorted(CODE_NAMES) for form in _from_code(code, privileged))


def _from_code(code: int, privileged: bool) -> Iterator[Form]:
    info = OpCodeInfo(code)
    if not info.is_instruction or info.encoding not in (EncodingKind.LEGACY, EncodingKind.VEX):
        return
    instruction = iced.Instruction()
    instruction.code = code
    features, mnemonic = set(instruction.cpuid_features()), CODE_NAMES[code].removeprefix("VEX_").split("_")[0]
    if not features <= FEATURES or mnemonic in SKIPPED or info.is_privileged != privileged:
        return
    kinds = info.op_kinds()
    far = bool(FAR & set(kinds)) or instruction.is_call_far_indirect or instruction.is_jmp_far_indirect
    # Selectors are the host's own; FWAIT before another opcode is two instructions.
    if far or info.fwait or SEGMENT_OPERANDS & set(kinds):
        return
    modes = frozenset(
        mode
        for mode in Mode
        if info.is_available_in_mode(mode.value) and (info.intel_decoder64 or mode is not Mode.LONG)
    )
    if not modes:
        return
    opcode = info.op_code.to_bytes(info.op_code_len, "big")
    text = info.op_code_string
    vex = None
    if info.encoding == EncodingKind.VEX:
        vex = Vex({1: 1, 2: 2, 3: 3}[info.table], None if info.is_wig else info.w, None if info.is_lig else info.l)
        modes -= {Mode.PROTECTED_16}
    yield Form(
        f"{info.instruction_string} [{text}]",
        (b"" if vex else ESCAPES[info.table]) + opcode,
        MANDATORY.get(info.mandatory_prefix, 0),
        register_in_opcode=bool(re.search(r"\+(r|i)", text)),
        modrm="/" in text,
        extension=info.group_index if info.is_group else None,
        operand_size=info.operand_size or None,
        address_size=info.address_size or None,
        vex=vex,
        modes=modes,
        code=code,
    )
