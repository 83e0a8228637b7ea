#!/usr/bin/env python3
"""Runs a directory of built kvm-unit-tests under several machines and prints the table, test by test.

    bench/kvm_unit_tests.py DIRECTORY [--i386 DIRECTORY] [--machines xuni,xuni-kvm,tcg,kvm] [--only REGEX] [--timeout 180]

The entries, their arguments and QEMU options come from x86/unittests.cfg of DIRECTORY; xuni understands them as QEMU does.
A cell is passes/failures/skips
(lines that begin with PASS, FAIL, SKIP), the verdict, and seconds of CPU time. `--peer NAME=FILE` adds a column from a
table recorded before with `--json`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from machines import MACHINES, Machine, TestGuest, choose
from watch import Watched

MEMORY = 128  # MiB, QEMU's own default
PASSED, SKIPPED, ABORTED = 1, 77, 127  # through isa-debug-exit: value * 2 + 1
TIMEOUT_STATUS, BAD_INPUT = 124, 2
RESULT = re.compile(r"^(PASS|FAIL|SKIP)\b")
FROM_THE_MACHINE = re.compile(r"^(xuni-)?qemu-system-x86_64: |^$")
UNHANDLED = re.compile(r"^(Unhandled exception|Unhandled cpu exception|ABORT:|STACK:|\s*Aborted|.*: assert failed: )")
NEEDS_MORE = "^(vmx|svm|ept|hyperv_|pmu)"
"""Entries left out unless asked for: they need nested virtualization, Hyper-V's interfaces or a vendor's counters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One section of unittests.cfg."""

    name: str
    file: str
    cpus: int = 1
    arguments: str = ""
    qemu: tuple[str, ...] = ()
    architecture: str = ""
    timeout: float = 90.0
    groups: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """MiB that its QEMU options ask for."""
        if "-m" not in self.qemu[:-1]:
            return MEMORY
        size = self.qemu[self.qemu.index("-m") + 1].lower()
        return int(size[:-1]) * 1024 if size.endswith("g") else int(size.rstrip("m"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one machine made of one entry; `seconds` of CPU time, `wall` as the clock has it."""

    passes: int
    failures: int
    skips: int
    verdict: str
    seconds: float
    wall: float
    failed: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.passes}/{self.failures}/{self.skips} {self.verdict} {self.seconds:.1f}"


