"""The features of this processor: one table that drives both what CPUID announces and what the decoder accepts.

A row is `name, leaf, subleaf, register, bit`; names are those of Linux's /proc/cpuinfo where it has one. A feature
that is off is not announced, its encodings are #UD, its control-register bits are reserved and its MSRs do not exist.

To add one: a row here, and the instructions that name it. Rows whose instructions do not exist yet are off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Register(IntEnum):
    """CPUID's results, in the order in which a row of its table keeps them."""

    EAX, EBX, ECX, EDX = range(4)


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature. `number` is its bit in `State.features`; `bit` is -1 where CPUID says nothing about it."""

    number: int
    name: str
    leaf: int
    subleaf: int
    register: Register
    bit: int
    default: bool
    requires: tuple[str, ...]


# What CPUID has no bit for. amd: AMD's vendor string, and SYSCALL outside 64-bit mode too; hypercall: VMCALL and VMMCALL
# are no #UD, and the hypervisor presents itself as KVM.
_SILENT: Final = ("amd", "hypercall")

# name [< what it requires], bit; a leading "-" turns a row off by default. One line a CPUID register.
_ROWS: Final = {
    (1, 0, Register.EDX): """
        fpu 0  vme 1  de 2  pse 3  tsc 4  msr 5  pae 6  mce 7  cx8 8  apic 9  sep 11  mtrr 12  pge 13  mca 14  cmov 15
        pat 16  pse36<pse 17  clflush 19  mmx<fpu 23  fxsr<fpu 24  sse<fxsr 25  sse2<sse 26  ss 27  -ht 28""",
    (1, 0, Register.ECX): """
        pni<sse2 0  pclmulqdq<sse2 1  -monitor 3  ssse3<pni 9  -fma<avx 12  cx16<lm 13  pcid<lm 17  sse4_1<ssse3 19
        sse4_2<sse4_1 20  x2apic<apic 21  movbe 22  popcnt 23  tsc_deadline_timer<apic 24  aes<sse2 25  xsave<fxsr 26
        -avx<xsave 28  -f16c<avx 29  rdrand 30  hypervisor 31""",
    (6, 0, Register.EAX): "arat<apic 2",
    (7, 0, Register.EBX): """
        fsgsbase<lm 0  tsc_adjust<tsc 1  bmi1 3  -avx2<avx 5  smep 7  bmi2 8  erms 9  invpcid<pcid 10  rdseed 18  adx 19
        smap 20  clflushopt<clflush 23  clwb<clflush 24  sha_ni<sse2 29""",
    (7, 0, Register.ECX): "umip 2  pku<xsave 3  -la57<lm 16  rdpid 22  -movdiri 27  -movdir64b 28  pks<lm 31",
    (7, 0, Register.EDX): "fsrm<erms 4  arch_capabilities<msr 29",
    (0xD, 1, Register.EAX): "xsaveopt<xsave 0  xsavec<xsave 1  xgetbv1<xsave 2  xsaves<xsavec 3",
    (0x40000001, 0, Register.EAX): "-kvm_nopiodelay<hypercall 1  -kvm_pv_ipi<hypercall 11",
    (0x80000001, 0, Register.ECX): "lahf_lm<lm 0  lzcnt 5  3dnowprefetch 8",
    (0x80000001, 0, Register.EDX): "syscall<lm 11  nx<pae 20  pdpe1gb<lm 26  rdtscp<tsc 27  lm<pae 29",
    (0x80000007, 0, Register.EDX): "constant_tsc<tsc 8",
}


def _table() -> tuple[Feature, ...]:
    found = [Feature(0, "base", 0, 0, Register.EAX, -1, True, ())]
    for name in _SILENT:
        found.append(Feature(len(found), name, 0, 0, Register.EAX, -1, False, ()))
    for (leaf, subleaf, register), text in _ROWS.items():
        words = text.split()
        for word, bit in zip(words[::2], words[1::2], strict=True):
            name, _, requires = word.removeprefix("-").partition("<")
            found.append(Feature(len(found), name, leaf, subleaf, register, int(bit), not word.startswith("-"),
                                 tuple(requires.split(",")) if requires else ()))  # fmt: skip
    return tuple(found)


FEATURES: Final = _table()
BY_NAME: Final = {f.name: f for f in FEATURES}
FEATURE_BITS: Final = {f.name: f.number for f in FEATURES}
assert len(BY_NAME) == len(FEATURES) <= 512
assert all(r in BY_NAME for f in FEATURES for r in f.requires)

DEFAULT: Final = frozenset(f.name for f in FEATURES if f.default)


def choose(plus: Iterable[str] = (), minus: Iterable[str] = (), base: Iterable[str] = DEFAULT) -> frozenset[str]:
    """The features of a processor: `base`, more and fewer; what lacks a feature that it requires is off too.

    ValueError names a feature that does not exist.
    """
    plus, minus = set(plus), set(minus)
    unknown = (plus | minus | set(base)) - BY_NAME.keys()
    if unknown:
        raise ValueError(f"unknown CPU feature {', '.join(sorted(unknown))}; known are {' '.join(sorted(BY_NAME))}")
    chosen = ({"base"} | set(base) | plus) - minus
    while lacking := {name for name in chosen if not chosen.issuperset(BY_NAME[name].requires)}:
        chosen -= lacking
    return frozenset(chosen)


def feature_words(features: Iterable[str]) -> list[int]:
    """The eight words of `State.features`."""
    words = [0] * 8
    for name in features:
        number = BY_NAME[name].number
        words[number // 64] |= 1 << number % 64
    return words
