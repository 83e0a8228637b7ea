#!/usr/bin/env python3
"""Memory of an idle virtual machine: what the host spends beyond the memory that the guest touched.

    bench/idle_memory.py [--machines xuni-kvm,xuni,kvm] [--memory 128]

Each machine boots the same guest, a few instructions that print a line and halt for good; then the resident memory of its
process is read (RSS, and PSS, which shares what several processes share), and the resident part of the guest's memory is
subtracted. Exit status 1 if xuni under KVM is not the smallest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import pack

READY = b"idle"
PATIENCE = 90.0  # seconds until the guest has printed its line; the engine may have to be compiled
QEMU = "qemu-system-x86_64"
ENTRY = 0x100000
QUIET = b"\xb0\xff\xe6\x21\xe6\xa1"  # mov al, 0xff; out 0x21, al; out 0xa1, al: no interrupts from the legacy controllers
PRINT = b"".join(b"\xb0" + bytes((letter,)) + b"\xee" for letter in READY + b"\n")  # mov al, letter; out dx, al
GUEST = QUIET + b"\x66\xba\xf8\x03" + PRINT + b"\xfb\xf4\xeb\xfd"  # mov dx, 0x3f8; print; sti; again: hlt; jmp again


def multiboot(code: bytes) -> bytes:
    """A multiboot 1 kernel in the form without ELF (flag 16): header, then code."""
    magic, flags = 0x1BADB002, 1 << 16
    header = pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, ENTRY, ENTRY, 0, 0, ENTRY + 32)
    return header + code


@dataclass(frozen=True, slots=True)
class Machine:
    """A command for a multiboot kernel and an amount of memory in MiB, and why it cannot run here."""

    name: str
    command: Callable[[Path, int], list[str]]
    missing: Callable[[], str]


def _xuni(engine: str) -> Callable[[Path, int], list[str]]:
    return lambda kernel, memory: [
        sys.executable, "-m", "xuni", "vm", "run", "--multiboot", str(kernel), "--memory", f"{memory}M",
        "--engine", engine, "--serial", "stdio",
    ]  # fmt: skip


def _qemu(accelerator: str) -> Callable[[Path, int], list[str]]:
    return lambda kernel, memory: [
        QEMU, "-accel", accelerator, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-m", str(memory), "-kernel", str(kernel),
    ]  # fmt: skip


def _no_kvm() -> str:
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"


def _no_qemu() -> str:
    return "" if shutil.which(QEMU) else f"{QEMU} is not installed"


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("xuni-kvm", _xuni("kvm"), _no_kvm),
        Machine("xuni", _xuni("soft"), lambda: ""),
        Machine("kvm", _qemu("kvm"), lambda: _no_qemu() or _no_kvm()),
        Machine("tcg", _qemu("tcg"), _no_qemu),
    )
}


@dataclass(frozen=True, slots=True)
class Use:
    """KiB: resident of the whole process, its share of it, and resident of the guest's memory."""

    rss: int
    pss: int
    guest: int


def smaps(pid: int, memory: int) -> Use:
    """What /proc says; the guest's memory is the one mapping of its size."""
    rss = pss = guest = 0
    size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            size = int(match[2], 16) - int(match[1], 16)
        elif line.startswith("Rss:"):
            here = int(line.split()[1])
            rss += here
            # Neighbouring anonymous mappings may be joined, so a little more is the same.
            if memory << 20 <= size < (memory << 20) + (16 << 20):
                guest += here
        elif line.startswith("Pss:"):
            pss += int(line.split()[1])
    return Use(rss, pss, guest)


def measure(machine: Machine, kernel: Path, memory: int) -> Use:
    """Start it, wait for its line and a second more, and look."""
    with subprocess.Popen(machine.command(kernel, memory), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            seen, end = b"", time.monotonic() + PATIENCE
            while READY not in seen:
                if time.monotonic() > end or process.poll() is not None:
                    sys.exit(f"idle_memory: {machine.name} did not print its line")
                seen += process.stdout.read() or b""
                time.sleep(0.05)
            time.sleep(1)
            return smaps(process.pid, memory)
        finally:
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of an idle virtual machine beyond what the guest touched.")
    parser.add_argument("--machines", default="xuni-kvm,xuni,kvm", help=f"of {','.join(MACHINES)}")
    parser.add_argument("--memory", type=int, default=128, help="MiB of the guest")
    options = parser.parse_args()
    found: dict[str, int] = {}
    print(f"{'':10}{'RSS':>12}{'PSS':>12}{'guest':>12}{'beyond it':>12}   KiB")
    with tempfile.TemporaryDirectory() as directory:
        kernel = Path(directory) / "idle"
        kernel.write_bytes(multiboot(GUEST).ljust(4096, b"\0"))
        for name in options.machines.split(","):
            machine = MACHINES[name]
            if reason := machine.missing():
                print(f"skipped: {name}: {reason}", file=sys.stderr)
                continue
            use = measure(machine, kernel, options.memory)
            found[name] = use.rss - use.guest
            print(f"{name:10}{use.rss:12,}{use.pss:12,}{use.guest:12,}{found[name]:12,}")
    ours = found.get("xuni-kvm")
    return int(ours is not None and any(other < ours for name, other in found.items() if name != "xuni-kvm"))


if __name__ == "__main__":
    sys.exit(main())
