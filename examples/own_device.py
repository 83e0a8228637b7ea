"""A device of one's own: a port that a guest reads squares from, and a debug-exit port that ends the machine."""

from xuni.boot import BootConfig, Format, load
from xuni.devices.test_ports import DebugExitConfig
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.machine.pc import Pc, PcConfig
from xuni.memory.guest import GuestMemory

CODE = bytes.fromhex("b0 07  e6 99  e4 99  e6 f4  f4")  # mov al, 7; out 0x99, al; in al, 0x99; out 0xf4, al; hlt


class Squarer:
    """Write a number, read its square. A device knows offsets from its first port, never the port itself."""

    number = 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.number = value

    def read(self, offset: int, size: int) -> int:
        return self.number**2


with GuestMemory(1 << 20) as memory:
    machine = Pc(memory, lambda memory, config: SoftVcpu(memory), PcConfig(debug_exit=DebugExitConfig()))
    machine.attach_port(Squarer(), 0x99, 1)
    machine.vcpus[0].start(load(memory, BootConfig(CODE, format=Format.REAL)))
    print(machine.run())  # 7 squared is 0x31
