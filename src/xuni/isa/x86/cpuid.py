"""CPUID: the rows that `build_cpuid_table` makes of the feature table, and the instruction, which adds what changes at
run time (CR4.OSXSAVE and PKE, the APIC's enable flag and ID, XSAVE sizes). SDM vol. 2, CPUID.

Vendor and model are chosen for what guests make of them. GenuineIntel: Linux then reads its TSC and APIC timer rates
from leaf 15H. Family 6 model 1CH is an in-order processor that no speculation attack concerns, so that guests do
without mitigations.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xuni.isa.bits import U32, U64, Bits, select, u32, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.features import FEATURES, Register
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.state import Cr4, Gpr

ROW: Final = struct.Struct("<8I")
ANY_SUBLEAF: Final = 0
BY_SUBLEAF: Final = 1  # flags of a row

MAX_BASIC: Final = 0x16
HYPERVISOR: Final = 0x40000000
MAX_HYPERVISOR: Final = 0x40000010
EXTENDED: Final = 0x80000000
MAX_EXTENDED: Final = 0x80000008

HYPERVISOR_VENDOR: Final = b"XuniXuniXuni"
KVM_VENDOR: Final = b"KVMKVMKVM\0\0\0"  # who answers hypercalls as KVM does says so
KVM_FEATURES: Final = 0x40000001
TSC_KHZ: Final = 1_000_000
BUS_KHZ: Final = 1_000_000
CACHE_LINE: Final = 64

# XSAVE components: number -> (feature, size, offset in the standard format), SDM vol. 1, 13.4 and 13.5.
XSAVE_COMPONENTS: Final = {2: ("avx", 256, 576), 9: ("pku", 8, 2688)}
LEGACY_AREA: Final = 576  # x87, SSE and the header
AMD_ALIASES: Final = 0x0183F3FF  # bits of leaf 1's EDX that AMD's 80000001H repeats
OSXSAVE: Final = 1 << 27
APIC: Final = 1 << 9
APIC_ENABLED: Final = 1 << 11
OSPKE: Final = 1 << 4


@dataclass(frozen=True, slots=True)
class CpuidRow:
    """What a leaf gives; `subleaf` is None where ECX does not matter."""

    leaf: int
    subleaf: int | None
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    def pack(self) -> bytes:
        """32 bytes, as `State.cpuid_table` has them: leaf, subleaf, flags, EAX, EBX, ECX, EDX, 0."""
        flags = ANY_SUBLEAF if self.subleaf is None else BY_SUBLEAF
        return ROW.pack(self.leaf, self.subleaf or 0, flags, self.eax, self.ebx, self.ecx, self.edx, 0)


@dataclass(frozen=True, slots=True)
class Identity:
    """As what a processor presents itself."""

    vendor: bytes = b"GenuineIntel"
    signature: int = 0x000106CA
    """Family, model and stepping as EAX of leaf 1 has them, and EDX after reset."""
    brand: bytes = b"xuni virtual CPU"
    """At most 47 bytes."""


OURS: Final = Identity()
OURS_AMD: Final = Identity(b"AuthenticAMD", 0x00000F61)


def signature(family: int, model: int, stepping: int) -> int:
    """EAX of leaf 1. ValueError: numbers that do not fit (family 0-270, model 0-255, stepping 0-15)."""
    for name, number, most in ("family", family, 0xF + 0xFF), ("model", model, 0xFF), ("stepping", stepping, 0xF):
        if not 0 <= number <= most:
            raise ValueError(f"{name}={number}: between 0 and {most} are possible")
    return (max(family - 0xF, 0) << 20 | model >> 4 << 16 | min(family, 0xF) << 8 | (model & 0xF) << 4 | stepping)


@dataclass(frozen=True, slots=True)
class Topology:
    """How the processors of a machine form sockets; APIC ids are given in order, so only the last level may be uneven."""

    threads: int = 1
    """Of one core."""
    cores: int = 1
    """Of one socket."""

    @property
    def thread_bits(self) -> int:
        """Bits of the APIC id that tell threads of one core apart."""
        return (self.threads - 1).bit_length()

    @property
    def package_bits(self) -> int:
        """Bits of the APIC id that tell processors of one socket apart."""
        return self.thread_bits + (self.cores - 1).bit_length()


def _words(text: bytes) -> list[int]:
    return [int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4)]


def xsave_mask(features: Iterable[str]) -> int:
    """The bits of XCR0 that a processor with these features has."""
    have = set(features)
    if "xsave" not in have:
        return 0
    return 3 | sum(1 << n for n, (name, _, _) in XSAVE_COMPONENTS.items() if name in have)


def _caches(topology: Topology) -> list[CpuidRow]:
    """Leaf 4: 32 KiB of L1 data and instructions, 1 MiB of L2, each core its own."""
    rows = []
    for n, (kind, level, ways, sets) in enumerate(((1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024))):
        eax = kind | level << 5 | 1 << 8 | (topology.threads - 1) << 14 | (min(topology.cores, 64) - 1) << 26
        rows.append(CpuidRow(4, n, eax, (ways - 1) << 22 | (CACHE_LINE - 1), sets - 1))
    return rows


def _xsave(features: frozenset[str]) -> list[CpuidRow]:
    """Leaf 0DH. EBX of subleaves 0 and 1 depends on XCR0 and is filled in by the instruction."""
    supported = xsave_mask(features)
    if not supported:
        return []
    there = {n: c for n, c in XSAVE_COMPONENTS.items() if supported >> n & 1}
    size = max([LEGACY_AREA, *(at + size for _, size, at in there.values())])
    rows = [CpuidRow(0xD, 0, supported & 0xFFFFFFFF, LEGACY_AREA, size, supported >> 32)]
    rows += [CpuidRow(0xD, n, size, at) for n, (_, size, at) in there.items()]
    return rows


def build_cpuid_table(features: frozenset[str], cpus: int = 1, physical_bits: int = 40,
                      identity: Identity | None = None, topology: Topology | None = None) -> list[CpuidRow]:  # fmt: skip
    """All rows of a processor with these features (see `features.choose`), in a machine of `cpus` processors.

    `topology`: by default all of them are cores of one socket. ValueError: a number of processors or address bits that
    no processor has.
    """
    if not 1 <= cpus <= 255:
        raise ValueError(f"{cpus} processors: between 1 and 255 are possible")
    if not 32 <= physical_bits <= 52:
        raise ValueError(f"{physical_bits} physical address bits: between 32 and 52 are possible")
    bits: dict[tuple[int, int], list[int]] = {}
    for f in FEATURES:
        if f.bit >= 0 and f.name in features:
            bits.setdefault((f.leaf, f.subleaf), [0, 0, 0, 0])[f.register] |= 1 << f.bit

    def announced(leaf: int, register: Register, subleaf: int = 0) -> int:
        return bits.get((leaf, subleaf), [0, 0, 0, 0])[register]

    a, b, c, d = Register
    amd = "amd" in features
    identity = identity or (OURS_AMD if amd else OURS)
    topology = topology or Topology(cores=cpus)
    hypercalls = "hypercall" in features
    vendor, hypervisor = _words(identity.vendor), _words(KVM_VENDOR if hypercalls else HYPERVISOR_VENDOR)
    together = topology.cores * topology.threads
    many, legacy, amd_cores, alias = (1 << 28 if together > 1 else 0), 0, 0, 0
    if amd:  # AMD's own description of cores (CmpLegacy and NC), and its copy of leaf 1's old bits
        legacy = 1 << 1 if together > 1 else 0
        amd_cores = topology.package_bits << 12 | together - 1
        alias = announced(1, d) & AMD_ALIASES
    linear_bits = 57 if "la57" in features else 48
    rows = [
        CpuidRow(0, None, MAX_BASIC, vendor[0], vendor[2], vendor[1]),
        CpuidRow(1, None, identity.signature, CACHE_LINE // 8 << 8 | min(together, 255) << 16, announced(1, c),
                 announced(1, d) | many),
        CpuidRow(2, None, 0x00FEFF01),  # see leaf 4
        *_caches(topology),
        CpuidRow(6, None, announced(6, a)),
        CpuidRow(7, 0, 0, announced(7, b), announced(7, c), announced(7, d)),
        CpuidRow(0xB, 0, topology.thread_bits, topology.threads, 1 << 8),
        CpuidRow(0xB, 1, topology.package_bits, together, 2 << 8 | 1),
        *_xsave(features),
        CpuidRow(0x15, None, 1, TSC_KHZ // BUS_KHZ, BUS_KHZ * 1000),
        CpuidRow(0x16, None, TSC_KHZ // 1000, TSC_KHZ // 1000, 100),
    ]
    if "xsave" in features:
        rows.append(CpuidRow(0xD, 1, announced(0xD, a, 1)))
    if "hypervisor" in features:
        rows += [
            CpuidRow(HYPERVISOR, None, MAX_HYPERVISOR, *hypervisor),
            CpuidRow(MAX_HYPERVISOR, None, TSC_KHZ, BUS_KHZ),
        ]
        if hypercalls:
            rows.append(CpuidRow(KVM_FEATURES, None, announced(KVM_FEATURES, a)))
    name = _words(identity.brand[:47].ljust(48, b"\0"))
    rows += [
        CpuidRow(EXTENDED, None, MAX_EXTENDED, *((vendor[0], vendor[2], vendor[1]) if amd else ())),
        CpuidRow(EXTENDED + 1, None, identity.signature if amd else 0, 0, announced(EXTENDED + 1, c) | legacy,
                 announced(EXTENDED + 1, d) | alias),
        *(CpuidRow(EXTENDED + 2 + n, None, *name[4 * n : 4 * n + 4]) for n in range(3)),
        CpuidRow(EXTENDED + 6, None, 0, 0, 1024 << 16 | 8 << 12 | CACHE_LINE),
        CpuidRow(EXTENDED + 7, None, 0, 0, 0, announced(EXTENDED + 7, d)),
        CpuidRow(EXTENDED + 8, None, physical_bits | linear_bits << 8, 0, amd_cores),
    ]
    return rows


# -- the instruction ---------------------------------------------------------------------------------------------------
@native
def find_row(cpu: Cpu, leaf: U32, subleaf: U32) -> U64:
    """Host address of the row for a leaf and subleaf, or 0."""
    s = cpu.s
    at = s.cpuid_table
    end = at + (s.cpuid_count << 5)
    while at < end:
        row = cpu.at(at)
        if row.load(0, 32) == leaf:
            if (row.load(8, 32) == ANY_SUBLEAF) | (row.load(4, 32) == subleaf):
                return at
        at = at + ROW.size
    return u64(0)


@native
def xsave_size(cpu: Cpu, components: U64, compacted: U64) -> U64:
    """Bytes of an XSAVE area with these components, in the standard or the compacted format (13.4.2, 13.4.3)."""
    size = u64(LEGACY_AREA)
    for n, (_, length, offset) in XSAVE_COMPONENTS.items():
        if components[n]:
            size = select(compacted != 0, size + length, u64(offset + length))
    return size


@native
def identify(cpu: Cpu, leaf: U32, subleaf: U32) -> tuple[U32, U32, U32, U32]:
    """EAX, EBX, ECX and EDX of CPUID. A leaf past the last one gives what the last basic leaf does."""
    s = cpu.s
    too_high = (leaf > MAX_BASIC) & ((leaf < HYPERVISOR) | (leaf > MAX_EXTENDED) | (leaf >> 28 == 5))
    leaf = select(too_high, u32(MAX_BASIC), leaf)
    at = find_row(cpu, leaf, subleaf)
    if at == 0:
        if leaf == 0xB:
            return u32(0), u32(0), subleaf & 0xFF, s.apic_id.trunc(32)
        return u32(0), u32(0), u32(0), u32(0)
    row = cpu.at(at)
    a, b, c, d = row.load(12, 32), row.load(16, 32), row.load(20, 32), row.load(24, 32)
    if leaf == 1:
        b = b | s.apic_id.trunc(32) << 24
        c = c | select((s.cr4 & Cr4.OSXSAVE) != 0, u32(OSXSAVE), u32(0))
        d = d & ~select((s.apic_base & APIC_ENABLED) != 0, u32(0), u32(APIC))
    elif leaf == 7:
        c = c | select((s.cr4 & Cr4.PKE) != 0, u32(OSPKE), u32(0))
    elif leaf == 0xB:
        d = s.apic_id.trunc(32)
    elif leaf == 0xD:
        if subleaf == 0:
            b = xsave_size(cpu, s.xcr0, u64(0)).trunc(32)
        elif subleaf == 1:
            if (a & 2) != 0:
                b = xsave_size(cpu, s.xcr0, u64(1)).trunc(32)
    return a, b, c, d


@staged
def _put(cpu: Cpu, index: Gpr, value: Bits) -> None:
    cpu.s.gpr[index] = value.zext(64)


@instruction("CPUID", "0F A2", cold=True)
def cpuid(cpu: Cpu) -> None:
    a, b, c, d = identify(cpu, cpu.reg(Gpr.RAX, 32), cpu.reg(Gpr.RCX, 32))
    _put(cpu, Gpr.RAX, a)
    _put(cpu, Gpr.RBX, b)
    _put(cpu, Gpr.RCX, c)
    _put(cpu, Gpr.RDX, d)
