#!/usr/bin/env python3
"""Boots the benchmark's guest under xuni and QEMU's TCG in turn, and prints what each cost, side by side.

    bench/run.py [--machines xuni,tcg] [--rounds 1] [--tests intloop,fork] [--scale 1] [--json FILE]

Same kernel, same initramfs, same run: the machines take turns, round after round. A cell is CPU seconds of the whole
virtual machine (all its threads and children), the median over the rounds. The ratios are the first machine's seconds
to each other's: 2.00x under "/ tcg" means twice the CPU time of TCG. `native` runs the suite on the host itself.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from guest_image import Image, Missing, build, default_kernel
from machines import MACHINES, LinuxGuest, Machine, choose
from watch import Line, Watched

BOOT = {"kernel": "Linux version", "init": "Run /init", "user": "INIT-OK"}
"""Moments of the boot: the kernel's first line, the start of init, and the first line of user space."""
BEGIN, RESULT = re.compile(r"BEGIN (\w+)$"), re.compile(r"RES (\w+) ([\d.]+) (\S+) (\S+) ([0-9a-f]{16})$")
LAST = "ALL-DONE"
GROUPS = {
    "compute": "intloop core sieve sha256 qsort idiv interp calls fib memwalk chase atomic".split(),
    "weak spots of TCG": "matmul fdiv x87 memcpy repmovs string".split(),
    "new and changing code": "coldcode smc".split(),
    "operating system": "getppid clock pgfault mprotect pipepp fork exec signal file tcp".split(),
}
GOALS = {"user": 2.0, "compute": 4.0, "weak spots of TCG": 1.0, "operating system": 2.0}
"""The ratio to TCG that each group's geometric mean must not exceed."""
Cells = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Test:
    """One test in one round: seconds by the guest's clock, CPU seconds of the machine, the check of its results."""

    guest: float
    cpu: float
    check: str


@dataclass(slots=True)
class Round:
    """One run of a machine. `boot` is CPU seconds at each moment of BOOT; `error` says why it did not reach its end."""

    boot: dict[str, float] = field(default_factory=dict)
    tests: dict[str, Test] = field(default_factory=dict)
    rss: float = 0.0
    error: str = ""


def read(lines: Iterable[Line]) -> Round:
    """Collect a run from its console, up to the suite's last line."""
    run = Round(error="the guest said nothing")
    began: dict[str, float] = {}
    tail: list[str] = []
    for line in lines:
        tail = [*tail[-4:], line.text]
        run.error = f"ended after {' | '.join(tail)}"
        for moment, text in BOOT.items():
            if moment not in run.boot and text in line.text:
                run.boot[moment] = line.cpu
        if found := BEGIN.search(line.text):
            began[found[1]] = line.cpu
        elif (found := RESULT.search(line.text)) and found[1] in began:
            run.tests[found[1]] = Test(float(found[2]), line.cpu - began[found[1]], found[5])
        elif line.text.endswith(LAST):
            run.error = ""
            break
    return run


def boot(command: Sequence[str], timeout: float) -> Round:
    """Run one machine (or the suite itself) to its end."""
    with Watched(command, timeout) as watched:
        run = read(watched.lines())
        end = watched.finish()
    run.rss = end.rss
    if run.error and end.timed_out:
        run.error = f"not finished after {timeout:g} s; {run.error}"
    return run


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def middle(rounds: Sequence[Round], test: str, of: str = "cpu") -> float | None:
    """The median over the rounds that have this test, or this moment of the boot."""
    if test in BOOT:
        values = [run.boot[test] for run in rounds if test in run.boot]
    else:
        values = [getattr(run.tests[test], of) for run in rounds if test in run.tests]
    return median(values) if values else None


def ratio(of: float | None, to: float | None) -> float | None:
    return of / to if of is not None and to else None


