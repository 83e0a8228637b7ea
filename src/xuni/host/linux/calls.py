"""System calls by number, with errors that say which call failed on what.

`_ctypes` rather than `ctypes`: a container's start has milliseconds, and the latter takes five of them for types that
nobody here needs. Only names of `_ctypes` that every CPython from 3.11 on has are used.
"""

from __future__ import annotations

import _ctypes

from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


class CallError(OSError):
    """A system call that failed: `call` is its name, `arguments` what it was given, as text."""

    def __init__(self, number: int, call: str, arguments: tuple[object, ...]) -> None:
        super().__init__(number, os.strerror(number))
        self.call = call
        self.arguments = arguments

    def __str__(self) -> str:
        return f"{self.call}({', '.join(show(each) for each in self.arguments)}): {self.strerror}"


def show(argument: object) -> str:
    """As strace would print it."""
    if isinstance(argument, bytes):
        return '"' + argument.decode(errors="backslashreplace") + '"'
    if isinstance(argument, str):
        return f'"{argument}"'
    if isinstance(argument, int):
        return "AT_FDCWD" if argument == AT_FDCWD else str(argument) if -1 <= argument < 4096 else hex(argument)
    return str(argument)


AT_FDCWD: Final = -100

# Name: number on x86-64, on everything of the generic table (AArch64, RISC-V, LoongArch). From 424 on they agree.
NUMBERS: Final = {
    "ioctl": (16, 29), "socket": (41, 198), "fcntl": (72, 25), "sendfile": (40, 71), "clone": (56, 220),
    "ptrace": (101, 117), "personality": (135, 92),
    "mlockall": (151, 230), "prctl": (157, 167), "signalfd4": (289, 74), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41),
    "sethostname": (170, 161), "setdomainname": (171, 162), "set_mempolicy": (238, 237), "add_key": (248, 217),
    "keyctl": (250, 219), "ioprio_set": (251, 30), "unshare": (272, 97), "setns": (308, 268), "prlimit64": (302, 261),
    "sched_setattr": (314, 274), "seccomp": (317, 277), "memfd_create": (319, 279), "bpf": (321, 280),
    "execve": (59, 221), "execveat": (322, 281), "capget": (125, 90), "capset": (126, 91), "setgroups": (116, 159),
    "pidfd_send_signal": (424, 424), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_open": (434, 434), "clone3": (435, 435),
    "close_range": (436, 436), "openat2": (437, 437), "pidfd_getfd": (438, 438), "mount_setattr": (442, 442),
}  # fmt: skip
_COLUMN: Final = 0 if os.uname().machine == "x86_64" else 1

# FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI | FUNCFLAG_USE_ERRNO: the interpreter's lock is kept, since nothing here runs threads,
# and clone3 returns twice.
_FLAGS: Final = 0x1 | 0x8


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"  # takes None, bytes, arrays and any int: what a register takes


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _FLAGS
    _restype_ = _Long


_libc: Final[int] = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]
_syscall: Final[Any] = _Function(_ctypes.dlsym(_libc, "syscall"))
_syscall.argtypes = (_Long,) + (_Pointer,) * 6
_arrays: dict[int, Any] = {}


def space(size: int, content: bytes = b"") -> Any:
    """Memory of `size` bytes that a call may fill; `.raw` or `bytes()` reads it."""
    kind = _arrays.get(size)
    if kind is None:
        kind = _arrays[size] = type("Space", (_ctypes.Array,), {"_type_": _Char, "_length_": size})
    made = kind()
    if content:
        made.raw = content
    return made


def address(memory: Any) -> int:
    return int(_ctypes.addressof(memory))


def number(call: str) -> int:
    return NUMBERS[call][_COLUMN]


def try_call(call: str, a: Any = 0, b: Any = 0, c: Any = 0, d: Any = 0, e: Any = 0, f: Any = 0) -> int:
    """The result, or -errno."""
    # SAFETY: `bytes` and arrays among the arguments are alive until the call returns, and the kernel keeps no pointer.
    result: int = _syscall(NUMBERS[call][_COLUMN], a, b, c, d, e, f)
    return -_ctypes.get_errno() if result == -1 else result


def call(call: str, a: Any = 0, b: Any = 0, c: Any = 0, d: Any = 0, e: Any = 0, f: Any = 0, *, shown: tuple[object, ...]) -> int:
    """The result. Raises CallError; `shown` are the arguments for its text."""
    result = try_call(call, a, b, c, d, e, f)
    if result < 0:
        raise CallError(-result, call, shown)
    return result
