"""SSE to SSE4.1: instructions that move XMM registers, whole or in part, without computing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, const, lanes_of, select, splat, u64, vector
from xuni.isa.x86.instruction import Operand, instruction

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


def low(value: Bits) -> Bits:
    """A 64-bit value (or a narrower one) in the low part of a cleared XMM register."""
    return vector([value.zext(64), u64(0)])


# -- whole registers ---------------------------------------------------------------------------------------------------
def _move(name: str, *encodings: str, feature: str) -> None:
    @instruction(name, *encodings, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(src.read())


_move("MOVAPS", "NP 0F 28 /r Vx Wx", "NP 0F 29 /r Wx Vx", feature="sse")
_move("MOVAPD", "66 0F 28 /r Vx Wx", "66 0F 29 /r Wx Vx", feature="sse2")
_move("MOVUPS", "NP 0F 10 /r Vx Wxu", "NP 0F 11 /r Wxu Vx", feature="sse")
_move("MOVUPD", "66 0F 10 /r Vx Wxu", "66 0F 11 /r Wxu Vx", feature="sse2")
_move("MOVDQA", "66 0F 6F /r Vx Wx", "66 0F 7F /r Wx Vx", feature="sse2")
_move("MOVDQU", "F3 0F 6F /r Vx Wxu", "F3 0F 7F /r Wxu Vx", feature="sse2")
_move("LDDQU", "F2 0F F0 /r Vx Mdq", feature="pni")
_move("MOVNTPS", "NP 0F 2B /r Mx Vx", feature="sse")
_move("MOVNTPD", "66 0F 2B /r Mx Vx", feature="sse2")
_move("MOVNTDQ", "66 0F E7 /r Mx Vx", feature="sse2")
_move("MOVNTDQA", "66 0F 38 2A /r Vx Mx", feature="sse4_1")

# -- parts that leave the rest of a register alone ---------------------------------------------------------------------
_move("MOVLPS", "NP 0F 12 /r Vq Mq", "NP 0F 13 /r Mq Vq", feature="sse")
_move("MOVLPD", "66 0F 12 /r Vq Mq", "66 0F 13 /r Mq Vq", feature="sse2")
_move("MOVSS", "F3 0F 10 /r Vss Ud", "F3 0F 11 /r Ud Vss", "F3 0F 11 /r Md Vss", feature="sse")
_move("MOVSD_XMM", "F2 0F 10 /r Vsd Uq", "F2 0F 11 /r Uq Vsd", "F2 0F 11 /r Mq Vsd", feature="sse2")


def _high(name: str, prefix: str, feature: str) -> None:
    @instruction(name, f"{prefix} 0F 16 /r Vx Mq", feature=feature, fpu="sse")
    def load(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(vector([dst.read().lane(0), src.read()]))

    @instruction(name, f"{prefix} 0F 17 /r Mq Vx", feature=feature, fpu="sse")
    def store(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(src.read().lane(1))


_high("MOVHPS", "NP", "sse")
_high("MOVHPD", "66", "sse2")


@instruction("MOVHLPS", "NP 0F 12 /r Vx Ux", feature="sse", fpu="sse")
def movhlps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(dst.read().shuffle((3, 1), src.read()))


@instruction("MOVLHPS", "NP 0F 16 /r Vx Ux", feature="sse", fpu="sse")
def movlhps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(dst.read().shuffle((0, 2), src.read()))


# -- parts that clear the rest -----------------------------------------------------------------------------------------
def _load_low(name: str, *encodings: str, feature: str) -> None:
    @instruction(name, *encodings, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(low(src.read()))


_load_low("MOVSS", "F3 0F 10 /r Vx Md", feature="sse")
_load_low("MOVSD_XMM", "F2 0F 10 /r Vx Mq", feature="sse2")
_load_low("MOVQ", "F3 0F 7E /r Vx Wq", "66 0F D6 /r Ux Vq", feature="sse2")
_load_low("MOVD", "66 0F 6E /r Vx Ey", feature="sse2")
_move("MOVQ", "66 0F D6 /r Mq Vq", feature="sse2")


@instruction("MOVD", "66 0F 7E /r Ey Vx", feature="sse2", fpu="sse")
def movd_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().lane(0).trunc(dst.width))


# -- copies of lanes ---------------------------------------------------------------------------------------------------
@instruction("MOVDDUP", "F2 0F 12 /r Vx Wq", feature="pni", fpu="sse")
def movddup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(splat(src.read(), 2))


@instruction("MOVSLDUP", "F3 0F 12 /r Vx Wx", feature="pni", fpu="sse")
def movsldup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().as_lanes(32).shuffle((0, 0, 2, 2)).as_lanes(64))


@instruction("MOVSHDUP", "F3 0F 16 /r Vx Wx", feature="pni", fpu="sse")
def movshdup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().as_lanes(32).shuffle((1, 1, 3, 3)).as_lanes(64))


def _extend(name: str, opcode: str, source: str, to: int, signs: bool, from_width: int) -> None:
    """PMOVSX, PMOVZX: the low lanes of the source, widened."""

    @instruction(name, f"66 0F 38 {opcode} /r Vx {source}", feature="sse4_1", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        lanes = src.read().as_lanes(from_width)
        wide = lanes.sext(to) if signs else lanes.zext(to)
        dst.write(wide.as_lanes(64))


for _offset, (_from, _to, _source) in enumerate(
    ((8, 16, "Wq"), (8, 32, "Wd"), (8, 64, "Ww"), (16, 32, "Wq"), (16, 64, "Wd"), (32, 64, "Wq"))
):
    _letters = {8: "B", 16: "W", 32: "D", 64: "Q"}
    _extend(f"PMOVSX{_letters[_from]}{_letters[_to]}", f"{0x20 + _offset:02X}", _source, _to, True, _from)
    _extend(f"PMOVZX{_letters[_from]}{_letters[_to]}", f"{0x30 + _offset:02X}", _source, _to, False, _from)


# -- one element by number: the number is taken modulo the lanes there are ---------------------------------------------
def insert_lane(value: Bits, index: Bits, element: Bits) -> Bits:
    """`value` with one lane, chosen at run time, replaced."""
    numbers = lanes_of(value.width, *range(value.lanes))
    chosen = numbers == splat(index.zext(value.width) & (value.lanes - 1), value.lanes)
    return select(chosen, splat(element, value.lanes), value)


def extract_lane(value: Bits, index: Bits) -> Bits:
    """One lane of a 128-bit value, chosen at run time."""
    size = value.width // 8
    first = (index & (value.lanes - 1)) * size
    control = splat(first, 16) + lanes_of(8, *range(16))
    return value.as_lanes(8).permute(control & 15).as_lanes(value.width).lane(0)


def _insert(name: str, opcode: str, width: int, sources: tuple[str, ...], feature: str) -> None:
    @instruction(name, *[f"66 {opcode} /r Vx {source} Ib" for source in sources], feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        element = src.read().trunc(width)
        dst.write(insert_lane(dst.read().as_lanes(width), imm.read(), element).as_lanes(64))


def _extract(name: str, opcode: str, width: int, destinations: tuple[str, ...], feature: str) -> None:
    @instruction(name, *[f"66 {opcode} /r {dst}" for dst in destinations], feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        dst.write(extract_lane(src.read().as_lanes(width), imm.read()).zext(dst.width))


_insert("PINSRB", "0F 3A 20", 8, ("Rd", "Mb"), "sse4_1")
_insert("PINSRW", "0F C4", 16, ("Rd", "Mw"), "sse2")
_insert("PINSRD", "REX.W0 0F 3A 22", 32, ("Ed",), "sse4_1")
_insert("PINSRQ", "REX.W 0F 3A 22", 64, ("Eq",), "sse4_1")
_extract("PEXTRB", "0F 3A 14", 8, ("Rd Vx Ib", "Mb Vx Ib"), "sse4_1")
_extract("PEXTRW", "0F C5", 16, ("Gd Ux Ib",), "sse2")
_extract("PEXTRW", "0F 3A 15", 16, ("Rd Vx Ib", "Mw Vx Ib"), "sse4_1")
_extract("PEXTRD", "REX.W0 0F 3A 16", 32, ("Ed Vx Ib",), "sse4_1")
_extract("PEXTRQ", "REX.W 0F 3A 16", 64, ("Eq Vx Ib",), "sse4_1")
_extract("EXTRACTPS", "0F 3A 17", 32, ("Ed Vx Ib",), "sse4_1")


@instruction("INSERTPS", "66 0F 3A 21 /r Vx Ux Ib", "66 0F 3A 21 /r Vx Md Ib", feature="sse4_1", fpu="sse")
def insertps(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    control = imm.read()
    element = src.read() if src.is_memory else extract_lane(src.read().as_lanes(32), control >> 6)
    value = insert_lane(dst.read().as_lanes(32), control >> 4 & 3, element)
    cleared = lane_mask(control, 32, 4)
    dst.write(select(cleared, splat(const(0, 32), 4), value).as_lanes(64))


def lane_mask(imm: Bits, width: int, lanes: int) -> Bits:
    """One condition a lane: bit i of an 8-bit value."""
    bits = lanes_of(width, *(1 << i for i in range(lanes)))
    wide = imm.zext(width) if width > 8 else imm
    return (splat(wide, lanes) & bits) != lanes_of(width, *[0] * lanes)


# -- masks of signs ----------------------------------------------------------------------------------------------------
def _mask_of_signs(name: str, encoding: str, width: int, feature: str) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        value = src.read().as_lanes(width)
        dst.write(value.slt(0).as_lanes(value.lanes).zext(dst.width))


_mask_of_signs("MOVMSKPS", "NP 0F 50 /r Gd Ux", 32, "sse")
_mask_of_signs("MOVMSKPD", "66 0F 50 /r Gd Ux", 64, "sse2")
_mask_of_signs("PMOVMSKB", "66 0F D7 /r Gd Ux", 8, "sse2")
