"""libseccomp through `_ctypes`: rules by system call names go in, a BPF program for all architectures comes out.

Debian's package is libseccomp2. Only the runtime calls it, before init exists: the library is the host's.
"""

from __future__ import annotations

import _ctypes

from xuni.host.linux import system as os
from xuni.host.linux.calls import _Function, try_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

KILL_PROCESS: Final = 0x80000000
KILL_THREAD: Final = 0
TRAP: Final = 0x00030000
ERRNO: Final = 0x00050000
NOTIFY: Final = 0x7FC00000
TRACE: Final = 0x7FF00000
LOG: Final = 0x7FFC0000
ALLOW: Final = 0x7FFF0000

# enum scmp_compare, enum scmp_filter_attr
OPERATORS: Final = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
                    "SCMP_CMP_MASKED_EQ": 7}  # fmt: skip
_ATTRIBUTE_NNP: Final = 3
_NO_SUCH_CALL: Final = -1  # __NR_SCMP_ERROR


class SeccompMissing(OSError):
    """The library is not installed."""


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _UInt(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _IntFunction(_ctypes.CFuncPtr):
    _flags_ = _Function._flags_
    _restype_ = _Int


class _UIntFunction(_ctypes.CFuncPtr):
    _flags_ = _Function._flags_
    _restype_ = _UInt


class _PointerFunction(_ctypes.CFuncPtr):
    _flags_ = _Function._flags_
    _restype_ = _Pointer


class Library:
    """The functions that a filter takes."""

    def __init__(self) -> None:
        try:
            handle = _ctypes.dlopen("libseccomp.so.2", os.RTLD_NOW)
        except OSError as error:
            raise SeccompMissing(f"libseccomp.so.2 cannot be loaded ({error}); in Debian it is libseccomp2") from None

        def find(kind: Any, name: str, *types: Any) -> Any:
            function = kind(_ctypes.dlsym(handle, "seccomp_" + name))
            function.argtypes = types
            return function

        self.init = find(_PointerFunction, "init", _UInt)
        self.release = find(_IntFunction, "release", _Pointer)
        self.arch_add = find(_IntFunction, "arch_add", _Pointer, _UInt)
        self.arch_native = find(_UIntFunction, "arch_native")
        self.arch_resolve_name = find(_UIntFunction, "arch_resolve_name", _Pointer)
        self.attr_set = find(_IntFunction, "attr_set", _Pointer, _Int, _UInt)
        self.resolve = find(_IntFunction, "syscall_resolve_name_arch", _UInt, _Pointer)
        self.rule_add = find(_IntFunction, "rule_add_array", _Pointer, _UInt, _Int, _UInt, _Pointer)
        self._version = find(_PointerFunction, "version")
        self.export_bpf = find(_IntFunction, "export_bpf", _Pointer, _Int)

    def version(self) -> str:
        """ "2.5.4"; struct scmp_version is three unsigned ints."""
        # SAFETY: the library returns a pointer to a static record.
        numbers = (_UInt * 3).from_address(self._version())
        return ".".join([str(each) for each in numbers])


class Filter:
    """One filter being made. Every failure is an OSError."""

    def __init__(self, library: Library, default: int) -> None:
        self.library = library
        self.handle = library.init(default)
        if not self.handle:
            raise OSError(22, "seccomp_init: the default action is not valid")
        library.attr_set(self.handle, _ATTRIBUTE_NNP, 0)  # the container's own setting decides

    def add_architecture(self, name: str) -> bool:
        """`name` as libseccomp has it, "x86_64". False if this library does not know it."""
        token = self.library.arch_resolve_name(name.encode())
        if not token:
            return False
        result = self.library.arch_add(self.handle, token)
        if result and result != -17:  # EEXIST: the native one is there from the start
            raise OSError(-result, f"seccomp_arch_add({name})")
        return True

    def add_rule(self, action: int, call: str, arguments: Sequence[tuple[int, int, int, int]]) -> bool:
        """`arguments`: index, operator, value, second value. False if nobody knows the call."""
        number = self.library.resolve(self.library.arch_native(), call.encode())
        if number == _NO_SUCH_CALL:
            return False
        packed = b"".join([index.to_bytes(4, "little") + operator.to_bytes(4, "little") + value.to_bytes(8, "little")
                           + second.to_bytes(8, "little") for index, operator, value, second in arguments])  # fmt: skip
        result = self.library.rule_add(self.handle, action, number, len(arguments), packed or None)
        if result:
            raise OSError(-result, f"seccomp_rule_add({call}): {os.strerror(-result)}")
        return True

    def program(self) -> bytes:
        """The filter as `struct sock_filter`s; the Filter is used up."""
        descriptor = try_call("memfd_create", b"seccomp", 1)
        try:
            result = self.library.export_bpf(self.handle, descriptor)
            if result:
                raise OSError(-result, "seccomp_export_bpf")
            size = os.lseek(descriptor, 0, os.SEEK_CUR)
            return os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)
            self.library.release(self.handle)


__all__ = ["Filter", "Library", "SeccompMissing"]
