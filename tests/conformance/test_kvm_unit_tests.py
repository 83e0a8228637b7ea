"""kvm-unit-tests, built elsewhere, in the machine of `xuni qemu`, with the options that their configuration asks for.

KVM_UNIT_TESTS names the tree that is configured and built for x86_64, KVM_UNIT_TESTS_I386 the one for i386; what is
missing is skipped. `bench/kvm_unit_tests.py` prints the whole table, beside other machines'.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSED = 1  # the debug-exit port's value * 2 + 1
TREES = {64: "KVM_UNIT_TESTS", 32: "KVM_UNIT_TESTS_I386"}


@dataclass(frozen=True, slots=True)
class Guest:
    """A test: its file, what it needs, and how many lines begin with PASS at least."""

    file: str
    passes: int = 0
    cpu: str = "qemu64"
    arguments: str = ""
    cpus: int = 1
    bits: int = 64
    seconds: int = 60

    def __str__(self) -> str:
        words = (self.file, self.arguments, "" if self.cpu == "qemu64" else self.cpu, "i386" if self.bits == 32 else "")
        return "-".join(filter(None, words))


APIC = "qemu64,+x2apic,+tsc-deadline"
GUESTS = (
    Guest("setjmp", 10), Guest("realmode", 127), Guest("syscall", 2, "Opteron_G1,vendor=AuthenticAMD"),
    Guest("idt_test", 4), Guest("tsc", 3, "max"), Guest("umip", 21, "qemu64,+umip"), Guest("smap", 18, "max"),
    Guest("memory", 7, "max"), Guest("emulator", 140), Guest("eventinj", 13), Guest("hypercall", 4),
    Guest("msr", 1500, "max,vendor=GenuineIntel"), Guest("msr", 1500, "qemu64,vendor=GenuineIntel"), Guest("debug", 22),
    Guest("xsave", 299, "max"), Guest("pcid", 2, "qemu64,+pcid,+invpcid"), Guest("pcid", 2, "qemu64,-pcid,-invpcid"),
    Guest("rmap_chain", 1), Guest("tsc_adjust", 6, "max"), Guest("pku", 7, "max"), Guest("pks", 7, "max"),
    Guest("la57", 52, "max"), Guest("ioapic", 30, "qemu64,+x2apic", cpus=4), Guest("smptest", 1, cpus=3),
    Guest("lam", 1, "max"), Guest("rdpru", 1, "max"), Guest("s3"),
    *(Guest("vmexit", arguments=what, cpus=cpus) for what, cpus in (
        ("cpuid", 1), ("vmcall", 1), ("mov_from_cr8", 1), ("mov_to_cr8", 1), ("inl_from_pmtimer", 1), ("ipi", 2),
        ("ipi_halt", 2), ("ple_round_robin", 1), ("toggle_cr0_wp", 2), ("toggle_cr4_pge", 2),
    )),
    *(Guest("vmexit", cpu=APIC, arguments=what) for what in ("tscdeadline", "tscdeadline_immed")),
    Guest("cmpxchg8b", 1, bits=32), Guest("taskswitch", bits=32), Guest("taskswitch2", 13, bits=32),
    Guest("smap", 18, "max", bits=32), Guest("eventinj", 15, bits=32), Guest("emulator", 80, bits=32),
    Guest("realmode", 127, bits=32),
)  # fmt: skip
LONG = (
    Guest("access_test", 1, "max,host-phys-bits", seconds=900), Guest("sieve", seconds=900),
    Guest("apic", 56, APIC, cpus=2, seconds=300), Guest("apic", 45, "qemu64,-x2apic,+tsc-deadline", cpus=2, seconds=300),
)  # fmt: skip


def check(guest: Guest) -> None:
    name = TREES[guest.bits]
    if name not in os.environ:
        pytest.skip(f"{name} is not set: the folder of a built kvm-unit-tests tree")
    path = Path(os.environ[name]) / "x86" / f"{guest.file}.flat"
    if not path.exists():
        pytest.skip(f"{path} is not built")
    command = [sys.executable, "-m", "xuni", "qemu", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
               "-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(path),
               "-smp", str(guest.cpus), "-cpu", guest.cpu,
               *(("-append", guest.arguments) if guest.arguments else ())]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=guest.seconds, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    said = "\n".join([*lines[-20:], done.stderr.decode(errors="replace")])
    assert done.returncode == PASSED, said
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert sum(line.startswith("PASS") for line in lines) >= guest.passes, said


@pytest.mark.parametrize("guest", GUESTS, ids=str)
def test_passes(guest: Guest) -> None:
    check(guest)


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("guest", LONG, ids=str)
def test_passes_in_the_end(guest: Guest) -> None:
    check(guest)
