"""Compares definitions with the host's processor: `python -m tests.isa_fp.judged compiled 10 x87 x87_move`.

The first argument is `bare` or `compiled`, the second the cases of an encoding; the rest are modules of `xuni.isa.x86`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace

from tests.hardware import generate
from tests.hardware.case import Case, Mode, Outcome, differences
from tests.hardware.forms import from_encoding
from tests.hardware.generate import Generator, label
from tests.hardware.oracle import HostCpu
from xuni.isa.x86.encodings import Encoding
from xuni.isa.x86.exceptions import Vector

from .bare import Bare, encodings

# What the host does otherwise, and why the definitions do not follow it.
EXCEPTIONS = {
    "FSIN": "out of range, the host gives a NaN for the largest arguments; the manual says C2 and no change",
    "FCOS": "the same",
    "FSINCOS": "the same",
    "FPTAN": "the same",
    "F2XM1": "results of the processor, not defined to the last bit; of arguments out of range, not defined at all",
    "FYL2X": "the same",
    "FYL2XP1": "the same",
    "FPATAN": "the same",
    "FLDENV": "which of several addresses that fault is told first",
    "FRSTOR": "the same",
    "FPREM": "compiled code gives the masked result of an unmasked underflow",
    "FPREM1": "the same",
    "FXSAVE": "MXCSR_MASK is the processor's own",
}


def disagreements(mode: str, count: int, modules: list[str], seed: int = 1) -> Iterator[str]:
    """One line and its differences for each case that the definition and the host decide differently."""
    for module in modules:
        importlib.import_module(f"xuni.isa.x86.{module}")
    generator = Generator(seed)
    work: list[tuple[Encoding, list[Case]]] = []
    for encoding in encodings(*modules):
        cases = list(generator.cases(from_encoding(encoding), Mode.LONG, count))
        work.append((encoding, [case for case in cases if generate.LOCKED not in case.code[:4]]))
    expected = iter(HostCpu().run([case for _, cases in work for case in cases]))
    run = _compiled(encodings(*modules)) if mode == "compiled" else lambda e, case: Bare(e).run([case])[0]
    for encoding, cases in work:
        for case in cases:
            want = next(expected)
            got = run(encoding, case)
            if want.vector == got.vector == int(Vector.XM):
                # Compiled code does not know whether an unmasked overflow or underflow would be exact with an unbounded
                # exponent: PE may differ.
                got = replace(got, fxsave=got.fxsave[:24] + bytes([got.fxsave[24] & 0xDF | want.fxsave[24] & 0x20])
                              + got.fxsave[25:])  # fmt: skip
            found = differences(case, want, got)
            if found and encoding.definition.name not in EXCEPTIONS:
                yield "\n    ".join([label(case), *found])


def _compiled(chosen: list[Encoding]):  # type: ignore[no-untyped-def]
    from .compiled import Compiled

    compiled = Compiled(chosen)
    compiled.link()

    def run(encoding: Encoding, case: Case) -> Outcome:
        return compiled.run(next(e for e in chosen if e == encoding), case)

    return run


def main() -> int:
    found = list(disagreements(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
    print("\n".join(found[:20]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
