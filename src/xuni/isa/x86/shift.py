"""Shifts and rotates, SDM vol. 2: SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD and the flagless forms of BMI2.

The processor masks the count to 5 bits (6 for 64-bit operands). A masked count of 0 writes the value back, which
zero-extends a 32-bit register, and leaves the flags alone. Operands of 8 and 16 bits are shifted in 32, where every
masked count is in range and the last bit shifted out is still in sight.
"""

from __future__ import annotations

from xuni.isa.bits import Bits, concat
from xuni.isa.stage import likely
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.instruction import Operand, instruction


def masked(count: Bits, width: int) -> Bits:
    """The count that a shift of `width` bits uses, 64 bits wide."""
    return count.zext(64) & (63 if width == 64 else 31)


def _leave_undefined(cpu: Cpu, count: Bits, *nonzero: str, from_width: tuple[str, ...] = (), width: int = 64) -> None:
    """OF is defined for a count of 1 only; `nonzero` are undefined for counts but 0, `from_width` from `width` on."""
    most = int(count) if count.known else 63
    if most > 1:
        cpu.flags.leave_undefined("of")
    if most > 0:
        cpu.flags.leave_undefined(*nonzero)
    if most >= width:
        cpu.flags.leave_undefined(*from_width)


def _group(extension: int) -> tuple[str, ...]:
    n = extension
    return (f"C0 /{n} Eb Ib", f"C1 /{n} Ev Ib", f"D0 /{n} Eb 1", f"D1 /{n} Ev 1", f"D2 /{n} Eb CL", f"D3 /{n} Ev CL")


@instruction("SHL", *_group(4), *_group(6))  # /6 is an undocumented twin
def shl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count = dst.read(), masked(src.read(), dst.width)
    if a.width == 64:
        r = a << count
        dst.write(r)
        if likely(count != 0):
            cf = a.rotl(count)[0]
            cpu.flags.set_result(r, cf=cf, of=r[63] ^ cf)
    else:
        wide = a.zext(64) << count
        r = wide.trunc(a.width)
        dst.write(r)
        if likely(count != 0):
            cf = wide[a.width]
            cpu.flags.set_result(r, cf=cf, of=r[-1] ^ cf)
    _leave_undefined(cpu, count, "af", from_width=("cf",), width=a.width)


@instruction("SHR", *_group(5))
def shr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count = dst.read(), masked(src.read(), dst.width)
    if a.width == 64:
        r = a >> count
        dst.write(r)
        if likely(count != 0):
            cpu.flags.set_result(r, cf=a.rotr(count)[63], of=a[63])
    else:
        wide = (a.zext(64) << 1) >> count  # bit 0 is the last bit shifted out
        r = (wide >> 1).trunc(a.width)
        dst.write(r)
        if likely(count != 0):
            cpu.flags.set_result(r, cf=wide[0], of=a[-1])
    _leave_undefined(cpu, count, "af", from_width=("cf",), width=a.width)


