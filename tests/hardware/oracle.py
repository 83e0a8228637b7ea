"""Runs single user-mode instructions on the host's processor, faults included, from chosen state to full state.

    outcomes = HostCpu().run([Case(code=bytes.fromhex("4801c8"), gpr=..., rflags=..., fxsave=..., memory=...)])

Each batch runs in a child process of its own, because the trampoline takes over the process's signals, its segments
and its FS base. Works on Linux on x86-64: 64-bit and 32-bit code everywhere, 16-bit code where modify_ldt(2) works.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
import select
import signal
import warnings
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct

from .case import CODE, CODE_SIZE, DATA, PAGE, UNCOMPARED, Case, Flag, Mode, Outcome
from .trampoline import CONTROL, HANDLER, OUT, RECORD_SIZE, TRAMPOLINE, assemble

BATCH = 2048
"""Cases a child process runs: 8 MiB of records."""
DEADLINE = 60.0
"""Seconds that one batch may take before it counts as hung; it needs well under one."""
SIGNAL_STACK, SIGNAL_STACK_SIZE = 0x1357_9BDF_0000, 0x1_0000
"""Where no case's stack pointer comes near: a signal on what looks like its own stack would not start at its top."""
SINGLE_STEP = 1

INPUT = Struct("<18Q 4H H6x Q 8x 16s 512s 1024s")
OUTPUT = Struct("<23Q Q 512s 1024s")
GREGS = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)
"""Where mcontext_t.gregs keeps each register, in encoding order."""
GREG_RIP, GREG_FLAGS, GREG_ERROR, GREG_TRAP, GREG_CR2 = 16, 17, 19, 20, 22
FILLER = b"\x0f\x0b" * 8  # UD2

# Selectors that Linux gives every process (arch/x86/include/asm/segment.h), and two entries of an LDT of our own.
USER_CS, USER32_CS, USER_DS = 0x33, 0x23, 0x2B
LDT_CODE_16, LDT_DATA_16 = 0x07, 0x0F
SEGMENTS = {
    Mode.LONG: (USER_CS, USER_DS),
    Mode.PROTECTED_32: (USER32_CS, USER_DS),
    Mode.PROTECTED_16: (LDT_CODE_16, LDT_DATA_16),
}
REPEATABLE = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


class Setup(IntEnum):
    """What the child does before the first case; the parent reads here what failed."""

    MAP, SIGNAL_STACK, SIGNALS, LDT, RUNNING = range(5)


