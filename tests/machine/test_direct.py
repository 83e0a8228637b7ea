"""Port accesses that an engine hands over without leaving `run` are what exits would have been."""

from __future__ import annotations

from xuni import trace
from xuni.exits import Data, PortIn, PortOut, PortServer, Resume, Sliced
from xuni.machine.stopped import PowerOff


class Device:
    """A register."""

    value = 7

    def read(self, offset: int) -> int:
        return self.value

    def write(self, offset: int, value: int) -> None:
        self.value = value


def serving(pc, accesses):
    """A machine whose processor serves ports itself; `accesses` does them, with the server."""
    server: list[PortServer] = []

    def script(cpu):
        accesses(server[-1])
        cpu.machine.stop(PowerOff())
        while True:
            yield Sliced()

    machine = pc(script)
    machine.vcpus[0].machine = machine
    machine.vcpus[0].serve_ports = server.append
    machine.bus.ports.attach(0x500, 1, Device())
    return machine


def test_they_reach_the_device(pc) -> None:
    seen = []

    def accesses(server: PortServer) -> None:
        seen.append(server.read(0x500, 1))
        server.write(0x500, 1, 9)
        seen.append(server.read(0x500, 1))
        seen.append(server.read(0x501, 2))

    assert serving(pc, accesses).run() == PowerOff()
    assert seen == [7, 9, 0xFFFF]


def test_probes_see_them_as_exits_and_replies(pc) -> None:
    def accesses(server: PortServer) -> None:
        server.write(0x500, 1, 9)
        server.read(0x500, 1)

    machine = serving(pc, accesses)
    with trace.listen(["vcpu_*"], (events := []).append):
        machine.run()
    values = [event.values[1] for event in events if event.values[1] != Sliced()]
    assert values == [PortOut(0x500, 1, 9), PortIn(0x500, 1), Data(9)]


def test_they_count_as_life_of_a_halted_processor(pc) -> None:
    machine = serving(pc, lambda server: server.write(0x500, 1, 0))
    machine.processors[0].halted_with_interrupt = True
    machine.run()
    assert not machine.processors[0].halted_with_interrupt and machine.processors[0].reply == Resume()
