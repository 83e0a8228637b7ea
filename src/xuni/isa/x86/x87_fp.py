"""x87 arithmetic: what the host's x87 unit does in compiled code, and `xuni.isa.softfloat` in plain Python.

Operands and results are named by where they lie in the state (byte offsets), so that compiled code can load and store
80-bit values in place. Each function gives the exception flags raised, with C1 (rounded up) at its place in the status
word; the caller merges them into `s.fpu_status`.

While compiled code runs, the host's control word is the guest's with all exceptions masked, the host's stack is empty
between instructions, and the host's flags are a subset of those in `s.fpu_status` (they need not be cleared each time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa import softfloat
from xuni.isa.bits import INTS, Bits, const, select, signed, u16, u64
from xuni.isa.softfloat import F32, F64, X80, Context, Flag, Number, Order, Rounding
from xuni.isa.stage import staging
from xuni.isa.x86.sse_fp import host_asm, host_load
from xuni.isa.x86.x87_stack import C0, C1, C2, C3, FLAGS, MASKS, SCRATCH

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Offset = Bits | int
_PASS = SCRATCH + 16  # where memory operands pass through
# What a memory operand is: suffix of the host's instructions (after "fi" or "f"), bits.
KINDS = {"m16int": ("s", 16), "m32int": ("l", 32), "m64int": ("ll", 64), "m32": ("s", 32), "m64": ("l", 64)}
PRECISIONS = (24, 64, 53, 64)  # bits of the significand by the PC field; 1 is reserved


# -- plain Python ------------------------------------------------------------------------------------------------------
def context(cpu: Cpu) -> Context:
    """Rounding, precision and masks of the control word."""
    control = int(cpu.s.fpu_control)
    return Context(Rounding(control >> 10 & 3), precision=PRECISIONS[control >> 8 & 3], masks=control & 0x3F)


def raised(c: Context) -> Bits:
    return u16(int(c.flags) | (C1 if c.rounded_up else 0))


def load_plain(cpu: Cpu, at: Offset) -> int:
    """The 80 bits at an offset."""
    value = cpu.s.place.load(at, 64, 2)
    return int(value.lane(0)) | int(value.lane(1) & 0xFFFF) << 64


def store_plain(cpu: Cpu, at: Offset, value: int) -> None:
    cpu.s.place.store(at, Bits(INTS, 64, (value & (1 << 64) - 1, value >> 64), 2))


def operand(kind: str, value: Bits) -> Number:
    """A memory operand as an 80-bit one."""
    raw, width = int(value), KINDS[kind][1]
    if kind.endswith("int"):
        return softfloat.decode(softfloat.from_integer(Context(), signed(raw, width), X80), X80)
    return softfloat.widen(raw, F32 if width == 32 else F64, X80)


_PLAIN: dict[str, Callable[[Context, softfloat.Operand, softfloat.Operand], int]] = {
    "add": lambda c, a, b: softfloat.add(c, a, b, X80),
    "mul": lambda c, a, b: softfloat.mul(c, a, b, X80),
    "sub": lambda c, a, b: softfloat.sub(c, a, b, X80),
    "subr": lambda c, a, b: softfloat.sub(c, b, a, X80),
    "div": lambda c, a, b: softfloat.div(c, a, b, X80),
    "divr": lambda c, a, b: softfloat.div(c, b, a, X80),
}


# -- compiled code -----------------------------------------------------------------------------------------------------
def address(cpu: Cpu, at: Offset) -> Bits:
    return cpu.s.place.address(at)


def host_x87(text: str, *addresses: Bits) -> Bits:
    """Host x87 instructions; `{0}`, `{1}` ... stand for memory operands. The last one reads the status into AX."""
    for number in range(len(addresses)):
        text = text.replace(f"{{{number}}}", f"(${number + 1})")
    constraints = ",".join(["=&{ax}", *["r"] * len(addresses), "~{memory}"])
    raw = host_asm(text, "i16", constraints, *addresses)
    stage = staging()
    assert stage is not None
    return Bits(stage.llvm, 16, raw)


def clear_host(cpu: Cpu) -> None:
    """Forget the flags in the host's status word."""
    if staging() is not None:
        host_asm("fnclex", "void", "~{memory}")


