"""A processor's registers under gdb's names and numbers, and the description of them that gdb asks for.

The numbers and the layout of `g` are those of QEMU's stub, so that its clients find everything where they expect it;
behind them come registers that only this description names. A processor that has long mode is described as x86-64 in
every mode, as QEMU does it: gdb asks once, when it connects, and the mode changes later. In 16- and 32-bit code the
registers are those of the mode, extended with zeros, and RIP is the offset in CS (its linear address is $cs_base+$rip);
but gdb disassembles them as 64-bit code, whatever it is told. A processor without long mode is described as i386, or
as i8086 while it is in real mode: whoever debugs such code leaves long mode out of the CPU, and connects again after a
change of the mode.

Spec: "Debugging with GDB", appendix G, section "i386 Features".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from xuni.isa.x86.cpustate import RFLAGS_FIXED, Segment, VcpuState
from xuni.isa.x86.msr import Msr
from xuni.isa.x86.state import Cr0, Eflags
from xuni.isa.x86.xsave_area import LEGACY_SIZE, MXCSR, REGISTERS, XMM

EMPTY_FXSAVE: Final = (b"\x7f\x03" + bytes(22) + b"\x80\x1f\0\0\xff\xff\0\0").ljust(LEGACY_SIZE, b"\0")
"""x87 and SSE after reset: FCW 37Fh, MXCSR 1F80h."""
TABLE_INDICATOR: Final = 1 << 2  # of a selector: LDT
NULL: Final = Segment(0, 0, 0, type=0, s=0, p=0)


@dataclass(frozen=True, slots=True)
class Frame:
    """One processor's registers, taken out to be looked at and changed."""

    state: VcpuState
    tpr: int = 0
    """CR8, which its local APIC keeps."""
    read: Callable[[int, int], bytes] = lambda address, length: bytes(length)
    """Memory at linear addresses, for descriptors. Raises LookupError where none is."""

    @property
    def fxsave(self) -> bytes:
        """x87 and SSE as FXSAVE64 writes them."""
        return self.state.fxsave or EMPTY_FXSAVE

    @property
    def real_mode(self) -> bool:
        """Whether selectors are paragraphs."""
        registers = self.state.registers
        return not registers.cr0 & Cr0.PE or bool(registers.rflags & Eflags.VM)


class Place(Protocol):
    """Where a register's value lies in a frame."""

    def read(self, frame: Frame) -> int:
        """The value."""
        ...

    def write(self, frame: Frame, value: int) -> Frame:
        """The frame with another value. Raises ValueError if the register cannot have it."""
        ...


@dataclass(frozen=True, slots=True)
class Named:
    """A field of `CpuState`."""

    field: str

    def read(self, frame: Frame) -> int:
        return int(getattr(frame.state.registers, self.field))

    def write(self, frame: Frame, value: int) -> Frame:
        if self.field == "rflags":
            value |= RFLAGS_FIXED
        # What PAE paging holds in registers is read anew, as a load of CR3 would.
        pdptes = None if self.field in ("cr0", "cr3", "cr4") else frame.state.pdptes
        change: dict[str, Any] = {self.field: value}
        registers = replace(frame.state.registers, **change)
        return replace(frame, state=replace(frame.state, registers=registers, pdptes=pdptes))


@dataclass(frozen=True, slots=True)
class Hidden:
    """A field of a segment or table register: its base or limit."""

    register: str
    field: str

    def read(self, frame: Frame) -> int:
        return int(getattr(getattr(frame.state.registers, self.register), self.field))

    def write(self, frame: Frame, value: int) -> Frame:
        part = replace(getattr(frame.state.registers, self.register), **{self.field: value})
        return Named(self.register).write(frame, part)


