"""Control and debug registers, MSRs, CPUID, ports: what may be written, and what follows from it."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import pytest

from xuni.isa.bits import u1, u32, u64
from xuni.isa.x86 import control, cpuid, features
from xuni.isa.x86.control import load_cr0, load_cr3, load_cr4
from xuni.isa.x86.cpuid import build_cpuid_table, identify
from xuni.isa.x86.debug import code_breakpoint, matches, note_data, note_port
from xuni.isa.x86.exceptions import Vector
from xuni.isa.x86.io import check_port
from xuni.isa.x86.msr import NOT_AFFECTED, Msr, read_msr, write_msr
from xuni.isa.x86.state import Attr, Cr0, Cr4, Efer, Eflags, Seg
from xuni.isa.x86.system import interrupt_flag, invalidate_pcid

from .machine import PlainCpu
from .tables import TSS, Tables, fault_of

GP0 = (int(Vector.GP), 0)
PE, PG, NW, CD, WP = int(Cr0.PE), int(Cr0.PG), int(Cr0.NW), int(Cr0.CD), int(Cr0.WP)


def attempt(cpu: PlainCpu, function: Callable[..., object], *values: int) -> tuple[int, int] | None:
    return fault_of(cpu, lambda: function(cpu, *(u64(v) for v in values)))


# -- CR0, CR3, CR4 -----------------------------------------------------------------------------------------------------
def test_cr0_combinations() -> None:
    for pe, pg, cd, nw in itertools.product((0, PE), (0, PG), (0, CD), (0, NW)):
        cpu = PlainCpu()
        expected = GP0 if (pg and not pe) or (nw and not cd) else None
        assert attempt(cpu, load_cr0, pe | pg | cd | nw) == expected
    assert attempt(PlainCpu(), load_cr0, 1 << 32 | PE) == GP0
    cpu = PlainCpu()
    load_cr0(cpu, u64(0xFFFFFFFF))
    assert int(cpu.s.cr0) == 0xE005003F, "reserved bits stay clear"


def test_into_and_out_of_ia32e_mode() -> None:
    cpu = PlainCpu()
    cpu.enter_protected()
    s = cpu.s
    s.efer = int(Efer.LME)
    assert attempt(cpu, load_cr0, PE | PG) == GP0, "LME needs PAE"
    s.cr4 = int(Cr4.PAE)
    s.seg_attr[Seg.CS] = int(s.seg_attr[Seg.CS]) | Attr.L
    assert attempt(cpu, load_cr0, PE | PG) == GP0, "CS.L must be clear"
    s.seg_attr[Seg.CS] = int(s.seg_attr[Seg.CS]) & ~Attr.L
    load_cr0(cpu, u64(PE | PG))
    assert int(s.efer) & Efer.LMA
    assert attempt(cpu, load_cr4, 0) == GP0, "PAE stays on"
    assert fault_of(cpu, lambda: write_msr(cpu, u32(Msr.EFER), u64(0))) == GP0, "LME stays on"
    s.seg_attr[Seg.CS] = int(s.seg_attr[Seg.CS]) | Attr.L
    assert attempt(cpu, load_cr0, PE) == GP0, "not from 64-bit mode"
    s.seg_attr[Seg.CS] = int(s.seg_attr[Seg.CS]) & ~Attr.L
    load_cr0(cpu, u64(PE))
    assert not int(s.efer) & Efer.LMA and int(s.efer) & Efer.LME


def test_pdptes_are_loaded_and_checked() -> None:
    cpu = PlainCpu()
    cpu.enter_protected()
    s = cpu.s
    s.cr4, s.cr3 = int(Cr4.PAE), 0x1020
    for n in range(4):
        cpu.ram.write(0x1020 + 8 * n, 0x2001 + 0x1000 * n, 8)
    load_cr0(cpu, u64(PE | PG))
    assert [int(s.pdpte[n]) for n in range(4)] == [0x2001, 0x3001, 0x4001, 0x5001]
    for bad in (2, 4, 1 << 5, 1 << 8, 1 << 40, 1 << 63):
        cpu.ram.write(0x1028, 0x2001 | bad, 8)
        assert attempt(cpu, load_cr3, 0x1020) == GP0, hex(bad)
        cpu.ram.write(0x1028, 0x2000 | bad, 8)
        assert attempt(cpu, load_cr3, 0x1020) is None, "not present: its other bits do not matter"


def test_cr3_in_ia32e_mode() -> None:
    t = Tables.long()
    cpu = t.cpu
    assert attempt(cpu, load_cr3, 1 << 40) == GP0
    assert attempt(cpu, load_cr3, 1 << 63) == GP0
    cpu.s.cr3 = int(cpu.s.cr3) & ~0xFFF
    load_cr4(cpu, u64(int(cpu.s.cr4) | Cr4.PCIDE))
    load_cr3(cpu, u64(int(cpu.s.cr3) | 1 << 63 | 5))
    assert int(cpu.s.cr3) & 0xFFF == 5 and not int(cpu.s.cr3) >> 63
    assert attempt(cpu, load_cr0, PE) == GP0


def test_cr4_has_the_bits_of_the_features() -> None:
    for name, bits in control.CR4_FEATURES.items():
        t = Tables.long()
        cpu = t.cpu
        cpu.s.cr3 = int(cpu.s.cr3) & ~0xFFF
        base = int(cpu.s.cr4)
        cpu.features.add(name)
        if name not in ("la57", "pae"):
            assert attempt(cpu, load_cr4, base | bits) is None, name
            load_cr4(cpu, u64(base))
        cpu.features.discard(name)
        assert attempt(cpu, load_cr4, base | bits) == GP0, name
    for bit in (13, 14, 15, 19, 23, 25, 63):
        assert attempt(Tables.long().cpu, load_cr4, 1 << bit | int(Cr4.PAE)) == GP0


def test_pcide_rules() -> None:
    cpu = PlainCpu()
    assert attempt(cpu, load_cr4, int(Cr4.PCIDE)) == GP0, "IA-32e mode only"
    cpu = Tables.long().cpu
    cpu.s.cr3 = int(cpu.s.cr3) | 1
    assert attempt(cpu, load_cr4, int(cpu.s.cr4) | Cr4.PCIDE) == GP0, "CR3 has a PCID"


def test_flushes() -> None:
    cpu = Tables.long().cpu
    load_cr4(cpu, u64(int(cpu.s.cr4) | Cr4.PGE))
    assert ("flush",) in cpu.log
    cpu.log.clear()
    load_cr3(cpu, cpu.s.cr3)
    assert cpu.log == [("flush nonglobal",)]
    cpu.log.clear()
    load_cr0(cpu, cpu.s.cr0 ^ int(Cr0.TS))
    assert cpu.log == [("mode",)]


@pytest.mark.parametrize(("kind", "pcid", "pcide", "expected"), [
    (0, 0, False, None), (0, 5, False, GP0), (0, 5, True, None), (1, 5, False, GP0), (2, 5, False, None),
    (3, 0, False, None), (4, 0, True, GP0), (2, 0x1000, True, GP0),
])  # fmt: skip
def test_invpcid(kind: int, pcid: int, pcide: bool, expected: tuple[int, int] | None) -> None:
    cpu = Tables.long().cpu
    cpu.s.cr4 = int(cpu.s.cr4) | (int(Cr4.PCIDE) if pcide else 0)
    assert attempt(cpu, invalidate_pcid, kind, pcid, 0x1000) == expected
    if kind == 0:
        assert attempt(cpu, invalidate_pcid, 0, 0, 1 << 47) == GP0


# -- debug registers ---------------------------------------------------------------------------------------------------
def test_debug_registers() -> None:
    cpu = PlainCpu()
    s = cpu.s
    write = control._write_dr
    write(cpu, u64(6), u64(0))
    write(cpu, u64(7), u64(0))
    assert (int(s.dr[6]), int(s.dr[7])) == (0xFFFF0FF0, 0x400)
    write(cpu, u64(4), u64(0xFFFFFFFF))
    write(cpu, u64(5), u64(0xFFFFDFFF))
    assert (int(s.dr[6]), int(s.dr[7])) == (0xFFFFEFFF, 0xFFFF07FF), "DR4 and DR5 are DR6 and DR7"
    s.cr4 = int(Cr4.DE)
    assert attempt(cpu, write, 4, 0) == (Vector.UD, 0)
    assert attempt(cpu, write, 8, 0) == (Vector.UD, 0)
    assert attempt(cpu, write, 7, 1 << 32) == GP0
    write(cpu, u64(7), u64(1 << 13))
    assert attempt(cpu, write, 0, 0) == (Vector.DB, 0)
    assert int(s.dr[6]) & 1 << 13 and not int(s.dr[7]) & 1 << 13, "BD is set, GD is cleared"
    s.cpl = 3
    assert attempt(cpu, write, 0, 0) == GP0


def test_breakpoints_by_brute_force() -> None:
    cpu = PlainCpu()
    s = cpu.s
    for kind, code, enable in itertools.product(range(4), range(4), range(4)):
        size = {0: 1, 1: 2, 2: 8, 3: 4}[code]
        s.dr[1], s.dr[7] = 0x1005, 0x400 | enable << 2 | (kind | code << 2) << 20
        start = 0x1005 & ~(size - 1)
        for at, length in itertools.product(range(0xFF8, 0x1012), (1, 2, 4, 8)):
            overlaps = bool(set(range(at, at + length)) & set(range(start, start + size)))
            for kinds in (1, 2, 8, 10):
                expected = 2 if overlaps and enable and kinds >> kind & 1 else 0
                assert int(matches(cpu, u64(at), u64(length), u64(kinds))) == expected


def test_code_breakpoint_and_rf() -> None:
    cpu = PlainCpu()
    s = cpu.s
    s.dr[0], s.dr[7], s.dr[6] = 0x1234, 0x401, 0xFFFF0FF0
    assert fault_of(cpu, lambda: code_breakpoint(cpu, u64(0x1233))) is None
    assert fault_of(cpu, lambda: code_breakpoint(cpu, u64(0x1234))) == (Vector.DB, 0)
    assert int(s.dr[6]) == 0xFFFF0FF1
    s.eflags = 2 | int(Eflags.RF)
    assert fault_of(cpu, lambda: code_breakpoint(cpu, u64(0x1234))) is None


def test_io_breakpoints_need_cr4_de() -> None:
    cpu = PlainCpu()
    s = cpu.s
    s.dr[3], s.dr[7] = 0x60, 0x400 | 1 << 6 | 2 << 28
    note_port(cpu, u64(0x60), u64(1))
    assert int(s.pending_debug) == 0
    s.cr4 = int(Cr4.DE)
    note_port(cpu, u64(0x60), u64(1))
    assert int(s.pending_debug) == 8


def test_data_breakpoints_are_noted() -> None:
    cpu = PlainCpu()
    s = cpu.s
    s.dr[0], s.dr[7] = 0x1000, 0x400 | 1 | 1 << 16 | 3 << 18
    note_data(cpu, u64(0x1002), u64(1), u1(0))
    assert int(s.pending_debug) == 0, "writes only"
    note_data(cpu, u64(0x0FFC), u64(8), u1(1))
    assert int(s.pending_debug) == 1


# -- MSRs --------------------------------------------------------------------------------------------------------------
def write(cpu: PlainCpu, msr: int, value: int) -> tuple[int, int] | None:
    return fault_of(cpu, lambda: write_msr(cpu, u32(msr), u64(value)))


ADDRESSES = (Msr.LSTAR, Msr.CSTAR, Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP)


@pytest.mark.parametrize("msr", ADDRESSES, ids=lambda m: m.name)
def test_addresses_are_canonical(msr: Msr) -> None:
    cpu = PlainCpu()
    for value in (0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF):
        assert write(cpu, msr, value) is None
        assert int(read_msr(cpu, u32(msr))) == value
    for value in (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63):
        assert write(cpu, msr, value) == GP0


def test_memory_types() -> None:
    cpu = PlainCpu()
    for kind in range(256):
        assert (write(cpu, Msr.PAT, kind << 24) is None) == (kind in (0, 1, 4, 5, 6, 7))
        fixed = kind in (0, 1, 4, 5, 6)
        assert (write(cpu, Msr.MTRR_FIX4K_C0000 + 3, kind << 56) is None) == fixed
        assert (write(cpu, Msr.MTRR_PHYSBASE0 + 4, 0x10000 | kind) is None) == fixed
        assert (write(cpu, Msr.MTRR_DEF_TYPE, 0xC00 | kind) is None) == fixed
    assert write(cpu, Msr.MTRR_PHYSBASE0, 1 << 40) == GP0
    assert write(cpu, Msr.MTRR_PHYSBASE0 + 1, 0xFF_FFFF_F800) is None
    assert write(cpu, Msr.MTRR_PHYSBASE0 + 1, 0x400) == GP0
    assert write(cpu, 0x210, 0) == GP0 and write(cpu, 0x25A, 0) == GP0 and write(cpu, 0x270, 0) == GP0


def test_fixed_mtrrs_are_eleven_registers() -> None:
    cpu = PlainCpu()
    indexes = [0x250, 0x258, 0x259, *range(0x268, 0x270)]
    for n, index in enumerate(indexes):
        write_msr(cpu, u32(index), u64(0x0606060606060600 | (n & 1)))
    assert [int(read_msr(cpu, u32(i))) & 1 for i in indexes] == [n & 1 for n in range(11)]


def test_efer() -> None:
    cpu = PlainCpu()
    assert write(cpu, Msr.EFER, 0xD01) is None
    assert int(cpu.s.efer) == 0x901, "LMA is read-only"
    assert write(cpu, Msr.EFER, 1 << 12) == GP0
    cpu.features.discard("nx")
    assert write(cpu, Msr.EFER, 0x800) == GP0


def test_tsc_and_its_adjustment() -> None:
    cpu = PlainCpu()
    cpu.ns = 5000
    write_msr(cpu, u32(Msr.TSC), u64(100))
    assert int(read_msr(cpu, u32(Msr.TSC))) == 100
    assert int(read_msr(cpu, u32(Msr.TSC_ADJUST))) == 100 - 5000 & (1 << 64) - 1
    write_msr(cpu, u32(Msr.TSC_ADJUST), u64(7))
    assert int(read_msr(cpu, u32(Msr.TSC))) == 5007


def test_the_apic_owns_its_registers() -> None:
    cpu = PlainCpu()
    write_msr(cpu, u32(0x808), u64(0x20))
    write_msr(cpu, u32(Msr.APIC_BASE), u64(0xFEE00900))
    assert cpu.msrs == {0x808: 0x20, 0x1B: 0xFEE00900} and int(cpu.s.apic_base) == 0xFEE00900


@pytest.mark.parametrize("msr", [0, 0x11, 0x48, 0x49, 0x400, 0x480, 0x4B564D00, 0xC0000104, 0xC0010015, 0xFFFFFFFF])
def test_unknown_registers(msr: int) -> None:
    cpu = PlainCpu()
    assert write(cpu, msr, 0) == GP0
    assert fault_of(cpu, lambda: read_msr(cpu, u32(msr))) == GP0


def test_not_affected() -> None:
    cpu = PlainCpu()
    assert int(read_msr(cpu, u32(Msr.ARCH_CAPABILITIES))) == NOT_AFFECTED
    assert write(cpu, Msr.ARCH_CAPABILITIES, 0) == GP0


# -- CPUID -------------------------------------------------------------------------------------------------------------
def with_table(cpu: PlainCpu, chosen: frozenset[str], cpus: int = 1) -> ctypes.Array[ctypes.c_char]:
    rows = b"".join(row.pack() for row in build_cpuid_table(chosen, cpus))
    buffer = ctypes.create_string_buffer(rows, len(rows))
    # SAFETY: the caller keeps the buffer for as long as it asks.
    cpu.s.cpuid_table, cpu.s.cpuid_count = ctypes.addressof(buffer), len(rows) // 32
    return buffer


def ask(cpu: PlainCpu, leaf: int, subleaf: int = 0) -> list[int]:
    return [int(v) for v in identify(cpu, u32(leaf), u32(subleaf))]


def test_every_feature_is_announced_and_no_other() -> None:
    cpu = PlainCpu()
    cpu.s.apic_base = 0x800
    for chosen in (features.DEFAULT, frozenset({"base"}), features.choose(plus=["avx", "avx2", "fma", "la57"])):
        keep = with_table(cpu, chosen)
        seen: dict[tuple[int, int, int], int] = {}
        for f in features.FEATURES:
            if f.bit >= 0:
                value = ask(cpu, f.leaf, f.subleaf)[f.register]
                assert value >> f.bit & 1 == (f.name in chosen), f.name
                seen[f.leaf, f.subleaf, f.register] = seen.get((f.leaf, f.subleaf, f.register), 0) | 1 << f.bit
        for (leaf, subleaf, register), known in seen.items():
            if leaf != 0xD:
                assert ask(cpu, leaf, subleaf)[register] & ~known == 0, "a bit that no feature has"
        assert keep


def test_what_changes_at_run_time() -> None:
    cpu = PlainCpu()
    keep = with_table(cpu, features.DEFAULT, 4)
    s = cpu.s
    s.apic_id = 3
    assert ask(cpu, 1)[1] == 3 << 24 | 4 << 16 | 8 << 8
    assert not ask(cpu, 1)[2] & 1 << 27 and not ask(cpu, 1)[3] & 1 << 9
    s.cr4, s.apic_base = int(Cr4.OSXSAVE | Cr4.PKE), 0x800
    assert ask(cpu, 1)[2] & 1 << 27 and ask(cpu, 1)[3] & 1 << 9 and ask(cpu, 7)[2] & 1 << 4
    assert ask(cpu, 0xB, 1) == [2, 4, 0x201, 3]
    assert ask(cpu, 0xB, 2) == [0, 0, 2, 3]
    s.xcr0 = 3
    assert ask(cpu, 0xD)[1] == 576
    assert keep


def test_leaves() -> None:
    cpu = PlainCpu()
    keep = with_table(cpu, features.DEFAULT)
    a, b, c, d = ask(cpu, 0)
    assert b"".join(v.to_bytes(4, "little") for v in (b, d, c)) == b"GenuineIntel" and a == 0x16
    assert ask(cpu, 0x15) == [1, 1, 1_000_000_000, 0]
    assert ask(cpu, 0x40000010)[:2] == [1_000_000, 1_000_000]
    name = b"".join(v.to_bytes(4, "little") for n in (2, 3, 4) for v in ask(cpu, 0x80000000 + n))
    assert name.rstrip(b"\0") == b"xuni virtual CPU"
    assert ask(cpu, 0x80000008)[0] == 40 | 48 << 8
    assert ask(cpu, 0x17) == ask(cpu, 0x80000009) == ask(cpu, 0x16), "past the last leaf"
    assert ask(cpu, 7, 5) == ask(cpu, 0x40000011) == [0, 0, 0, 0]
    assert keep


def test_a_kvm_machine_says_so_and_what_it_answers() -> None:
    cpu = PlainCpu()
    keep = with_table(cpu, features.choose(plus=["hypercall", "kvm_pv_ipi"]))
    a, b, c, d = ask(cpu, 0x40000000)
    assert b"".join(v.to_bytes(4, "little") for v in (b, c, d)) == b"KVMKVMKVM\0\0\0" and a == 0x40000010
    assert ask(cpu, 0x40000001) == [1 << 11, 0, 0, 0]
    keep = with_table(cpu, features.choose(plus=["kvm_pv_ipi"]))
    assert ask(cpu, 0x40000001) == [0, 0, 0, 0], "what no hypercall can reach is not announced"
    assert keep


def test_identities() -> None:
    assert cpuid.signature(15, 107, 1) == 0x60FB1 and cpuid.signature(23, 1, 2) == 0x800F12
    assert cpuid.signature(6, 0x1C, 10) == cpuid.OURS.signature
    with pytest.raises(ValueError, match="stepping=16: between 0 and 15"):
        cpuid.signature(6, 1, 16)
    rows = build_cpuid_table(features.choose(plus=["amd"]), 4, identity=cpuid.Identity(b"AuthenticAMD", 0x60FB1, b"x" * 60))
    found = {row.leaf: row for row in rows}
    assert found[1].eax == found[0x80000001].eax == 0x60FB1
    assert found[0x80000004].edx == 0x00787878, "the name ends with a NUL"
    assert found[0x80000008].ecx == 2 << 12 | 3 and found[0x80000001].ecx & 2, "four cores, as AMD tells it"


@pytest.mark.parametrize(("threads", "cores", "levels", "leaf4"), [
    (1, 4, [(0, 1), (2, 4)], 3 << 26), (2, 2, [(1, 2), (2, 4)], 1 << 14 | 1 << 26), (2, 3, [(1, 2), (3, 6)], 1 << 14 | 2 << 26),
    (1, 1, [(0, 1), (0, 1)], 0),
])
def test_topologies(threads: int, cores: int, levels: list[tuple[int, int]], leaf4: int) -> None:
    rows = build_cpuid_table(features.DEFAULT, 8, topology=cpuid.Topology(threads, cores))
    assert [(row.eax, row.ebx) for row in rows if row.leaf == 0xB] == levels
    assert all(row.eax & ~0x3FFF == leaf4 for row in rows if row.leaf == 4)
    one = next(row for row in rows if row.leaf == 1)
    assert one.ebx >> 16 == threads * cores and bool(one.edx & 1 << 28) == (threads * cores > 1)


def test_choosing_features() -> None:
    assert "sse2" not in features.choose(minus=["sse"]) and "aes" not in features.choose(minus=["sse"])
    with pytest.raises(ValueError, match="unknown CPU feature nonsense"):
        features.choose(plus=["nonsense"])
    words = features.feature_words({"fpu"})
    assert words[0] == 1 << features.BY_NAME["fpu"].number
    with pytest.raises(ValueError, match="0 processors"):
        build_cpuid_table(features.DEFAULT, 0)
    assert cpuid.xsave_mask(features.choose(minus=["xsave"])) == 0


# -- IF and ports ------------------------------------------------------------------------------------------------------
def test_cli_and_sti_by_brute_force() -> None:
    for cpl, iopl, pvi in itertools.product(range(4), range(4), (0, int(Cr4.PVI))):
        t = Tables.protected()
        s = t.cpu.s
        s.cpl, s.eflags, s.cr4 = cpl, 2 | iopl << 12, pvi
        found = attempt(t.cpu, interrupt_flag)
        if iopl >= cpl:
            assert int(interrupt_flag(t.cpu)) == Eflags.IF
        elif cpl == 3 and pvi:
            assert int(interrupt_flag(t.cpu)) == Eflags.VIF
        else:
            assert found == GP0


def test_the_io_bitmap() -> None:
    t = Tables.protected(3)
    s = t.cpu.s
    s.seg_limit[Seg.TR] = 0x68 + 0x20
    t.cpu.ram.write(TSS + 0x66, 0x68, 2)
    allowed = set(range(0x100)) - {5, 8, 31}
    for port in range(0x100):
        at = TSS + 0x68 + port // 8
        t.cpu.ram.write(at, t.cpu.ram.read(at, 1) & ~(1 << port % 8) | (port not in allowed) << port % 8, 1)
    for port, size in itertools.product(range(0xF8), (1, 2, 4)):
        expected = None if set(range(port, port + size)) <= allowed else GP0
        assert attempt(t.cpu, check_port, port, size) == expected, (port, size)
    assert attempt(t.cpu, check_port, 0x108, 1) == GP0, "past the TSS"
    s.eflags = 2 | 3 << 12
    assert attempt(t.cpu, check_port, 5, 1) is None, "IOPL 3"
    s.eflags = 2 | 3 << 12 | int(Eflags.VM)
    assert attempt(t.cpu, check_port, 5, 1) == GP0, "virtual-8086 mode always asks the bitmap"
    s.eflags, s.seg_attr[Seg.TR] = 2, 0x83
    assert attempt(t.cpu, check_port, 6, 1) == GP0, "a 16-bit TSS has none"