@instruction("SAR", *_group(7))
def sar(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count = dst.read(), masked(src.read(), dst.width)
    if a.width == 64:
        r = a.sar(count)
        dst.write(r)
        if likely(count != 0):
            cpu.flags.set_result(r, cf=a.rotr(count)[63], of=0)
    else:
        wide = (a.sext(64) << 1).sar(count)
        r = (wide >> 1).trunc(a.width)
        dst.write(r)
        if likely(count != 0):
            cpu.flags.set_result(r, cf=wide[0], of=0)
    _leave_undefined(cpu, count, "af")


@instruction("ROL", *_group(0))
def rol(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count = dst.read(), masked(src.read(), dst.width)
    r = a.rotl(count.trunc(a.width) if a.width < 64 else count)
    dst.write(r)
    if likely(count != 0):
        cpu.flags.change(cf=r[0], of=r[0] ^ r[-1])
    _leave_undefined(cpu, count)


@instruction("ROR", *_group(1))
def ror(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count = dst.read(), masked(src.read(), dst.width)
    r = a.rotr(count.trunc(a.width) if a.width < 64 else count)
    dst.write(r)
    if likely(count != 0):
        cpu.flags.change(cf=r[-1], of=r[-1] ^ r[-2])
    _leave_undefined(cpu, count)


@instruction("RCL", *_group(2))
def rcl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count, width = dst.read(), masked(src.read(), dst.width), dst.width
    carry = cpu.flags.cf
    if width == 64:  # 65 bits: what falls out of the top comes back 65 - count places lower
        if count != 0:
            r = a << count | carry.zext(64) << (count - 1) | a >> (65 - count)
            dst.write(r)
            cf = (a << (count - 1))[63]
            cpu.flags.change(cf=cf, of=r[63] ^ cf)
        else:
            dst.write(a)
    else:
        turn = count.urem(width + 1) if width < 32 else count
        ring = carry.zext(64) << width | a.zext(64)
        ring = ring << turn | ring >> (width + 1 - turn)
        r, cf = ring.trunc(width), ring[width]
        dst.write(r)
        if count != 0:
            cpu.flags.change(cf=cf, of=r[-1] ^ cf)
    _leave_undefined(cpu, count)


@instruction("RCR", *_group(3))
def rcr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, count, width = dst.read(), masked(src.read(), dst.width), dst.width
    carry = cpu.flags.cf
    if width == 64:
        if count != 0:
            r = a >> count | carry.zext(64) << (64 - count) | a << (65 - count)
            dst.write(r)
            cpu.flags.change(cf=(a >> (count - 1))[0], of=r[63] ^ r[62])
        else:
            dst.write(a)
    else:
        turn = count.urem(width + 1) if width < 32 else count
        ring = carry.zext(64) << width | a.zext(64)
        ring = ring >> turn | ring << (width + 1 - turn)
        r = ring.trunc(width)
        dst.write(r)
        if count != 0:
            cpu.flags.change(cf=ring[width], of=r[-1] ^ r[-2])
    _leave_undefined(cpu, count)


# -- double precision --------------------------------------------------------------------------------------------------


@instruction("SHLD", "0F A4 /r Ev Gv Ib", "0F A5 /r Ev Gv CL")
def shld(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    a, b, count = dst.read(), src.read(), masked(by.read(), dst.width)
    if count == 0:
        dst.write(a)
        return
    if a.width == 64:
        r, cf = a << count | b >> (64 - count), (a << (count - 1))[63]
    elif a.width == 32:
        r, cf = (concat(a, b) << count).field(32, 32), (a << (count - 1))[31]
    else:
        # Counts above 16 are undefined: bits of the destination follow those of the source, as Intel has it.
        ring = concat(concat(a, b), a).zext(64)
        r, cf = (ring >> (32 - count)).trunc(16), (ring >> (48 - count))[0]
    dst.write(r)
    cpu.flags.set_result(r, cf=cf, of=r[-1] ^ a[-1])
    _leave_undefined(cpu, count, "af", from_width=("cf", "sf", "zf", "pf"), width=a.width + 1)


@instruction("SHRD", "0F AC /r Ev Gv Ib", "0F AD /r Ev Gv CL")
def shrd(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    a, b, count = dst.read(), src.read(), masked(by.read(), dst.width)
    if count == 0:
        dst.write(a)
        return
    if a.width == 64:
        r, cf = a >> count | b << (64 - count), (a >> (count - 1))[0]
    elif a.width == 32:
        r, cf = (concat(b, a) >> count).trunc(32), (a >> (count - 1))[0]
    else:
        ring = concat(concat(a, b), a).zext(64)
        r, cf = (ring >> count).trunc(16), (ring >> (count - 1))[0]
    dst.write(r)
    cpu.flags.set_result(r, cf=cf, of=r[-1] ^ a[-1])
    _leave_undefined(cpu, count, "af", from_width=("cf", "sf", "zf", "pf"), width=a.width + 1)


# -- BMI2: no flags, the count in any register -------------------------------------------------------------------------


@instruction("SHLX", "VEX.L0.66.0F38 F7 /r Gy Ey By", feature="bmi2")
def shlx(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    dst.write(src.read() << (by.read() & (dst.width - 1)))


@instruction("SHRX", "VEX.L0.F2.0F38 F7 /r Gy Ey By", feature="bmi2")
def shrx(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    dst.write(src.read() >> (by.read() & (dst.width - 1)))


@instruction("SARX", "VEX.L0.F3.0F38 F7 /r Gy Ey By", feature="bmi2")
def sarx(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    dst.write(src.read().sar(by.read() & (dst.width - 1)))


@instruction("RORX", "VEX.L0.F2.0F3A F0 /r Gy Ey Ib", feature="bmi2")
def rorx(cpu: Cpu, dst: Operand, src: Operand, by: Operand) -> None:
    dst.write(src.read().rotr(by.read().zext(dst.width)))
