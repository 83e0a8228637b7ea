"""Compiling Python: a function marked `@staged` is ordinary Python for known values, and LLVM IR for values known
later.

While a function is being compiled, every call of a `@staged` function is executed by the interpreter in `compiler.py`
over its syntax tree: statements on known values run as Python does (so `if size == 8` chooses now, `for i in range(4)`
unrolls), and `if`, `while`, `and`, `or`, `not`, conditional expressions, `return` and `raise` on later values become
branches and phis. Everything else (operators, attributes, calls of other functions) is simply executed, and `Bits`
emits the instructions.

    @staged  inlined where it is called
    @native  compiled once per combination of static arguments, and called; its parameters and result are annotated
             with U1 ... U128 (guest values), anything else is static and becomes part of the symbol

What compiled code can do is what this subset can say: no dynamic `for`, no `try`, no mutation of Python objects in one
arm of a dynamic branch that the other arm should see (locals are merged; objects are not).

A `raise` of an `Unwind` in compiled code restores the stack of the innermost `attempt` (see `xuni.engine.soft.glue`).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from xuni.isa.bits import Bits
from xuni.isa.llvm import type_of

if TYPE_CHECKING:
    from xuni.isa.compiler import Stage

P = ParamSpec("P")
R = TypeVar("R")

ACTIVE: list[Stage] = []
"""Compilations in progress, the innermost one last."""


class StageError(Exception):
    """Code that cannot be compiled; the notes say where."""


class Unwind(Exception):
    """Leaves everything up to the innermost `attempt`. `code` (1..255) is what `attempt` returns."""

    code = 0


class Unreachable(Exception):
    """The rest of the statement cannot be reached: what it called always unwinds."""


class Hinted(Bits):
    """A condition whose likely value is known."""

    __slots__ = ("likely",)
    likely: bool


def _hint(condition: Bits, likely: bool) -> Bits:
    if condition.known:
        return condition
    hinted = Hinted(condition.backend, 1, condition.raw)
    hinted.likely = likely
    return hinted


def likely(condition: Bits) -> Bits:
    """The condition is nearly always 1: the code for 0 is moved out of the way."""
    return _hint(condition, True)


def unlikely(condition: Bits) -> Bits:
    """The condition is nearly always 0."""
    return _hint(condition, False)


def staging() -> Stage | None:
    """The compilation in progress, if any."""
    return ACTIVE[-1] if ACTIVE else None


def staged(function: Callable[P, R]) -> Callable[P, R]:
    """Inline in compiled code; plain Python otherwise."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not ACTIVE:
            return function(*args, **kwargs)
        return cast(R, ACTIVE[-1].inline(function, args, kwargs))

    return call


@dataclass(frozen=True)
class Native:
    """A `@native` function with its static arguments: one symbol of compiled code."""

    symbol: str
    function: Callable[..., Any]
    static: tuple[tuple[str, Any], ...]


def native(function: Callable[P, R]) -> Callable[P, R]:
    """An out-of-line function of compiled code; plain Python otherwise. The first parameter is the CPU."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not ACTIVE:
            cpu: Any = args[0]
            return function(cpu.outside, *args[1:], **kwargs)  # type: ignore[arg-type]
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return cast(R, ACTIVE[-1].call_native(function, bound.arguments))

    call.__native__ = function  # type: ignore[attr-defined]
    return call


def pure(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a native function that neither raises nor touches the state: handlers call it without saving anything."""
    function.__native__.__pure__ = True  # type: ignore[attr-defined]
    return function


_WIDTHS = re.compile(r"^U(\d+)$")


def annotated_width(annotation: Any) -> int | None:
    """The width that an annotation `U32` names, or None."""
    found = _WIDTHS.match(annotation) if isinstance(annotation, str) else None
    return int(found.group(1)) if found else None


def result_widths(function: Callable[..., Any]) -> list[int]:
    """The widths of a native function's results: [] for None, several for a tuple."""
    text = str(function.__annotations__.get("return", "None")).removeprefix("tuple[").removesuffix("]")
    if text in ("None", "NoReturn"):
        return []
    widths = [annotated_width(part.strip()) for part in text.split(",")]
    if None in widths:
        rule = "a native function returns U1 ... U128 or a tuple of them"
        raise StageError(f"{function.__qualname__}: {rule}, not {text}")
    return [w for w in widths if w is not None]


def result_type(widths: Sequence[int]) -> str:
    if not widths:
        return "void"
    return type_of(widths[0]) if len(widths) == 1 else "{ " + ", ".join(type_of(w) for w in widths) + " }"


def native_instance(function: Callable[..., Any], static: tuple[tuple[str, Any], ...] = ()) -> Native:
    """The symbol for a native function and its static arguments."""
    parts = [re.sub(r"\W+", "_", str(value.name if hasattr(value, "name") else value)) for _, value in static]
    return Native("__".join([function.__name__, *parts]), function, static)