def load_control(cpu: Cpu, value: Bits) -> None:
    """Set the control word, the host's too. Summary bits are the caller's."""
    cpu.s.fpu_control = value
    if staging() is not None:
        host_load(cpu, "fldcw", value | MASKS)


def reset_host(cpu: Cpu) -> None:
    """Clear the host's flags and load its control word anew."""
    clear_host(cpu)
    load_control(cpu, cpu.s.fpu_control)


# FADDP, FMULP, FSUBP (ST1 - ST0), FSUBRP, FDIVP, FDIVRP as bytes: AT&T names the reverse forms the other way round.
_POPPING = {"add": "0xde,0xc1", "mul": "0xde,0xc9", "sub": "0xde,0xe9", "subr": "0xde,0xe1", "div": "0xde,0xf9",
            "divr": "0xde,0xf1"}  # fmt: skip


def binary(cpu: Cpu, op: str, result: Offset, a: Offset, b: Offset) -> Bits:
    """`a op b`; `subr` and `divr` take the operands the other way round."""
    if staging() is None:
        c = context(cpu)
        store_plain(cpu, result, _PLAIN[op](c, load_plain(cpu, a), load_plain(cpu, b)))
        return raised(c)
    text = f"fldt {{0}}; fldt {{1}}; .byte {_POPPING[op]}; fnstsw %ax; fstpt {{2}}"
    return host_x87(text, address(cpu, a), address(cpu, b), address(cpu, result)) & (FLAGS | C1)


def binary_memory(cpu: Cpu, op: str, kind: str, result: Offset, a: Offset, value: Bits) -> Bits:
    """`a op value`, where the value is a memory operand of some kind."""
    if staging() is None:
        c = context(cpu)
        store_plain(cpu, result, _PLAIN[op](c, load_plain(cpu, a), operand(kind, value)))
        return raised(c)
    name = ("fi" if kind.endswith("int") else "f") + op + KINDS[kind][0]
    cpu.s.place.store(_PASS, value)
    text = f"fldt {{0}}; {name} {{1}}; fnstsw %ax; fstpt {{2}}"
    return host_x87(text, address(cpu, a), address(cpu, _PASS), address(cpu, result)) & (FLAGS | C1)


def scaled_binary(cpu: Cpu, op: str, result: Offset, a: Offset, b: Offset, up: Bits) -> Bits:
    """Compiled code: the result of an overflow (or, `up`, an underflow) times 2**-24576 (2**24576), SDM vol. 1, 8.5.4.

    It is computed on scaled operands, each moved by half the distance in products and quotients.
    """
    multiplies = op in ("mul", "div", "divr")
    distance = 12288 if multiplies else 24576
    first = select(up, const(distance, 32), const(-distance, 32))
    second = -first if op in ("div", "divr") else first
    if op == "divr":
        first, second = second, first
    left, right = _PASS + 32, _PASS + 48
    scale(cpu, a, left, first)
    scale(cpu, b, right, second)
    rounded = binary(cpu, op, result, left, right)
    clear_host(cpu)
    return rounded


def scale(cpu: Cpu, source: Offset, target: Offset, exponent: Bits) -> Bits:
    """Compiled code: a value times 2 to the power of a 32-bit integer; what that raised."""
    cpu.s.place.store(_PASS, exponent)
    clear_host(cpu)
    text = "fildl {0}; fldt {1}; fscale; fnstsw %ax; fstpt {2}; fstp %st(0)"
    raised = host_x87(text, address(cpu, _PASS), address(cpu, source), address(cpu, target))
    clear_host(cpu)
    return raised & (FLAGS | C1)


def widened(cpu: Cpu, kind: str, value: Bits) -> int:
    """Compiled code: a memory operand as a value in the scratch area."""
    load(cpu, kind, _PASS + 16, value)
    return _PASS + 16


