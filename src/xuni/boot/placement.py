"""Who lies where in guest memory before the first instruction: no two things overlap, and all lie in RAM."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from xuni.boot.image import BootError
from xuni.boot.layout import EBDA, HIGH_MEMORY, LOW_USABLE
from xuni.memory.guest import PAGE_SIZE, GuestMemory

FOUR_GIB = 1 << 32


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Guest-physical [start, end) and what it holds."""

    start: int
    end: int
    what: str


class Placement:
    """The free and taken ranges of the guest's RAM while a loader fills it."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.claims: list[Claim] = [
            Claim(0, LOW_USABLE, "the interrupt vectors and the BIOS data area"),
            Claim(EBDA, HIGH_MEMORY, "the firmware area below 1 MiB"),
        ]

    @property
    def ram_size(self) -> str:
        """For messages."""
        return f"{self.memory.size >> 20} MiB"

    def claim(self, start: int, size: int, what: str) -> None:
        """Take exactly [start, start + size). Raises BootError if that is not all RAM, or is taken."""
        end = start + size
        if not any(low <= start and end <= high for low, high in self.memory.ram):
            raise BootError(
                f"{what} goes to guest-physical {start:#x}-{end:#x}, and the guest has no RAM there "
                f"(it has {self.ram_size}); give it more memory or take another image"
            )
        for claim in self.claims:
            if claim.start < end and start < claim.end:
                raise BootError(
                    f"{what} goes to guest-physical {start:#x}-{end:#x}, which overlaps {claim.what} "
                    f"at {claim.start:#x}-{claim.end:#x}; the image is damaged or not for this board"
                )
        if size:
            insort(self.claims, Claim(start, end, what))

    def place(
        self, size: int, what: str, *, align: int = PAGE_SIZE, above: int = 0, below: int = 1 << 52, top: bool = False
    ) -> int:
        """Take `size` bytes anywhere in [above, below) and return where: as low as possible, or as high with `top`.

        `align` is a power of two. Raises BootError if there is no such place.
        """
        best: int | None = None
        for low, high in self._gaps():
            start = -(-max(low, above) // align) * align
            limit = min(high, below)
            if top:
                highest = (limit - size) // align * align
                if highest >= start:
                    best = highest
            elif start + size <= limit:
                best = start
                break
        if best is None:
            where = f" between {above:#x} and {below:#x}" if above or below < 1 << 52 else ""
            raise BootError(
                f"no room for {what}: it needs {-(-size // 1024)} KiB of free guest RAM{where}, and the guest has "
                f"{self.ram_size}; give it more memory"
            )
        if size:
            insort(self.claims, Claim(best, best + size, what))
        return best

    def put(self, data: bytes, what: str, *, align: int = 16, below: int = EBDA) -> int:
        """Place `data` low in memory, write it, and return its address."""
        address = self.place(len(data), what, align=align, below=below)
        self.memory.write(address, data)
        return address

    def _gaps(self) -> list[tuple[int, int]]:
        """The free ranges in ascending order."""
        gaps: list[tuple[int, int]] = []
        for low, high in self.memory.ram:
            at = low
            for claim in self.claims:
                if claim.end <= at or claim.start >= high:
                    continue
                if claim.start > at:
                    gaps.append((at, claim.start))
                at = claim.end
            if at < high:
                gaps.append((at, high))
        return gaps
