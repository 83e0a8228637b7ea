"""Unicorn as a `Target`: a second opinion where the host's processor cannot be asked, and a proof of this harness.

Optional: Unicorn is GPL software and no dependency of the project; tests that want it skip without it. It is QEMU's
TCG of 2020, so its verdict on x87 and on undefined results is weak, and it does not report exceptions as vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from .case import CODE, DATA, FS_BASE, GS_BASE, PAGE, UNCOMPARED, WINDOW, Case, Flag, Mode, Outcome

unicorn = pytest.importorskip("unicorn")
x86 = pytest.importorskip("unicorn.x86_const")

NAMES = "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15".split()
FAULT = 0xFF
"""Stands for any exception whose vector Unicorn does not tell."""


class UnicornCpu:
    """64-bit and 32-bit flat code. An exception's vector is FAULT."""

    name = "unicorn"

    def __init__(self) -> None:
        self._machines = {mode: self._machine(mode) for mode in (Mode.LONG, Mode.PROTECTED_32)}
        self._registers = {
            mode: [getattr(x86, f"UC_X86_REG_{name if mode is Mode.LONG else 'E' + name[1:]}") for name in names]
            for mode, names in ((Mode.LONG, NAMES), (Mode.PROTECTED_32, NAMES[:8]))
        }

    def _machine(self, mode: Mode) -> Any:
        kind = unicorn.UC_MODE_64 if mode is Mode.LONG else unicorn.UC_MODE_32
        machine = unicorn.Uc(unicorn.UC_ARCH_X86, kind)
        machine.mem_map(CODE, PAGE)
        machine.mem_map(DATA, PAGE)
        if mode is Mode.LONG:
            machine.reg_write(x86.UC_X86_REG_FS_BASE, FS_BASE)
            machine.reg_write(x86.UC_X86_REG_GS_BASE, GS_BASE)
        machine.hook_add(unicorn.UC_HOOK_INTR, lambda engine, vector, data: engine.emu_stop())
        return machine

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> Outcome:
        machine, registers = self._machines[case.mode], self._registers[case.mode]
        machine.ctl_remove_cache(CODE, CODE + PAGE)
        machine.mem_write(CODE, case.code + b"\x0f\x0b" * 8)
        machine.mem_write(DATA, bytes(WINDOW - DATA) + case.memory)
        for number, value in zip(registers, case.gpr, strict=False):
            machine.reg_write(number, value)
        machine.reg_write(x86.UC_X86_REG_EFLAGS, case.rflags | Flag.FIXED)
        self._load_fxsave(machine, case)
        vector = None
        try:
            machine.emu_start(case.mode.rip, -1 & case.mode.register_mask, count=1)
        except unicorn.UcError:
            vector = FAULT
        return Outcome(
            gpr=tuple(machine.reg_read(number) for number in registers) + (0,) * (16 - len(registers)),
            rip=machine.reg_read(x86.UC_X86_REG_RIP if case.mode is Mode.LONG else x86.UC_X86_REG_EIP),
            rflags=machine.reg_read(x86.UC_X86_REG_EFLAGS) & ~UNCOMPARED,
            fxsave=self._save_fxsave(machine, case),
            memory=bytes(machine.mem_read(WINDOW, len(case.memory))),
            vector=vector,
        )

    def _load_fxsave(self, machine: Any, case: Case) -> None:
        image = case.fxsave
        machine.reg_write(x86.UC_X86_REG_FPCW, int.from_bytes(image[0:2], "little"))
        machine.reg_write(x86.UC_X86_REG_FPSW, int.from_bytes(image[2:4], "little"))
        machine.reg_write(x86.UC_X86_REG_MXCSR, int.from_bytes(image[24:28], "little"))
        for number in range(case.mode.registers):
            at = 160 + 16 * number
            machine.reg_write(x86.UC_X86_REG_XMM0 + number, int.from_bytes(image[at : at + 16], "little"))

    def _save_fxsave(self, machine: Any, case: Case) -> bytes:
        """The SSE half; the x87 half is given back as it came."""
        image = bytearray(case.fxsave)
        image[24:28] = machine.reg_read(x86.UC_X86_REG_MXCSR).to_bytes(4, "little")
        for number in range(case.mode.registers):
            at = 160 + 16 * number
            image[at : at + 16] = machine.reg_read(x86.UC_X86_REG_XMM0 + number).to_bytes(16, "little")
        return bytes(image)
