"""What MMX instructions do to the x87 state that they share registers with, SDM vol. 1, 9.5.

MMX register n is the significand of physical x87 register n (`s.st[n]`, low 64 bits). Writing one (operand codes P, Q,
N) also sets the register's exponent and sign to all ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.stage import staged, unlikely
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Cr0

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

TOP, ES, BUSY = 7 << 11, 1 << 7, 1 << 15


@staged
def check_pending(cpu: Cpu) -> None:
    """What waiting x87 and MMX instructions begin with: #MF if an unmasked x87 exception is pending.

    With CR0.NE = 0 a processor signals it to external hardware instead and waits for an interrupt; here execution goes
    on, as with IGNNE# asserted.
    """
    if unlikely((cpu.s.fpu_status & ES) != 0):
        if (cpu.s.cr0 & Cr0.NE) != 0:
            raise GuestFault(cpu, Vector.MF)


def enter_mmx(cpu: Cpu) -> None:
    """The end of every MMX instruction but EMMS: TOP becomes 0, all registers are valid."""
    cpu.s.fpu_status = cpu.s.fpu_status & ~TOP
    cpu.s.fpu_tag = 0
