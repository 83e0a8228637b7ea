"""KVM_RUN and the first look at the run page, as a Python function made of machine code: what a port access costs beside
the kernel.

From Python the same takes an ioctl with its arguments through ctypes and five reads of the page, a quarter of an exit's
whole time. This code knows one virtual CPU, and is called as any built-in function without arguments::

    53 41 54 41 55       push  rbx, r12, r13      for the caller, and to align the stack
    48 b8 SAVE ff d0     call  PyEval_SaveThread  without the GIL from here on
    48 89 c3             mov   rbx, rax
    bf FD                mov   edi, fd            ioctl(fd, KVM_RUN, 0)
    be 80 ae 00 00       mov   esi, 0xae80
    31 d2                xor   edx, edx
    b8 10 00 00 00       mov   eax, 16
    0f 05                syscall
    49 89 c4             mov   r12, rax           an error: -errno
    48 85 c0 78 38       test  rax, rax; js done
    48 b9 PAGE           mov   rcx, page
    45 31 e4             xor   r12d, r12d         0: look at the run page
    48 8b 15 4d 00 00 00 mov   rdx, [rip + cr8]
    48 3b 51 10 75 1e    cmp   rdx, [rcx + 16]    kvm_run.cr8 is not what it was: done
    83 79 08 02 75 18    cmp   [rcx + 8], 2       kvm_run.exit_reason is not KVM_EXIT_IO: done
    83 79 24 01 75 12    cmp   [rcx + 36], 1      kvm_run.io.count is not 1: done
    44 8b 61 20          mov   r12d, [rcx + 32]   direction, size and port
    49 c1 e4 20          shl   r12, 32
    48 8b 51 28          mov   rdx, [rcx + 40]    kvm_run.io.data_offset
    8b 14 11             mov   edx, [rcx + rdx]   the data
    49 09 d4             or    r12, rdx
    48 89 df       done: mov   rdi, rbx
    48 b8 BACK ff d0     call  PyEval_RestoreThread
    4c 89 e7             mov   rdi, r12
    48 b8 LONG           mov   rax, PyLong_FromUnsignedLongLong
    41 5d 41 5c 5b ff e0 pop   r13, r12, rbx; jmp rax
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xuni.host.kvm.vcpu import Vcpu

CODE: Final = (
    "53 4154 4155 48b8 {PyEval_SaveThread} ffd0 4889c3 bf {fd} be80ae0000 31d2 b810000000 0f05 4989c4 4885c0 7838"
    "48b9 {page} 4531e4 488b154d000000 483b5110 751e 83790802 7518 83792401 7512 448b6120 49c1e420 488b5128 8b1411 4909d4"
    "4889df 48b8 {PyEval_RestoreThread} ffd0 4c89e7 48b8 {PyLong_FromUnsignedLongLong} 415d 415c 5b ffe0 660f1f440000"
)
CR8: Final = 18  # its place behind the code, in words of 64 bits
FAILED: Final = (1 << 64) - 4096
"""Results from here on are a negative errno."""
METH_NOARGS: Final = 4


class _Method(ctypes.Structure):
    """PyMethodDef of Python's stable ABI."""

    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


_new_function = ctypes.pythonapi.PyCFunction_NewEx
_new_function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_new_function.restype = ctypes.py_object


class Entry:
    """Enters one virtual CPU. `call()` gives 0 if the run page has to be looked at, `FAILED` or more for an error, and
    else a port access as `port_access` takes it apart. It runs without the GIL.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        functions = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyLong_FromUnsignedLongLong")
        numbers = {name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in functions}
        numbers["page"] = ctypes.addressof(vcpu.run_page)
        words = {name: value.to_bytes(8, "little").hex() for name, value in numbers.items()}
        text = bytes.fromhex(CODE.format(fd=vcpu.fd.to_bytes(4, "little").hex(), **words))
        assert len(text) == 8 * CR8
        self._map = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                              mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)  # fmt: skip
        self._map[: len(text)] = text
        # SAFETY: `call` is used only while this object and the virtual CPU, whose page and file the code names, live and
        # are open: both belong to the same owner. Data of a port access lie in the mapping, four bytes before its end at
        # most. The function's record lives as long as this object.
        self._cells = (ctypes.c_uint64 * (CR8 + 1)).from_buffer(self._map)
        self._method = _Method(b"enter", ctypes.addressof(self._cells), METH_NOARGS, None)
        self.call: Callable[[], int] = _new_function(ctypes.addressof(self._method), None, None)

    def close(self) -> None:
        """Unmap the code; `call` may not be used any more."""
        self.call = lambda: FAILED
        del self._cells
        self._map.close()

    @property
    def cr8(self) -> int:
        """The CR8 that the board knows; another one makes `call` give 0."""
        return int(self._cells[CR8])

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._cells[CR8] = value


def port_access(left: int) -> tuple[bool, int, int, int]:
    """Whether it is an OUT, port, size in bytes, and data, of what `Entry.call` gave."""
    size = left >> 40 & 0xFF
    return bool(left >> 32 & 1), left >> 48, size, left & (1 << 8 * size) - 1
