"""gdb and QMP at Debian's kernel, with the names that the kernel itself tells. Needs the host's apt and gdb."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.debug.conftest import QmpClient
from tests.debug.test_real_gdb import GDB, PREAMBLE, in_order
from xuni.guest import catalogue

RUN = (sys.executable, "-m", "xuni", "vm", "run", "debian", "--timeout", "240", "--append", "nokaslr")
NAMES = ("start_kernel", "secondary_startup_64_no_verify", "vfs_write", "ksys_write", "__x64_sys_write", "do_syscall_64",
         "jiffies_64", "tick_do_update_jiffies64")  # fmt: skip
pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(GDB is None, reason="this host has no gdb")]


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The kernel's addresses, and `vmlinux.sym` with them in this directory's parent."""
    catalogue.ensure("debian")
    done = subprocess.run([*RUN, "--", "cat", "/proc/kallsyms"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    table: dict[str, int] = {}
    for line in done.stdout.decode().splitlines():
        address, kind, name, *_ = line.split()
        if kind in "tT" or name in NAMES:
            table.setdefault(name, int(address, 16))
    assert set(NAMES) <= set(table)
    return table


def elf(symbols: dict[str, int]) -> bytes:
    """A file that has nothing but names for gdb: an empty .text over all functions, and their symbols."""
    functions = sorted((address, name) for name, address in symbols.items() if address >= 0xFFFF_FFFF_8100_0000)
    ends = [address for address, _ in functions[1:]] + [functions[-1][0] + 16]
    strings, entries = b"\0", bytes(24)
    for (address, name), end in zip(functions, ends, strict=True):
        entries += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, address, end - address)
        strings += name.encode() + b"\0"
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    start, size = functions[0][0], ends[-1] - functions[0][0]

    def section(name: bytes, kind: int, flags: int, address: int, offset: int, size: int, link: int = 0, info: int = 0) -> bytes:
        return struct.pack("<IIQQQQIIQQ", names.index(name), kind, flags, address, offset, size, link, info, 8, 24 * (kind == 2))

    at = 64
    table = bytes(64) + section(b".text", 8, 6, start, at, size) + section(b".symtab", 2, 0, 0, at, len(entries), 3, 1)
    table += section(b".strtab", 3, 0, 0, at + len(entries), len(strings))
    table += section(b".shstrtab", 3, 0, 0, at + len(entries) + len(strings), len(names))
    body = entries + strings + names
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at + len(body), 0, 64, 0, 0, 64, 5, 4)
    return header + body + table


@contextmanager
def debian(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*RUN, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240  # the engine may have to be compiled
    while not path.exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_gdb_at_a_running_kernel(symbols: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "vmlinux.sym").write_bytes(elf(symbols))
    stub = tmp_path / "gdb"
    with debian("--cpus", "2", "--gdb", f"unix:{stub}", "--paused", "--", "sh", "-c", "nproc; echo end") as process:
        wait_for(stub, process)
        commands = (
            *PREAMBLE, f"file {tmp_path / 'vmlinux.sym'}", f"target remote {stub}", "hbreak start_kernel", "continue",
            "backtrace 2", "stepi", "p/x $cr3 != 0", "delete", "break vfs_write", "continue", "backtrace 2", "delete",
            f"watch *(unsigned long*){symbols['jiffies_64']:#x}", "continue", "info threads", "detach",
        )  # fmt: skip
        assert GDB is not None
        done = subprocess.run([GDB, "-q", "-nx", "-batch", *(word for line in commands for word in ("-ex", line))],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        in_order(
            done.stdout, "in start_kernel ()", "#0 ", "in start_kernel ()", "#1 ", "in secondary_startup_64_no_verify ()",
            "$1 = 0x1", "in vfs_write ()", "#0 ", "in vfs_write ()", "#1 ", "in ksys_write ()", "Hardware watchpoint",
            "Old value = ", "New value = ", "in tick_do_update_jiffies64 ()", "Thread 1 (CPU#0", "Thread 2 (CPU#1", "detached",
        )  # fmt: skip
        output, errors = process.communicate(timeout=240)
    assert (process.returncode, output) == (0, b"2\nend\n"), errors
    assert not stub.exists()


@pytest.mark.long
def test_qmp_at_a_running_kernel(symbols: dict[str, int], tmp_path: Path) -> None:
    monitor = tmp_path / "qmp"
    with debian("--cpus", "2", "--qmp", f"unix:{monitor},server=on,wait=off", "--", "sleep", "1000") as process:
        wait_for(monitor, process)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(monitor))
            client = QmpClient(connection)
            end = time.monotonic() + 240
            while True:  # until it has nothing to do
                client.say("stop")
                if "HLT=1" in client.say("human-monitor-command", command_line="info registers"):
                    break
                client.say("cont")
                assert time.monotonic() < end
                time.sleep(0.2)
            assert len(client.say("query-cpus-fast")) == 2
            stopped = client.say("human-monitor-command", command_line=f"x /1gx {symbols['jiffies_64']:#x}")
            time.sleep(0.1)
            assert client.say("human-monitor-command", command_line=f"x /1gx {symbols['jiffies_64']:#x}") == stopped
            ranges = client.say("human-monitor-command", command_line="info mem")
            assert "ffffffff81000000-" in ranges and "... and more" not in ranges
            client.say("cont")
            client.say("system_powerdown")
            client.say("quit")
            assert [event["event"] for event in client.events][-3:] == ["RESUME", "POWERDOWN", "SHUTDOWN"]
        process.communicate(timeout=60)
    assert process.returncode == 0
