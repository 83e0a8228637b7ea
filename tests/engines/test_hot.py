"""Hot loops: what LLVM makes of several instructions at once does what their handlers do, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines.assembler import BASE, Code, assemble
from xuni.engine.soft import build, hot, hot_worker
from xuni.engine.soft.code_cache import CodeCache
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.exits import Exit, Halt, PortOut, Resume, Sliced
from xuni.isa.x86.cpustate import NO_TABLE, long_flat
from xuni.isa.x86.state import Cr4
from xuni.memory.guest import GuestMemory

TURNS = 3000
MEMORY, DATA, STACK, PAGING = 8 << 20, 2 << 20, 1 << 20, 0x10000
# Each is a loop at `again`, `TURNS` times around; RSI points to data.
BODIES = {
    "carries": """
        mov rax, [rsi+rcx*8-8]
        mul r9
        add r8, rax
        adc rdx, r10
        sbb r11, rdx
        rcl r10, 3
        setc bl
        cmovs r12, r8
        lea r13, [r13+rbx*4+7]
    """,
    "narrow registers": """
        mov al, [rsi+rcx]
        add ah, al
        xchg al, ah
        mov dx, ax
        inc dl
        imul dx, dx, 77
        movsx r8d, dx
        xor r9d, r8d
        bswap r9d
        rol r9w, 5
        mov [rsi+rcx+8192], r9w
    """,
    "branches and calls": """
        test cl, 3
        jz 2f
        inc r8
        call twice
        jmp 3f
    2:  dec r9
        cmp r9, r8
        jl 3f
        add r9, 5
    3:  xor r10, r8
    """,
    "flags that are read elsewhere": """
        add r8d, 0x10000001
        pushfq
        pop rax
        xor r9, rax
        sahf
        lahf
        dec r10b
        pushfq
        pop rdx
        add r9, rdx
    """,
    "stack and addresses": """
        push rcx
        push r8
        lea r8, [rip+again]
        add r9, [rip+constant]
        xor r8, [rsp+8]
        pop r10
        pop rdx
        mov [rsi+rdx*4], r8d
        movzx eax, byte ptr [rsi+rdx*4+1]
        sub r11, rax
    """,
    "vectors": """
        movdqu xmm0, [rsi+rcx]
        paddd xmm1, xmm0
        pxor xmm2, xmm1
        movq rax, xmm2
        add r8, rax
        pshufd xmm3, xmm2, 27
        psrldq xmm3, 5
        movdqu [rsi+rcx+16384], xmm2
    """,
    "locked": """
        lock add [rsi], rcx
        mov rax, 3
        lock xadd [rsi+8], rax
        add r8, rax
        xchg [rsi+16], r8
        lock cmpxchg [rsi+24], r8
    """,
    "another page each time": """
        mov rdx, rcx
        and edx, 31
        shl edx, 12
        add [rsi+rdx], rcx
        mov rax, [rsi+rdx+4092]
        add r8, rax
    """,
    "its own code": """
        inc r8
        test r14, r14
        jz 2f
        test cl, 127
        jnz 2f
        mov eax, [rip+patched+3]
        add eax, 3
        mov [rip+patched+3], eax
    2:
    patched:
        add r9, 1000
    """,
    "devices": """
        add r8, rcx
        test ecx, 1023
        jnz 2f
        mov eax, r8d
        out 0x80, al
    2:  xor r9, r8
    """,
}
TEXT = """
.code64
    mov ecx, {turns}
    mov rsi, {data}
    mov r9, 0x123456789abcdef
again:
{body}
    dec rcx
    jnz again
    pushfq
    pop r15
    hlt
twice:
    add r8, r8
    ret
constant:
    .quad 0x1122334455667788
