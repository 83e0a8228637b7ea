"""Guest-physical memory: where RAM and ROM lie, and how the host reads and writes them."""

from xuni.memory.guest import GuestAddressError, GuestMemory, Slot

__all__ = ["GuestAddressError", "GuestMemory", "Slot"]
