"""KVM_RUN and the first look at the run page, as 79 bytes of machine code: what a port access costs beside the kernel.

From Python the same takes an ioctl with its arguments and five reads of the page, a fifth of an exit's whole time. The
code below is position-independent and knows one virtual CPU; it is called without arguments and without the GIL::

    bf FD                mov   edi, fd            ioctl(fd, KVM_RUN, 0)
    be 80 ae 00 00       mov   esi, 0xae80
    31 d2                xor   edx, edx
    b8 10 00 00 00       mov   eax, 16
    0f 05                syscall
    48 85 c0             test  rax, rax           an error: -errno
    78 36                js    done
    48 b9 PAGE           mov   rcx, page
    31 c0                xor   eax, eax           0: look at the run page
    48 8b 15 25 00 00 00 mov   rdx, [rip + cr8]
    48 3b 51 10          cmp   rdx, [rcx + 16]    kvm_run.cr8 is not what it was
    75 1d                jne   done
    83 79 08 02          cmp   [rcx + 8], 2       kvm_run.exit_reason is not KVM_EXIT_IO
    75 17                jne   done
    83 79 24 01          cmp   [rcx + 36], 1      kvm_run.io.count is not 1
    75 11                jne   done
    8b 41 20             mov   eax, [rcx + 32]    direction, size and port
    48 c1 e0 20          shl   rax, 32
    48 8b 51 28          mov   rdx, [rcx + 40]    kvm_run.io.data_offset
    8b 14 11             mov   edx, [rcx + rdx]   the data
    48 09 d0             or    rax, rdx
    c3            done:  ret
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from xuni.host.kvm.vcpu import Vcpu

CODE: Final = (
    "bf {fd} be80ae0000 31d2 b810000000 0f05 4885c0 7836 48b9 {page} 31c0 488b1525000000 483b5110 751d 83790802 7517"
    "83792401 7511 8b4120 48c1e020 488b5128 8b1411 4809d0 c3 90"
)
CR8: Final = 10  # its place behind the code, in words of 64 bits
FAILED: Final = (1 << 64) - 4096
"""Results from here on are a negative errno."""


class Entry:
    """Enters one virtual CPU. `call()` gives 0 if the run page has to be looked at, `FAILED` or more for an error, and
    else a port access as `port_access` takes it apart.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        page = ctypes.addressof(vcpu.run_page)
        code = CODE.format(fd=vcpu.fd.to_bytes(4, "little").hex(), page=page.to_bytes(8, "little").hex())
        text = bytes.fromhex(code)
        assert len(text) == 8 * CR8
        self._map = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                              mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)  # fmt: skip
        self._map[: len(text)] = text
        # SAFETY: `call` is used only while this object and the virtual CPU, whose page and file the code names, live;
        # both belong to the same owner. Data of a port access lie in the mapping, four bytes before its end at most.
        self._cells = (ctypes.c_uint64 * (CR8 + 1)).from_buffer(self._map)
        self.call: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(self._cells))

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
