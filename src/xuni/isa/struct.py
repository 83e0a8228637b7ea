"""Records in memory that plain Python and compiled code share: the processor's state, decoded operations, TLB entries.

A `Struct` lays out its fields in order of definition, naturally aligned; reading a field gives `Bits`, in both worlds.
Where the record lies is a `Place`: an address in this process (`PlainPlace`), or a pointer value of the function being
compiled.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

from xuni.isa.bits import INTS, Bits, const, mask
from xuni.isa.compiler import Stage
from xuni.isa.llvm import literal, type_of

_CTYPES = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}


class Place(Protocol):
    """An address that can be read and written."""

    def load(self, offset: int | Bits, width: int, lanes: int = 1) -> Bits: ...
    def store(self, offset: int | Bits, value: Bits) -> None: ...
    def address(self, offset: int | Bits = 0) -> Bits: ...
    def exchange(self, offset: int | Bits, expected: Bits, value: Bits) -> Bits: ...


class PlainPlace:
    """Memory of this process."""

    def __init__(self, base: int) -> None:
        # SAFETY: whoever makes a place keeps the memory behind `base` mapped for as long as the place is used.
        self.base = base

    def load(self, offset: int | Bits, width: int, lanes: int = 1) -> Bits:
        at = self.base + int(offset)
        if lanes > 1:
            size = width // 8
            data = ctypes.string_at(at, size * lanes)
            return Bits(INTS, width, tuple(int.from_bytes(data[i * size : i * size + size], "little")
                                           for i in range(lanes)), lanes)
        if width in _CTYPES:
            return Bits(INTS, width, _CTYPES[width].from_address(at).value)
        if width == 1:
            return Bits(INTS, 1, ctypes.c_uint8.from_address(at).value & 1)
        return Bits(INTS, width, int.from_bytes(ctypes.string_at(at, width // 8), "little"))

    def store(self, offset: int | Bits, value: Bits) -> None:
        at = self.base + int(offset)
        if value.lanes == 1 and value.width in _CTYPES:
            _CTYPES[value.width].from_address(at).value = value.raw
            return
        size = (value.width * value.lanes + 7) // 8
        raw = INTS.relane(value.raw, value.width, value.lanes, value.width * value.lanes, 1)
        ctypes.memmove(at, raw.to_bytes(size, "little"), size)

    def address(self, offset: int | Bits = 0) -> Bits:
        return const(self.base + int(offset), 64)

    def exchange(self, offset: int | Bits, expected: Bits, value: Bits) -> Bits:
        old = self.load(offset, value.width)
        if old.raw == expected.raw:
            self.store(offset, value)
        return old


class StagedPlace:
    """A pointer of the function being compiled."""

    def __init__(self, stage: Stage, pointer: str) -> None:
        self.stage = stage
        self.pointer = pointer

    def _at(self, offset: int | Bits) -> str:
        if isinstance(offset, int):
            if offset == 0:
                return self.pointer
            return self.stage.code.value(f"getelementptr i8, ptr {self.pointer}, i64 {offset}")
        assert offset.width == 64
        return self.stage.code.value(f"getelementptr i8, ptr {self.pointer}, i64 {self.stage.llvm.lift(offset)}")

    def load(self, offset: int | Bits, width: int, lanes: int = 1) -> Bits:
        if width == 1:
            return self.load(offset, 8).trunc(1)
        return self.stage.llvm.wrap(width, f"load {type_of(width, lanes)}, ptr {self._at(offset)}, align 1", lanes)

    def store(self, offset: int | Bits, value: Bits) -> None:
        if value.width == 1:
            value = value.zext(8)
        text = self.stage.llvm.lift(value)
        self.stage.code.emit(f"store {type_of(value.width, value.lanes)} {text}, ptr {self._at(offset)}, align 1")

    def address(self, offset: int | Bits = 0) -> Bits:
        return self.stage.llvm.wrap(64, f"ptrtoint ptr {self._at(offset)} to i64")

    def exchange(self, offset: int | Bits, expected: Bits, value: Bits) -> Bits:
        t, lift = type_of(value.width), self.stage.llvm.lift
        pair = self.stage.code.value(
            f"cmpxchg ptr {self._at(offset)}, {t} {lift(expected)}, {t} {lift(value)} seq_cst seq_cst, "
            f"align {value.width // 8}"
        )
        return self.stage.llvm.wrap(value.width, f"extractvalue {{ {t}, i1 }} {pair}, 0")


def place_at(stage: Stage | None, pointer: Bits) -> Place:
    """The memory that a 64-bit pointer value points to."""
    if stage is None:
        return PlainPlace(int(pointer))
    text = literal(pointer.raw, 64, 1) if pointer.known else pointer.raw
    return StagedPlace(stage, stage.code.value(f"inttoptr i64 {text} to ptr"))


class Field:
    """One value of `width` bits (1 is kept in a byte), or a vector of `lanes`."""

    offset: int

    def __init__(self, width: int, lanes: int = 1, align: int | None = None) -> None:
        self.width = width
        self.lanes = lanes
        self.size = (width * lanes + 7) // 8
        self.align = align or min(self.size, 16)

    def __get__(self, owner: Struct, kind: type | None = None) -> Bits:
        if owner is None:  # asked of the class: the field itself, for its offset
            return self  # type: ignore[unreachable]
        return owner.place.load(self.offset, self.width, self.lanes)

    def __set__(self, owner: Struct, value: Bits | int) -> None:
        if isinstance(value, int):
            value = const(value, self.width)
        if value.width != self.width or value.lanes != self.lanes:
            raise TypeError(f"field of {self.width} bits set to {value!r}")
        owner.place.store(self.offset, value)


class Items:
    """The elements of an array field of one record."""

    def __init__(self, place: Place, array: Array) -> None:
        self.place = place
        self.array = array

    def _offset(self, index: int | Bits) -> int | Bits:
        array = self.array
        if isinstance(index, int):
            assert 0 <= index < array.count
            return array.offset + index * array.stride
        return index.zext(64) * array.stride + array.offset

    def __getitem__(self, index: int | Bits) -> Bits:
        return self.place.load(self._offset(index), self.array.width, self.array.lanes)

    def __setitem__(self, index: int | Bits, value: Bits | int) -> None:
        array = self.array
        if isinstance(value, int):
            value = const(value & mask(array.width), array.width)
        if value.width != array.width or value.lanes != array.lanes:
            raise TypeError(f"array element of {array.width} bits set to {value!r}")
        self.place.store(self._offset(index), value)


class Array:
    """`count` values of `width` bits, `stride` bytes apart. A dynamic index is not checked: mask it first."""

    offset: int

    def __init__(self, width: int, count: int, lanes: int = 1, stride: int | None = None) -> None:
        self.width = width
        self.lanes = lanes
        self.count = count
        self.stride = stride or width * lanes // 8
        self.size = self.stride * count
        self.align = min(width * lanes // 8, 16)

    def __get__(self, owner: Struct, kind: type | None = None) -> Items:
        if owner is None:
            return self  # type: ignore[unreachable]
        return Items(owner.place, self)

    def __set__(self, owner: Struct, value: Any) -> None:
        raise TypeError("assign to the elements of an array, not to the array")


class Struct:
    """A record; subclasses list `Field`s and `Array`s."""

    SIZE: int

    def __init_subclass__(cls) -> None:
        offset = 0
        for item in vars(cls).values():
            if isinstance(item, Field | Array):
                offset = (offset + item.align - 1) // item.align * item.align
                item.offset = offset
                offset += item.size
        cls.SIZE = (offset + 15) // 16 * 16

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Byte offset of a field or array."""
        return int(vars(cls)[name].offset)
