"""Random instances of an encoding: bytes, and a state in which its memory operands lie in the window.

    for case in Generator(seed=1).cases(form, Mode.LONG, 100): ...

A form gives the fixed bits; ModRM, SIB, displacement, immediate and the prefixes that do not change the instruction
are random. iced-x86 decodes the result and says which memory it touches, and then registers and displacement are
chosen so that each access falls into the window (or, now and then, on purpose into a page that is not present).
A draft that does not work out is dropped for another.
"""
# mypy: disable-error-code="unreachable, arg-type, assignment, call-overload"
# iced-x86's stubs call its constants enumerations; they are ints, and are used as such here.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import iced_x86 as iced
from iced_x86 import Code, Decoder, Instruction, InstructionInfoFactory, MemorySizeExt, OpKind, Register, RegisterExt

from . import values
from .case import CODE, DATA, FS_BASE, GPR_NAMES, GS_BASE, PAGE, SETTABLE, WINDOW_SIZE, Case, Flag, Mode
from .forms import CODE_NAMES, ESCAPES, MANDATORY, VEX_PP, Form, user_codes

DRAFTS = 64
"""Attempts at one case before a form counts as not instantiable."""
WORD = (1 << 64) - 1
ICED_FLAGS = {
    iced.RflagsBits.OF: Flag.OF, iced.RflagsBits.SF: Flag.SF, iced.RflagsBits.ZF: Flag.ZF, iced.RflagsBits.AF: Flag.AF,
    iced.RflagsBits.CF: Flag.CF, iced.RflagsBits.PF: Flag.PF,
}  # fmt: skip
GPR_OF = {
    getattr(Register, name): index
    for index, names in enumerate(
        (f"R{n} R{n}D R{n}W R{n}L" if n >= 8 else text).split()
        for n, text in enumerate(
            "RAX EAX AX AL|RCX ECX CX CL|RDX EDX DX DL|RBX EBX BX BL|RSP ESP SP SPL|RBP EBP BP BPL|RSI ESI SI SIL|"
            "RDI EDI DI DIL".split("|") + [""] * 8
        )
    )
    for name in names
}
RAX, RCX, RDX, RSP = 0, 1, 2, 4
LOCKED = 0xF0
HARNESS = 0x1000_0000  # from here to DATA lie pages that only the oracle has
BIT_STRINGS = frozenset(("BT", "BTS", "BTR", "BTC"))
DIVISIONS = frozenset(("DIV", "IDIV"))
DOUBLE_SHIFTS = frozenset(("SHLD", "SHRD"))
REGISTER_COUNTS = frozenset(("SHLX", "SARX", "SHRX", "BEXTR", "BZHI"))
INDIRECT = frozenset(("JMP", "CALL", "RETNW", "RETND", "RETNQ"))
ENTER = frozenset(("ENTERW", "ENTERD", "ENTERQ"))
COMPARE_EXCHANGE = frozenset(("CMPXCHG", "CMPXCHG8B", "CMPXCHG16B"))
POP_ALL = frozenset(("POPAW", "POPAD"))
PUSH_FLAGS = frozenset(("PUSHFW", "PUSHFD", "PUSHFQ"))
SIZES = (0, 1, 2, 4, 8, 10, 16)
"""Of memory operands, in bytes, unless they are x87 environments and the like."""
DOT_PRODUCTS = frozenset(("DPPS", "DPPD"))
APPROXIMATE = frozenset("RCPPS RCPSS RSQRTPS RSQRTSS FSIN FCOS FSINCOS FPTAN FPATAN F2XM1 FYL2X FYL2XP1".split())


class Unsuitable(Exception):
    """This draft cannot become a case; draw another."""


@dataclass(slots=True)
class Draft:
    """A case in the making."""

    mode: Mode
    code: bytearray
    instruction: Instruction
    gpr: list[int]
    memory: bytearray
    fixed: set[int] = field(default_factory=set)
    targets: list[int] = field(default_factory=list)
    """Offsets in the window of the memory operands."""


