"""Whatever a guest writes where, the board answers in range and goes on: no exception, no flood of timers."""

from __future__ import annotations

from random import Random

import pytest

from xuni.devices.test_ports import DebugConsoleConfig, DebugExitConfig, TestDeviceConfig
from xuni.devices.uart import COM_PORTS
from xuni.machine.pc import PcConfig

CONFIG = PcConfig(
    cpus=2,
    serial=COM_PORTS,
    debug_exit=DebugExitConfig(),
    debug_console=DebugConsoleConfig(),
    test_device=TestDeviceConfig(),
)


def idle(cpu):
    yield from ()


@pytest.mark.parametrize("seed", range(8))
def test_random_accesses_with_time_passing(pc, seed):
    random, board = Random(seed), pc(idle, idle, config=CONFIG)
    cpu, bus, apics = board.vcpus[0], board.bus, board.local_apics
    claimed = [port for port in range(0x10000) if bus.ports.owner(port)]
    pages = (0xFEC0_0000, 0xFEC0_0FF0, 0xFF00_0000, 0xFF00_FFF0)
    for _ in range(4000):
        size, value = random.choice((1, 2, 4)), random.choice((random.getrandbits(32), random.getrandbits(8)))
        apic = random.choice(apics)
        match random.randrange(8):
            case 0 | 1:
                bus.ports.write(random.choice(claimed), size, value & (1 << 8 * size) - 1)
            case 2:
                assert 0 <= bus.ports.read(random.choice(claimed), size) < 1 << 8 * size
            case 3:
                address = random.choice(pages) + random.randrange(0x20)
                bus.mmio.write(address, size, value & (1 << 8 * size) - 1)
                assert 0 <= bus.mmio.read(address, size) < 1 << 8 * size
            case 4:
                apic.write(random.randrange(0x400) & ~0xF, 4, value)
                assert apic.read(random.randrange(0x400), size) >= 0
            case 5:
                index = random.choice((0x1B, 0x6E0, 0x800 + random.randrange(0x40)))
                apic.write_msr(index, random.choice((value, value << 32 | value, 0xFEE0_0D00)))
                read = apic.read_msr(index)
                assert read is None or 0 <= read < 1 << 64
            case 6:
                vector = apic.acknowledge()
                assert vector is None or 0 <= vector < 256
            case 7:
                cpu.clock += random.choice((0, 1, 1000, 10**6, 10**9, 10**14))
                rounds = 0
                while bus.timers.deadline <= cpu.clock:
                    bus.timers.run_due()
                    rounds += 1
                    assert rounds < 10, "timers set themselves into the past"
    board.reset()
