"""The smallest machine: seven bytes of real-mode code; what they computed is read from a register."""

from xuni.boot import BootConfig, Format, load
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.machine.pc import Pc
from xuni.memory.guest import GuestMemory

CODE = bytes.fromhex("b8 02 00  05 03 00  f4")  # mov ax, 2; add ax, 3; hlt

with GuestMemory(1 << 20) as memory:
    machine = Pc(memory, lambda memory, config: SoftVcpu(memory))
    cpu = machine.vcpus[0]
    cpu.start(load(memory, BootConfig(CODE, format=Format.REAL)))
    print(machine.run())
    print("AX =", int(cpu.state.gpr[0]) & 0xFFFF)
