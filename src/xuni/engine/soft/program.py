"""From instruction definitions to what the engine loads: handlers, natives, decoder tables.

`Program` enumerates; workers (build.py) generate text and compile it. Handler numbers: SPECIALS first, then per
encoding.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import xuni.isa.x86
from xuni.engine.soft.decode import CONDITIONS, PrefixClass
from xuni.engine.soft.handlers import Handler, Shape, digest, emit
from xuni.engine.soft.records import FORMS, OSIZES, VARIANTS, Form, Fpu, Imm, LeafFlag, ModRm, Node, OsizeRule, RegKind
from xuni.isa.stage import Native
from xuni.isa.x86.encodings import MAP_COUNT, Choice, Encoding, all_encodings, decide
from xuni.isa.x86.instruction import DEFINITIONS

_IMM: Final = {"Ib": Imm.BYTE, "Ibs": Imm.SBYTE, "Ibu": Imm.BYTE, "Iw": Imm.WORD, "Iwb": Imm.WORD_BYTE, "Iz": Imm.Z,
               "Iv": Imm.V,
               "Ap": Imm.FAR, "Jb": Imm.REL8, "Jz": Imm.RELZ, "Ob": Imm.MOFFS, "Ov": Imm.MOFFS}  # fmt: skip
_SIZED: Final = frozenset({"v", "y", "z", "", "s", "p"})


def load_families() -> None:
    """Import every file of isa/x86, so that DEFINITIONS is complete."""
    for module in sorted(m.name for m in pkgutil.iter_modules(xuni.isa.x86.__path__)):
        importlib.import_module(f"xuni.isa.x86.{module}")


def has_memory(encoding: Encoding) -> bool:
    return any(c[0] in "EMWQ" for c in encoding.operands if c not in ("1",))


def depends_on_osize(encoding: Encoding) -> bool:
    for code in encoding.operands:
        if code in ("rAX", "Iz", "Ibs", "Ap", "Jb", "Jz", "Iv"):
            return True
        if code[0] in "EMGZBRXYO" and code[1:] in _SIZED and code not in ("AL", "AX", "EAX"):
            return True
    return False


@dataclass(slots=True)
class LeafPlan:
    """One leaf of the decoder's tree, and its handlers by position."""

    encoding: Encoding
    flags: int = 0
    imm: int = 0
    reg_kind: int = 0
    rm_kind: int = 0
    osize: int = 0
    fpu: int = 0
    rep: int = 0
    condition: int = 0
    names: list[str] = field(default_factory=list)  # handler names, "" invalid; see decode.decode for the order
    feature: str = ""

    def packed(self) -> tuple[Any, ...]:
        """What `tables.assemble` takes."""
        return (self.flags, self.imm, self.reg_kind, self.rm_kind, self.osize, self.fpu, self.rep, self.condition,
                self.names, self.feature)  # fmt: skip


def conditions(leaf: LeafPlan) -> int:
    """How many variants by the producer of flags there are of each handler."""
    return CONDITIONS if leaf.flags & LeafFlag.CONDITION else 1


def positions(leaf: LeafPlan) -> int:
    """The length of a leaf's list of handlers."""
    return 2 * VARIANTS * OSIZES * FORMS * conditions(leaf)


def plan_leaf(encoding: Encoding) -> LeafPlan:
    """What the decoder must know of an encoding (its handlers come later)."""
    d = encoding.definition
    leaf = LeafPlan(encoding, feature=d.feature)
    flags = 0
    if d.ends or d.name in ("JMP", "CALL", "RET"):
        flags |= LeafFlag.ENDS
    if d.condition:
        flags |= LeafFlag.CONDITION
    if d.lock and encoding.operands[0][0] in "EM":
        flags |= LeafFlag.LOCK
    if encoding.opcode_register:
        flags |= LeafFlag.OPCODE_REGISTER
    if any(c[0] == "J" for c in encoding.operands):
        flags |= LeafFlag.BRANCH
    if flags & LeafFlag.BRANCH and d.condition:
        flags |= LeafFlag.JCC
        leaf.condition = encoding.opcode & 15
    if d.name == "LEA":
        flags |= LeafFlag.NO_SEGMENT
    codes = encoding.operands
    imms = [_IMM[c] for c in codes if c in _IMM]
    if imms:
        leaf.imm = int(imms[0])
        if len(imms) > 1:
            leaf.imm = int(Imm.WORD)  # two immediate bytes
    for code in codes:
        if code in ("AL", "CL", "AX", "DX", "EAX", "rAX", "1", "ST0"):
            continue
        if code == "STi":  # as MMX registers: REX.B does not count
            leaf.rm_kind = int(RegKind.MMX)
            continue
        kind = RegKind.GPR
        if code[0] in "VWU":
            kind = RegKind.XMM
        elif code[0] in "PQN":
            kind = RegKind.MMX
        elif code[0] in "SCD":
            kind = RegKind.RAW
        elif code[0] in "EGZRM" and code[1:] == "b":
            kind = RegKind.BYTE
        if code[0] in "GVPSCD":
            leaf.reg_kind = int(kind)
        elif code[0] in "EWQRUNMZ":
            leaf.rm_kind = int(kind)
    leaf.osize = int({"": OsizeRule.DEFAULT, "d64": OsizeRule.D64, "f64": OsizeRule.F64}[encoding.osize])
    if (encoding.prefix == 1 and encoding.map != 0) or encoding.vex:
        leaf.osize = int(OsizeRule.NO66)
    leaf.fpu = int({"": Fpu.NONE, "x87": Fpu.X87, "mmx": Fpu.MMX, "sse": Fpu.SSE, "wait": Fpu.WAIT}[d.fpu])
    leaf.rep = {"": 0, "rep": 1, "repe": 2}[d.rep]
    leaf.flags = int(flags)
    return leaf


