"""What machine to run: one record, which `xuni vm run` and `xuni qemu` fill in and `launch` makes a machine of.

To add an option: a field here, its use in `launch.py` (or a device's record in `xuni.machine.pc.PcConfig`), the option
in `vm.py` and in `qemu/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from xuni.cli.plan import Plan
from xuni.isa.x86 import models
from xuni.isa.x86.models import CpuModel
from xuni.machine.pc import PcConfig, host_time


@dataclass(frozen=True, slots=True)
class Description:
    """A machine, what it boots, where its serial lines end, who executes it, and who looks on."""

    plan: Plan
    """What to boot, and the host's ends of the serial lines."""
    memory: int
    """Bytes."""
    cpus: int = 1
    cpu: CpuModel = models.XUNI
    board: PcConfig = field(default_factory=PcConfig)
    """The devices. Its number of processors and its local APICs follow from `cpus` and `cpu`."""
    engine: str = "auto"
    """Who executes the guest: auto, soft or kvm; or several with colons between, the first that can be had."""
    timeout: float | None = None
    """Seconds of the guest clock after which the machine is stopped."""
    reboot: bool = False
    """A guest's reset, or its processor's shutdown, loads the guest again; else it ends the machine."""
    reset: bool = True
    """A reset from outside, by a monitor or a debugger, loads the guest again; else it ends the machine."""
    linger: bool = False
    """A guest's power-off leaves the process waiting for its user."""
    wall_clock: Callable[[], datetime] = host_time
    """What the real-time clock shows."""
    name: str = ""
    """The machine's, for its monitors."""
    uuid: UUID | None = None
    gdb: str | None = None
    """Where a gdb stub listens."""
    qmp: tuple[str, ...] = ()
    """Where QMP monitors listen."""
    paused: bool = False
    """Wait for a debugger or a monitor before the first instruction."""
    verbose: bool = False
    """Say on stderr which engine was taken, and why."""
