"""Exceptions of the guest, SDM vol. 3, table 6-1, and how semantics raise them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, const
from xuni.isa.stage import Unwind

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


class Vector(IntEnum):
    DE, DB, NMI, BP, OF, BR, UD, NM, DF, MF_OVERRUN, TS, NP, SS, GP, PF, RESERVED15, MF, AC, MC, XM, VE, CP = range(22)


HAS_ERROR_CODE = frozenset({Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC, Vector.CP})


class GuestFault(Unwind):
    """A fault of the current instruction, which leaves no trace: `raise GuestFault(cpu, Vector.GP, 0)`.

    The error code is given exactly for the vectors that have one.
    """

    code = 1

    def __init__(self, cpu: Cpu, vector: Vector, error: Bits | int | None = None) -> None:
        super().__init__(vector.name)
        assert (error is not None) == (vector in HAS_ERROR_CODE), f"#{vector.name} and its error code"
        s = cpu.s
        s.fault_vector = int(vector)
        s.fault_has_error = int(error is not None)
        if error is None:
            s.fault_error = 0
        else:
            s.fault_error = const(error, 64) if isinstance(error, int) else error.zext(64)


class Leave(Unwind):
    """Back to the machine with `exit_kind` set; the instruction is executed again when it comes back."""

    code = 2


class Again(Unwind):
    """Back to the engine's loop, which looks the instruction at RIP up again: decoded code changed under it."""

    code = 3
