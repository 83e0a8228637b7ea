"""What CPUID tells a guest under KVM, from what a host would support."""

from __future__ import annotations

import pytest

from xuni.engine.kvm import cpuid
from xuni.engine.kvm.vcpu import KvmConfig
from xuni.host.kvm.structures import CpuidEntry2
from xuni.isa.x86.cpuid import OURS, Identity
from xuni.isa.x86.features import DEFAULT, FEATURES, choose


def host(vendor: bytes = b"GenuineIntel", signature: int = 0x906EA, without: frozenset[str] = frozenset()) -> list[CpuidEntry2]:
    """All features of the table but some, and the leaves that say who it is."""
    words = {(0, 0): [0x16, *(int.from_bytes(vendor[at : at + 4], "little") for at in (0, 8, 4))], (1, 0): [signature, 0, 0, 0],
             (0x80000008, 0): [39, 0, 0, 0]}  # fmt: skip
    for feature in FEATURES:
        if feature.bit >= 0 and feature.name not in without:
            row = words.setdefault((feature.leaf, feature.subleaf), [0, 0, 0, 0])
            row[feature.register] |= 1 << feature.bit
    return [CpuidEntry2(leaf, subleaf, 1, *row) for (leaf, subleaf), row in words.items()]


def test_what_the_host_lacks_is_left_out_with_what_needs_it() -> None:
    assert cpuid.usable(DEFAULT, host()) == DEFAULT
    found = cpuid.usable(DEFAULT, host(without=frozenset({"ssse3"})))
    assert DEFAULT - found == {"ssse3", "sse4_1", "sse4_2"}


def test_what_the_board_gives_does_not_depend_on_the_host() -> None:
    ours = frozenset({"x2apic", "tsc_deadline_timer", "hypervisor", "arat"})
    assert ours <= cpuid.usable(DEFAULT, host(without=ours))


def test_hypercalls_that_need_local_apics_in_the_kernel_are_off() -> None:
    wanted = choose(plus={"hypercall", "kvm_pv_ipi", "kvm_nopiodelay"})
    assert wanted - cpuid.usable(wanted, host()) == {"kvm_pv_ipi"}


def test_what_the_guest_sees_in_the_end_counts() -> None:
    chosen = cpuid.usable(DEFAULT, host(without=frozenset({"smap"})))
    assert "smap" not in chosen and "smap" in cpuid.visible(chosen, host())


@pytest.mark.parametrize("vendor", [b"GenuineIntel", b"AuthenticAMD"])
def test_the_default_processor_is_the_hosts_model(vendor: bytes) -> None:
    who = cpuid.identity(KvmConfig(DEFAULT), host(vendor, 0xA20F12))
    assert (who.vendor, who.signature, who.brand) == (vendor, 0xA20F12, OURS.brand)
    assert cpuid.amd_like(who) == ({"amd"} if vendor == b"AuthenticAMD" else set())


def test_a_named_model_stays_what_it_is() -> None:
    model = Identity(b"GenuineIntel", 0x306C3, b"Haswell")
    assert cpuid.identity(KvmConfig(DEFAULT, identity=model), host(b"AuthenticAMD")) is model


def test_rows_of_one_processor() -> None:
    rows = {(row.function, row.index): row for row in cpuid.entries(DEFAULT, KvmConfig(DEFAULT, 3, 4), OURS, 39, 2_400_000)}
    assert rows[1, 0].ebx >> 24 == 3 == rows[0xB, 0].edx == rows[0xB, 1].edx
    assert rows[0x15, 0].ecx * rows[0x15, 0].ebx // rows[0x15, 0].eax == 2_400_000_000
    assert rows[0x16, 0].eax == 2400 and rows[0x40000010, 0].eax == 2_400_000
    assert rows[0x80000008, 0].eax & 0xFF == 39
    assert rows[7, 0].flags == CpuidEntry2.SIGNIFICANT_INDEX and rows[1, 0].flags == 0


def test_address_bits_of_the_host() -> None:
    assert cpuid.physical_bits(host()) == 39
    assert cpuid.physical_bits([]) == 36
