"""The bus between IOAPICs, local APICs and message-signalled interrupts: who is meant by a destination.

Spec: Intel SDM vol. 3A, section "Determining IPI Destination".
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.devices.apic.local import LocalApic


class Shorthand(IntEnum):
    """Destination shorthand, ICR bits 19:18."""

    NONE, SELF, ALL, OTHERS = range(4)


_NONE, _SELF, _ALL = int(Shorthand.NONE), int(Shorthand.SELF), int(Shorthand.ALL)


class ApicBus:
    """Carries interrupt messages to local APICs, and their EOIs back to IOAPICs."""

    def __init__(self, acknowledge_legacy: Callable[[], int]) -> None:
        self.apics: list[LocalApic] = []
        self.on_eoi: list[Callable[[int], None]] = []
        self.acknowledge_legacy = acknowledge_legacy
        self._turn = 0

    def deliver(self, message: InterruptMessage) -> bool:
        """Deliver a message from an IOAPIC pin or a device; False if no local APIC accepted it."""
        vector, delivery = message.vector, message.delivery
        if delivery is Delivery.EXTINT:
            # The pin stands for the legacy controller, which alone knows the vector.
            vector, delivery = self.acknowledge_legacy(), Delivery.FIXED
        targets = [apic for apic in self.apics if apic.matches(message.destination, message.logical)]
        return self._accept(targets, vector, delivery, message.level)

    def send(self, sender: LocalApic, message: InterruptMessage, shorthand: int) -> bool:
        """Deliver an inter-processor interrupt; False if no local APIC accepted it."""
        if shorthand == _NONE:
            targets = [apic for apic in self.apics if apic.matches(message.destination, message.logical)]
        elif shorthand == _SELF:
            targets = [sender]
        else:
            targets = [apic for apic in self.apics if apic.enabled and (shorthand == _ALL or apic is not sender)]
        if len(targets) == 1:
            return targets[0].accept(message.vector, message.delivery, False)
        return self._accept(targets, message.vector, message.delivery, False)

    def eoi(self, vector: int) -> None:
        """Tell the IOAPICs that a level-triggered interrupt was served."""
        for listener in self.on_eoi:
            listener(vector)

    def _accept(self, targets: list[LocalApic], vector: int, delivery: Delivery, level: bool) -> bool:
        if delivery is Delivery.LOWEST_PRIORITY and len(targets) > 1:
            # Among equals take turns, so that no processor gets all.
            self._turn += 1
            count = len(targets)
            targets = [min(targets, key=lambda apic: (apic.ppr, (apic.id + self._turn) % count))]
        accepted = False
        for apic in targets:
            accepted |= apic.accept(vector, delivery, level)
        return accepted
