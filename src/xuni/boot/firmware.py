"""What a PC's firmware would have left below 1 MiB: interrupt vectors, BIOS data area, two interrupt handlers.

Nothing here executes unless a guest goes back to real mode and takes an interrupt there, or looks for COM ports, the
size of base memory, or the EBDA (Linux: arch/x86/kernel/ebda.c). INT 8 counts ticks and acknowledges the PIC, as long
as the board leaves the PIC at vectors 8 and 0x70, where a BIOS has it; all other vectors return at once.
"""

from __future__ import annotations

from struct import pack
from typing import Final

from xuni.boot.layout import BIOS_DATA, BIOS_ROM, EBDA, BoardFacts
from xuni.memory.guest import GuestMemory

DUMMY_HANDLER: Final = 0xFF53
TIMER_HANDLER: Final = 0xFEA5
"""Offsets in segment F000, where the IBM PC has the same handlers."""
TIMER_VECTOR: Final = 8
VECTORS: Final = 256

IRET: Final = b"\xcf"
TIMER_CODE: Final = bytes.fromhex(
    "1e 50"  # push ds; push ax
    "b8 40 00 8e d8"  # mov ax, 0x40; mov ds, ax
    "66 ff 06 6c 00"  # inc dword [0x6c]: ticks since midnight
    "b0 20 e6 20"  # mov al, 0x20; out 0x20, al: end of interrupt
    "58 1f cf"  # pop ax; pop ds; iret
)

BASE_MEMORY_KIB: Final = EBDA >> 10


def install(memory: GuestMemory, board: BoardFacts) -> None:
    """Write the vectors, the handlers and the BIOS data area. `memory` needs its first MiB."""
    vectors = [BIOS_ROM >> 4 << 16 | DUMMY_HANDLER] * VECTORS
    vectors[TIMER_VECTOR] = BIOS_ROM >> 4 << 16 | TIMER_HANDLER
    memory.write(0, pack(f"<{VECTORS}I", *vectors))
    memory.write(BIOS_ROM + DUMMY_HANDLER, IRET)
    memory.write(BIOS_ROM + TIMER_HANDLER, TIMER_CODE)
    ports = [uart.base for uart in board.serial[:4]]
    memory.write(BIOS_DATA, pack("<4H", *ports, *[0] * (4 - len(ports))))
    memory.write_u16(BIOS_DATA + 0x0E, EBDA >> 4)
    memory.write_u16(BIOS_DATA + 0x10, len(ports) << 9)  # equipment word: bits 9-11 count the COM ports
    memory.write_u16(BIOS_DATA + 0x13, BASE_MEMORY_KIB)
    memory.write_u8(EBDA, (0xA_0000 - EBDA) >> 10)  # the EBDA's own size in KiB