"""


@pytest.fixture(scope="module")
def codes() -> dict[str, Code]:
    texts = [TEXT.format(turns=TURNS, data=DATA, body=body) for body in BODIES.values()]
    return dict(zip(BODIES, assemble(texts), strict=True))


class Guest:
    """One of the loops in 64-bit mode."""

    def __init__(self, code: Code) -> None:
        self.memory = GuestMemory(MEMORY)
        self.memory.write(BASE, code.data)
        for table, entry in ((PAGING, PAGING + 0x1003), (PAGING + 0x1000, PAGING + 0x2003)):
            self.memory.write_u64(table, entry)
        for number in range(MEMORY >> 21):
            self.memory.write_u64(PAGING + 0x2000 + 8 * number, number << 21 | 0x83)
        self.code = code
        self.vcpu = SoftVcpu(self.memory)
        self.cache: CodeCache = self.vcpu.cache
        assert self.cache.hot is not None
        self.hot, self.cache.hot = self.cache.hot, None  # only when the test says so
        self.exits: list[Exit] = []

    def start(self, again: bool = False) -> None:
        """In 64-bit mode, with SSE. R14 tells whether it is the second time."""
        at = long_flat(BASE, PAGING, gdtr=NO_TABLE, rsp=STACK)
        self.vcpu.start(replace(at, cr4=at.cr4 | int(Cr4.OSFXSR | Cr4.OSXMMEXCPT), r14=int(again)))
        self.vcpu.state.halted = 0

    def run(self, again: bool = False) -> None:
        """From the start to the end."""
        self.start(again)
        for _ in range(100):
            stop = self.vcpu.run(Resume())
            if isinstance(stop, Halt):
                return
            assert isinstance(stop, PortOut), stop
            self.exits.append(stop)
        raise AssertionError("no end")

    def place(self) -> tuple[int, int]:
        """Host address and mode of the loop's first trace."""
        return self.memory.slots[0].host_address + self.code.labels["again"], int(self.vcpu.state.mode)

    def result(self) -> tuple[object, bytes]:
        s = self.vcpu.save()
        return (s.registers, s.fxsave), self.memory.read(0, MEMORY)

    def close(self) -> None:
        self.hot.close()
        self.vcpu.close()
        self.memory.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, codes: dict[str, Code]) -> Iterator[tuple[Guest, Guest]]:
    made = Guest(codes[request.param]), Guest(codes[request.param])
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("guest", list(BODIES), indirect=True)
def test_the_same_end(guest: tuple[Guest, Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run twice: the first time, the loop is decoded and its branches are linked."""
    plain, fast = guest
    monkeypatch.setattr(fast.hot, "_compile", lambda text: hot_worker.compile_loop(hot.Loop.unpacked(text)))
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path)
    plain.run()
    fast.run()
    assert fast.result() == plain.result()
    fast.hot._serve(*fast.place(), compiling=True)
    assert fast.hot.installed == 1
    plain.run(again=True)
    fast.run(again=True)
    assert fast.result() == plain.result()
    assert fast.exits == plain.exits


def test_what_leaves_on_each_way_round_is_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = assemble([TEXT.format(turns=TURNS, data=DATA, body="cpuid\nmov ecx, r8d\nsub r8, 1\njmp again\n")])[0]
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path)
    guest = Guest(code)
    guest.start()
    guest.vcpu.set_deadline(guest.vcpu.now() + 10**7)
    assert isinstance(guest.vcpu.run(Resume()), Sliced)
    guest.hot._serve(*guest.place(), compiling=True)
    assert (guest.hot.installed, guest.hot.compiled) == (0, 1)
    guest.close()


def test_a_hot_loop_is_found_compiled_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: samples, the compiling process, the disk, and a second machine that finds it there."""
    code = assemble([TEXT.format(turns=1, data=DATA, body="add r8, rcx\nxor r9, r8\njmp again\n")])[0]
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path)
    for compiled in (1, 0):
        guest = Guest(code)
        guest.cache.hot = guest.hot
        guest.start()
        deadline = time.monotonic() + 50
        while not guest.hot.installed and time.monotonic() < deadline:
            guest.vcpu.set_deadline(guest.vcpu.now() + 10**7)
            assert isinstance(guest.vcpu.run(Resume()), Sliced)
        worker = guest.hot._worker
        guest.close()
        assert (guest.hot.installed, guest.hot.compiled) == (1, compiled)
        assert worker is None or worker.poll() is not None
    assert len(list((tmp_path / "loops").iterdir())) == 1
