"""SSE floating point: one operation on all lanes of its operands, with MXCSR's rounding, modes and exceptions.

Plain: `xuni.isa.softfloat`, lane by lane. Compiled: the host's own instruction under the guest's MXCSR, but with
all exceptions masked; flags stay in the host's MXCSR (they are sticky) until `fetch_mxcsr` asks for them. The
guest's MXCSR is therefore `s.mxcsr` with the host's flags added; the engine loads the host's register when it enters
compiled code, and adds its flags to `s.mxcsr` when it leaves.

If the guest has unmasked an exception, every operation is bracketed by `_open` and `_close`, which find out what this
one operation raised: a fault leaves the destination alone (SDM vol. 1, 11.5.2, 11.5.3).

Operands are vectors of lanes (packed) or plain values (scalar); their width, 32 or 64, is the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xuni.isa import softfloat
from xuni.isa.bits import U64, Bits, const, select, signed, u1, u64, vector
from xuni.isa.compiler import Stage
from xuni.isa.llvm import type_of
from xuni.isa.softfloat import F32, F64, Context, Flag, Order, Rounding
from xuni.isa.stage import native, staged, staging, unlikely
from xuni.isa.struct import PlainPlace, StagedPlace
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Cr4, State

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

FLAGS, DAZ, MASKS, RC, FTZ = 0x3F, 1 << 6, 0x1F80, 3 << 13, 1 << 15
MXCSR_MASK = 0xFFFF  # bits that software may set
MXCSR_RESET = 0x1F80
FORMATS = {32: F32, 64: F64}
_SCRATCH = State.offset_of("scratch") + 8 * 63  # where the host's MXCSR passes through memory


# -- the host's MXCSR --------------------------------------------------------------------------------------------------
def host_asm(text: str, result: str, constraints: str, *operands: Bits) -> str:
    """Host instructions in the code being compiled; operands in XMM registers (`x`, vectors) or general ones (`r`).

    LLVM neither removes nor reorders them against others of their kind.
    """
    stage = _stage()
    passed = ", ".join(f"{type_of(o.width, o.lanes)} {stage.llvm.lift(o)}" for o in operands)
    call = f'call {result} asm sideeffect "{text}", "{constraints}"({passed})'
    if result == "void":
        stage.code.emit(call)
        return ""
    return stage.code.value(call)


def _stage() -> Stage:
    stage = staging()
    assert stage is not None
    return stage


def _place(cpu: Cpu) -> PlainPlace | StagedPlace:
    place = cpu.s.place
    assert isinstance(place, PlainPlace | StagedPlace)
    return place


def host_store(cpu: Cpu, instruction: str, width: int) -> Bits:
    """What a host instruction such as `stmxcsr` stores in memory."""
    host_asm(f"{instruction} ($0)", "void", "r,~{memory}", _place(cpu).address(_SCRATCH))
    return _place(cpu).load(_SCRATCH, width)


def host_load(cpu: Cpu, instruction: str, value: Bits) -> None:
    """Let a host instruction such as `ldmxcsr` load a value."""
    _place(cpu).store(_SCRATCH, value)
    host_asm(f"{instruction} ($0)", "void", "r,~{memory}", _place(cpu).address(_SCRATCH))


def fetch_mxcsr(cpu: Cpu) -> Bits:
    """The guest's MXCSR, 32 bits; brings `s.mxcsr` up to date."""
    if staging() is not None:
        cpu.s.mxcsr = cpu.s.mxcsr | (host_store(cpu, "stmxcsr", 32) & FLAGS)
    return cpu.s.mxcsr


def load_mxcsr(cpu: Cpu, value: Bits) -> None:
    """Replace MXCSR (the caller has checked reserved bits)."""
    cpu.s.mxcsr = value
    if staging() is not None:
        host_load(cpu, "ldmxcsr", value | MASKS)


# -- unmasked exceptions in compiled code ------------------------------------------------------------------------------
def _unmasked(cpu: Cpu) -> Bits:
    return (cpu.s.mxcsr & MASKS) != MASKS


