"""Debian's gdb in batch mode against small guests."""

from __future__ import annotations

import shutil
import signal
import subprocess

import pytest

from tests.debug.conftest import COUNTER, ON_BOTH
from xuni.boot import Format
from xuni.machine.control import RunState

GDB = shutil.which("gdb")
PREAMBLE = ("set pagination off", "set confirm off", "set width 0", "set debuginfod enabled off")
REAL = bytes.fromhex("b85534 8ed8 40 a30010 ebfa")  # mov ax, 3455h; mov ds, ax; l: inc ax; mov [1000h], ax; jmp l
PROTECTED = bytes.fromhex("b855340000 40 a300900000 50 58 ebf6")  # mov eax, 3455h; l: inc eax; mov [9000h], eax; ...

pytestmark = pytest.mark.skipif(GDB is None, reason="this host has no gdb")


def gdb(port: int, *commands: str) -> str:
    lines = [*PREAMBLE, f"target remote 127.0.0.1:{port}", *commands]
    arguments = [word for line in lines for word in ("-ex", line)]
    assert GDB is not None
    done = subprocess.run([GDB, "-q", "-nx", "-batch", *arguments], capture_output=True, text=True, timeout=60, check=False,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert "internal-error" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def in_order(text: str, *parts: str) -> None:
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} is missing after {text[:at]!r} in {text!r}"
        at = found + len(part)


@ON_BOTH
def test_break_look_step_and_change(rig, connect):
    machine = rig()
    labels = machine.code.labels
    text = gdb(
        connect.serve(machine).port, "x/2i $pc", f"break *{labels['stored']}", "continue", "p $rax", "stepi", "p/x $pc",
        "set $rax = 100", "continue", "p $rax", f"x/1gx {COUNTER}", f"set var *(long*){COUNTER} = 7", f"x/1gx {COUNTER}",
        "delete", f"hbreak *{labels['function']}", "continue", "backtrace 2", "finish", "p/x $pc", "p $cr0", "p $mxcsr",
        "p $gdtr_limit", "kill",
    )  # fmt: skip
    in_order(
        text, "=> 0x8000:\tmov    $0x5,%eax", "Breakpoint 1,", "$1 = 6", f"$2 = {labels['stored'] + 8:#x}", "Breakpoint 1,",
        "$3 = 101", "0x0000000000000065", "0x0000000000000007", "Breakpoint 2,", "#0 ", f"#1  {labels['returned']:#018x}",
        f"$4 = {labels['returned']:#x}", "[ PE ET NE PG ]", "[ IM DM ZM OM UM PM ]", "= 31",
    )  # fmt: skip
    machine.end()


def test_watchpoints(rig, connect):
    machine = rig()
    text = gdb(
        connect.serve(machine).port, f"watch *(long*){COUNTER}", "continue", "continue", "delete", "rwatch *(long*)0x9008",
        "continue", "p/x $pc", "detach",
    )  # fmt: skip
    in_order(text, "Hardware watchpoint 1: ", "Old value = 0", "New value = 6", "Old value = 6", "New value = 7",
             "Hardware read watchpoint 2: ", "Value = 0", f"$1 = {machine.code.labels['stored'] + 8:#x}", "detached")
    assert machine.control.state is RunState.RUNNING
    assert machine.control.watchpoints == ()


@ON_BOTH
def test_processors_are_threads(rig, connect):
    machine = rig("second", cpus=2)
    machine.control.resume()
    machine.until(lambda: machine.machine.memory.read_u16(0xA008))
    text = gdb(
        connect.serve(machine).port, "info threads", "thread 2", "p/x $cs", "set scheduler-locking step", "stepi", "stepi",
        "thread 1", "stepi", "info threads", "set scheduler-locking off", "thread apply all p/x $cs", "detach",
    )  # fmt: skip
    in_order(
        text, "Thread 1 (CPU#0 [running])", "Thread 2 (CPU#1 [running])", "[Switching to thread 2 (Thread 2)]", "$1 = 0x900",
        "[Switching to thread 1 (Thread 1)]", "Thread 2 (Thread 2 ", "= 0x900", "Thread 1 (Thread 1 ", "= 0x10", "detached",
    )  # fmt: skip


@ON_BOTH
def test_control_c_interrupts_a_guest_that_runs(rig, connect):
    machine = rig()
    port = connect.serve(machine).port
    assert GDB is not None
    with subprocess.Popen([GDB, "-q", "-nx", "-batch", "-ex", f"target remote 127.0.0.1:{port}", "-ex", "continue", "-ex",
                           "info registers rip", "-ex", "detach"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            machine.until(lambda: machine.machine.memory.read_u64(COUNTER) > 1000)
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Program received signal SIGINT" in text
    machine.until(lambda: machine.control.state is RunState.RUNNING)


@ON_BOTH
def test_the_monitor_from_gdb(rig, connect):
    machine = rig()
    text = gdb(connect.serve(machine).port, "monitor info status", "monitor info registers", "stepi", "monitor system_reset",
               "maintenance flush register-cache", "p/x $pc", "monitor bogus", "monitor quit")  # fmt: skip
    in_order(text, "VM status: paused (prelaunch)", "RIP=0000000000008000", "unknown command: 'bogus'")
    in_order(text, "0x0000000000008005", "$1 = 0x8000")
    machine.end()


@ON_BOTH
def test_16_and_32_bit_code_of_a_processor_without_long_mode(rig, connect):
    real = rig(code=REAL, format=Format.REAL, long_mode=False)
    text = gdb(connect.serve(real, long_mode=False).port, "x/4i $cs_base+$pc", "stepi", "stepi", "p/x $ds_base", "hbreak *0x8009",
               "continue", "p/x $ax", "x/1hx $ds_base+0x1000", "detach")  # fmt: skip
    in_order(text, "mov    $0x3455,%ax", "mov    %ax,%ds", "$1 = 0x34550", "Breakpoint 1,", "$2 = 0x3456", "0x3456", "detached")
    protected = rig(code=PROTECTED, format=Format.PROTECTED, long_mode=False)
    text = gdb(connect.serve(protected, long_mode=False).port, "x/3i $pc", "break *0x800b", "continue", "p/x $eax",
               "info registers", "detach")  # fmt: skip
    in_order(text, "mov    $0x3455,%eax", "inc    %eax", "Breakpoint 1,", "$1 = 0x3456", "eip            0x800b", "gdtr_limit",
             "detached")


@ON_BOTH
def test_a_crash_is_shown_as_a_signal(rig, connect):
    machine = rig("triple")
    text = gdb(connect.serve(machine).port, "continue", "p/x $pc", "continue")
    in_order(text, "Program received signal SIGSEGV", f"$1 = {machine.code.labels['start'] + 8:#x}", "exited with code 0175")
    machine.end()
