"""The process that compiles hot loops: LLVM may end it, and it compiles while the guest runs.

On standard input come loops (a 32-bit length, then `Loop.packed`), on standard output go object
files in the same form, an empty one for what is no loop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from xuni.engine.soft import build, hot_code, program
from xuni.engine.soft.hot import LENGTH, Loop
from xuni.isa.compiler import Stage

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def compile_loop(loop: Loop) -> bytes:
    """An object file with the function `hot` and its table `ops`."""
    import llvmlite.binding as llvm

    target = build._target()
    Stage.host_features = build._host_features()
    text = f'target triple = "{llvm.get_process_triple()}"\n{hot_code.emit(loop)}\n{build._PROFILE}'
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.PipelineTuningOptions(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes: Any = llvm.PassBuilder(target, options)
    passes.getModulePassManager().run(module, passes)
    return bytes(target.emit_object(module))


def main() -> None:
    """Until standard input ends."""
    os.nice(5)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # nobody would read the answer
    program.load_families()
    come, go = sys.stdin.buffer, sys.stdout.buffer
    while len(size := come.read(LENGTH.size)) == LENGTH.size:
        loop = Loop.unpacked(come.read(LENGTH.unpack(size)[0]))
        try:
            data = compile_loop(loop)
        except hot_code.NotALoop:
            data = b""
        go.write(LENGTH.pack(len(data)) + data)
        go.flush()


if __name__ == "__main__":
    main()