@staged
def _open(cpu: Cpu) -> None:
    """Before an operation: clear the host's flags, to tell what it raises. An unmasked underflow ignores FTZ."""
    value = fetch_mxcsr(cpu)
    ftz = select(value[11], value & FTZ, const(0, 32))
    host_load(cpu, "ldmxcsr", (value & (DAZ | RC)) | ftz | MASKS)


@staged
def _close(cpu: Cpu, tiny: Bits) -> None:
    """After it: fault if it raised something unmasked. `tiny`: a result is denormal, which unmasked is an underflow."""
    raised = host_store(cpu, "stmxcsr", 32) & FLAGS
    masks = (cpu.s.mxcsr & MASKS) >> 7
    raised = raised | select(tiny & ~cpu.s.mxcsr[11], const(Flag.UE, 32), const(0, 32))
    raised = _settle(raised, masks)
    load_mxcsr(cpu, cpu.s.mxcsr | raised)
    _fault_if(cpu, (raised & ~masks) != 0)


def _settle(raised: Bits, masks: Bits) -> Bits:
    """Flags before computing, unmasked, suppress those after it."""
    before = raised & int(softfloat.BEFORE)
    return select((before & ~masks) != 0, before, raised)


@staged
def _fault_if(cpu: Cpu, condition: Bits) -> None:
    if condition:
        if (cpu.s.cr4 & Cr4.OSXMMEXCPT) == 0:
            raise GuestFault(cpu, Vector.UD)
        raise GuestFault(cpu, Vector.XM)


def _any_denormal(value: Bits) -> Bits:
    format = FORMATS[value.width]
    magnitude = value & ((1 << (value.width - 1)) - 1)
    found = (magnitude != 0) & (magnitude < 1 << format.fraction_bits)
    return found if value.lanes == 1 else found.as_lanes(value.lanes) != 0


# -- plain Python ------------------------------------------------------------------------------------------------------
def _context(mxcsr: int) -> Context:
    return Context(Rounding(mxcsr >> 13 & 3), daz=bool(mxcsr & DAZ), ftz=bool(mxcsr & FTZ), masks=mxcsr >> 7 & 0x3F)


def _parts(value: Bits) -> tuple[int, ...]:
    return (int(value.raw),) if value.lanes == 1 else tuple(value.raw)


def _plain(cpu: Cpu, function: Callable[..., int], width: int, *operands: Bits) -> Bits:
    """`function(context, lane of each operand...)` for all lanes, then flags and faults."""
    context = _context(int(cpu.s.mxcsr))
    results = [const(function(context, *lane), width) for lane in zip(*(_parts(o) for o in operands), strict=True)]
    _plain_flags(cpu, context)
    return results[0] if len(results) == 1 else vector(results)


def _plain_flags(cpu: Cpu, context: Context) -> None:
    masks = const(context.masks, 32)
    raised = _settle(const(int(context.flags), 32), masks)
    cpu.s.mxcsr = cpu.s.mxcsr | raised
    _fault_if(cpu, (raised & ~masks) != 0)


def _suffix(value: Bits) -> str:
    return ("s" if value.lanes == 1 else "p") + ("s" if value.width == 32 else "d")


# -- operations --------------------------------------------------------------------------------------------------------
_SOFT: dict[str, Callable[..., int]] = {
    "add": softfloat.add,
    "sub": softfloat.sub,
    "mul": softfloat.mul,
    "div": softfloat.div,
    "min": softfloat.minimum,
    "max": softfloat.maximum,
}


def arithmetic(cpu: Cpu, op: str, a: Bits, b: Bits) -> Bits:
    """`add`, `sub`, `mul`, `div`, `min` or `max`."""
    if staging() is None:
        function = _SOFT[op]
        return _plain(cpu, lambda c, x, y: function(c, x, y, FORMATS[a.width]), a.width, a, b)
    return _asm(cpu, f"{op}{_suffix(a)} $2, $0", a.width, a.lanes, "=x,0,x", (a, b), tiny=op not in ("min", "max"))


