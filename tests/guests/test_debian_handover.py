"""Debian's kernel begins on xuni's engine, goes on under KVM in the middle of its boot, and reaches its shell on either."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engines.board import limit
from tests.engines.either import needs_kvm
from xuni.boot import BootConfig, load
from xuni.cli import engines
from xuni.devices.apic.state import LocalApicConfig
from xuni.devices.uart import COM_PORTS
from xuni.engine.kvm import cpuid
from xuni.guest import catalogue
from xuni.host.kvm import Kvm
from xuni.isa.x86 import models
from xuni.machine.handover import hand_over
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import Interrupted
from xuni.memory.guest import GuestMemory

pytestmark = [needs_kvm, pytest.mark.long, pytest.mark.timeout(300)]
PROMPT = b"~ # "
CONSOLE = "console=ttyS0"


def test_there_and_back_again() -> None:
    guest = catalogue.ensure("debian")
    with Kvm() as kvm:
        features = cpuid.usable(models.XUNI.features, kvm.supported_cpuid())
    cpu = replace(models.XUNI, features=features)
    apic = LocalApicConfig(x2apic="x2apic" in features, tsc_deadline="tsc_deadline_timer" in features)
    config = PcConfig(serial=COM_PORTS[:1], local_apic=apic)
    printed, marks = bytearray(), [b"SLUB:", b"NR_IRQS:", PROMPT]
    with GuestMemory(256 << 20) as memory, limit(280):
        boot = BootConfig(guest.kernel, (guest.initrd,), f"{guest.append} {CONSOLE}", rng_seed=bytes(32))
        state = load(memory, boot, config.facts())

        def write(data: bytes) -> None:
            printed.extend(data)
            if marks and marks[0] in printed:
                marks.pop(0)
                machine.stop(Interrupted())

        machine = Pc(memory, engines.choose("soft", cpu).engine, config, (write,))
        machine.vcpus[0].start(state)
        assert isinstance(machine.run(60), Interrupted), printed.decode(errors="replace")
        hand_over(machine, engines.choose("kvm", cpu).engine)
        assert isinstance(machine.run(60), Interrupted), printed.decode(errors="replace")
        hand_over(machine, engines.choose("soft", cpu).engine)
        assert isinstance(machine.run(120), Interrupted), printed[-2000:].decode(errors="replace")
    assert PROMPT in printed
