"""The benchmark's runners: what they read from guests and configurations, and the figures they make of it."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import guest_image
import kvm_unit_tests
import machines
import pytest
import run
import watch

CONFIGURATION = """
# a comment
[ioapic]
file = ioapic.flat
smp = 4
qemu_params = -cpu qemu64,+x2apic -m 2g
arch = x86_64
timeout = 30s

[vmexit_cpuid]
file = vmexit.flat
test_args = 'cpuid more'
groups = vmexit nodefault

[taskswitch]
file = taskswitch.flat
arch = i386
"""


def line(text: str, cpu: float = 0.0) -> watch.Line:
    return watch.Line(text, cpu, cpu)


def test_unittests_cfg_is_read() -> None:
    ioapic, cpuid, taskswitch = kvm_unit_tests.parse(CONFIGURATION)
    assert (ioapic.name, ioapic.file, ioapic.cpus, ioapic.timeout, ioapic.memory) == (
        "ioapic", "ioapic.flat", 4, 30.0, 2048,
    )  # fmt: skip
    assert ioapic.qemu == ("-cpu", "qemu64,+x2apic", "-m", "2g")
    assert (cpuid.arguments, cpuid.memory, cpuid.groups) == ("cpuid more", 128, ("vmexit", "nodefault"))
    assert taskswitch.architecture == "i386"


@pytest.mark.parametrize("text", ["nonsense", "key = before any section"])
def test_a_foreign_configuration_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match="line 1: expected"):
        kvm_unit_tests.parse(text)


def test_entries_that_cannot_run_are_left_out() -> None:
    entries = kvm_unit_tests.parse(CONFIGURATION)

    def names(**wanted: Any) -> list[str]:
        arguments: dict[str, Any] = {"only": "", "everything": False, "i386": None, **wanted}
        return [entry.name for entry in kvm_unit_tests.select(entries, **arguments)]

    assert names() == ["ioapic"]
    assert names(i386=Path("/")) == ["ioapic", "taskswitch"]
    assert names(everything=True) == ["ioapic", "vmexit_cpuid"]
    assert names(only="cpuid") == ["vmexit_cpuid"]


@pytest.mark.parametrize(
    ("lines", "status", "timed_out", "verdict"),
    [
        (["PASS: a", "PASS: b"], 1, False, (2, 0, 0, "PASS", ())),
        (["PASS: a", "FAIL: b c"], 3, False, (1, 1, 0, "FAIL", ("b c",))),
        (["SKIP: no such feature"], 77, False, (0, 0, 1, "SKIP", ())),
        (["Unhandled exception 6 #UD at ip 1"], 0x47, False, (0, 0, 0, "ABORT", ())),
        (["PASS: a"], -9, True, (1, 0, 0, "TIMEOUT", ())),
        (["PASS: a"], 124, False, (1, 0, 0, "TIMEOUT", ())),
        ([], 0, False, (0, 0, 0, "RESET", ())),
        (["qemu-system-x86_64: no such thing"], 1, False, (0, 0, 0, "ERROR(1)", ())),
        (["enabling apic"], 1, False, (0, 0, 0, "PASS", ())),
        ([], 2, False, (0, 0, 0, "REFUSED", ())),
        ([], 122, False, (0, 0, 0, "ERROR(122)", ())),
        (["FAIL: but says it passed"], 1, False, (0, 1, 0, "FAIL", ("but says it passed",))),
    ],
)
def test_a_tests_end_is_judged(lines: list[str], status: int, timed_out: bool, verdict: tuple[Any, ...]) -> None:
    assert kvm_unit_tests.judge(lines, status, timed_out) == verdict


def test_xuni_and_qemu_get_the_same_command_line() -> None:
    guest = machines.TestGuest(Path("a.flat"), "one two", 2, 128, ("-cpu", "qemu64,+x2apic", "-m", "2g"))
    lines = {name: machines.MACHINES[name].test(guest) for name in ("xuni", "xuni-kvm", "tcg", "kvm")}
    assert lines["tcg"][1:] == lines["xuni"][4:] and lines["kvm"][1:] == lines["xuni-kvm"][4:]
    assert lines["xuni"][:4] == [sys.executable, "-m", "xuni", "qemu"]


def test_the_table_has_sums_and_gaps(tmp_path: Path) -> None:
    outcome = kvm_unit_tests.Outcome(3, 1, 0, "FAIL", 1.5, 2.0, ("x",))
    text = kvm_unit_tests.table(["one", "two"], {"xuni": {"one": outcome}, "tcg": {}})
    rows = text.splitlines()
    assert rows[1].split() == ["one", "3/1/0", "FAIL", "1.5", "-"]
    assert rows[2].split() == ["two", "-", "-"]
    assert rows[3].split()[:5] == ["sum", "3/1/0", "0", "of", "1"]


def test_a_runs_console_becomes_figures() -> None:
    result = run.read(
        [
            line("[    0.0] Linux version 6.1", 0.5),
            line("[    1.0] Run /init as init process", 1.5),
            line("INIT-OK", 1.75),
            line("BEGIN fib", 2.0),
            line("RES fib 0.250000 28.2 Mcall/s 0000000000000007", 2.5),
            line("[    2.5] kernel noise before ALL-DONE", 2.5),
            line("never read", 9.0),
        ]
    )
    assert result.boot == {"kernel": 0.5, "init": 1.5, "user": 1.75}
    assert result.tests == {"fib": run.Test(0.25, 0.5, "0000000000000007")}
    assert result.error == ""


def test_a_guest_that_dies_says_what_it_said_last() -> None:
    assert run.read([]).error == "the guest said nothing"
    died = run.read([line("Linux version 6"), line("Kernel panic - not syncing")])
    assert died.error == "ended after Linux version 6 | Kernel panic - not syncing"


def test_ratios_and_geometric_means() -> None:
    def rounds(*seconds: float, check: str = "1") -> list[run.Round]:
        tests = [{"fib": run.Test(s, s, check), "qsort": run.Test(s, 2 * s, "1")} for s in seconds]
        return [run.Round({"user": s}, found) for s, found in zip(seconds, tests, strict=True)]

    text = run.table({"xuni": rounds(2.0, 8.0, 4.0), "tcg": rounds(1.0)})
    rows = {row[:24].strip(): row[24:].split() for row in text.splitlines()}
    assert rows["boot: INIT-OK"] == ["4.000", "1.000", "4.00x", "2x"]
    assert rows["fib"] == ["4.000", "1.000", "4.00x"]
    assert "  geometric mean                   -           -       4.00x          4x" in text.splitlines()
    assert "results differ: 1 2" in run.table({"xuni": rounds(1.0), "tcg": rounds(1.0, check="2")})
    assert run.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert math.isnan(run.geometric_mean([]))


def test_a_watched_process_is_read_timed_and_ended() -> None:
    script = "import sys; print('one'); sum(range(10**6)); print('two', end=''); sys.exit(3)"
    with watch.Watched([sys.executable, "-c", script], 60) as watched:
        lines = [found.text for found in watched.lines()]
        end = watched.finish()
    assert lines == ["one", "two"]
    assert (end.status, end.timed_out) == (3, False) and end.cpu > 0 and end.rss > 1


def test_a_watched_process_that_hangs_is_killed() -> None:
    with watch.Watched([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], 0.5) as watched:
        list(watched.lines())
        end = watched.finish()
    assert end.timed_out and end.status == -9


def test_missing_machines_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines.shutil, "which", lambda name: None)
    assert [machine.name for machine in machines.choose(["xuni", "tcg"])] == ["xuni"]
    assert "skipped: tcg: qemu-system-x86_64 is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown machine 'bochs': xuni, xuni-kvm, tcg, kvm"):
        machines.choose(["bochs"])
    with pytest.raises(SystemExit, match="nothing to measure"):
        machines.choose(["tcg"])


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(guest_image.Missing, match="needs a C compiler"):
        guest_image.build(tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_suite_runs_on_the_host_and_every_group_has_its_tests(tmp_path: Path) -> None:
    try:
        image = guest_image.build(tmp_path)
    except guest_image.Missing as missing:
        pytest.skip(str(missing))
    names = subprocess.run([image.suite, "-l"], capture_output=True, text=True, check=True).stdout.split()
    grouped = [name for group in run.GROUPS.values() for name in group]
    assert sorted([*grouped, "sleep"]) == sorted(names)
    result = run.boot([str(image.suite), "-s", "0.001", "sha256", "fib", "fork"], 60)
    assert result.error == "" and list(result.tests) == ["sha256", "fib", "fork"]
    assert result.tests["fib"].check == f"{17711:016x}"  # the 22nd Fibonacci number
    assert image.initramfs.read_bytes()[:2] == b"\x1f\x8b"
