"""A program of some 270 bytes between the runtime and the container's first instruction.

execve resolves `/proc/self/exe`, as an interpreter of a script or through a link, while the old program is still in place. If
that is ours, the container gets a handle on the host's interpreter and can overwrite it once we are gone (CVE-2019-5736). So
what executes the container's program is this: an ELF file in a sealed memory file, which nobody can write and nobody misses.

Its arguments are MARK, the path and then the program's; it calls execve(path, arguments, environment), and if that fails writes
"exec PATH: why" to standard error and exits with 127.
"""

from __future__ import annotations

import errno

from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.host.linux.kernel import Linux

MFD_CLOEXEC: Final = 1
MFD_ALLOW_SEALING: Final = 2
MFD_EXEC: Final = 0x10  # Linux 6.3, where vm.memfd_noexec may make the others not executable
F_ADD_SEALS: Final = 1033
F_SEAL_ALL: Final = 0xF  # no more seals, no shrinking, no growing, no writing

# fmt: off
_CODE: Final = bytes.fromhex(
    "bf7e000000"      # _start: mov edi, 126
    "488b442408"      #         mov rax, [rsp+8]         argv[0]
    "803801"          #         cmp byte [rax], 1        not from us: "#!/proc/self/exe" would go in circles
    "0f858c000000"    #         jne quit
    "488b7c2410"      #         mov rdi, [rsp+16]        argv[1], the path
    "488d742418"      #         lea rsi, [rsp+24]        argv + 2
    "488b0424"        #         mov rax, [rsp]           argc
    "488d54c410"      #         lea rdx, [rsp+rax*8+16]  envp
    "b83b000000"      #         mov eax, 59              execve
    "0f05"            #         syscall
    "89c3"            #         mov ebx, eax             -errno
    "488d357d000000"  #         lea rsi, [exec]
    "ba05000000"      #         mov edx, 5
    "e866000000"      #         call write
    "488b742410"      #         mov rsi, [rsp+16]
    "31d2"            #         xor edx, edx
    "803c1600"        # next:   cmp byte [rsi+rdx], 0
    "7404"            #         je end
    "ffc2"            #         inc edx
    "ebf6"            #         jmp next
    "e850000000"      # end:    call write
    "488d359f000000"  #         lea rsi, [other]
    "ba14000000"      #         mov edx, 20
    "83fbfe"          #         cmp ebx, -2              ENOENT
    "750c"            #         jne +12
    "488d354a000000"  #         lea rsi, [enoent]
    "ba1c000000"      #         mov edx, 28
    "83fbf3"          #         cmp ebx, -13             EACCES
    "750c"            #         jne +12
    "488d3555000000"  #         lea rsi, [eacces]
    "ba14000000"      #         mov edx, 20
    "83fbf8"          #         cmp ebx, -8              ENOEXEC
    "750c"            #         jne +12
    "488d3558000000"  #         lea rsi, [enoexec]
    "ba14000000"      #         mov edx, 20
    "e80c000000"      #         call write
    "bf7f000000"      #         mov edi, 127
    "b8e7000000"      # quit:   mov eax, 231             exit_group
    "0f05"            #         syscall
    "bf02000000"      # write:  mov edi, 2
    "b801000000"      #         mov eax, 1
    "0f05"            #         syscall
    "c3"              #         ret
)
# fmt: on
_TEXTS: Final = b"exec " b": no such file or directory\n" b": permission denied\n" b": exec format error\n" \
    b": cannot be started\n"
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56


def _elf(code: bytes) -> bytes:
    """A static executable: the ELF header, one segment that is everything, the code."""
    size = _HEADERS + len(code)

    def numbers(width: int, *values: int) -> bytes:
        return b"".join([value.to_bytes(width, "little") for value in values])

    header = (b"\x7fELF\x02\x01\x01" + bytes(9) + numbers(2, 2, 62) + numbers(4, 1)  # ET_EXEC, EM_X86_64
              + numbers(8, _BASE + _HEADERS, 64, 0) + numbers(4, 0) + numbers(2, 64, 56, 1, 0, 0, 0))  # fmt: skip
    segment = numbers(4, 1, 5) + numbers(8, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, readable and executable
    return header + segment + code


def available() -> bool:
    """Whether there is one for this processor."""
    return os.uname().machine == "x86_64"


def make(kernel: Linux) -> int:
    """A descriptor of the sealed program, to be executed with AT_EMPTY_PATH. Raises OSError where memory files may not be."""
    try:
        descriptor = kernel.memfd_create("xuni", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = kernel.memfd_create("xuni", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    os.write(descriptor, _elf(_CODE + _TEXTS))
    os.fchmod(descriptor, 0o555)
    kernel.fcntl(descriptor, F_ADD_SEALS, F_SEAL_ALL)
    return descriptor
