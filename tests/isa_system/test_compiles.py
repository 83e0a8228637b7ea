"""Every definition and native function of the system instructions compiles to LLVM IR that the verifier accepts."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from xuni.isa.compiler import Stage
from xuni.isa.llvm import Function
from xuni.isa.native import compile_native
from xuni.isa.stage import Native, Unreachable, annotated_width, native_instance
from xuni.isa.x86.encodings import Encoding, parse
from xuni.isa.x86.instruction import DEFINITIONS

from .machine import StagedCpu, StagedOperand

MODULES = [
    "paging", "segment", "frames", "interrupt", "task", "control", "transfer", "iret", "syscall", "selector", "msr",
    "system", "io", "cpuid", "debug", "hypercall",
]  # fmt: skip
PROFILES = '!0 = !{!"branch_weights", i32 2000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 2000}\n'
VERIFY = "import sys, llvmlite.binding as l; m = l.parse_assembly(sys.stdin.read()); m.verify(); print('fine')"
WIDTHS = {"b": 8, "w": 16, "d": 32, "q": 64, "dq": 128, "p": 0, "s": 0, "": 0}


def width_of(code: str, osize: int) -> int:
    if code in ("AL", "CL", "1"):
        return 8
    if code in ("DX", "AX"):
        return 16
    if code == "rAX":
        return osize
    if code == "Ap":
        return osize
    if code[0] in "SCD":
        return 8
    size = code[1:]
    if size == "v":
        return osize
    if size == "y":
        return max(osize, 32)
    if size == "z":
        return min(osize, 32)
    return WIDTHS[size] or 64


def verify(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", VERIFY], input=text, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr[-2000:]


class Compiler:
    """Collects compiled functions and all that they call."""

    def __init__(self) -> None:
        self.seen: dict[str, Native] = {}
        self.waiting: list[Native] = []
        self.texts: list[str] = []
        self.declarations: set[str] = set()

    def need(self, native: Native) -> None:
        if native.symbol not in self.seen:
            self.seen[native.symbol] = native
            self.waiting.append(native)

    def define(self, encoding: Encoding, osize: int, long: bool, rep: str, number: int) -> None:
        name = f"handler{number}"
        out = Function(name, f"dso_local void @{name}(ptr %s) nounwind")
        stage = Stage(out, on_native=self.need)
        cpu = StagedCpu(stage)
        cpu.osize, cpu.long, cpu.rep, cpu.asize = osize, long, rep, 64 if long else 32
        stage.cpu = cpu
        operands = []
        for code in encoding.operands:
            operand = StagedOperand(cpu, code, width_of(code, osize), encoding.memory is not False)
            if code == "Mdq":
                operand.width, operand.lanes = 64, 2
            operands.append(operand)
        with stage.active():
            with suppress(Unreachable):
                encoding.definition.run(cpu, *operands)
        if out.live:
            out.end("ret void")
        self.texts.append(out.text())
        self.declarations |= out.declarations

    def finish(self) -> str:
        while self.waiting:
            text, declarations = compile_native(self.waiting.pop(), StagedCpu, self.need)
            self.texts.append(text)
            self.declarations |= declarations
        named = {m.group(1): d for d in self.declarations if (m := re.search(r"@([\w.]+)\(", d))}
        outside = [d for name, d in named.items() if name not in self.seen]
        return "\n".join([*outside, *self.texts, PROFILES])


def definitions(module: str) -> Iterator[tuple[Encoding, int, bool, str]]:
    importlib.import_module(f"xuni.isa.x86.{module}")
    for definition in DEFINITIONS:
        if inspect.unwrap(definition.run).__module__ != f"xuni.isa.x86.{module}":
            continue
        for text in definition.encodings:
            for encoding in parse(definition, text):
                for osize, long in ((16, False), (32, False), (16, True), (32, True), (64, True)):
                    if encoding.long is None or encoding.long == long:
                        for rep in ("", "rep") if definition.rep else ("",):
                            yield encoding, osize, long, rep


@pytest.mark.parametrize("module", MODULES)
def test_compiles(module: str) -> None:
    compiler = Compiler()
    loaded = importlib.import_module(f"xuni.isa.x86.{module}")
    for value in vars(loaded).values():
        function = getattr(value, "__native__", None)
        if function is not None:
            names = list(inspect.signature(function).parameters)[1:]
            if all(annotated_width(function.__annotations__.get(name)) for name in names):
                compiler.need(native_instance(function))
    for number, case in enumerate(definitions(module)):
        compiler.define(*case, number)
    verify(compiler.finish())


def test_a_wrong_width_does_not_compile() -> None:
    """The verifier is really asked."""
    with pytest.raises(AssertionError):
        verify("define i32 @f(i64 %x) {\n  ret i32 %x\n}\n")
