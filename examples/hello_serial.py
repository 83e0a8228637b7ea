"""A guest that prints: real-mode code sends a string to the serial port, and turns the power off through ACPI."""

import sys

from xuni.boot import BootConfig, Format, load
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.machine.pc import Pc
from xuni.memory.guest import GuestMemory

CODE = bytes.fromhex(
    "be 16 80"  # mov si, text  (raw code is loaded at 0x8000)
    "ba f8 03"  # mov dx, 0x3f8
    "ac"  # lodsb
    "84 c0"  # test al, al
    "74 03"  # jz done
    "ee"  # out dx, al
    "eb f8"  # jmp to lodsb
    "ba 04 06"  # done: mov dx, 0x604  (PM1a_CNT)
    "b8 00 20"  # mov ax, SLP_EN
    "ef"  # out dx, ax
    "f4"  # hlt
)
TEXT = b"hello from a machine in Python\n\0"


def show(data: bytes) -> None:
    sys.stdout.write(data.decode())


with GuestMemory(1 << 20) as memory:
    machine = Pc(memory, lambda memory, config: SoftVcpu(memory), outputs=(show,))
    machine.vcpus[0].start(load(memory, BootConfig(CODE + TEXT, format=Format.REAL)))
    print(machine.run())
