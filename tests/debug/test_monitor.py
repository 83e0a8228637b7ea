"""The human monitor's words, where scripts read them: registers, memory, page tables."""

from __future__ import annotations

import pytest

from xuni.boot import Format
from xuni.debug.monitor import Monitor
from xuni.machine.control import RunState


@pytest.fixture
def monitor(rig):
    machine = rig()
    machine.machine.memory.write(0xA000, bytes([0x41, 0xFF, 0x00, 0x27, 0x0A, 0x0D, 0x5C, 0x80]) + bytes(8))
    return Monitor(machine.control)


@pytest.mark.parametrize(("line", "text"), [
    ("x /4xb 0xa000", "000000000000a000: 0x41 0xff 0x00 0x27\n"),
    ("x/2hx 0xa000", "000000000000a000: 0xff41 0x2700\n"),
    ("x /5wx 0xa000", "000000000000a000: 0x2700ff41 0x805c0d0a 0x00000000 0x00000000\n000000000000a010: 0x00000000\n"),
    ("xp /1gx 40960", "000000000000a000: 0x805c0d0a2700ff41\n"),
    ("x /2db 0xa000", "000000000000a000:  65  -1\n"),
    ("x /2ub 0xa000", "000000000000a000:  65 255\n"),
    ("x /1dw 0xa004", "000000000000a004: -2141450998\n"),
    ("x /3ob 0xa000", "000000000000a000: 0101 0377   0\n"),
    ("x /9ub 0xa000", "000000000000a000:  65 255   0  39  10  13  92 128\n000000000000a008:   0\n"),
    ("x /8cb 0xa000", "000000000000a000: 'A' '\\xff' '\\x00' '\\'' '\\n' '\\r' '\\\\' '\\x80'\n"),
    ("x /1xb $rip+0x2000", "000000000000a000: 0x41\n"),
    ("x /1xb 0xa001 - 1", "000000000000a000: 0x41\n"),
    ("x /1xb $pc", "0000000000008000: 0xb8\n"),
    ("x /1x 0xffff800000000000", "ffff800000000000: Cannot access memory\n"),
    ("xp /3gx 0x3ffff8", "00000000003ffff8: Cannot access memory\n"),
    ("x /1i 0", "this monitor does not disassemble; gdb does, with x/i\n"),
    ("x /1q 0", "invalid char in format: 'q'\n"),
    ("x /99999x 0", "at most 16384 items at once\n"),
    ("x", "unexpected address: numbers and $registers, joined by + and -, are understood\n"),
    ("x 1 2", "unexpected address: numbers and $registers, joined by + and -, are understood\n"),
    ("x $nothing", "unknown register '$nothing'\n"),
    ("bogus", "unknown command: 'bogus'\n"),
    ("info bogus", "unknown command: 'info bogus'\n"),
    ("info status", "VM status: paused (prelaunch)\n"),
    ("cpu 0", ""), ("cpu 1", "invalid CPU index\n"), ("cpu", "invalid CPU index\n"), ("", ""), ("  ", ""),
    ("info mem", "0000000000000000-0000000100000000 0000000100000000 -rw\n"),
])  # fmt: skip
def test_what_it_says(monitor, line, text):
    assert monitor.execute(line) == text


def test_the_format_is_remembered(monitor):
    monitor.execute("x /1dh 0xa000")
    assert monitor.execute("x 0xa000") == "000000000000a000:  -191\n"


def test_registers_in_each_mode(rig):
    long = Monitor(rig().control).execute("info registers").splitlines()
    assert long[1] == "CPU#0"
    assert long[6] == "RIP=0000000000008000 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0"
    assert "CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]" in long
    assert "TR =0000 0000000000000000 0000ffff 00008b00 DPL=0 TSS64-busy" in long
    assert sum(line.startswith("XMM") for line in long) == 8
    real = Monitor(rig(code=b"\xf4", format=Format.REAL).control).execute("info registers").splitlines()
    assert real[4] == "EIP=00008000 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0"
    assert "CS =0000 00000000 0000ffff 00009b00" in real
    protected = Monitor(rig(code=b"\xf4", format=Format.PROTECTED).control).execute("info registers").splitlines()
    assert "CS =0010 00000000 ffffffff 00cf9b00 DPL=0 CS32 [-RA]" in protected
    assert "SS =0018 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]" in protected


def test_all_processors_at_once(rig):
    machine = rig("second", cpus=2)
    text = Monitor(machine.control).execute("info registers -a")
    assert "CPU#0" in text and "CPU#1" in text
    cpus = Monitor(machine.control).execute("info cpus").splitlines()
    assert cpus[0].startswith("* CPU #0: thread_id=") and cpus[1].startswith("  CPU #1: thread_id=")


def test_it_controls_the_machine(rig):
    machine = rig()
    monitor = Monitor(machine.control)
    for line, state in [("cont", RunState.RUNNING), ("stop", RunState.PAUSED), ("c", RunState.RUNNING),
                        ("system_reset", RunState.RUNNING), ("s", RunState.PAUSED), ("system_reset", RunState.PRELAUNCH)]:
        assert monitor.execute(line) == ""
        assert machine.control.state is state, line
    assert monitor.execute("system_powerdown") == monitor.execute("nmi") == ""
    assert monitor.execute("q") == ""
    machine.end()
    assert monitor.execute("cont") == "Resetting the Virtual Machine is required\n"
    assert machine.names[-2:] == ["POWERDOWN", "SHUTDOWN"]


def test_it_looks_at_a_machine_that_runs_without_anyone_noticing(rig):
    machine = rig(paused=False)
    monitor = Monitor(machine.control)
    for _ in range(5):
        assert "RIP=" in monitor.execute("info registers")
        assert monitor.execute("info mem")
    assert machine.names == []


def test_help_names_everything(monitor):
    assert "system_reset" in monitor.execute("help") and "registers" in monitor.execute("info")
    assert monitor.execute("info version").startswith("xuni ")
