"""The decoded code of a machine, the tables that decoding needs, and what is known of guest memory: its virtual CPUs
share one of these.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from xuni.engine.soft.records import HASH_BITS, PAGE, TLB_ENTRIES, Arena, Frame, Leaf, LeafFlag, SlotRecord, TlbEntry
from xuni.engine.soft.region import Parts
from xuni.isa.struct import PlainPlace
from xuni.isa.x86.state import State
from xuni.memory.guest import GuestMemory

if TYPE_CHECKING:
    from xuni.engine.soft.hot import HotLoops

ARENA_SIZE: Final = 256 << 20  # virtual; taken as it is used
CPUS: Final = 256
SLOTS: Final = 64
SPARE_FRAMES: Final = 4096  # pages that may be added after the machine was made
TABLES: Final = ("nodes", "indexes", "modrm", "effects", "fusions", "prefixes")


class CodeCache:
    """What the processors of one machine share.

    `tables` are the decoder's, `handlers` what stands for each handler in them, 64 bits a handler. `host_write` calls
    `memory.host_write` with the address of a state; that state is the host's own, no processor's.
    """

    def __init__(self, memory: GuestMemory, tables: dict[str, Any], handlers: bytes, features: frozenset[str],
                 host_write: Callable[[int], object]) -> None:  # fmt: skip
        self.memory = memory
        self.tables = tables
        self.features = features
        self.linked = frozenset(tables["linked"])
        self._call_host_write = host_write
        self._host_lock = Lock()
        self._states: list[State] = []
        self._breakpoints: dict[int, frozenset[int]] = {}
        self.hot: HotLoops | None = None
        """What compiles hot loops, where code is compiled at all."""
        self._flush: list[Callable[[], None]] = []
        self._frame_count = sum(slot.size for slot in memory.slots) // PAGE + SPARE_FRAMES
        self.region = Parts({
            "arena": Arena.SIZE, "breakpoints": PAGE // 8, "host": State.SIZE, "cpus": 8 * CPUS,
            "clean": TLB_ENTRIES * TlbEntry.SIZE, "scratch": PAGE, "slots": SLOTS * SlotRecord.SIZE, "buckets": 8 << HASH_BITS,
            "leaves": len(tables["leaves"]), "handlers": len(handlers), "prefixes": 256,
            **{name: len(tables[name]) for name in TABLES if name != "prefixes"},
            "frames": Frame.SIZE * self._frame_count, "ops": ARENA_SIZE,
        })  # fmt: skip
        region = self.region
        clean = array("Q")
        for i in range(TLB_ENTRIES):
            other = ((i + 1) % TLB_ENTRIES) << 12
            clean.extend((other, other, other, 0))
        self.clean_tlb = clean.tobytes()
        region.put_part("clean", self.clean_tlb)
        region.put_part("handlers", handlers)
        region.put_part("leaves", self._leaves())
        for name in TABLES:
            region.put_part(name, tables[name])
        self.arena = self._arena()
        self._host = State(PlainPlace(region.address_of("host")))
        self._host.arena = region.address_of("arena")
        self._host.slots = region.address_of("slots")
        self._write_slots()
        memory.on_write.append(self._memory_written)
        memory.on_remap.append(self._memory_remapped)

    def attach(self, state: State, address: int, flush: Callable[[], None]) -> None:
        """A processor joins: its state, where that is, and what makes it forget translations."""
        assert len(self._states) < CPUS
        number = len(self._states)
        self.region.put(self.region.offset["cpus"] + 8 * number, address.to_bytes(8, "little"))
        self._states.append(state)
        self._flush.append(flush)
        state.arena = self.region.address_of("arena")
        state.slots = self.region.address_of("slots")
        self._write_slots()
        self.arena.cpu_count = number + 1

    def close(self) -> None:
        """Forget the guest memory's hooks, and compile no more."""
        if self.hot is not None:
            self.hot.close()
        if self._memory_written in self.memory.on_write:
            self.memory.on_write.remove(self._memory_written)
        if self._memory_remapped in self.memory.on_remap:
            self.memory.on_remap.remove(self._memory_remapped)

    def set_breakpoints(self, state: int, linear: frozenset[int]) -> bool:
        """Where the processor with its state at this address wants to be asked. Whether that needs `arena` emptied."""
        if linear == self._breakpoints.get(state, frozenset()):
            return False
        self._breakpoints[state] = linear
        bits = bytearray(PAGE // 8)
        for address in frozenset[int]().union(*self._breakpoints.values()):
            bits[(address & PAGE - 1) >> 3] |= 1 << (address & 7)
        self.region.put_part("breakpoints", bytes(bits))
        return True

    @property
    def host_state(self) -> int:
        """Address of the state that is the host's own."""
        return self.region.address_of("host")

    def bytes_at(self, address: int, length: int) -> bytes:
        """Bytes of this cache, by their host address. Raises IndexError outside it."""
        at = address - self.region.address
        if not 0 <= at <= len(self.region.map) - length:
            raise IndexError(f"{address:#x} is not in the code cache")
        return self.region.map[at : at + length]

    def word(self, address: int) -> int:
        """The 64-bit word at a host address in this cache."""
        return int.from_bytes(self.bytes_at(address, 8), "little")

    def _leaves(self) -> bytes:
        """The leaves, those of absent features replaced by the invalid one."""
        leaves = bytearray(self.tables["leaves"])
        size = Leaf.SIZE
        for i, feature in enumerate(self.tables["features"]):
            if feature not in self.features and feature != "base":
                leaves[i * size : (i + 1) * size] = leaves[:size]
        assert leaves[4] == LeafFlag.ENDS
        return bytes(leaves)

    def _arena(self) -> Arena:
        place = self.region.address_of
        arena = Arena(PlainPlace(place("arena")))
        arena.next = arena.start = place("ops")
        arena.end = arena.limit = place("ops") + ARENA_SIZE
        arena.frame_count = self._frame_count
        arena.handler_indexes = place("indexes")
        arena.clean_tlb = place("clean")
        arena.scratch_page = place("scratch")
        for name in ("buckets", "frames", "leaves", "nodes", "handlers", "modrm", "effects", "fusions", "prefixes", "cpus",
                     "breakpoints"):
            setattr(arena, name, place(name))
        return arena

    def _write_slots(self) -> None:
        slots = self.memory.slots
        assert len(slots) <= SLOTS
        frame = 0
        for i, slot in enumerate(slots):
            record = SlotRecord(PlainPlace(self.region.address_of("slots") + i * SlotRecord.SIZE))
            record.start, record.size, record.host = slot.start, slot.size, slot.host_address
            record.writable, record.frame = int(slot.writable), frame
            frame += slot.size // PAGE
        assert frame <= self._frame_count
        low = [slot for slot in slots if slot.start == 0]
        for state in (*self._states, self._host):
            state.low_size = low[0].size if low else 0
            state.low_host = low[0].host_address if low else 0
            state.slot_count = len(slots)

    def _memory_written(self, address: int, length: int) -> None:
        with self._host_lock:
            self._host.scratch[8] = address
            self._host.scratch[9] = length
            self._call_host_write(self.region.address_of("host"))

    def _memory_remapped(self) -> None:
        """Guest memory lies elsewhere now. No processor runs."""
        self._write_slots()
        self.arena.end = 0
        for flush in self._flush:
            flush()