def unary(cpu: Cpu, op: str, result: Offset, a: Offset) -> Bits:
    """`fsqrt` or `frndint`."""
    if staging() is None:
        c = context(cpu)
        function = {"fsqrt": softfloat.sqrt, "frndint": softfloat.round_to_integral}[op]
        store_plain(cpu, result, function(c, load_plain(cpu, a), X80))
        return raised(c)
    text = f"fldt {{0}}; {op}; fnstsw %ax; fstpt {{1}}"
    return host_x87(text, address(cpu, a), address(cpu, result)) & (FLAGS | C1)


def load(cpu: Cpu, kind: str, result: Offset, value: Bits) -> Bits:
    """FLD m32, m64; FILD."""
    if staging() is None:
        c = Context()
        if kind.endswith("int"):
            store_plain(cpu, result, operand(kind, value).bits)
        else:
            store_plain(cpu, result, softfloat.convert(c, int(value), F32 if kind == "m32" else F64, X80))
        return raised(c)
    name = ("fild" if kind.endswith("int") else "fld") + KINDS[kind][0]
    cpu.s.place.store(_PASS, value)
    text = f"{name} {{0}}; fnstsw %ax; fstpt {{1}}"
    return host_x87(text, address(cpu, _PASS), address(cpu, result)) & (FLAGS | C1)


def store(cpu: Cpu, kind: str, a: Offset, truncate: bool = False) -> tuple[Bits, Bits]:
    """FST m32, m64; FIST; FISTTP (`truncate`): the value to store, and what was raised."""
    width = KINDS[kind][1]
    if staging() is None:
        c = context(cpu)
        c.precision = None
        raw = load_plain(cpu, a)
        if kind.endswith("int"):
            value = softfloat.to_integer(c, raw, X80, width, truncate)
        else:
            value = softfloat.convert(c, raw, X80, F32 if kind == "m32" else F64)
        c.flags &= ~Flag.DE  # a denormal in a register raises nothing here
        return const(value, width), raised(c)
    name = ("fistt" if truncate else "fist" if kind.endswith("int") else "fst") + "p" + KINDS[kind][0]
    text = f"fldt {{0}}; {name} {{1}}; fnstsw %ax"
    flags = host_x87(text, address(cpu, a), address(cpu, _PASS)) & (FLAGS | C1)
    return cpu.s.place.load(_PASS, width), flags


_CODES = {Order.LESS: C0, Order.EQUAL: C3, Order.GREATER: 0, Order.UNORDERED: C0 | C2 | C3}


def _compared(a: softfloat.Operand, b: softfloat.Operand, signalling: bool) -> Bits:
    c = Context()
    return u16(_CODES[softfloat.compare(c, a, b, X80, signalling)] | int(c.flags))


def compare(cpu: Cpu, a: Offset, b: Offset, signalling: bool) -> Bits:
    """FCOM (signalling) or FUCOM: C3, C2, C0 beside the flags."""
    if staging() is None:
        return _compared(load_plain(cpu, a), load_plain(cpu, b), signalling)
    text = f"fldt {{1}}; fldt {{0}}; .byte {'0xde,0xd9' if signalling else '0xda,0xe9'}; fnstsw %ax"
    return host_x87(text, address(cpu, a), address(cpu, b)) & (FLAGS | C0 | C2 | C3)


def compare_memory(cpu: Cpu, kind: str, a: Offset, value: Bits) -> Bits:
    """FCOM m32, m64; FICOM."""
    if staging() is None:
        return _compared(load_plain(cpu, a), operand(kind, value), True)
    name = ("ficomp" if kind.endswith("int") else "fcomp") + KINDS[kind][0]
    cpu.s.place.store(_PASS, value)
    text = f"fldt {{0}}; {name} {{1}}; fnstsw %ax"
    return host_x87(text, address(cpu, a), address(cpu, _PASS)) & (FLAGS | C0 | C2 | C3)


def is_tiny(cpu: Cpu, at: Offset) -> Bits:
    """Whether the value at an offset is denormal: exact or not, an unmasked underflow."""
    value = cpu.s.place.load(at, 64, 2)
    return (value.lane(1) & 0x7FFF == 0) & (value.lane(0) != u64(0))