def shapes(leaf: LeafPlan, by_asize: bool) -> Iterator[tuple[int, Shape]]:
    """All shapes an encoding can be decoded to, with their position in the leaf's list."""
    e = leaf.encoding
    memory = has_memory(e)
    producers = conditions(leaf)
    for long in (False, True):
        if e.long is not None and bool(e.long) != long:
            continue
        for variant in range(VARIANTS):
            if variant == 2 and leaf.rep != 2:
                continue
            if variant == 1 and not (leaf.rep or leaf.flags & LeafFlag.LOCK):
                continue
            for osize in range(OSIZES):
                if osize == 2 and not long:
                    continue
                if leaf.osize == OsizeRule.NO66 and osize == 0:
                    continue
                if long and leaf.osize != OsizeRule.DEFAULT and leaf.osize != OsizeRule.NO66 and osize == 1:
                    continue
                if e.rexw == 1 and osize != 2 or e.rexw == 0 and osize == 2:
                    continue
                for form in _forms(leaf, memory, long, variant, by_asize):
                    for producer in range(producers):
                        position = (((int(long) * VARIANTS + variant) * OSIZES + osize) * FORMS + form) * producers
                        yield position + producer, Shape(long, variant, osize, form, producer)


def _forms(leaf: LeafPlan, memory: bool, long: bool, variant: int, by_asize: bool) -> Iterator[int]:
    if leaf.flags & LeafFlag.BRANCH:
        yield from (0, 1)
        return
    if memory:
        e = leaf.encoding
        if e.memory is not True and not (variant == 1 and leaf.flags & LeafFlag.LOCK):
            yield int(Form.REGISTER)
        if e.memory is not False:
            yield int(Form.GENERAL)
            if long:
                yield from (int(Form.BASE), int(Form.INDEXED))
        return
    if by_asize:
        yield from ((1, 2) if long else (0, 1))
        return
    yield 0


@dataclass(slots=True)
class Generated:
    """The handlers of a run of encodings."""

    leaves: list[LeafPlan]
    handlers: dict[str, Handler]
    natives: dict[str, Native]
    fusions: dict[str, list[str]]


FUSED_CONDITIONS: Final = (2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15)


def generate(first: int, encodings: list[Encoding], fuse: bool = True) -> Generated:
    """Generate the handlers of some encodings; names begin with the encoding's number (`first` upward)."""
    out = Generated([], {}, {}, {})
    jcc = {d.encodings[0]: d for d in DEFINITIONS if d.condition and d.name.startswith("J")}
    jccs = {int(text.split()[0], 16) & 15: d for text, d in jcc.items()}

    def on_native(native: Native) -> None:
        out.natives[native.symbol] = native

    for number, encoding in enumerate(encodings, first):
        leaf = plan_leaf(encoding)
        by_digest: dict[str, str] = {}
        known: list[tuple[frozenset[str], Shape, str]] = []
        by_asize = False
        if not has_memory(encoding) and not leaf.flags & LeafFlag.BRANCH:
            by_asize = _uses_asize(encoding, on_native)
            if by_asize:
                leaf.flags |= LeafFlag.FORM_IS_ASIZE
        leaf.names = [""] * positions(leaf)
        for position, shape in shapes(leaf, by_asize):
            name = _reuse(known, shape)
            if name is None:
                name = _handler(number, encoding, shape, position, out, by_digest, known, on_native)
            leaf.names[position] = name
            if fuse and name not in out.fusions and _fusable(encoding, shape, out.handlers[name]):
                out.fusions[name] = _fuse(out.handlers[name], shape, jccs, out, on_native)
        out.leaves.append(leaf)
    return out


def _uses_asize(encoding: Encoding, on_native: Any) -> bool:
    shape = Shape(encoding.long != 0, 0, 2 if encoding.rexw == 1 else 1, 1, 0)
    probe = Handler("probe", encoding.definition, encoding, shape, False)
    cpu = emit(probe, lambda native: None)
    return "asize" in cpu.accessed


def _reuse(known: list[tuple[frozenset[str], Shape, str]], shape: Shape) -> str | None:
    for matters, other, name in known:
        if all(getattr(other, dim) == getattr(shape, dim) for dim in matters):
            return name
    return None


