"""The machines that are measured side by side: how each is started, and why one cannot be.

To add one: an entry in MACHINES, with the command for a Linux kernel and the one for a multiboot kernel.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-x86_64"
# What kvm-unit-tests talk to; see their x86/run.
TEST_DEVICES = ("-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4")


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """A kernel, its initramfs, its command line; `memory` in MiB."""

    kernel: Path
    initrd: Path
    append: str
    memory: int = 512


@dataclass(frozen=True, slots=True)
class TestGuest:
    """A multiboot kernel of kvm-unit-tests. `qemu` holds the options that its configuration gives to QEMU."""

    kernel: Path
    arguments: str
    cpus: int
    memory: int
    qemu: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """`missing` says why the machine cannot run here, or nothing. `started` are exit statuses that mean a time-out."""

    name: str
    missing: Callable[[], str]
    linux: Callable[[LinuxGuest], list[str]]
    test: Callable[[TestGuest], list[str]]


def _xuni_linux(engine: str) -> Callable[[LinuxGuest], list[str]]:
    return lambda guest: [
        sys.executable, "-m", "xuni", "vm", "run", "--engine", engine, "--kernel", str(guest.kernel),
        "--initrd", str(guest.initrd), "--append", guest.append, "--memory", f"{guest.memory}M", "--serial", "stdio",
    ]  # fmt: skip


def _test_options(guest: TestGuest, accelerator: str) -> list[str]:
    """A test's command line behind the program's name: the same for QEMU and for xuni."""
    options = [
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-accel", accelerator,
        *TEST_DEVICES, "-kernel", str(guest.kernel), "-smp", str(guest.cpus),
    ]  # fmt: skip
    if "-m" not in guest.qemu:
        options += ["-m", str(guest.memory)]
    asked = [word for word in guest.qemu if word != "-enable-kvm"]  # who executes it is ours to say
    return [*options, *(("-append", guest.arguments) if guest.arguments else ()), *asked]


def _xuni_test(accelerator: str) -> Callable[[TestGuest], list[str]]:
    return lambda guest: [sys.executable, "-m", "xuni", "qemu", *_test_options(guest, accelerator)]


def _xuni_missing() -> str:
    from importlib.util import find_spec

    return "" if find_spec("xuni") else "xuni is not installed: run `make setup`"


def _qemu(accelerator: str, *options: str) -> list[str]:
    return [
        QEMU, "-accel", accelerator, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-no-reboot", *options,
    ]  # fmt: skip


def _qemu_linux(accelerator: str) -> Callable[[LinuxGuest], list[str]]:
    return lambda guest: _qemu(
        accelerator, "-M", "q35", "-m", str(guest.memory), "-kernel", str(guest.kernel), "-initrd", str(guest.initrd),
        "-append", guest.append,
    )  # fmt: skip


def _qemu_test(accelerator: str) -> Callable[[TestGuest], list[str]]:
    return lambda guest: [QEMU, *_test_options(guest, accelerator)]


def _qemu_missing() -> str:
    return "" if shutil.which(QEMU) else f"{QEMU} is not installed: apt-get install qemu-system-x86"


def _kvm_missing() -> str:
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("xuni", _xuni_missing, _xuni_linux("soft"), _xuni_test("tcg")),
        Machine("xuni-kvm", lambda: _xuni_missing() or _kvm_missing(), _xuni_linux("kvm"), _xuni_test("kvm")),
        Machine("tcg", _qemu_missing, _qemu_linux("tcg,thread=single"), _qemu_test("tcg")),
        Machine("kvm", lambda: _qemu_missing() or _kvm_missing(), _qemu_linux("kvm"), _qemu_test("kvm")),
    )
}


def choose(names: Sequence[str]) -> list[Machine]:
    """The machines of these names that can run here; what is missing is said on stderr.

    Raises SystemExit for an unknown name, or when none is left.
    """
    chosen = []
    for name in names:
        if name not in MACHINES:
            raise SystemExit(f"unknown machine {name!r}: {', '.join(MACHINES)}")
        if reason := MACHINES[name].missing():
            print(f"skipped: {name}: {reason}", file=sys.stderr)
        else:
            chosen.append(MACHINES[name])
    if not chosen:
        raise SystemExit("nothing to measure")
    return chosen
