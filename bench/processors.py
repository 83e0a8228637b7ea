#!/usr/bin/env python3
"""What more virtual CPUs cost, and what they bring: Debian booted with one, two and four of them.

    bench/processors.py [--cpus 1,2,4] [--rounds 3] [--engine soft] [--megabytes 64]

A row is one number of virtual CPUs: seconds from the command to the end of `true` in the guest, the ratio to one
virtual CPU, and the time by the guest's clock for two SHA-256 sums one after the other and at the same time. Goals: a
boot in at most 1.3 times that of one; two sums at once in at most 0.6 times of both in turn. The runs take turns, round
after round, and the medians count; more virtual CPUs than the host has processors share those.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from statistics import median

GOAL_BOOT, GOAL_PARALLEL = 1.3, 0.6
SUMS = """
dd if=/dev/zero of=/data bs=1M count=%d 2>/dev/null
sha256sum /data /data /data >/dev/null  # what is hot is compiled before it is measured
now() { cut -d' ' -f1 /proc/uptime; }
a=$(now); sha256sum /data /data >/dev/null; b=$(now)
sha256sum /data >/dev/null & sha256sum /data >/dev/null; wait; c=$(now)
echo SUMS $(nproc) $a $b $c
"""


def guest(engine: str, cpus: int, *command: str, timeout: float) -> tuple[float, str]:
    """Wall-clock seconds of a guest's whole life, and what its command wrote."""
    line = [sys.executable, "-m", "xuni", "vm", "run", "debian", "--engine", engine, "--cpus", str(cpus),
            "--timeout", str(timeout), "--", *command]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout + 60, check=False)
    if done.returncode:
        raise SystemExit(f"{cpus} virtual CPUs: status {done.returncode}: {done.stderr[-600:]}")
    return time.monotonic() - start, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Boot Debian with several virtual CPUs.")
    parser.add_argument("--cpus", default="1,2,4", help="numbers of virtual CPUs; the first is compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="soft")
    parser.add_argument("--megabytes", type=int, default=64, help="how much each SHA-256 sum reads")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a run may take")
    options = parser.parse_args()
    numbers = [int(number) for number in options.cpus.split(",")]
    guest(options.engine, 1, "true", timeout=options.timeout)  # what a first start fetches and compiles is not measured
    boots: dict[int, list[float]] = {number: [] for number in numbers}
    sums: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    for turn in range(options.rounds):
        for number in numbers:
            boots[number].append(guest(options.engine, number, "true", timeout=options.timeout)[0])
            text = guest(options.engine, number, "sh", "-c", SUMS % options.megabytes, timeout=options.timeout)[1]
            found = re.search(r"SUMS (\d+) ([\d.]+) ([\d.]+) ([\d.]+)", text)
            if found is None or int(found[1]) != number:
                raise SystemExit(f"{number} virtual CPUs: the guest said {text!r}")
            start, middle, end = (float(found[n]) for n in (2, 3, 4))
            sums[number].append((middle - start, end - middle))
            print(f"round {turn + 1}: {number} virtual CPUs: boot {boots[number][-1]:.2f} s", file=sys.stderr, flush=True)
    print(f"{len(os.sched_getaffinity(0))} host processors, {options.rounds} rounds, engine {options.engine}")
    print(f"{'virtual CPUs':>12}{'boot s':>10}{'to one':>10}{'in turn s':>12}{'at once s':>12}{'ratio':>8}")
    met = True
    for number in numbers:
        boot = median(boots[number])
        turns, once = (median(pair[n] for pair in sums[number]) for n in (0, 1))
        factor = boot / median(boots[numbers[0]])
        met = met and factor <= GOAL_BOOT and (number < 2 or once / turns <= GOAL_PARALLEL)
        print(f"{number:12}{boot:10.2f}{factor:9.2f}x{turns:12.2f}{once:12.2f}{once / turns:8.2f}")
    print(f"goals: boot {GOAL_BOOT}x, ratio {GOAL_PARALLEL} with two or more: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