def _handler(number: int, encoding: Encoding, shape: Shape, position: int, out: Generated, by_digest: dict[str, str],
             known: list[tuple[frozenset[str], Shape, str]], on_native: Any) -> str:
    name = f"h{number}_{position}"
    handler = Handler(name, encoding.definition, encoding, shape, False)
    cpu = emit(handler, on_native)
    if cpu.inline:  # it reaches memory inline: it needs a twin that does not
        if shape.form != Form.REGISTER and has_memory(encoding):
            twin_shape = Shape(shape.long, shape.variant, shape.osize, int(Form.GENERAL), shape.producer)
            twin = _reuse(known, twin_shape)
            if twin is None:
                twin = _handler(number, encoding, twin_shape, position + 100000, out, by_digest, known, on_native)
        else:
            slow = Handler(name + "s", encoding.definition, encoding, shape, True)
            emit(slow, on_native)
            out.handlers[slow.name] = slow
            twin = slow.name
        handler.twin = twin
    key = digest(handler)
    if key in by_digest:
        name = by_digest[key]
    else:
        by_digest[key] = name
        out.handlers[name] = handler
    matters = {"variant", "form", "producer"}
    if "long" in cpu.accessed:
        matters.add("long")
    if "osize" in cpu.accessed or depends_on_osize(encoding):
        matters.add("osize")
    branches = encoding.operands and encoding.operands[0][0] == "J"
    if not has_memory(encoding) and "asize" not in cpu.accessed and encoding.operands and not branches:
        matters.discard("form")
    known.append((frozenset(matters), shape, name))
    return name


def _fusable(encoding: Encoding, shape: Shape, handler: Handler) -> bool:
    if encoding.definition.name not in ("CMP", "TEST") or not shape.long or shape.osize == 0:
        return False
    if shape.form in (Form.GENERAL, Form.INDEXED) and has_memory(encoding):
        return False
    return handler.effect in (1, 2, 4, 5)


def _fuse(handler: Handler, shape: Shape, jccs: dict[int, Any], out: Generated, on_native: Any) -> list[str]:
    names = [""] * 16
    for cc in FUSED_CONDITIONS:
        fused = Handler(f"{handler.name}_j{cc}", handler.definition, handler.encoding, shape, False)
        fused.twin = handler.twin
        second = Handler("", jccs[cc], None, None, False)
        emit(fused, on_native, second)
        out.handlers[fused.name] = fused
        names[cc] = fused.name
    return names


# -- the decoder's tables ----------------------------------------------------------------------------------------------
def prefix_classes() -> bytes:
    """PrefixClass of each byte."""
    table = bytearray(256)
    for byte, kind in {0x66: PrefixClass.OPERAND, 0x67: PrefixClass.ADDRESS, 0xF0: PrefixClass.LOCK,
                       0xF2: PrefixClass.REPNE, 0xF3: PrefixClass.REP}.items():
        table[byte] = kind
    for number, byte in enumerate((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)):
        table[byte] = PrefixClass.SEGMENT + number
    for byte in range(0x40, 0x50):
        table[byte] = PrefixClass.REX
    return bytes(table)


NODE_OF: Final = {"long": Node.LONG, "prefix": Node.PREFIX, "vexl": Node.VEXL, "memory": Node.MOD, "reg": Node.REG,
                  "rm": Node.RM, "rexw": Node.REXW}  # fmt: skip


def build_nodes(encodings: list[Encoding], leaf_of: dict[int, int]) -> tuple[list[int], bytes]:
    """The decision tree as one array (first the roots of all maps), and which opcodes have a ModRM byte.

    `leaf_of` gives the leaf number of an encoding by its id().
    """
    by_opcode: dict[tuple[int, int], list[Encoding]] = {}
    for encoding in encodings:
        by_opcode.setdefault((encoding.map, encoding.opcode), []).append(encoding)
    nodes = [0] * ((MAP_COUNT + 1) * 256)
    modrm = bytearray((MAP_COUNT + 1) * 256)

    def place(tree: Choice | Encoding | None) -> int:
        if tree is None:
            return 0
        if isinstance(tree, Encoding):
            return leaf_of[id(tree)]
        base = len(nodes)
        nodes.extend([0] * len(tree.children))
        for i, child in enumerate(tree.children):
            # Node.MOD counts (mod != 3), which is `memory`.
            nodes[base + i] = place(child)
        return int(NODE_OF[tree.dimension]) << 24 | base

    for (which, opcode), candidates in by_opcode.items():
        nodes[which << 8 | opcode] = place(decide(candidates))
        modrm[which << 8 | opcode] = has_modrm(candidates)
    return nodes, bytes(modrm)


def has_modrm(candidates: list[Encoding]) -> ModRm:
    """Whether the opcode of these encodings has a ModRM byte. MOV to and from control and debug registers ignores
    mod.
    """
    if any(code in ("Cy", "Dy") for e in candidates for code in e.operands):
        return ModRm.REGISTERS
    return ModRm.YES if any(e.modrm for e in candidates) else ModRm.NO


def everything() -> list[Encoding]:
    """All encodings, in a fixed order."""
    load_families()
    return all_encodings()