@dataclass(frozen=True, slots=True)
class Selector:
    """A segment register; a new selector loads the hidden part, as MOV does but with nothing checked."""

    register: str

    def read(self, frame: Frame) -> int:
        segment: Segment = getattr(frame.state.registers, self.register)
        return segment.selector

    def write(self, frame: Frame, value: int) -> Frame:
        value &= 0xFFFF
        before: Segment = getattr(frame.state.registers, self.register)
        if value == before.selector:
            return frame
        if frame.real_mode:
            after = replace(before, selector=value, base=value << 4)
        else:
            after = self._from_table(frame, value)
        return Named(self.register).write(frame, after)  # type: ignore[arg-type]

    @staticmethod
    def _from_table(frame: Frame, selector: int) -> Segment:
        if not selector & ~3:
            return replace(NULL, selector=selector)
        registers = frame.state.registers
        table = registers.ldtr if selector & TABLE_INDICATOR else registers.gdtr
        offset = selector & ~7
        if offset + 7 > table.limit:
            raise ValueError(f"selector {selector:#x} is beyond its table")
        try:
            entry = int.from_bytes(frame.read(table.base + offset, 8), "little")
        except LookupError as error:
            raise ValueError(f"selector {selector:#x}: its descriptor cannot be read") from error
        granular = entry >> 55 & 1
        limit = entry & 0xFFFF | entry >> 32 & 0xF_0000
        return Segment(
            selector,
            base=entry >> 16 & 0xFF_FFFF | entry >> 32 & 0xFF00_0000,
            limit=limit << 12 | 0xFFF if granular else limit,
            type=entry >> 40 & 15, s=entry >> 44 & 1, dpl=entry >> 45 & 3, p=entry >> 47 & 1,
            avl=entry >> 52 & 1, l=entry >> 53 & 1, db=entry >> 54 & 1, g=granular,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSpecific:
    """A model-specific register; 0 where the engine has none of that number."""

    index: int

    def read(self, frame: Frame) -> int:
        return frame.state.msrs.get(self.index, 0)

    def write(self, frame: Frame, value: int) -> Frame:
        if self.index not in frame.state.msrs:
            raise ValueError(f"this processor has no MSR {self.index:#x}")
        return replace(frame, state=replace(frame.state, msrs={**frame.state.msrs, self.index: value}))


@dataclass(frozen=True, slots=True)
class Extended:
    """Bytes of the FXSAVE image, of which `mask` can be written."""

    offset: int
    size: int
    mask: int = -1

    def read(self, frame: Frame) -> int:
        return int.from_bytes(frame.fxsave[self.offset : self.offset + self.size], "little")

    def write(self, frame: Frame, value: int) -> Frame:
        data = (value & self.mask & (1 << 8 * self.size) - 1).to_bytes(self.size, "little")
        image = frame.fxsave
        image = image[: self.offset] + data + image[self.offset + self.size :]
        return replace(frame, state=replace(frame.state, fxsave=image))


@dataclass(frozen=True, slots=True)
class HighHalf:
    """Bits 255:128 of a YMM register."""

    number: int

    def read(self, frame: Frame) -> int:
        return int.from_bytes(frame.state.ymm_high[16 * self.number :][:16], "little")

    def write(self, frame: Frame, value: int) -> Frame:
        high = frame.state.ymm_high.ljust(256, b"\0")
        at = 16 * self.number
        high = high[:at] + value.to_bytes(16, "little") + high[at + 16 :]
        return replace(frame, state=replace(frame.state, ymm_high=high))


@dataclass(frozen=True, slots=True)
class Tags:
    """The x87 tag word, two bits a register, which FXSAVE keeps as one bit each (SDM vol. 1, table 10-2)."""

    def read(self, frame: Frame) -> int:
        image = frame.fxsave
        top = image[3] >> 3 & 7
        word = 0
        for number in range(8):
            value = int.from_bytes(image[REGISTERS + 16 * (number - top & 7) :][:10], "little")
            exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if not image[4] >> number & 1:
                tag = 3
            elif not exponent and not significand:
                tag = 1
            else:
                tag = 0 if 0 < exponent < 0x7FFF and significand >> 63 else 2
            word |= tag << 2 * number
        return word

    def write(self, frame: Frame, value: int) -> Frame:
        bits = sum((value >> 2 * number & 3 != 3) << number for number in range(8))
        return Extended(4, 1).write(frame, bits)


@dataclass(frozen=True, slots=True)
class Other:
    """A field of `VcpuState`."""

    field: str

    def read(self, frame: Frame) -> int:
        return int(getattr(frame.state, self.field))

    def write(self, frame: Frame, value: int) -> Frame:
        change: dict[str, Any] = {self.field: value}
        return replace(frame, state=replace(frame.state, **change))


@dataclass(frozen=True, slots=True)
class DebugAddress:
    """DR0-DR3 of the guest's own."""

    number: int

    def read(self, frame: Frame) -> int:
        return frame.state.debug[self.number]

    def write(self, frame: Frame, value: int) -> Frame:
        a, b, c, d = (value if n == self.number else old for n, old in enumerate(frame.state.debug))
        return replace(frame, state=replace(frame.state, debug=(a, b, c, d)))


@dataclass(frozen=True, slots=True)
class Priority:
    """CR8."""

    def read(self, frame: Frame) -> int:
        return frame.tpr

    def write(self, frame: Frame, value: int) -> Frame:
        return replace(frame, tpr=value & 15)


@dataclass(frozen=True, slots=True)
class Constant:
    """What the image of FXSAVE64 does not have."""

    def read(self, frame: Frame) -> int:
        return 0

    def write(self, frame: Frame, value: int) -> Frame:
        return frame


@dataclass(frozen=True, slots=True)
class Register:
    """A register as gdb knows it."""

    name: str
    bits: int
    kind: str
    """gdb's type."""
    place: Place
    feature: str
    group: str = ""

    def encode(self, frame: Frame) -> bytes:
        """The value as it travels: little-endian, cut to its size."""
        return (self.place.read(frame) & (1 << self.bits) - 1).to_bytes(self.bits // 8, "little")

    def decode(self, frame: Frame, data: bytes) -> Frame:
        """The frame with this value. Raises ValueError if its size is wrong, or the register cannot have it."""
        if len(data) != self.bits // 8:
            raise ValueError(f"{self.name} has {self.bits} bits")
        return self.place.write(frame, int.from_bytes(data, "little"))


X86_64, I386 = "i386:x86-64", "i386"
CORE, SSE, AVX, SEGMENTS = (f"org.gnu.gdb.i386.{name}" for name in ("core", "sse", "avx", "segments"))
CONTROL, SYSTEM = "org.xuni.x86.control", "org.xuni.x86.system"
GENERAL64: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
GENERAL32: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
SEGMENT_NAMES: Final = ("cs", "ss", "ds", "es", "fs", "gs")
FCW, FSW, FOP, FIP, FDP = 0, 2, 6, 8, 16  # in the FXSAVE64 image
MXCSR_WRITABLE: Final = 0xFFFF

FLAGS: Final[Mapping[str, Mapping[str, int | tuple[int, int]]]] = {
    "eflags": {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "IOPL": (12, 13),
               "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21},
    "cr0": {"PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18, "NW": 29, "CD": 30, "PG": 31},
    "cr3": {"PCID": (0, 11), "PDBR": (12, 63)},
    "cr4": {"VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8, "OSFXSR": 9,
            "OSXMMEXCPT": 10, "UMIP": 11, "LA57": 12, "VMXE": 13, "SMXE": 14, "FSGSBASE": 16, "PCIDE": 17,
            "OSXSAVE": 18, "SMEP": 20, "SMAP": 21, "PKE": 22, "CET": 23, "PKS": 24},
    "efer": {"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11, "SVME": 12, "LMSLE": 13, "FFXSR": 14, "TCE": 15},
    "mxcsr": {"IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8, "ZM": 9, "OM": 10,
              "UM": 11, "PM": 12, "FZ": 15},
}  # fmt: skip
"""Names of bits, or of (first, last), by register."""

VECTORS: Final = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>'
)


@dataclass(frozen=True, slots=True)
class Description:
    """Registers in the order of their numbers, of which the first `in_g` travel in a `g` packet."""

    architecture: str
    registers: tuple[Register, ...]
    in_g: int
    pc: int
    """The program counter's number."""

    def xml(self, real_mode: bool = False) -> bytes:
        """The target description for a processor in this mode."""
        architecture = "i8086" if real_mode and self.architecture == I386 else self.architecture
        by_feature: dict[str, list[tuple[int, Register]]] = {}
        for number, register in enumerate(self.registers):
            by_feature.setdefault(register.feature, []).append((number, register))
        features = "".join(_feature(name, members) for name, members in by_feature.items())
        return (
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
            f"<architecture>{architecture}</architecture>{features}</target>"
        ).encode()


def describe(long_mode: bool, avx: bool = False) -> Description:
    """The registers of a processor that has long mode, or has not."""
    general = GENERAL64 if long_mode else GENERAL32
    registers = tuple(_registers(long_mode, avx))
    architecture = X86_64 if long_mode else I386
    in_g = next(n for n, register in enumerate(registers) if register.name == "mxcsr") + 1
    return Description(architecture, registers, in_g, len(general))


def _registers(long_mode: bool, avx: bool) -> Iterator[Register]:
    word = 64 if long_mode else 32
    prefix = "r" if long_mode else "e"
    for name in GENERAL64 if long_mode else GENERAL32:
        kind = "data_ptr" if name[1:] in ("sp", "bp") else f"int{word}"
        yield Register(name, word, kind, Named(name if long_mode else f"r{name[1:]}"), CORE)
    yield Register(f"{prefix}ip", word, "code_ptr", Named("rip"), CORE)
    yield Register("eflags", 32, "eflags", Named("rflags"), CORE)
    for name in SEGMENT_NAMES:
        yield Register(name, 32, "int32", Selector(name), CORE)
    for name in ("fs", "gs"):  # gdb has numbers of its own for them on x86-64, and stops with a bug on i386
        yield Register(f"{name}_base", word, f"int{word}", Hidden(name, "base"), SEGMENTS if long_mode else CONTROL)
    yield Register("k_gs_base", word, f"int{word}", ModelSpecific(Msr.KERNEL_GS_BASE), CONTROL)
    for name in ("cr0", "cr2", "cr3", "cr4"):
        kind = name if name != "cr2" else f"int{word}"
        yield Register(name, word, kind, Named(name), CONTROL)
    yield Register("cr8", word, f"int{word}", Priority(), CONTROL)
    yield Register("efer", word, "efer", Named("efer"), CONTROL)
    for number in range(8):
        yield Register(f"st{number}", 80, "i387_ext", Extended(REGISTERS + 16 * number, 10), CORE)
    x87: dict[str, Place] = {
        "fctrl": Extended(FCW, 2), "fstat": Extended(FSW, 2), "ftag": Tags(), "fiseg": Constant(),
        "fioff": Extended(FIP, 4), "foseg": Constant(), "fooff": Extended(FDP, 4), "fop": Extended(FOP, 2),
    }  # fmt: skip
    for name, place in x87.items():
        yield Register(name, 32, "int", place, CORE, group="float")
    count = 16 if long_mode else 8
    for number in range(count):
        yield Register(f"xmm{number}", 128, "vec128", Extended(XMM + 16 * number, 16), SSE)
    yield Register("mxcsr", 32, "mxcsr", Extended(MXCSR, 4, MXCSR_WRITABLE), SSE, group="vector")
    if avx:
        for number in range(count):
            yield Register(f"ymm{number}h", 128, "uint128", HighHalf(number), AVX)
    for name in ("cs", "ss", "ds", "es", "ldtr", "tr"):
        yield Register(f"{name}_base", word, f"int{word}", Hidden(name, "base"), SYSTEM, group="system")
    for name in ("ldtr", "tr"):
        yield Register(name, 32, "int32", Selector(name), SYSTEM, group="system")
    for name in ("gdtr", "idtr"):
        yield Register(f"{name}_base", word, f"int{word}", Hidden(name, "base"), SYSTEM, group="system")
        yield Register(f"{name}_limit", 32, "int32", Hidden(name, "limit"), SYSTEM, group="system")
    for number in range(4):
        yield Register(f"dr{number}", word, f"int{word}", DebugAddress(number), SYSTEM, group="system")
    for name in ("dr6", "dr7", "xcr0"):
        yield Register(name, word, f"int{word}", Other(name), SYSTEM, group="system")
    yield Register("pkru", 32, "int32", Other("pkru"), SYSTEM, group="system")


def _feature(name: str, members: Iterable[tuple[int, Register]]) -> str:
    members = list(members)
    types, seen = "", set[str]()
    for _, register in members:
        if register.kind not in seen:
            seen.add(register.kind)
            types += VECTORS if register.kind == "vec128" else _flags(register.kind, register.bits // 8)
    lines = "".join(
        f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}" regnum="{number}"'
        + (f' group="{register.group}"/>' if register.group else "/>")
        for number, register in members
    )
    return f'<feature name="{name}">{types}{lines}</feature>'


def _flags(name: str, size: int) -> str:
    if name not in FLAGS:
        return ""
    fields = "".join(
        f'<field name="{bit}" start="{place}" end="{place}"/>' if isinstance(place, int)
        else f'<field name="{bit}" start="{place[0]}" end="{min(place[1], 8 * size - 1)}"/>'
        for bit, place in FLAGS[name].items()
    )  # fmt: skip
    return f'<flags id="{name}" size="{size}">{fields}</flags>'
