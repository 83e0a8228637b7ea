"""Later: guest values as LLVM IR text. `Function` collects the blocks of one function; `Llvm` is its `Bits` backend.

IR is written as text because that is ten times faster than building it through objects (and needs no LLVM to be
loaded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xuni.isa.bits import Bits, Raw

_INTRINSIC: Final = {"popcount": "ctpop", "ctz": "cttz", "clz": "ctlz", "bswap": "bswap"}
_SHIFT: Final = {"shl": "psll", "lshr": "psrl", "ashr": "psra"}
_LETTER: Final = {16: "w", 32: "d", 64: "q"}
_PAIRED: Final = ("umin", "umax", "smin", "smax", "uadd.sat", "usub.sat", "sadd.sat", "ssub.sat")


def type_of(width: int, lanes: int = 1) -> str:
    """The LLVM type of a value."""
    return f"i{width}" if lanes == 1 else f"<{lanes} x i{width}>"


def literal(value: Raw, width: int, lanes: int) -> str:
    """A constant as LLVM writes it (without its type)."""
    if lanes == 1:
        return str(value)
    return "<" + ", ".join(f"i{width} {v}" for v in value) + ">"


class Function:
    """One LLVM function under construction: `registers` are the named values that a handler hands to the next one."""

    def __init__(self, name: str, signature: str) -> None:
        self.name = name
        self.signature = signature
        self.lines: list[str] = []
        self.live = True
        self.block = "entry"
        self.registers: dict[str, Bits] = {}
        self.declarations: set[str] = set()
        self._values = 0
        self._labels = 0

    def label(self, hint: str) -> str:
        self._labels += 1
        return f"{hint}{self._labels}"

    def start(self, label: str) -> None:
        """Begin a block; what follows is reachable."""
        self.lines.append(f"{label}:")
        self.block = label
        self.live = True

    def emit(self, line: str) -> None:
        assert self.live, "code after a terminator"
        self.lines.append("  " + line)

    def value(self, text: str) -> str:
        self._values += 1
        name = f"%v{self._values}"
        self.emit(f"{name} = {text}")
        return name

    def placeholder(self) -> tuple[str, int]:
        """A value whose text is filled in later with `fill` (the phi of a loop)."""
        self._values += 1
        name = f"%v{self._values}"
        self.lines.append("")
        return name, len(self.lines) - 1

    def fill(self, name: str, at: int, text: str) -> None:
        self.lines[at] = f"  {name} = {text}"

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")
        self.live = False

    def branch(self, condition: str, then: str, otherwise: str, likely: bool | None = None) -> None:
        weights = "" if likely is None else (", !prof !0" if likely else ", !prof !1")
        self.emit(f"br i1 {condition}, label %{then}, label %{otherwise}{weights}")
        self.live = False

    def end(self, text: str) -> None:
        """A terminator: ret, unreachable."""
        self.emit(text)
        self.live = False

    def declare(self, text: str) -> None:
        self.declarations.add(text)

    def text(self) -> str:
        body = "\n".join(line for line in self.lines if line)
        return f"define {self.signature} {{\nentry:\n{body}\n}}\n"


class Llvm:
    """The backend that appends to a function."""

    known = False

    def __init__(self, function: Function) -> None:
        self.function = function
        self.limits: dict[str, int] = {}  # the most that some values can be: shift counts that need no check

    def lift(self, value: Bits) -> Raw:
        return literal(value.raw, value.width, value.lanes) if value.known else value.raw

    def binary(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw:
        f, t = self.function, type_of(width, lanes)
        if op in ("shl", "lshr", "ashr"):
            if b.lstrip("-").isdigit():
                count = int(b)
                if count == 0:
                    return a
                if count >= width:
                    if op != "ashr":
                        return "0"
                    b = str(width - 1)
                return f.value(f"{op} {t} {a}, {b}")
            if lanes > 1:
                limit = literal((width - 1,) * lanes, width, lanes)
                inside = f.value(f"icmp ule {t} {b}, {limit}")
                n = f.value(f"call {t} @llvm.umin.v{lanes}i{width}({t} {b}, {t} {limit})")
                f.declare(f"declare {t} @llvm.umin.v{lanes}i{width}({t}, {t})")
                r = f.value(f"{op} {t} {a}, {n}")
                if op == "ashr":
                    return r
                return f.value(f"select <{lanes} x i1> {inside}, {t} {r}, {t} zeroinitializer")
            if self.limits.get(b, width) < width:
                return f.value(f"{op} {t} {a}, {b}")
            inside = f.value(f"icmp ult {t} {b}, {width}")
            if op == "ashr":
                n = f.value(f"select i1 {inside}, {t} {b}, {t} {width - 1}")
                return f.value(f"{op} {t} {a}, {n}")
            n = f.value(f"and {t} {b}, {width - 1}")  # never poison, and free where the hardware masks anyway
            r = f.value(f"{op} {t} {a}, {n}")
            return f.value(f"select i1 {inside}, {t} {r}, {t} 0")
        suffix = f"v{lanes}i{width}" if lanes > 1 else f"i{width}"
        if op == "rotl":
            f.declare(f"declare {t} @llvm.fshl.{suffix}({t}, {t}, {t})")
            return f.value(f"call {t} @llvm.fshl.{suffix}({t} {a}, {t} {a}, {t} {b})")
        if op in _PAIRED:
            f.declare(f"declare {t} @llvm.{op}.{suffix}({t}, {t})")
            return f.value(f"call {t} @llvm.{op}.{suffix}({t} {a}, {t} {b})")
        result = f.value(f"{op} {t} {a}, {b}")
        if op == "and" and b.isdigit():
            self.limits[result] = int(b)
        return result

    def compare(self, op: str, a: Raw, b: Raw, width: int, lanes: int) -> Raw:
        return self.function.value(f"icmp {op} {type_of(width, lanes)} {a}, {b}")

    def unary(self, op: str, a: Raw, width: int, lanes: int) -> Raw:
        f, t = self.function, type_of(width, lanes)
        if op == "not":
            ones = "-1" if lanes == 1 else "<" + ", ".join([f"i{width} -1"] * lanes) + ">"
            return f.value(f"xor {t} {a}, {ones}")
        if op == "bswap" and width == 8:
            return a
        name = f"@llvm.{_INTRINSIC[op]}." + (f"v{lanes}i{width}" if lanes > 1 else f"i{width}")
        extra = ", i1 false" if op in ("ctz", "clz") else ""
        f.declare(f"declare {t} {name}({t}{', i1' if extra else ''})")
        return f.value(f"call {t} {name}({t} {a}{extra})")

    def resize(self, op: str, a: Raw, width: int, to: int, lanes: int) -> Raw:
        result = self.function.value(f"{op} {type_of(width, lanes)} {a} to {type_of(to, lanes)}")
        limit = self.limits.get(a)
        if op != "sext" and limit is not None and limit < 1 << to:
            self.limits[result] = limit
        return result

    def select(self, c: Raw, a: Raw, b: Raw, width: int, lanes: int, one: bool) -> Raw:
        t = type_of(width, lanes)
        ct = "i1" if one else f"<{lanes} x i1>"
        return self.function.value(f"select {ct} {c}, {t} {a}, {t} {b}")

    def relane(self, a: Raw, width: int, lanes: int, to_width: int, to_lanes: int) -> Raw:
        return self.function.value(f"bitcast {type_of(width, lanes)} {a} to {type_of(to_width, to_lanes)}")

    def lane(self, a: Raw, index: int, width: int, lanes: int) -> Raw:
        if lanes == 1:
            return a
        return self.function.value(f"extractelement {type_of(width, lanes)} {a}, i32 {index}")

    def gather(self, parts: Sequence[Raw], width: int) -> Raw:
        t = type_of(width, len(parts))
        result = "undef"
        for i, part in enumerate(parts):
            result = self.function.value(f"insertelement {t} {result}, i{width} {part}, i32 {i}")
        return result

    def shuffle(self, a: Raw, b: Raw, indexes: Sequence[int], width: int, lanes: int) -> Raw:
        t, which = type_of(width, lanes), literal(indexes, 32, len(indexes))
        return self.function.value(f"shufflevector {t} {a}, {t} {b}, <{len(indexes)} x i32> {which}")

    def permute(self, a: Raw, control: Raw) -> Raw:
        t = type_of(8, 16)
        return self.function.value(f'call {t} asm "pshufb $2, $0", "=x,0,x"({t} {a}, {t} {control})')

    def shift_all(self, op: str, a: Raw, count: Raw, width: int, lanes: int) -> Raw:
        # Not LLVM's own shift: with a count a lane, it may go through floating point and raise flags in MXCSR.
        f, t = self.function, type_of(width, lanes)
        name = f"@llvm.x86.sse2.{_SHIFT[op]}.{_LETTER[width]}"
        f.declare(f"declare {t} {name}({t}, {t})")
        pair = f.value(f"insertelement <2 x i64> zeroinitializer, i64 {count}, i32 0")
        by = pair if width == 64 else f.value(f"bitcast <2 x i64> {pair} to {t}")
        return f.value(f"call {t} {name}({t} {a}, {t} {by})")

    def wrap(self, width: int, text: str, lanes: int = 1) -> Bits:
        """A new value from instruction text."""
        return Bits(self, width, self.function.value(text), lanes)

    def phi(self, width: int, lanes: int, incoming: Sequence[tuple[Bits, str]]) -> Bits:
        """The value that depends on the block control came from."""
        arms = ", ".join(f"[ {self.lift(v)}, %{label} ]" for v, label in incoming)
        return self.wrap(width, f"phi {type_of(width, lanes)} {arms}", lanes)