def square_root(cpu: Cpu, a: Bits) -> Bits:
    if staging() is None:
        return _plain(cpu, lambda c, x: softfloat.sqrt(c, x, FORMATS[a.width]), a.width, a)
    return _asm(cpu, f"sqrt{_suffix(a)} $0, $0", a.width, a.lanes, "=x,0", (a,))


def approximate(cpu: Cpu, op: str, a: Bits) -> Bits:
    """`rcp` or `rsqrt` in single precision. The host's answer, or in plain Python the exact value rounded to 12 bits.

    Both keep the bound of the specification, 1.5 * 2**-12; processors differ within it. No exceptions.
    """
    if staging() is None:
        parts = [const(_approximation(op, x), 32) for x in _parts(a)]
        return parts[0] if len(parts) == 1 else vector(parts)
    return _asm(cpu, f"{op}{_suffix(a)} $0, $0", 32, a.lanes, "=x,0", (a,), raises=False)


def _approximation(op: str, x: int) -> int:
    c = Context(daz=True, ftz=True, precision=12)
    one = 127 << 23
    if op == "rcp":
        return softfloat.div(c, one, x, F32)
    root = Context(daz=True)
    number = root.read(x, F32)
    if number.is_zero:
        return F32.infinity(number.sign)
    wide = softfloat.sqrt(root, softfloat.convert(root, x, F32, F64), F64)
    if root.read(x, F32).is_nan or number.sign:
        return softfloat.convert(Context(), wide, F64, F32)
    return softfloat.convert(c, softfloat.div(Context(), 1023 << 52, wide, F64), F64, F32)


# CMPPS predicates: whether each order satisfies it, and whether quiet NaNs are invalid operands.
_PREDICATES: tuple[tuple[str, frozenset[Order], bool], ...] = (
    ("eq", frozenset({Order.EQUAL}), False),
    ("lt", frozenset({Order.LESS}), True),
    ("le", frozenset({Order.LESS, Order.EQUAL}), True),
    ("unord", frozenset({Order.UNORDERED}), False),
    ("neq", frozenset({Order.LESS, Order.GREATER, Order.UNORDERED}), False),
    ("nlt", frozenset({Order.EQUAL, Order.GREATER, Order.UNORDERED}), True),
    ("nle", frozenset({Order.GREATER, Order.UNORDERED}), True),
    ("ord", frozenset({Order.LESS, Order.EQUAL, Order.GREATER}), False),
)


def compare(cpu: Cpu, predicate: int, a: Bits, b: Bits) -> Bits:
    """All ones where the predicate (0-7) holds, else 0."""
    name, orders, signalling = _PREDICATES[predicate]
    if staging() is None:
        ones = (1 << a.width) - 1
        format = FORMATS[a.width]
        return _plain(cpu, lambda c, x, y: ones if softfloat.compare(c, x, y, format, signalling) in orders else 0,
                      a.width, a, b)  # fmt: skip
    return _asm(cpu, f"cmp{name}{_suffix(a)} $2, $0", a.width, a.lanes, "=x,0,x", (a, b), tiny=False)


_ORDER_FLAGS = {Order.LESS: 1, Order.EQUAL: 1 << 6, Order.GREATER: 0, Order.UNORDERED: 1 | 1 << 2 | 1 << 6}


def order_flags(cpu: Cpu, a: Bits, b: Bits, signalling: bool) -> Bits:
    """COMISD, UCOMISD: an EFLAGS image (64 bits) with ZF, PF, CF; the other arithmetic flags are 0."""
    if staging() is None:
        format = FORMATS[a.width]
        return _plain(cpu, lambda c, x, y: _ORDER_FLAGS[softfloat.compare(c, x, y, format, signalling)], 64, a, b)
    name = ("comi" if signalling else "ucomi") + _suffix(a)
    text = f"{name} $2, $1; lahf; movzbl %ah, %eax"
    return _asm(cpu, text, 64, 1, "={rax},x,x,~{flags}", (a, b), tiny=False) & 0x45