class UserDesc(ctypes.Structure):
    """struct user_desc of modify_ldt(2)."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("entry", "base", "limit", "flags")]


class SignalAction(ctypes.Structure):
    """struct sigaction of the C library on x86-64."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class SignalStack(ctypes.Structure):
    """stack_t"""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class HostCpu:
    """The host's processor as a `Target`."""

    name = "host"

    def __init__(self) -> None:
        if reason := unavailable():
            raise OSError(errno.ENOSYS, reason)
        self._code = assemble()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Execute each case. Raises OSError where the kernel refuses the set-up, RuntimeError for a case that ends or
        hangs the process (it names the case)."""
        outcomes: list[Outcome] = []
        for start in range(0, len(cases), BATCH):
            outcomes += self._run_batch(cases[start : start + BATCH])
        return outcomes

    def _run_batch(self, cases: Sequence[Case]) -> list[Outcome]:
        size = PAGE + len(cases) * RECORD_SIZE
        fd = os.memfd_create("cases")
        try:
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as records:
                for index, case in enumerate(cases):
                    pack(records, PAGE + index * RECORD_SIZE, case)
                with warnings.catch_warnings():
                    # The child calls nothing but system calls through ctypes, so other threads' locks do not matter.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if child == 0:
                    self._child(fd, records, len(cases))
                self._wait(child, records, cases)
                return [unpack(records, PAGE + index * RECORD_SIZE) for index in range(len(cases))]
        finally:
            os.close(fd)

    def _wait(self, child: int, records: mmap.mmap, cases: Sequence[Case]) -> None:
        pidfd = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            hung = not poll.poll(DEADLINE * 1000)
            if hung:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            os.close(pidfd)
        if status == 0 and not hung:
            return
        step, error, first = (int.from_bytes(records[at : at + 8], "little") for at in (32, 40, 48))
        if step != Setup.RUNNING:
            raise OSError(error, f"the kernel refuses {Setup(step).name} to the test process: {os.strerror(error)}")
        current = (int.from_bytes(records[0:8], "little") - first) // RECORD_SIZE
        case = cases[min(current, len(cases) - 1)]
        how = f"hung for {DEADLINE:g} s" if hung else f"ended with status {status}"
        raise RuntimeError(f"the test process {how} at case {current} ({case.name}: {case.code.hex(' ')})")

    def _child(self, fd: int, records: mmap.mmap, count: int) -> None:
        """In the child process: never returns."""
        libc, step = self._libc, Setup.MAP
        ctypes.set_errno(0)  # what failed in this process before is of no interest
        try:
            # SAFETY: the child is single-threaded and ends in the trampoline; its parent keeps the memfd's mapping.
            address = ctypes.addressof(ctypes.c_char.from_buffer(records, PAGE))
            any_access, shared, private = 7, mmap.MAP_SHARED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            for at, length, access, kind, file in (
                (CONTROL, PAGE, 3, shared, fd),
                (TRAMPOLINE, PAGE, any_access, private, -1),
                (CODE, PAGE, any_access, private, -1),
                (DATA, PAGE, 3, private, -1),
                (SIGNAL_STACK, SIGNAL_STACK_SIZE, 3, private, -1),
            ):
                fixed_noreplace = 0x10_0000
                if libc.mmap(at, length, access, kind | fixed_noreplace, file, 0) != at:
                    raise OSError(ctypes.get_errno() or errno.EEXIST, "mmap")
            ctypes.memmove(TRAMPOLINE, self._code, len(self._code))
            ctypes.memmove(CODE, FILLER * (PAGE // len(FILLER)), PAGE)
            step = Setup.SIGNAL_STACK
            _check(libc.sigaltstack(ctypes.byref(SignalStack(SIGNAL_STACK, 0, SIGNAL_STACK_SIZE)), None))
            step = Setup.SIGNALS
            on_stack, no_defer, siginfo = 0x0800_0000, 0x4000_0000, 4
            action = SignalAction(handler=TRAMPOLINE + HANDLER, flags=on_stack | no_defer | siginfo)
            for number in (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV):
                _check(libc.sigaction(int(number), ctypes.byref(action), None))
            step = Setup.LDT
            present_16_bit = 1 << 6  # usable, D = 0; contents: 2 code, 0 data
            if any(word in SEGMENTS[Mode.PROTECTED_16] for word in _code_segments(records, count)):
                for entry, base, contents in ((0, CODE, 2), (1, DATA, 0)):
                    descriptor = UserDesc(entry, base, PAGE - 1, contents << 1 | present_16_bit)
                    _check(libc.syscall(154, 1, ctypes.byref(descriptor), ctypes.sizeof(descriptor)))
            step = Setup.RUNNING
            control = Struct("<8Q").pack(address, address + count * RECORD_SIZE, 0, 0, step, 0, address, 0)
            ctypes.memmove(CONTROL, control, len(control))
            ctypes.CFUNCTYPE(None)(TRAMPOLINE)()
        except BaseException as failure:
            reason = failure.errno if isinstance(failure, OSError) else None
            records[32:48] = Struct("<2Q").pack(step, reason or errno.EIO)
        os._exit(1)


def pack(records: mmap.mmap, at: int, case: Case) -> None:
    """Write a case into its record."""
    registers = [0] * 16
    for greg, value in zip(GREGS, case.gpr, strict=True):
        registers[greg] = value
    code_segment, data_segment = SEGMENTS[case.mode]
    code = (case.code + FILLER)[:CODE_SIZE]
    flags = case.rflags & ~UNCOMPARED | Flag.FIXED | Flag.TF | Flag.IF
    INPUT.pack_into(
        records, at, *registers, case.mode.rip, flags, code_segment, 0, 0, data_segment, data_segment,
        is_repeated(case.code, case.mode), code, case.fxsave, case.memory,
    )  # fmt: skip


def unpack(records: mmap.mmap, at: int) -> Outcome:
    """Read the outcome from a record."""
    out = OUTPUT.unpack_from(records, at + OUT)
    trap = out[GREG_TRAP]
    return Outcome(
        gpr=tuple([out[greg] for greg in GREGS]),
        rip=out[GREG_RIP],
        rflags=out[GREG_FLAGS] & ~UNCOMPARED & 0xFFFF_FFFF,
        fxsave=out[24],
        memory=out[25],
        vector=None if trap == SINGLE_STEP else trap,
        error_code=out[GREG_ERROR],
        cr2=out[GREG_CR2],
    )


def is_repeated(code: bytes, mode: Mode) -> bool:
    """Whether the code is a string instruction with F2 or F3, which traps once an iteration."""
    prefixes = 0
    while prefixes < len(code) - 1 and code[prefixes] in PREFIXES:
        prefixes += 1
    opcode = prefixes + (mode is Mode.LONG and code[prefixes] & 0xF0 == 0x40)
    repeat = 0xF2 in code[:prefixes] or 0xF3 in code[:prefixes]
    return repeat and opcode < len(code) and code[opcode] in REPEATABLE


def _code_segments(records: mmap.mmap, count: int) -> set[int]:
    starts = (PAGE + index * RECORD_SIZE + 144 for index in range(count))
    return {int.from_bytes(records[start : start + 2], "little") for start in starts}


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "set-up")


@functools.cache
def unavailable() -> str:
    """Why the oracle cannot run here, or nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the oracle needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return ""


@functools.cache
def modes() -> tuple[Mode, ...]:
    """The modes that this host offers."""
    if unavailable():
        return ()
    host, offered = HostCpu(), []
    for mode in Mode:
        nop = Case(b"\x90", (0,) * 16, 0, bytes(512), bytes(1024), mode)
        try:
            outcome = host.run([nop])[0]
        except (OSError, RuntimeError):
            continue
        if outcome.vector is None and outcome.rip == mode.rip + 1:
            offered.append(mode)
    return tuple(offered)
