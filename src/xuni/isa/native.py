"""Native functions of compiled code: one LLVM function for each combination of static arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xuni.isa.bits import Bits, const
from xuni.isa.compiler import Stage, signature_of
from xuni.isa.llvm import Function, type_of
from xuni.isa.stage import Native, StageError, Unreachable, annotated_width, result_type, result_widths


def compile_native(instance: Native, make_cpu: Callable[[Stage], Any],
                   on_native: Callable[[Native], None]) -> tuple[str, set[str]]:
    """The LLVM text of a native function, and the declarations that it needs."""
    function = instance.function
    static = dict(instance.static)
    names = list(signature_of(function).parameters)
    widths = result_widths(function)
    parameters = ["ptr %s"]
    values: dict[str, tuple[str, int]] = {}
    for name in names[1:]:
        if name in static:
            continue
        width = annotated_width(function.__annotations__.get(name))
        if width is None:
            raise StageError(f"{function.__qualname__}: parameter {name} needs an annotation such as U64")
        parameters.append(f"{type_of(width)} %p_{name}")
        values[name] = (f"%p_{name}", width)
    signature = f"dso_local {result_type(widths)} @{instance.symbol}({', '.join(parameters)}) nounwind"
    out = Function(instance.symbol, signature)
    stage = Stage(out, on_native=on_native)
    stage.cpu = make_cpu(stage)
    arguments = {n: Bits(stage.llvm, w, raw) for n, (raw, w) in values.items()}
    with stage.active():
        result = None
        try:
            result = stage.inline(function, [stage.cpu], {**static, **arguments})
        except Unreachable:
            pass
        except Exception as error:
            error.add_note(f"in native function {instance.symbol}")
            raise
    if out.live:
        if not widths:
            out.end("ret void")
        elif len(widths) == 1:
            out.end(f"ret {type_of(widths[0])} {_lift(stage, result, widths[0], instance)}")
        else:
            assert isinstance(result, tuple), f"{instance.symbol} has {len(widths)} results"
            whole = "undef"
            for i, (part, width) in enumerate(zip(result, widths, strict=True)):
                text = f"{type_of(width)} {_lift(stage, part, width, instance)}"
                whole = out.value(f"insertvalue {result_type(widths)} {whole}, {text}, {i}")
            out.end(f"ret {result_type(widths)} {whole}")
    return out.text(), out.declarations


def _lift(stage: Stage, value: Any, width: int, instance: Native) -> str:
    if isinstance(value, int):
        value = const(value, width)
    if not isinstance(value, Bits) or value.width != width:
        raise StageError(f"{instance.symbol} returns {value!r}, its annotation says U{width}")
    return str(stage.llvm.lift(value))
