"""QEMU's command line with real guests on the soft engine: what options mean to what runs in the machine."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.assembler import BASE, assemble

MAGIC, ADDRESSES = 0x1BADB002, 1 << 16
EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
OUT = "out 0xf4, al\n"


def boot(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run 32-bit code as a multiboot kernel; without an IDT, its first fault is a triple fault."""
    text = assemble([".code32\n" + code])[0].data
    # The header's addresses: itself, where the image begins and ends, no BSS, the entry point.
    at = BASE - 32
    words = (MAGIC, ADDRESSES, -(MAGIC + ADDRESSES) & 0xFFFFFFFF, at, at, BASE + len(text), 0, BASE)
    kernel = folder / "kernel"
    kernel.write_bytes(struct.pack("<8I", *words) + text)
    command = [sys.executable, "-m", "xuni", "qemu", "-nodefaults", "-display", "none", "-serial", "stdio", *EXIT,
               "-kernel", str(kernel), *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)


def exit_value(done: subprocess.CompletedProcess[str]) -> int:
    """What the guest wrote to the debug-exit port."""
    assert done.returncode & 1, done.stderr
    return done.returncode >> 1


@pytest.mark.parametrize(("code", "leaf", "register", "bit", "with_it", "without"), [
    ("popcnt ebx, ecx", 1, "ecx", 23, "Nehalem", "Nehalem,-popcnt"),
    ("vmcall", 0x40000001, "eax", 11, "qemu64", "qemu64,kvm=off"),
    ("mov ecx, 0x1b\nrdmsr\nor eax, 0x400\nwrmsr", 1, "ecx", 21, "qemu64", "qemu64,-x2apic"),  # x2APIC mode
])
def test_a_feature_is_announced_and_works_or_neither(tmp_path: Path, code: str, leaf: int, register: str, bit: int,
                                                     with_it: str, without: str) -> None:  # fmt: skip
    def program(announced: int) -> str:
        return f"""
            mov eax, {leaf:#x}
            cpuid
            shr {register}, {bit}
            and {register}, 1
            cmp {register}, {announced}
            mov eax, 9
            jne 1f
            {code}
            mov eax, 5
        1:  out 0xf4, al
        """

    assert exit_value(boot(tmp_path, program(1), "-cpu", with_it)) == 5
    done = boot(tmp_path, program(0), "-cpu", without, "-no-reboot")
    assert done.returncode == 0 and "triple fault: #" in done.stderr


def test_identity(tmp_path: Path) -> None:
    compare = """
        xor eax, eax
        cpuid
        cmp ebx, 0x68747541
        jne 1f
        mov eax, 1
        cpuid
        cmp eax, 0x800f12
        jne 1f
        mov eax, 1
        out 0xf4, al
    1:  xor eax, eax
        out 0xf4, al
    """
    assert exit_value(boot(tmp_path, compare, "-cpu", "max,vendor=AuthenticAMD,family=23,model=1,stepping=2")) == 1
    assert exit_value(boot(tmp_path, compare, "-cpu", "EPYC,check=off,stepping=3")) == 0


def test_firmware_configuration(tmp_path: Path) -> None:
    def first_byte(key: int) -> str:
        return f"mov dx, 0x510\nmov ax, {key:#x}\nout dx, ax\ninc edx\nin al, dx\n" + OUT

    assert exit_value(boot(tmp_path, first_byte(5), "-smp", "3")) == 3
    assert exit_value(boot(tmp_path, first_byte(0x20), "-fw_cfg", "name=opt/org.test,string=Abc")) == ord("A")


def test_a_reset_boots_again_unless_it_must_not(tmp_path: Path) -> None:
    counts = """
        mov al, 0x60
        out 0x70, al
        in al, 0x71
        inc eax
        mov bl, al
        out 0x71, al
        cmp bl, 3
        jb 1f
        mov al, bl
        out 0xf4, al
    1:  mov al, 6
        mov dx, 0xcf9
        out dx, al
        hlt
    """
    assert exit_value(boot(tmp_path, counts)) == 3
    assert boot(tmp_path, counts, "-no-reboot").returncode == 0


def test_a_triple_fault_is_a_reset(tmp_path: Path) -> None:
    crash = """
        mov al, 0x60
        out 0x70, al
        in al, 0x71
        test al, al
        jnz 1f
        inc eax
        out 0x71, al
        ud2
    1:  mov al, 7
        out 0xf4, al
    """
    assert exit_value(boot(tmp_path, crash)) == 7


def test_the_board_lacks_what_it_was_told_to(tmp_path: Path) -> None:
    look = """
        mov al, 0x34
        out 0x43, al
        in al, 0x40
        in al, 0x40
        inc al
        setz bl
        mov eax, [0xe0000]
        cmp eax, 0x20445352
        setne al
        shl al
        or al, bl
        out 0xf4, al
    """
    assert exit_value(boot(tmp_path, look)) == 0
    assert exit_value(boot(tmp_path, look, "-machine", "pit=off", "-no-acpi")) == 3