def parse(text: str) -> list[Entry]:
    """The entries of unittests.cfg. Raises ValueError, with the line's number, for a line that is none of its kind."""
    sections: list[tuple[str, dict[str, str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if found := re.match(r"^\[(.+)\]$", line):
            sections.append((found[1], {}))
        elif (pair := re.match(r"^(\w+)\s*=\s*(.*)$", line)) and sections:
            sections[-1][1][pair[1]] = pair[2]
        else:
            raise ValueError(f"line {number}: expected [name] or key = value: {line!r}")
    return [_entry(name, keys) for name, keys in sections]


def _entry(name: str, keys: dict[str, str]) -> Entry:
    # test_args is quoted for a shell; a back-quoted date in it is the only computation in use.
    arguments = " ".join(shlex.split(keys.get("test_args", "").replace("`date +%s`", "0")))
    return Entry(
        name,
        keys["file"],
        int(keys.get("smp", "1")) if keys.get("smp", "1").isdigit() else 1,
        arguments,
        tuple(shlex.split(keys.get("qemu_params", keys.get("extra_params", "")))),
        keys.get("arch", ""),
        float(keys.get("timeout", "90").rstrip("s")),
        tuple(keys.get("groups", "").split()),
    )


def judge(lines: Iterable[str], status: int, timed_out: bool) -> tuple[int, int, int, str, tuple[str, ...]]:
    """Passes, failures, skips, the verdict and the names of failures, from a test's output and exit status."""
    counts, failed, broken, spoke = {"PASS": 0, "FAIL": 0, "SKIP": 0}, [], False, False
    for line in lines:
        spoke = spoke or not FROM_THE_MACHINE.match(line)
        if found := RESULT.match(line):
            counts[found[1]] += 1
            if found[1] == "FAIL":
                failed.append(line[5:].strip())
        broken = broken or bool(UNHANDLED.match(line))
    match status:
        case _ if timed_out or status == TIMEOUT_STATUS: verdict = "TIMEOUT"
        case _ if status == PASSED and not spoke: verdict = "ERROR(1)"  # QEMU's own 1: there was no guest
        case _ if status == PASSED and counts["FAIL"] == 0: verdict = "PASS"
        case _ if status == SKIPPED: verdict = "SKIP"
        case _ if broken or status == ABORTED: verdict = "ABORT"
        case 0: verdict = "RESET"  # ended without a word to the debug-exit port
        case _ if status == BAD_INPUT: verdict = "REFUSED"  # the machine lacks what the entry asks for
        case _ if status & 1 and status > 0: verdict = "FAIL"
        case _: verdict = f"ERROR({status})"
    return counts["PASS"], counts["FAIL"], counts["SKIP"], verdict, tuple(failed)


def run(machine: Machine, entry: Entry, directory: Path, timeout: float, logs: Path | None) -> Outcome:
    """Run one entry; its output goes to a file in `logs`."""
    guest = TestGuest(directory / "x86" / entry.file, entry.arguments, entry.cpus, entry.memory, entry.qemu)
    with Watched(machine.test(guest), timeout) as watched:
        lines = [line.text for line in watched.lines()]
        end = watched.finish()
    if logs is not None:
        (logs / f"{machine.name}-{entry.name}.log").write_text("\n".join(lines) + f"\nstatus {end.status}\n")
    passes, failures, skips, verdict, failed = judge(lines, end.status, end.timed_out)
    return Outcome(passes, failures, skips, verdict, round(end.cpu, 2), round(end.wall, 2), failed)


def select(entries: Sequence[Entry], only: str, everything: bool, i386: Path | None) -> Iterator[Entry]:
    """The entries to run: those that match `only`, else all that need nothing beyond a plain machine."""
    for entry in entries:
        if entry.architecture == "i386" and i386 is None:
            continue
        if only:
            if re.search(only, entry.name):
                yield entry
        elif everything or ("nodefault" not in entry.groups and not re.search(NEEDS_MORE, entry.name)):
            yield entry


def table(entries: Sequence[str], columns: dict[str, dict[str, Outcome]]) -> str:
    """Rows of entries, columns of machines, and a row of sums."""
    rows = [["test", *columns]]
    for name in entries:
        cells = [columns[machine].get(name) for machine in columns]
        rows.append([name, *(str(cell) if cell else "-" for cell in cells)])
    sums = []
    for outcomes in columns.values():
        done = [outcomes[name] for name in entries if name in outcomes]
        passed = sum(outcome.verdict == "PASS" for outcome in done)
        lines = [sum(getattr(outcome, kind) for outcome in done) for kind in ("passes", "failures", "skips")]
        sums.append(f"{lines[0]}/{lines[1]}/{lines[2]} {passed} of {len(done)} {sum(o.seconds for o in done):.0f}")
    rows.append(["sum", *sums])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def load(path: Path) -> dict[str, dict[str, Outcome]]:
    """Columns recorded with --json."""
    recorded = json.loads(path.read_text())["columns"]
    return {
        machine: {name: Outcome(**{**cell, "failed": tuple(cell["failed"])}) for name, cell in cells.items()}
        for machine, cells in recorded.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run built kvm-unit-tests under several machines.")
    parser.add_argument("directory", type=Path, help="a kvm-unit-tests tree, configured and built for x86_64")
    parser.add_argument("--i386", type=Path, metavar="DIRECTORY", help="one built for i386: adds the 32-bit entries")
    parser.add_argument("--all-i386", action="store_true", help="run the i386 build of every entry that has one, only")
    parser.add_argument("--machines", default="xuni,xuni-kvm,tcg,kvm", help=f"of {','.join(MACHINES)}")
    parser.add_argument("--only", default="", metavar="REGEX", help="entries whose name matches")
    parser.add_argument("--all", action="store_true", help="also the entries that need more than a plain machine")
    parser.add_argument("--timeout", type=float, help="seconds an entry may take, whatever the configuration says")
    parser.add_argument("--logs", type=Path, help="keep each test's output in this folder")
    parser.add_argument("--json", type=Path, help="record the table in this file")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FILE", help="a column recorded before")
    options = parser.parse_args(arguments)
    configuration = options.directory / "x86" / "unittests.cfg"
    try:
        entries = parse(configuration.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{configuration}: {error}") from None
    if options.all_i386:
        entries = [replace(entry, architecture="i386") for entry in entries if entry.architecture != "x86_64"]
    chosen = list(select(entries, options.only, options.all, options.i386))
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    machines = choose(options.machines.split(","))
    columns: dict[str, dict[str, Outcome]] = {machine.name: {} for machine in machines}
    for entry in chosen:
        directory = options.i386 if entry.architecture == "i386" else options.directory
        for machine in machines:
            if not (directory / "x86" / entry.file).exists():
                print(f"skipped: {entry.name}: {directory}/x86/{entry.file} is not built", file=sys.stderr)
                break
            outcome = run(machine, entry, directory, options.timeout or entry.timeout, options.logs)
            columns[machine.name][entry.name] = outcome
            print(f"{entry.name:32} {machine.name:6} {outcome}", file=sys.stderr, flush=True)
    for peer in options.peer:
        name, _, path = peer.partition("=")
        recorded = load(Path(path))
        columns[name] = recorded.get(name) or next(iter(recorded.values()))
    print(table([entry.name for entry in chosen], columns))
    if options.json is not None:
        cells = {machine: {name: asdict(cell) for name, cell in found.items()} for machine, found in columns.items()}
        options.json.write_text(json.dumps({"directory": options.directory.name, "columns": cells}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
