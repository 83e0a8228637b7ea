"""Several virtual CPUs at once: atomic updates, code that another processor writes, and decoded code that is dropped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.engines.assembler import BASE, Code, assemble
from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu, code
from xuni.exits import Halt, Resume
from xuni.isa.x86.cpustate import protected_flat
from xuni.memory.guest import GuestMemory

LOCKED, PAIR, FLAG, WRONG, RING = 0x20000, 0x20010, 0x20040, 0x20080, 0x200C0
STACK = 0x30000
TURNS = 20_000

ATOMIC = f"""
.code32
    mov ecx, {TURNS}
1:  lock inc dword ptr [{LOCKED}]
    mov eax, 1
    lock xadd dword ptr [{LOCKED} + 4], eax
2:  mov eax, dword ptr [{PAIR}]
    mov edx, dword ptr [{PAIR} + 4]
    mov ebx, eax
    mov esi, edx
    add ebx, 1
    adc esi, 1
    push ecx
    mov ecx, esi
    lock cmpxchg8b qword ptr [{PAIR}]
    pop ecx
    jnz 2b
    dec ecx
    jnz 1b
    hlt
"""

# The writer changes the constant that `routine` returns and then raises the flag; the reader waits for the flag, calls,
# and lowers it. The routine has been decoded by then, by the reader.
WRITER = f"""
.code32
    mov ecx, 1
1:  mov dword ptr [routine + 1], ecx
    mov dword ptr [{FLAG}], ecx
2:  pause
    cmp dword ptr [{FLAG}], 0
    jne 2b
    inc ecx
    cmp ecx, {TURNS}
    jb 1b
    hlt
.global reader
reader:
    mov esi, 1
1:  pause
    cmp dword ptr [{FLAG}], esi
    jne 1b
    call routine
    cmp eax, esi
    je 2f
    inc dword ptr [{WRONG}]
2:  mov dword ptr [{FLAG}], 0
    inc esi
    cmp esi, {TURNS}
    jb 1b
    hlt
.p2align 6
routine:
    mov eax, 0x12345678
    ret
"""


class Pair:
    """Two virtual CPUs over one memory, each in a thread of its own while they run."""

    def __init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        compiled, config = code(), SoftConfig(cpus=2)
        cache = compiled.cache(self.memory, config.features)
        self.vcpus = [SoftVcpu(self.memory, config, compiled=compiled, cache=cache) for _ in range(2)]

    def run(self, text: Code, *entries: int, seconds: float = 60.0) -> list[Thread]:
        self.memory.write(BASE, text.data)
        for vcpu, entry, stack in zip(self.vcpus, entries, (STACK, STACK + 0x1000), strict=True):
            vcpu.start(protected_flat(entry, rsp=stack))
        self.ends: list[object] = []
        self.deadline = time.monotonic() + seconds
        threads = [Thread(target=self._run, args=(vcpu,), daemon=True) for vcpu in self.vcpus]
        for thread in threads:
            thread.start()
        return threads

    def _run(self, vcpu: SoftVcpu) -> None:
        while time.monotonic() < self.deadline:
            vcpu.set_deadline(vcpu.now() + 10**8)
            stop = vcpu.run(Resume())
            if isinstance(stop, Halt):
                self.ends.append(stop)
                return

    def finish(self, threads: list[Thread]) -> None:
        for thread in threads:
            thread.join()
        assert len(self.ends) == 2, "a processor did not come to its end"


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.vcpus[0].close()
    made.memory.close()


@pytest.fixture(scope="module")
def texts() -> list[Code]:
    return assemble([ATOMIC, WRITER])


def test_locked_updates_are_atomic(pair: Pair, texts: list[Code]) -> None:
    pair.finish(pair.run(texts[0], BASE, BASE))
    read = pair.memory.read_u32
    assert [read(LOCKED), read(LOCKED + 4), read(PAIR), read(PAIR + 4)] == [2 * TURNS] * 4


def test_code_that_another_processor_wrote_is_what_runs(pair: Pair, texts: list[Code]) -> None:
    pair.finish(pair.run(texts[1], BASE, texts[1].labels["reader"]))
    assert pair.memory.read_u32(WRONG) == 0
    assert pair.memory.read_u32(texts[1].labels["routine"] + 1) == TURNS - 1


def test_decoded_code_is_dropped_while_it_runs(pair: Pair, texts: list[Code]) -> None:
    threads = pair.run(texts[1], BASE, texts[1].labels["reader"])
    host = SoftVcpu(pair.memory, SoftConfig(cpus=2), compiled=code(), cache=pair.vcpus[0].cache)
    drops = 0
    while any(thread.is_alive() for thread in threads):
        host.cache.arena.end = 0
        host._empty_arena()
        drops += 1
        time.sleep(0.0001)
    pair.finish(threads)
    assert int(host.cache.arena.flushes) > 1 and drops > 1
    assert pair.memory.read_u32(WRONG) == 0


def test_memory_that_the_host_writes_while_others_execute_it(pair: Pair, texts: list[Code]) -> None:
    """Writes by devices go through the same lock as those of processors."""
    threads = pair.run(texts[1], BASE, texts[1].labels["reader"])
    at = texts[1].labels["routine"] + 5
    while any(thread.is_alive() for thread in threads):
        pair.memory.write(at, b"\xc3")  # the same `ret`
        time.sleep(0.001)
    pair.finish(threads)
    assert pair.memory.read_u32(WRONG) == 0