def convert(cpu: Cpu, a: Bits, width: int) -> Bits:
    """Between single and double, lane by lane (two lanes at most)."""
    if staging() is None:
        source, target = FORMATS[a.width], FORMATS[width]
        return _plain(cpu, lambda c, x: softfloat.convert(c, x, source, target), width, a)
    source_suffix = _suffix(a)
    name = f"cvt{source_suffix}2{source_suffix[0]}{'s' if width == 32 else 'd'}"
    lanes = 128 // width if a.lanes > 1 else 1
    return _narrow(_asm(cpu, f"{name} $1, $0", width, lanes, "=x,x", (_whole(a),)), a.lanes)


def _whole(a: Bits) -> Bits:
    """Two lanes of 32 bits as a whole XMM register."""
    return a.shuffle((0, 1, 0, 1)) if a.lanes == 2 and a.width == 32 else a


def _narrow(value: Bits, lanes: int) -> Bits:
    return value if value.lanes == lanes else value.shuffle(range(lanes))


def from_integer(cpu: Cpu, a: Bits, width: int) -> Bits:
    """From signed integers: 32 or 64 bits (scalar), lanes of 32."""
    if staging() is None:
        return _plain(cpu, lambda c, x: softfloat.from_integer(c, signed(x, a.width), FORMATS[width]), width, a)
    target = "s" if width == 32 else "d"
    if a.lanes == 1:
        size = "l" if a.width == 32 else "q"
        # Cleared first: the instruction keeps the rest of the register, which would be a false dependency.
        text = f"xorps $0, $0; cvtsi2s{target}{size} $1, $0"
        return _asm(cpu, text, width, 1, "=&x,r", (a,), tiny=False)
    result = _asm(cpu, f"cvtdq2p{target} $1, $0", width, 128 // width, "=x,x", (_whole(a),), tiny=False)
    return _narrow(result, a.lanes)


def to_integer(cpu: Cpu, a: Bits, width: int, truncate: bool) -> Bits:
    """To signed integers: 32 or 64 bits (scalar), lanes of 32."""
    if staging() is None:
        format = FORMATS[a.width]
        return _plain(cpu, lambda c, x: softfloat.to_integer(c, x, format, width, truncate), width, a)
    cvt = "cvtt" if truncate else "cvt"
    if a.lanes == 1:
        size = "l" if width == 32 else "q"
        return _asm(cpu, f"{cvt}{_suffix(a)}2si{size} $1, $0", width, 1, "=r,x", (a,), tiny=False)
    assert width == 32
    return _narrow(_asm(cpu, f"{cvt}{_suffix(a)}2dq $1, $0", 32, 4, "=x,x", (_whole(a),), tiny=False), a.lanes)


def round_integral(cpu: Cpu, a: Bits, control: int) -> Bits:
    """ROUNDPS and its kin: `control` is the immediate's low four bits."""
    if staging() is None:
        format = FORMATS[a.width]

        def function(c: Context, x: int) -> int:
            mode = c.rounding
            c.rounding = mode if control & 4 else Rounding(control & 3)
            result = softfloat.round_to_integral(c, x, format, quiet=bool(control & 8))
            c.rounding = mode
            return result

        return _plain(cpu, function, a.width, a)
    return _asm(cpu, f"round{_suffix(a)} $${control}, $0, $0", a.width, a.lanes, "=x,0", (a,), tiny=False)


def add_subtract(cpu: Cpu, a: Bits, b: Bits) -> Bits:
    """ADDSUBPS, ADDSUBPD: even lanes are subtracted, odd ones added."""
    if staging() is not None:
        return _asm(cpu, f"addsub{_suffix(a)} $2, $0", a.width, a.lanes, "=x,0,x", (a, b))
    context, format = _context(int(cpu.s.mxcsr)), FORMATS[a.width]
    pairs = enumerate(zip(_parts(a), _parts(b), strict=True))
    results = [const(softfloat.add(context, x, y, format, negate=i % 2 == 0), a.width) for i, (x, y) in pairs]
    _plain_flags(cpu, context)
    return vector(results)


def dot_product(cpu: Cpu, a: Bits, b: Bits) -> Bits:
    """DPPS, DPPD with all lanes taking part: the sum in every lane, products added pairwise (SDM vol. 2, DPPS)."""
    if staging() is not None:
        return _asm(cpu, f"dp{_suffix(a)} $$255, $2, $0", a.width, a.lanes, "=x,0,x", (a, b))
    products = arithmetic(cpu, "mul", a, b)
    while products.lanes > 1:
        even = products.shuffle(range(0, products.lanes, 2)) if products.lanes > 2 else products.lane(0)
        odd = products.shuffle(range(1, products.lanes, 2)) if products.lanes > 2 else products.lane(1)
        products = arithmetic(cpu, "add", even, odd)
    return vector([products] * a.lanes)


@dataclass(frozen=True)
class HostOperation:
    """One host instruction, its operands and result: what a native function can be made of."""

    text: str
    constraints: str
    result: tuple[int, int]  # width and lanes
    operands: tuple[tuple[int, int], ...]
    tiny: bool  # a denormal result may be an underflow
    scalar: bool  # the result is lane 0 only

    @property
    def name(self) -> str:
        """For the symbol of the native function."""
        return f"{self.text}_{self.operands}_{self.result}"

    def emit(self, *operands: Bits) -> Bits:
        width, lanes = self.result
        raw: Any = host_asm(self.text, type_of(width, lanes), self.constraints, *operands)
        return Bits(_stage().llvm, width, raw, lanes)


def _asm(cpu: Cpu, text: str, width: int, lanes: int, constraints: str, operands: tuple[Bits, ...], tiny: bool = True,
         raises: bool = True) -> Bits:  # fmt: skip
    """A host instruction; with its bracket if an exception is unmasked.

    Scalars in XMM registers travel as lane 0 of a whole register: LLVM then keeps them out of general registers.
    """
    kinds = [kind.strip("=&") for kind in constraints.split(",")]
    whole = [_register(o) if kind in ("x", "0") else o for o, kind in zip(operands, kinds[1:], strict=False)]
    in_register = kinds[0] == "x" and lanes == 1
    shapes = tuple((o.width, o.lanes) for o in whole)
    result = (width, 128 // width) if in_register else (width, lanes)
    operation = HostOperation(text, constraints, result, shapes, tiny, in_register)
    value = _checked(cpu, operation, tuple(whole)) if raises else operation.emit(*whole)
    return value.lane(0) if in_register else value


def _register(value: Bits) -> Bits:
    """A scalar as lane 0 of a register, the rest 0."""
    if value.lanes > 1:
        return value
    return vector([value, *[const(0, value.width)] * (128 // value.width - 1)])


@staged
def _checked(cpu: Cpu, operation: HostOperation, operands: tuple[Bits, ...]) -> Bits:
    if unlikely(_unmasked(cpu)):
        a, b = operands[0], operands[-1]
        low, high = _bracketed(cpu, *_halves(a), *_halves(b), operation)
        result = _from_halves(low, high, *operation.result)
    else:
        result = operation.emit(*operands)
    return result


def _halves(value: Bits) -> tuple[Bits, Bits]:
    """A value of at most 128 bits in two of 64."""
    if value.width * value.lanes == 128:
        wide = value.as_lanes(64)
        return wide.lane(0), wide.lane(1)
    return value.as_lanes(value.width * value.lanes).zext(64), u64(0)


def _from_halves(low: Bits, high: Bits, width: int, lanes: int) -> Bits:
    if width * lanes == 128:
        return vector([low, high]).as_lanes(width)
    return low.trunc(width * lanes).as_lanes(width)


@native
def _bracketed(cpu: Cpu, a_low: U64, a_high: U64, b_low: U64, b_high: U64, operation: HostOperation) -> tuple[U64, U64]:
    """The operation while some exception is unmasked: a fault if it raises one."""
    values = [_from_halves(a_low, a_high, *operation.operands[0]), _from_halves(b_low, b_high, *operation.operands[-1])]
    _open(cpu)
    result = operation.emit(*values[: len(operation.operands)])
    judged = result.lane(0) if operation.scalar else result
    _close(cpu, _any_denormal(judged) if operation.tiny else u1(0))
    return _halves(result)
