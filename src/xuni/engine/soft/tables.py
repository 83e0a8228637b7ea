"""The decoder's tables as bytes: nodes, leaves, handler numbers, effects, fusions."""

from __future__ import annotations

import struct
from array import array
from typing import Any

from xuni.engine.soft import program
from xuni.engine.soft.decode import CONDITIONS
from xuni.engine.soft.handlers import SPECIALS
from xuni.engine.soft.records import FORMS, Effect, Leaf, LeafFlag
from xuni.isa.x86.encodings import Encoding

SHARED = ("stale", "close_linked", "close_far", "too_long")


def _linked(plan: Any) -> set[str]:
    """The handlers of a leaf that go through a link to their target."""
    flags, names = plan[0], plan[8]
    if not flags & LeafFlag.BRANCH:
        return set()
    producers = CONDITIONS if flags & LeafFlag.CONDITION else 1
    return {name for position, name in enumerate(names) if name and position // producers % FORMS == 0}


def assemble(encodings: list[Encoding], parts: list[Any], symbols: dict[str, int] | None) -> dict[str, Any]:
    """Everything that decoding needs, from what the workers generated (in the order of the encodings).

    `symbols` are the offsets of compiled handlers, if they are compiled.
    """
    numbers: dict[str, int] = {}
    names: list[str] = []
    for i, special in enumerate(SPECIALS):
        name = special.__name__ if SPECIALS.index(special) == i else f"{special.__name__}_{i}"
        numbers.setdefault(name, i)
        names.append(name)
    effects = bytearray([Effect.UNKNOWN] * len(names))
    updates: dict[str, tuple[bool, ...]] = {}
    for _, meta, _, _ in parts:
        for name, (effect, update) in meta.items():
            numbers[name] = len(names)
            names.append(name)
            effects.append(effect)
            updates[name] = update
    plans = [plan for leaves, _, _, _ in parts for plan in leaves]
    assert len(plans) == len(encodings)
    indexes = array("I", [0] * 16)
    leaves = bytearray()

    def add_leaf(flags: int, rest: tuple[int, ...], handlers: list[str]) -> None:
        """`rest` are the bytes of a `Leaf` behind its flags."""
        packed = struct.pack("<IH8B", len(indexes), flags, *rest, 0)
        indexes.extend(numbers[n] if n else 0 for n in handlers)
        leaves.extend(packed.ljust(Leaf.SIZE, b"\0"))

    add_leaf(int(LeafFlag.ENDS), (0,) * 7, [""] * 72)  # leaf 0: no such instruction
    nop = next(i for i, e in enumerate(encodings) if e.definition.name == "NOP")
    order = [nop, *range(len(encodings))]  # leaf 1: NOP, for 90
    for i in order:
        flags, *rest, handlers, _ = plans[i]
        if i == nop and len(leaves) == Leaf.SIZE:
            first = next(n for n in handlers if n)
            add_leaf(0, (0,) * 7, [first] * 72)
            continue
        add_leaf(flags, tuple(rest), handlers)
    leaf_of = {id(e): i + 2 for i, e in enumerate(encodings)}
    nodes, modrm = program.build_nodes(encodings, leaf_of)
    fusions = array("I", [0] * len(names))
    for _, _, _, fused in parts:
        for name, sixteen in fused.items():
            fusions[numbers[name]] = len(indexes)
            indexes.extend(numbers[n] if n else 0 for n in sixteen)
    return {
        "nodes": array("I", nodes).tobytes(),
        "modrm": modrm,
        "leaves": bytes(leaves),
        "indexes": indexes.tobytes(),
        "effects": bytes(effects),
        "fusions": fusions.tobytes(),
        "prefixes": program.prefix_classes(),
        "handlers": array("Q", [symbols[n] for n in names] if symbols else []).tobytes(),
        "names": names,
        "features": ["base", "base", *(plan[9] for plan in plans)],
        "updates": updates,
        "linked": sorted({"close_linked", *(name for plan in plans for name in _linked(plan))}),
    }