def table(machines: dict[str, list[Round]]) -> str:
    """CPU seconds for each machine, the first one's ratio to each other, a geometric mean for each group."""
    names = list(machines)
    others = [name for name in names[1:] if name != "native"] or names[1:]
    goals = GOALS if names[0] == "xuni" and others[:1] == ["tcg"] else {}
    heads = [f"{name} s" for name in names] + [f"/ {name}" for name in others] + ["goal"]
    lines = [f"{'':24}" + "".join(f"{head:>12}" for head in heads)]

    def row(label: str, cells: Cells, ratios: Cells, goal: str = "", note: str = "") -> None:
        seconds = "".join(f"{cell:12.3f}" if cell is not None else f"{'-':>12}" for cell in cells)
        times = "".join(f"{value:11.2f}x" if value is not None else f"{'-':>12}" for value in ratios)
        lines.append(f"{label:24}{seconds}{times}{goal:>12}{note}".rstrip())

    def compare(test: str) -> list[float | None]:
        mine = middle(machines[names[0]], test)
        return [ratio(mine, middle(machines[name], test)) for name in others]

    for moment, text in BOOT.items():
        goal = f"{goals[moment]:g}x" if moment in goals else ""
        row(f"boot: {text}", [middle(machines[name], moment) for name in names], compare(moment), goal)
    for group, tests in GROUPS.items():
        lines.append(f"{group}:")
        ran = [test for test in tests if any(test in run.tests for rounds in machines.values() for run in rounds)]
        for test in ran:
            checks = {run.tests[test].check for rounds in machines.values() for run in rounds if test in run.tests}
            note = "" if len(checks) == 1 else f"  results differ: {' '.join(sorted(checks))}"
            row(f"  {test}", [middle(machines[name], test) for name in names], compare(test), note=note)
        means = []
        for index in range(len(others)):
            values = [value for test in ran if (value := compare(test)[index]) is not None and value > 0]
            means.append(geometric_mean(values) if values else None)
        row("  geometric mean", [None] * len(names), means, f"{goals[group]:g}x" if group in goals else "")
    memory = "".join(f"{median([run.rss for run in machines[name]]):12.0f}" for name in names)
    lines.append(f"{'resident MiB':24}{memory}")
    return "\n".join(lines)


def commands(machines: Sequence[Machine], native: bool, kernel: Path, image: Image, append: str, scale: float,
             tests: Sequence[str]) -> dict[str, list[str]]:
    """What to start for each machine, the suite on the host last."""
    line = f"console=ttyS0 panic=-1 bench.scale={scale:g}"
    line += f" bench.tests={','.join(tests)}" if tests else ""
    guest = LinuxGuest(kernel, image.initramfs, f"{line} {append}".strip())
    all_commands = {machine.name: machine.linux(guest) for machine in machines}
    if native:
        all_commands["native"] = [str(image.suite), "-s", f"{scale:g}", *tests]
    return all_commands


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Benchmark xuni beside QEMU's TCG, in the guest.")
    parser.add_argument("--machines", default="xuni,tcg", help=f"of {','.join(MACHINES)},native; the first is compared")
    parser.add_argument("--kernel", type=Path, help="a Linux bzImage; default: the kernel of `xuni guest fetch debian`")
    parser.add_argument("--append", default="", help="more for the kernel's command line")
    parser.add_argument("--tests", default="", help="names, separated by commas; none: only boot")
    parser.add_argument("--scale", type=float, default=1.0, help="how much work each test does")
    parser.add_argument("--rounds", type=int, default=1, help="turns that each machine takes")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a run may take")
    parser.add_argument("--json", type=Path, help="record everything in this file")
    options = parser.parse_args(arguments)
    names = options.machines.split(",")
    try:
        machines = choose([name for name in names if name != "native"])
        kernel = options.kernel or default_kernel()
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            image = build(Path(directory))
            tests = [test for test in options.tests.split(",") if test]
            runs = commands(machines, "native" in names, kernel, image, options.append, options.scale, tests)
            rounds: dict[str, list[Round]] = {name: [] for name in runs}
            if "xuni" in runs:
                # What a first start compiles and keeps is not what is measured.
                print("xuni: warming up", file=sys.stderr)
                guest = LinuxGuest(kernel, image.initramfs, "console=ttyS0 panic=-1 bench.tests=none")
                boot(MACHINES["xuni"].linux(guest), options.timeout)
            for turn in range(options.rounds):
                for name, command in runs.items():
                    run = boot(command, options.timeout)
                    rounds[name].append(run)
                    said = run.error or f"{len(run.tests)} tests"
                    print(f"round {turn + 1}: {name}: {said}", file=sys.stderr, flush=True)
    except Missing as missing:
        raise SystemExit(f"cannot measure: {missing}") from None
    print(f"CPU seconds, median of {options.rounds}; kernel {kernel.name}, scale {options.scale:g}")
    print(table(rounds))
    if options.json is not None:
        recorded = {name: [asdict(run) for run in turns] for name, turns in rounds.items()}
        options.json.write_text(json.dumps({"scale": options.scale, "kernel": kernel.name, "runs": recorded}, indent=1))
    return 1 if any(run.error for turns in rounds.values() for run in turns) else 0


if __name__ == "__main__":
    sys.exit(main())
