"""What CPUID tells a guest under KVM: the project's own table, down to what the host and KVM can give.

The board's interrupt controllers and timers are ours, so their features do not depend on the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from xuni.host.kvm.structures import CpuidEntry2
from xuni.isa.x86.cpuid import BUS_KHZ, HYPERVISOR, MAX_HYPERVISOR, CpuidRow, Identity, build_cpuid_table
from xuni.isa.x86.cpuid import OURS as OURS_DEFAULT
from xuni.isa.x86.features import BY_NAME, FEATURES, choose
from xuni.isa.x86.models import AMD_LIKE

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmConfig

OURS: Final = frozenset({"base", "apic", "x2apic", "tsc_deadline_timer", "arat", "hypervisor", "ht", "constant_tsc"})
"""What the board gives, whatever the host has."""
KERNELS: Final = frozenset({"kvm_pv_ipi"})
"""What would need local APICs in the kernel."""
ADDRESS_BITS: Final = 0x80000008
_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")


def amd_like(who: Identity) -> frozenset[str]:
    """The feature `amd`, if the vendor's processors follow AMD where it differs from Intel."""
    return frozenset({"amd"}) if who.vendor in AMD_LIKE else frozenset()


def usable(wanted: frozenset[str], supported: Iterable[CpuidEntry2]) -> frozenset[str]:
    """Those of the features that KVM on this host can give a guest; what needs one that is missing goes too."""
    there = announced(supported)
    return choose(minus={f.name for f in FEATURES if f.bit >= 0 and f.name not in there | OURS} | KERNELS, base=wanted)


def announced(entries: Iterable[CpuidEntry2]) -> frozenset[str]:
    """The features whose bits are set in these rows."""
    words = {(entry.function, entry.index): entry for entry in entries}
    return frozenset(
        f.name for f in FEATURES
        if f.bit >= 0 and (entry := words.get((f.leaf, f.subleaf))) and getattr(entry, _REGISTERS[f.register]) >> f.bit & 1
    )  # fmt: skip


def visible(chosen: frozenset[str], entries: Iterable[CpuidEntry2]) -> frozenset[str]:
    """What a guest really has: KVM without hardware virtualization cannot hide what the host's processor says."""
    silent = {name for name in chosen if BY_NAME[name].bit < 0}
    return choose(minus=KERNELS, base=silent | announced(entries))


def physical_bits(supported: Iterable[CpuidEntry2]) -> int:
    """MAXPHYADDR of the host, the most that a guest may have."""
    return next((int(entry.eax) & 0xFF for entry in supported if entry.function == ADDRESS_BITS), 36)


def identity(config: KvmConfig, supported: Iterable[CpuidEntry2]) -> Identity:
    """As what the processor presents itself. The default is the host's own vendor and model: guests choose their
    protection against speculative execution by these, and it is the host's processor that speculates.
    """
    leaves = {entry.function: entry for entry in supported if entry.function in (0, 1)}
    if config.identity is not OURS_DEFAULT or len(leaves) < 2:
        return config.identity
    vendor = b"".join(int(word).to_bytes(4, "little") for word in (leaves[0].ebx, leaves[0].edx, leaves[0].ecx))
    return replace(OURS_DEFAULT, vendor=vendor, signature=int(leaves[1].eax))


def entries(features: frozenset[str], config: KvmConfig, who: Identity, bits: int, tsc_khz: int) -> list[CpuidEntry2]:
    """One processor's rows for KVM_SET_CPUID2. KVM itself adds what changes at run time (OSXSAVE, OSPKE, sizes)."""
    rows = []
    for row in build_cpuid_table(features, config.cpus, bits, who, config.topology):
        match row.leaf:
            case 1:
                row = replace(row, ebx=row.ebx | config.apic_id << 24)
            case 0xB:
                row = replace(row, edx=config.apic_id)
            case 0x15:  # the ratio of the counter to the crystal, which is the local APIC's clock
                row = replace(row, eax=BUS_KHZ, ebx=tsc_khz)
            case 0x16:
                row = replace(row, eax=tsc_khz // 1000, ebx=tsc_khz // 1000)
            case leaf if leaf == MAX_HYPERVISOR and leaf != HYPERVISOR:
                row = replace(row, eax=tsc_khz)
        rows.append(_entry(row))
    return rows


def _entry(row: CpuidRow) -> CpuidEntry2:
    flags = 0 if row.subleaf is None else CpuidEntry2.SIGNIFICANT_INDEX
    return CpuidEntry2(row.leaf, row.subleaf or 0, flags, row.eax, row.ebx, row.ecx, row.edx)
