"""Interrupt lines: wires that several sources may pull and several controllers watch.

A level is logical: `True` is asserted, whatever the electrical polarity. Edge or level triggering is the watching
controller's choice (ELCR of the PIC, trigger mode of an IOAPIC pin).
"""

from __future__ import annotations

from collections.abc import Callable


class Wire:
    """One interrupt line: asserted while at least one source asserts it."""

    __slots__ = ("asserted", "sinks")

    def __init__(self) -> None:
        self.asserted = 0  # how many sources assert it
        self.sinks: list[Callable[[bool], None]] = []


class Line:
    """One source's hold of a wire."""

    __slots__ = ("level", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.level = False

    def set(self, level: bool) -> None:
        """Assert or release the line; the controllers hear of it only when the wire changes."""
        if level == self.level:
            return
        self.level = level
        wire = self.wire
        if level:
            wire.asserted += 1
            if wire.asserted > 1:
                return
        else:
            wire.asserted -= 1
            if wire.asserted:
                return
        for sink in wire.sinks:
            sink(level)

    def edge(self) -> None:
        """A rising edge: release the line if it is asserted, then assert it and leave it so."""
        self.set(False)
        self.set(True)


class InterruptLines:
    """The board's wires by number: 0-15 are the ISA interrupts."""

    def __init__(self, count: int = 24) -> None:
        self._wires = [Wire() for _ in range(count)]

    def source(self, number: int) -> Line:
        """A new source on wire `number`."""
        return Line(self._wires[number])

    def connect(self, number: int, sink: Callable[[bool], None]) -> None:
        """Tell `sink` each new level of wire `number`."""
        self._wires[number].sinks.append(sink)
