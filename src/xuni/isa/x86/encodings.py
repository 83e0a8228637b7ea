"""Encodings as data: the notation of `instruction.py`, parsed, and arranged as the decision tree that decoders walk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xuni.isa.x86.instruction import DEFINITIONS, Definition

PREFIX: Final = {"NP": 0, "66": 1, "F3": 2, "F2": 3}
MAPS: Final = {(): 0, (0x0F,): 1, (0x0F, 0x38): 2, (0x0F, 0x3A): 3}
VEX_MAPS: Final = {"0F": 4, "0F38": 5, "0F3A": 6}
MAP_COUNT: Final = 7

_MEMORY_ONLY: Final = re.compile(r"^M([bwdqvyzps]|dq|t|x|b128)?$|^Mdq$|^Mx?$")
_REGISTER_ONLY: Final = re.compile(r"^[RUN][a-z]*$")
_RM: Final = re.compile(r"^[EMRWUQN]([a-z0-9]*)$")
_REG: Final = re.compile(r"^[GVPSCD][a-z0-9]*$")


@dataclass(frozen=True, slots=True)
class Encoding:
    """One line of the notation. Constraints that are None do not matter."""

    definition: Definition
    text: str
    map: int
    opcode: int
    modrm: bool
    operands: tuple[str, ...]
    prefix: int | None = None  # 0 none, 1 66, 2 F3, 3 F2
    reg: int | None = None
    rm: int | None = None
    memory: bool | None = None
    rexw: int | None = None
    vexl: int | None = None
    long: int | None = None
    osize: str = ""  # "", "d64", "f64"
    opcode_register: bool = field(default=False)

    @property
    def vex(self) -> bool:
        return self.map >= 4


def parse(definition: Definition, text: str) -> Iterator[Encoding]:
    """All encodings that a line stands for (`40+r` is eight).

    Raises:
        ValueError: the line does not follow the notation.
    """
    words = text.split()
    prefix = rexw = vexl = long = reg = rm = None
    memory: bool | None = None
    osize, modrm, plus, vex_map = "", False, "", None
    opcode: list[int] = []
    operands: list[str] = []
    for word in words:
        if word.startswith("VEX."):
            for part in word.split(".")[1:]:
                if part in PREFIX:
                    prefix = PREFIX[part]
                elif part in VEX_MAPS:
                    vex_map = VEX_MAPS[part]
                elif part in ("L0", "LZ", "L1", "128", "256"):
                    vexl = int(part in ("L1", "256"))
                elif part in ("W0", "W1"):
                    rexw = int(part[1])
                elif part not in ("LIG", "WIG", "NDS", "NDD", "DDS"):
                    raise ValueError(f"{definition.name}: unknown VEX field {part} in {text!r}")
        elif word == "REX.W":
            rexw = 1
        elif word == "REX.W0":
            rexw = 0
        elif word in PREFIX and not opcode and prefix is None and vex_map is None:
            prefix = PREFIX[word]
        elif word in ("i64", "o64"):
            long = int(word == "o64")
        elif word in ("d64", "f64"):
            osize = word
        elif re.fullmatch(r"/[0-7]", word):
            modrm, reg = True, int(word[1])
        elif word == "/r":
            modrm = True
        elif (found := re.fullmatch(r"([0-9A-F]{2})\+([ri])", word)) and not operands:
            opcode.append(int(found.group(1), 16))
            plus = found.group(2)
        elif re.fullmatch(r"[0-9A-F]{2}", word) and not operands and not modrm:
            opcode.append(int(word, 16))
        elif word in ("ib", "iw", "id", "iz", "io", "cb", "cw", "cd"):
            continue  # as in the SDM; the operand codes say the same
        else:
            operands.append(word)
    if vex_map is not None:
        which = vex_map
    else:
        key: tuple[int, ...] = ()
        while tuple(opcode[: len(key) + 1]) in MAPS and len(opcode) > len(key) + 1:
            key = tuple(opcode[: len(key) + 1])
        which = MAPS[key]
        opcode = opcode[len(key) :]
    if not opcode or len(opcode) > 2:
        raise ValueError(f"{definition.name}: no opcode, or too many opcode bytes, in {text!r}")
    for code in operands:
        if _RM.match(code) and code not in ("M",) or code == "M":
            modrm = True
        if _REG.match(code):
            modrm = True
        if _MEMORY_ONLY.match(code):
            memory = True
        elif _REGISTER_ONLY.match(code):
            memory = False
    if any(c in ("STi",) for c in operands):
        modrm = True
    base = Encoding(definition, text, which, opcode[0], modrm, tuple(operands), prefix, reg, rm, memory, rexw, vexl,
                    long, osize)
    if len(opcode) == 2:  # a fixed ModRM byte
        byte = opcode[1]
        if byte < 0xC0:
            raise ValueError(f"{definition.name}: a fixed ModRM byte is C0 or more in {text!r}")
        fixed = {"modrm": True, "memory": False, "reg": byte >> 3 & 7, "rm": None if plus else byte & 7}
        yield _with(base, **fixed)
        return
    if plus:
        for n in range(8):
            yield _with(base, opcode=opcode[0] + n, opcode_register=True)
        return
    yield base


def _with(encoding: Encoding, **changes: object) -> Encoding:
    values = {name: getattr(encoding, name) for name in Encoding.__dataclass_fields__}
    return Encoding(**{**values, **changes})


def all_encodings() -> list[Encoding]:
    """Every encoding of every instruction that has been imported, in an order that does not depend on that of imports."""
    definitions = sorted(DEFINITIONS, key=lambda d: d.run.__module__)
    return [e for d in definitions for text in d.encodings for e in parse(d, text)]


# The dimensions of a decision, in the order in which they are decided: attribute, and the number of values.
DIMENSIONS: Final = (("long", 2), ("prefix", 4), ("vexl", 2), ("memory", 2), ("reg", 8), ("rm", 8), ("rexw", 2))


@dataclass(slots=True)
class Choice:
    """An inner node: the dimension that decides, and one subtree a value."""

    dimension: str
    children: list[Choice | Encoding | None]


def decide(candidates: list[Encoding], depth: int = 0) -> Choice | Encoding | None:
    """The tree that finds the one encoding among candidates of the same map and opcode.

    A value of a dimension that no candidate asks for goes to those that do not care. Mandatory prefixes: an encoding
    without one answers for every prefix that no other encoding of the opcode claims.
    """
    if not candidates:
        return None
    for at in range(depth, len(DIMENSIONS)):
        name, count = DIMENSIONS[at]
        asked = {getattr(c, name) for c in candidates} - {None}
        if not asked:
            continue
        children: list[Choice | Encoding | None] = []
        for value in range(count):
            exact = [c for c in candidates if getattr(c, name) is not None and int(getattr(c, name)) == value]
            free = [c for c in candidates if getattr(c, name) is None]
            if name == "prefix" and exact:
                # Others of the same opcode that differ in a later dimension stay possible.
                free = [c for c in free if not any(_overlap(c, e) for e in exact)]
            children.append(decide(exact + free, at + 1))
        return Choice(name, children)
    if len(candidates) > 1:
        specific = max(candidates, key=_specificity)
        if sum(_specificity(c) == _specificity(specific) for c in candidates) > 1:
            lines = "; ".join(f"{c.definition.name} {c.text!r}" for c in candidates)
            raise ValueError(f"encodings that no rule tells apart: {lines}")
        return specific
    return candidates[0]


def _specificity(encoding: Encoding) -> int:
    return sum(getattr(encoding, name) is not None for name, _ in DIMENSIONS)


def _overlap(a: Encoding, b: Encoding) -> bool:
    for name in ("reg", "rm", "memory", "long", "rexw", "vexl"):
        x, y = getattr(a, name), getattr(b, name)
        if x is not None and y is not None and x != y:
            return False
    return True
