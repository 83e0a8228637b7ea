"""What a guest's kernel may ask its hypervisor for. Spec: Linux, Documentation/virt/kvm/x86/hypercalls.rst.

To add one: a member of `Call`, a line in `answer`, if guests look for it in CPUID a row of leaf 40000001H in
`xuni.isa.x86.features`, a test in tests/machine/test_hypercalls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from xuni.bus.messages import Delivery
from xuni.exits import Hypercall

if TYPE_CHECKING:
    from xuni.devices.apic.local import LocalApic

NO_SUCH_CALL: Final = -1000
INVALID: Final = -22
"""Answers, from include/uapi/linux/kvm_para.h: KVM_ENOSYS and KVM_EINVAL."""
ICR_VECTOR, ICR_DESTINATION_MODE, ICR_SHORTHAND = 0xFF, 1 << 11, 3 << 18
IPI_DELIVERIES: Final = (Delivery.FIXED, Delivery.NMI)


class Call(IntEnum):
    """Numbers of hypercalls, in RAX."""

    VAPIC_POLL_IRQ = 1
    SEND_IPI = 10


def answer(apics: Sequence[LocalApic], asked: Hypercall) -> int:
    """What RAX gets; `apics` by APIC id."""
    match asked.call:
        case Call.VAPIC_POLL_IRQ: return 0
        case Call.SEND_IPI: return send_ipi(apics, asked.arguments, 8 * asked.size)
        case _: return NO_SUCH_CALL


def send_ipi(apics: Sequence[LocalApic], arguments: Sequence[int], bits: int) -> int:
    """One interrupt for many processors: a bitmap of two words, the APIC id of its first bit, and a value for the ICR.

    Returns how many accepted it.
    """
    low, high, first, icr = arguments
    kind = icr >> 8 & 7
    if icr & (ICR_DESTINATION_MODE | ICR_SHORTHAND) or kind not in IPI_DELIVERIES:
        return INVALID
    accepted, first = 0, first & 0xFFFFFFFF
    targets = low | high << bits
    for apic in apics[first : first + 2 * bits]:
        if targets >> apic.id - first & 1:
            accepted += apic.accept(icr & ICR_VECTOR, Delivery(kind), False)
    return accepted
