"""FXSAVE images to and from a state, written apart from the instructions that are tested with them."""

from __future__ import annotations

from struct import Struct

from xuni.isa.bits import INTS, Bits
from xuni.isa.x86.state import State

HEADER = Struct("<HHBxHQQII")
MXCSR_MASK = 0xFFFF


def load(state: State, image: bytes) -> None:
    """Give a state the registers of a 512-byte FXSAVE64 image."""
    control, status, tags, opcode, ip, dp, mxcsr, _ = HEADER.unpack_from(image)
    values = {
        "fpu_control": control, "fpu_status": status, "fpu_opcode": opcode, "fpu_ip": ip, "fpu_dp": dp, "fpu_cs": 0,
        "fpu_ds": 0, "fpu_tag": sum(3 << 2 * n for n in range(8) if not tags >> n & 1), "mxcsr": mxcsr,
    }  # fmt: skip
    for name, value in values.items():
        setattr(state, name, value)
    top = status >> 11 & 7
    for i in range(8):
        low, high = _halves(image[32 + 16 * i : 48 + 16 * i])
        state.st[(top + i) % 8] = Bits(INTS, 64, (low, high & 0xFFFF), 2)
    for i in range(16):
        state.xmm[i] = Bits(INTS, 64, _halves(image[160 + 16 * i : 176 + 16 * i]), 2)


def store(state: State, before: bytes) -> bytes:
    """The image of a state; what FXSAVE does not define is as in `before`."""
    image = bytearray(before)
    status, tag_word = int(state.fpu_status), int(state.fpu_tag)
    top = status >> 11 & 7
    tags = sum(1 << n for n in range(8) if tag_word >> 2 * n & 3 != 3)
    HEADER.pack_into(image, 0, int(state.fpu_control), status, tags, 0, 0, 0, int(state.mxcsr), MXCSR_MASK)
    for i in range(8):
        low, high = state.st[(top + i) % 8].raw
        image[32 + 16 * i : 42 + 16 * i] = low.to_bytes(8, "little") + (high & 0xFFFF).to_bytes(2, "little")
    for i in range(16):
        low, high = state.xmm[i].raw
        image[160 + 16 * i : 176 + 16 * i] = low.to_bytes(8, "little") + high.to_bytes(8, "little")
    return bytes(image)


def _halves(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
