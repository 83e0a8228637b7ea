"""Small guests on either engine, through the interface that both have and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xuni.engine.kvm.engine import KvmEngine, lacking
from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu
from xuni.exits import Vcpu
from xuni.isa.x86.features import DEFAULT
from xuni.machine.machine import CpuConfig
from xuni.memory.guest import GuestMemory

Engine = Callable[[GuestMemory, CpuConfig], Vcpu]


def soft(memory: GuestMemory, config: CpuConfig) -> Vcpu:
    """xuni's own engine."""
    return SoftVcpu(memory, SoftConfig(DEFAULT, config.index, config.count), clock_base=0)


def kvm(memory: GuestMemory, config: CpuConfig) -> Vcpu:
    """KVM."""
    return KvmEngine(DEFAULT)(memory, config)


needs_kvm = pytest.mark.skipif(bool(lacking()), reason=lacking() or "-")
ENGINES = [pytest.param(soft, id="soft"), pytest.param(kvm, id="kvm", marks=needs_kvm)]
