"""kvm-unit-tests, built elsewhere, in the machine that `xuni vm run --multiboot` makes.

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
    cpu: str = "+hypercall"
    arguments: str = ""
    bits: int = 64
    seconds: int = 60

    def __str__(self) -> str:
        return "-".join(filter(None, (self.file, self.arguments, "i386" if self.bits == 32 else "")))


GUESTS = (
    Guest("setjmp", 10), Guest("realmode", 127), Guest("syscall", 2, "+amd"), Guest("idt_test", 4), Guest("tsc", 3),
    Guest("umip", 21), Guest("smap", 18), Guest("memory", 6), Guest("emulator", 150), Guest("eventinj", 13),
    Guest("hypercall", 4), Guest("msr", 1500), Guest("debug", 25), Guest("xsave", 299), Guest("pcid", 2),
    Guest("pcid", 2, "-pcid,-invpcid"), Guest("rmap_chain", 1), Guest("tsc_adjust", 6), Guest("pku", 7),
    Guest("pks", 7), Guest("la57", 52, "+la57"), Guest("ioapic", 19), Guest("smptest", 1), Guest("lam", 1),
    *(Guest("vmexit", arguments=what) for what in (
        "cpuid", "vmcall", "mov_from_cr8", "mov_to_cr8", "inl_from_pmtimer", "ipi", "ipi_halt", "ple_round_robin",
        "tscdeadline", "tscdeadline_immed", "toggle_cr0_wp", "toggle_cr4_pge",
    )),
    Guest("cmpxchg8b", 1, bits=32), Guest("taskswitch", bits=32), Guest("taskswitch2", 13, bits=32),
    Guest("smap", 18, bits=32), Guest("eventinj", 15, bits=32), Guest("emulator", 85, bits=32),
    Guest("realmode", 127, bits=32),
)  # fmt: skip
LONG = (Guest("access_test", 1, seconds=900), Guest("sieve", seconds=900))


def check(guest: Guest) -> None:
    name = TREES[guest.bits]
    if name not in os.environ:
        pytest.skip(f"{name} is not set: the folder of a built kvm-unit-tests tree")
    path = Path(os.environ[name]) / "x86" / f"{guest.file}.flat"
    if not path.exists():
        pytest.skip(f"{path} is not built")
    command = [sys.executable, "-m", "xuni", "vm", "run", "--multiboot", str(path), "--append", guest.arguments,
               "--cpu", guest.cpu, "--serial", "stdio", "--timeout", str(guest.seconds)]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
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