class Generator:
    """Makes cases; the same seed makes the same ones.

    `faults`: the share of memory operands that are placed so that the access faults. `unmasked`: floating-point
    exceptions may be enabled.
    """

    def __init__(self, seed: int = 0, *, faults: float = 0.03, unmasked: bool = True) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.unmasked = unmasked
        self._information = InstructionInfoFactory()

    def cases(self, form: Form, mode: Mode, count: int) -> Iterator[Case]:
        """`count` cases of a form; none when the form cannot be instantiated in this mode."""
        if mode not in form.modes:
            return
        for _ in range(count):
            for _ in range(DRAFTS):
                try:
                    case = self._case(form, mode)
                except Unsuitable:
                    continue
                yield case
                break
            else:
                return

    # ---- bytes ----

    def _bytes(self, form: Form, mode: Mode) -> bytearray:
        """Prefixes, opcode, ModRM and enough random bytes for whatever follows."""
        random, long = self.random, mode is Mode.LONG
        legacy: list[int] = []
        size = form.operand_size
        default = 16 if mode is Mode.PROTECTED_16 else 32
        rex_w = size == 64 and form.vex is None
        if size is None and not form.prefix and form.vex is None:
            if random.randrange(3) == 0:
                legacy.append(0x66)
            rex_w = long and random.randrange(3) == 0
        elif size in (16, 32) and size != default:
            legacy.append(0x66)
        address = form.address_size
        default_address = mode.value
        if (address is not None and address != default_address) or (address is None and random.randrange(10) == 0):
            legacy.append(0x67)
        if random.randrange(12) == 0:
            legacy.append(random.choice((0x26, 0x2E, 0x36, 0x3E, *((0x64, 0x65) * 2 if long else ()))))
        if random.randrange(16) == 0 or (form.modrm and random.randrange(8) == 0 and self._lockable(form)):
            legacy.append(LOCKED)
        if not form.prefix and form.vex is None and random.randrange(10 if form.modrm else 2) == 0:
            legacy.append(random.choice((0xF2, 0xF3)))
        random.shuffle(legacy)
        if form.prefix and form.vex is None:
            legacy.insert(random.randrange(len(legacy) + 1), form.prefix)
        code = bytearray(legacy)
        opcode = bytearray(form.opcode)
        if form.register_in_opcode:
            opcode[-1] |= random.getrandbits(3)
        if form.vex is not None:
            w = random.getrandbits(1) if form.vex.w is None else form.vex.w
            l = random.getrandbits(1) if form.vex.l is None else form.vex.l
            inverted = random.getrandbits(3) << 5 if long else 0xE0
            operand = random.getrandbits(4) if long else random.getrandbits(3) | 8
            if random.randrange(3) == 0:
                operand = 15  # what an unused vvvv must be
            code += bytes((0xC4, inverted | form.vex.map, w << 7 | operand << 3 | l << 2 | VEX_PP[form.prefix]))
        elif long and (rex_w or random.randrange(3) == 0):
            code.append(0x40 | rex_w << 3 | random.getrandbits(3))
        code += opcode
        if form.modrm:
            modrm = random.getrandbits(8)
            if form.extension is not None:
                modrm = modrm & 0xC7 | form.extension << 3
            if form.register_only:
                modrm |= 0xC0
            elif (form.memory_only or random.randrange(4) == 0) and modrm >= 0xC0:
                modrm &= random.choice((0x3F, 0x7F, 0xBF))
            code.append(modrm)
        return code + random.randbytes(12)

    def _lockable(self, form: Form) -> bool:
        return form.code is None or bool(iced.OpCodeInfo(form.code).can_use_lock_prefix)

    def _decode(self, form: Form, mode: Mode, code: bytearray) -> Instruction:
        decoder = Decoder(mode.value, bytes(code), ip=mode.rip)
        instruction = decoder.decode()
        if instruction.code == Code.INVALID or len(code) < instruction.len:
            raise Unsuitable
        if form.code is not None and instruction.code != form.code:
            raise Unsuitable
        if form.code is None and not matches(form, instruction):
            raise Unsuitable
        if mode is Mode.LONG and 0x66 in code[: len(code) - 12] and is_near_branch(instruction):
            raise Unsuitable  # Intel ignores the prefix there, AMD does not
        if instruction.is_loopcc and set(code[: len(code) - 12]) & {0xF2, 0xF3}:
            raise Unsuitable  # it chooses the condition on AMD's processors
        if instruction.code == Code.MOVSXD_R16_RM16 and instruction.op1_kind == OpKind.MEMORY:
            raise Unsuitable  # AMD reads 32 bits
        offsets = decoder.get_constant_offsets(instruction)
        length = instruction.len
        del code[length:]
        if offsets.has_immediate and self.random.randrange(3) == 0:
            start, size = offsets.immediate_offset, offsets.immediate_size
            code[start : start + size] = values.integer(self.random, 8 * size).to_bytes(size, "little")
        return self._fix_displacement(mode, code, instruction, offsets)

    def _fix_displacement(
        self, mode: Mode, code: bytearray, instruction: Instruction, offsets: iced.ConstantOffsets
    ) -> Instruction:
        """Operands without a base register get a displacement that leads to the window."""
        moffs = any(instruction.op_kind(index) == OpKind.MEMORY for index in range(instruction.op_count))
        if not (moffs and offsets.has_displacement):
            return self._again(mode, code)
        base, index = instruction.memory_base, instruction.memory_index
        if base in (Register.RIP, Register.EIP) or base == index == Register.NONE:
            size = MemorySizeExt.size(instruction.memory_size)
            target = self._place(size) + self._segment_offset(mode, instruction.memory_segment)
            if base in (Register.RIP, Register.EIP):
                target -= mode.rip + len(code)
        elif base == Register.NONE:
            scaled = instruction.memory_index_scale * self.random.randrange(-4, 64)
            target = self._place(MemorySizeExt.size(instruction.memory_size)) - scaled
            target += self._segment_offset(mode, instruction.memory_segment)
        else:
            return self._again(mode, code)
        start, width = offsets.displacement_offset, offsets.displacement_size
        if width < 2:
            raise Unsuitable
        code[start : start + width] = (target & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return self._again(mode, code)

    def _again(self, mode: Mode, code: bytearray) -> Instruction:
        instruction = Decoder(mode.value, bytes(code), ip=mode.rip).decode()
        if instruction.len != len(code):
            raise Unsuitable
        return instruction

    # ---- state ----

    def _case(self, form: Form, mode: Mode) -> Case:
        random = self.random
        code = self._bytes(form, mode)
        instruction = self._decode(form, mode, code)
        if len(code) > 15:
            raise Unsuitable
        mnemonic = CODE_NAMES[instruction.code].removeprefix("VEX_").split("_")[0]
        if mnemonic in DOUBLE_SHIFTS and instruction.op_kind(2) == OpKind.IMMEDIATE8:
            narrow = RegisterExt.info(instruction.op1_register).size == 2
            if narrow and instruction.immediate(2) & 31 > 16:
                raise Unsuitable  # the result is undefined, SDM vol. 2B
        gpr = [values.integer(random) & mode.register_mask for _ in range(mode.registers)]
        draft = Draft(mode, code, instruction, gpr, bytearray(values.memory(random)))
        self._prepare(draft, mnemonic)
        used = self._information.info(instruction).used_memory()
        for access in used:
            self._aim(draft, access)
        self._adjust(draft, mnemonic)
        for access in used:
            self._verify(draft, access)
        if mnemonic in ENTER:
            self._verify_probe(draft)
        # POPA may have loaded registers before it faults; a CALL may have two reasons to fault.
        calls = mnemonic == "CALL" and mode is Mode.PROTECTED_16
        if (calls or mnemonic in POP_ALL) and len(draft.targets) < len(used):
            raise Unsuitable
        flags = random.getrandbits(32) & SETTABLE
        if not instruction.is_string_instruction and random.randrange(4):
            flags &= ~Flag.DF
        if instruction.is_string_instruction:
            self._verify_string(draft, bool(flags & Flag.DF), used)
        x87 = "ST" in form.name or mnemonic.startswith("F") or "MM" in form.name or random.randrange(8) == 0
        undefined = sum(flag for bit, flag in ICED_FLAGS.items() if instruction.rflags_undefined & bit)
        return Case(
            bytes(code),
            tuple(gpr + [0] * (16 - len(gpr))),
            int(flags),
            # A dot product is several operations, and which of them raise flags once one has faulted is not told.
            values.fxsave(random, unmasked=self.unmasked and mnemonic not in DOT_PRODUCTS, x87=x87),
            bytes(draft.memory),
            mode,
            int(undefined),
            form.name,
            # TF, which single stepping sets, and IF
            self._pushed_flags(draft) if mnemonic in PUSH_FLAGS else (),
            mnemonic in APPROXIMATE,
            -PAGE & WORD if any(MemorySizeExt.size(access.memory_size) not in SIZES for access in used) else WORD,
        )

    def _prepare(self, draft: Draft, mnemonic: str) -> None:
        """Registers whose value decides whether the case is worth running."""
        random, instruction, gpr = self.random, draft.instruction, draft.gpr
        if instruction.is_string_instruction:
            count = random.choice((0, 1, 2, 3, 5, 8, 13))
            keep = (WORD << self._string_address_size(draft)) & draft.mode.register_mask
            gpr[RCX] = gpr[RCX] & keep | count
            draft.fixed.add(RCX)
        elif mnemonic in DIVISIONS:
            if random.randrange(4):
                gpr[RDX] = random.choice((0, 0, 1, draft.mode.register_mask, random.randrange(256)))
            if random.randrange(4) == 0:
                gpr[RAX] &= 0x3FFF
        elif mnemonic in BIT_STRINGS and instruction.op0_kind == OpKind.MEMORY and instruction.op1_register in GPR_OF:
            bit = GPR_OF[instruction.op1_register]
            width = 8 * RegisterExt.info(instruction.op1_register).size
            offset = random.randrange(-1024, 1024) & ((1 << width) - 1)
            gpr[bit] = gpr[bit] & ~((1 << width) - 1) & draft.mode.register_mask | offset
            draft.fixed.add(bit)
        elif "cl" in str(instruction).replace(" ", ",").split(",") or mnemonic in REGISTER_COUNTS:
            limit = 17 if mnemonic in DOUBLE_SHIFTS and MemorySizeExt.size(instruction.memory_size) in (0, 2) else 256
            gpr[RCX] = gpr[RCX] & ~0xFF | random.randrange(limit)
            draft.fixed.add(RCX)

    def _adjust(self, draft: Draft, mnemonic: str) -> None:
        """Memory and registers that only make sense together."""
        random, gpr = self.random, draft.gpr
        mask = draft.mode.register_mask
        if mnemonic in INDIRECT:
            # Branch targets stay canonical, and in a 16-bit segment mostly within its limit.
            narrow = draft.mode is Mode.PROTECTED_16 and random.randrange(4)
            target = random.getrandbits(11) if narrow else random.getrandbits(random.choice((15, 31, 47))) & mask
            for at in draft.targets:
                draft.memory[at : at + 8] = target.to_bytes(8, "little")
            if draft.instruction.op_count and draft.instruction.op0_kind == OpKind.REGISTER:
                number = GPR_OF[draft.instruction.op0_register]
                if number not in draft.fixed:
                    gpr[number] = target
        elif mnemonic in COMPARE_EXCHANGE and random.randrange(2):
            for at in draft.targets:
                size = MemorySizeExt.size(draft.instruction.memory_size)
                half = size // 2 if mnemonic != "CMPXCHG" else size
                draft.memory[at : at + half] = (gpr[RAX] & ((1 << 8 * half) - 1)).to_bytes(half, "little")
                if mnemonic != "CMPXCHG":
                    draft.memory[at + half : at + size] = (gpr[RDX] & ((1 << 8 * half) - 1)).to_bytes(half, "little")
            draft.memory[WINDOW_SIZE:] = b""
        elif draft.targets and random.randrange(4) == 0:
            at = random.choice(draft.targets) & ~15
            draft.memory[at : at + 16] = values.vector(random)
            draft.memory[WINDOW_SIZE:] = b""

    def _pushed_flags(self, draft: Draft) -> tuple[tuple[int, int], ...]:
        mask = 0xFFFF if draft.mode is Mode.PROTECTED_16 else WORD
        size = -draft.instruction.stack_pointer_increment
        at = (draft.gpr[RSP] - size & mask) - draft.mode.window + 1
        return ((at, 0x03),) if 0 <= at < WINDOW_SIZE else ()

    # ---- memory operands ----

    def _place(self, size: int) -> int:
        """Offset from DATA of an operand of `size` bytes: in the window, mostly aligned."""
        random, size = self.random, max(size, 1)
        if size > WINDOW_SIZE // 2:
            raise Unsuitable
        if random.random() < self.faults:
            return PAGE - random.randrange(size + 1) if size > 1 else PAGE
        offset = random.randrange(WINDOW_SIZE // 4, WINDOW_SIZE * 3 // 4 - min(size, WINDOW_SIZE // 4))
        if size >= 16 and random.randrange(12):
            offset &= ~15
        elif size < 16 and random.randrange(3):
            offset &= ~(size - 1)
        return PAGE - WINDOW_SIZE + offset

    def _segment_offset(self, mode: Mode, segment: int) -> int:
        """What an effective address of 0 must become to be offset 0 of DATA."""
        if mode is Mode.PROTECTED_16:
            return 0
        base = {Register.FS: FS_BASE, Register.GS: GS_BASE}.get(segment, 0) if mode is Mode.LONG else 0
        return DATA - base

    def _aim(self, draft: Draft, access: iced.UsedMemory) -> None:
        """Choose base and index so that the access hits the window."""
        base, index = access.base, access.index
        if base in (Register.RIP, Register.EIP) or (base == index == Register.NONE):
            draft.targets += self._window_offset(draft, access)
            return
        if RegisterExt.is_xmm(index) or RegisterExt.is_ymm(index):
            raise Unsuitable
        width = 8 * RegisterExt.info(base if base != Register.NONE else index).size
        width = width if base != Register.NONE else self._address_width(draft, access, width)
        mask = (1 << width) - 1
        target = self._place(MemorySizeExt.size(access.memory_size)) + self._segment_offset(draft.mode, access.segment)
        if index == Register.NONE:
            self._assign(draft, base, target - access.displacement, width)
        elif base == Register.NONE:
            distance = (target - access.displacement) & mask
            if distance % access.scale:
                # The displacement was chosen for it: undo the fresh target's difference.
                distance -= distance % access.scale
            self._assign(draft, index, distance // access.scale, width)
        elif GPR_OF[base] == GPR_OF[index]:
            factor, distance = access.scale + 1, (target - access.displacement) & mask
            if factor % 2:
                self._assign(draft, base, distance * pow(factor, -1, 1 << width), width)
            else:
                self._assign(draft, base, distance // 2, width)
        else:
            number = GPR_OF[index]
            if number not in draft.fixed and (self.random.randrange(2) or RegisterExt.info(index).size == 1):
                size = 8 * RegisterExt.info(index).size
                small = self.random.randrange(64)
                draft.gpr[number] = draft.gpr[number] & ~((1 << size) - 1) & draft.mode.register_mask | small
            draft.fixed.add(number)
            scaled = self._value(draft, index) * access.scale
            self._assign(draft, base, target - access.displacement - scaled, width)
        draft.targets += self._window_offset(draft, access)

    def _assign(self, draft: Draft, register: int, value: int, width: int) -> None:
        number = GPR_OF[register]
        if number in draft.fixed:
            return  # whether that is good enough, `_verify` tells
        draft.fixed.add(number)
        mask = (1 << width) - 1
        draft.gpr[number] = (draft.gpr[number] & ~mask | value & mask) & draft.mode.register_mask

    def _value(self, draft: Draft, register: int) -> int:
        return draft.gpr[GPR_OF[register]] & ((1 << 8 * RegisterExt.info(register).size) - 1)

    def _address_width(self, draft: Draft, access: iced.UsedMemory, fallback: int) -> int:
        sizes = {iced.CodeSize.CODE16: 16, iced.CodeSize.CODE32: 32, iced.CodeSize.CODE64: 64}
        return sizes.get(access.address_size, fallback)

    def _linear(self, draft: Draft, access: iced.UsedMemory) -> int:
        """The linear address of an access with the registers as they are now."""
        address = access.displacement
        if access.base not in (Register.NONE, Register.RIP, Register.EIP):
            address += self._value(draft, access.base)
        if access.index != Register.NONE:
            address += self._value(draft, access.index) * access.scale
        address &= (1 << self._address_width(draft, access, draft.mode.value)) - 1
        return (address + DATA - self._segment_offset(draft.mode, access.segment)) & draft.mode.register_mask

    def _window_offset(self, draft: Draft, access: iced.UsedMemory) -> list[int]:
        offset = self._linear(draft, access) - (DATA + PAGE - WINDOW_SIZE)
        return [offset] if 0 <= offset < WINDOW_SIZE - 16 else []

    def _verify(self, draft: Draft, access: iced.UsedMemory) -> None:
        """Every access lies in the window, or begins in it and runs into the page that is not present, or is there."""
        start = self._linear(draft, access)
        size = max(MemorySizeExt.size(access.memory_size), 1)
        inside = DATA + PAGE - WINDOW_SIZE <= start <= DATA + 2 * PAGE - size
        # Below mmap_min_addr nothing is mapped, nor beyond the limit of a 16-bit data segment.
        faulting = start + size <= 0x1000 if draft.mode is not Mode.PROTECTED_16 else start >= DATA + PAGE
        if not (inside or faulting):
            raise Unsuitable
        if draft.mode is Mode.PROTECTED_16 and access.segment == Register.CS:
            raise Unsuitable

    def _verify_probe(self, draft: Draft) -> None:
        """ENTER also touches the place where RSP ends up: not one that only the host has mapped."""
        deepest = 8 * 32  # bytes of nested frame pointers
        end = draft.gpr[RSP] - deepest - draft.instruction.immediate16
        reserved = range(HARNESS - PAGE, DATA)
        if any(place in reserved for place in (end, end + deepest)) and draft.mode is not Mode.PROTECTED_16:
            raise Unsuitable

    def _string_address_size(self, draft: Draft) -> int:
        for access in self._information.info(draft.instruction).used_memory():
            return self._address_width(draft, access, draft.mode.value)
        return draft.mode.value

    def _verify_string(self, draft: Draft, down: bool, used: list[iced.UsedMemory]) -> None:
        """All iterations stay in the window too."""
        repeated = draft.instruction.has_rep_prefix or draft.instruction.has_repne_prefix
        count = draft.gpr[RCX] & 0xFF if repeated else 1
        for access in used:
            size, start = MemorySizeExt.size(access.memory_size), self._linear(draft, access)
            end = start + (-1 if down else 1) * size * count
            if not DATA + PAGE - WINDOW_SIZE <= min(start, end) <= max(start, end) <= DATA + 2 * PAGE:
                raise Unsuitable


def matches(form: Form, instruction: Instruction) -> bool:
    """Whether decoding found what the form stands for: the random prefixes did not turn it into something else."""
    if instruction.code not in user_codes():
        return False
    info = iced.OpCodeInfo(instruction.code)
    opcode = bytearray((b"" if form.vex else ESCAPES[info.table]) + info.op_code.to_bytes(info.op_code_len, "big"))
    expected = bytearray(form.opcode)
    if form.register_in_opcode:
        opcode[-1] &= 0xF8
        expected[-1] &= 0xF8
    prefix = MANDATORY.get(info.mandatory_prefix, 0)
    same_group = form.extension is None or info.group_index in (-1, form.extension)
    return opcode == expected and prefix == form.prefix and same_group


def is_near_branch(instruction: Instruction) -> bool:
    kind = iced.FlowControl
    jumps = (kind.UNCONDITIONAL_BRANCH, kind.INDIRECT_BRANCH, kind.CONDITIONAL_BRANCH)
    return instruction.flow_control in (*jumps, kind.RETURN, kind.CALL, kind.INDIRECT_CALL)


def label(case: Case) -> str:
    """A case in one line: what to print when it fails."""
    instruction = Decoder(case.mode.value, case.code, ip=case.mode.rip).decode()
    registers = " ".join(f"{name}={value:x}" for name, value in zip(GPR_NAMES, case.gpr, strict=True) if value)
    return f"{case.mode.name} {case.code.hex(' ')}  {instruction}  [{case.name}] rflags={case.rflags:x} {registers}"


assert CODE + PAGE <= DATA
