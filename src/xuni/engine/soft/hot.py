"""Which loops are hot, and how compiled ones take the place of handlers.

The engine's loop notes where the budget runs out (`note_hot`): a sample every 20,000 instructions. What is met often is
looked for on disk by a thread beside the guest, and what is met very often goes to a process that compiles it
(hot_code.py, hot_worker.py); then the function is put into the first Op of its trace. Killing the trace takes it out
again, as it does any handler.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import subprocess
import sys
from dataclasses import dataclass
from struct import Struct as Layout
from threading import Condition, Thread
from typing import TYPE_CHECKING, Final

from xuni.engine.soft import build
from xuni.engine.soft.records import HASH_BITS, LINK, OP_SIZE, Mode, Trace

if TYPE_CHECKING:
    from xuni.engine.soft.code_cache import CodeCache
    from xuni.engine.soft.vcpu import Code

TRACES: Final = 16  # in one function
OPS: Final = 250
CHAIN: Final = 1000  # traces of one hash bucket that are looked at
PLACES: Final = 20_000  # that one machine's loops are looked for
COMPILE: Final = 250
"""Notes of a place, each 16 samples of 20 us, that are worth a compilation: it takes about as long as they lasted. What was
compiled before is installed at the first note."""
FAILURES: Final = 3  # of the compiler, after which it is not asked again
PATIENCE: Final = 10.0  # seconds after which a compiler without work ends
_U64: Final = Layout("<Q")
LENGTH: Final = Layout("<I")
OUT: Final = -1


@dataclass(frozen=True, slots=True)
class OpImage:
    """An Op: the name of its handler, its bytes (handler and link are 0 there), and the trace that it is linked to."""

    name: str
    data: bytes
    target: int = OUT


@dataclass(frozen=True, slots=True)
class Loop:
    """Traces that lead to each other; the first one is where the function begins. `updates`: of each handler."""

    traces: tuple[tuple[OpImage, ...], ...]
    updates: dict[str, tuple[bool, ...]]

    def packed(self) -> bytes:
        """The form in which loops travel, the same for the same loop."""
        traces = [[(op.name, op.data, op.target) for op in trace] for trace in self.traces]
        return marshal.dumps((traces, sorted(self.updates.items())))

    @classmethod
    def unpacked(cls, data: bytes) -> Loop:
        """The reverse of `packed`."""
        traces, updates = marshal.loads(data)
        return cls(tuple(tuple(OpImage(*op) for op in trace) for trace in traces), dict(updates))


class HotLoops:
    """Finds, compiles and installs the hot loops of one machine."""

    def __init__(self, cache: CodeCache, code: Code) -> None:
        self._cache = cache
        self._code = code
        self._noted: dict[tuple[int, int, int], int] = {}
        """Places (host address, mode, generation of the arena) and how often they were noted."""
        self._wanted: list[tuple[int, int, bool]] = []
        """Places to serve (host address, mode, whether to compile)."""
        self._changed = Condition()
        self._closed = False
        self._thread: Thread | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._names: dict[int, str] = {}
        self._key = b""
        self.installed = 0
        self.compiled = 0
        self._failures = 0

    def note(self, host: int, mode: int) -> None:
        """The trace that begins at this host address was met often."""
        key = host, mode, int(self._cache.arena.generation)
        count = self._noted[key] = self._noted.get(key, 0) + 1
        if count not in (1, COMPILE) or len(self._noted) > PLACES:
            return
        with self._changed:
            self._wanted.append((host, mode, count == COMPILE))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hot-loops", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread and the compiler."""
        if self._thread is not None:
            with self._changed:
                self._closed = True
                self._changed.notify()
            self._thread.join(1.0)
            self._thread = None
        self._dismiss()

    # -- in the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._wanted and not self._closed and not self._changed.wait(PATIENCE):
                    self._dismiss()
                if self._closed:
                    return
                if not self._wanted:
                    continue
                wanted = self._wanted.pop(0)
            try:
                self._serve(*wanted)
            except (IndexError, KeyError, OSError, EOFError, ValueError, build.BuildError):
                continue  # it changed under our hands, or cannot be compiled: the handlers go on

    def _serve(self, host: int, mode: int, compiling: bool) -> None:
        cache = self._cache
        generation = int(cache.arena.generation)
        if mode & Mode.SIZE != 2:
            return
        if not self._names:
            for name, address in zip(self._code.image.tables["names"], self._code.handlers, strict=True):
                self._names.setdefault(address, name)
        head = find(cache, host, mode)
        chosen = select(cache, self._names, head) if head else None
        if chosen is None:
            return
        loop, addresses = chosen
        first = cache.word(addresses[0])
        text = loop.packed()
        self._key = self._key or build.key().encode()
        path = build.cache_directory() / "loops" / hashlib.sha256(self._key + text).hexdigest()[:40]
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            if not compiling or self._failures > FAILURES:
                return
            data = self._compile(text)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                build._write(path, data)
            except OSError:
                pass  # compiled again next time
        if not data:
            return  # every way round leaves it
        twin = _U64.unpack(self._code.bytes_before(first))[0]
        function = self._code.install(cache, data, addresses, first, twin, generation)
        if function:
            self._names[function] = self._names[first]
            self.installed += 1

    def _compile(self, text: bytes) -> bytes:
        if self._worker is None or self._worker.poll() is not None:
            self._worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "xuni.engine.soft.hot_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(build._PACKAGE.parent)}, start_new_session=True,
            )
        worker = self._worker
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(LENGTH.pack(len(text)) + text)
        worker.stdin.flush()
        size = worker.stdout.read(LENGTH.size)
        expected = LENGTH.unpack(size)[0] if len(size) == LENGTH.size else -1
        data = worker.stdout.read(max(expected, 0))
        if len(data) != expected:
            self._failures += 1
            raise EOFError("the compiler ended")
        self.compiled += 1
        return data

    def _dismiss(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    stream.close()


# -- which traces ------------------------------------------------------------------------------------------------------
def _field(cache: CodeCache, trace: int, name: str) -> int:
    field = vars(Trace)[name]
    return int.from_bytes(cache.bytes_at(trace + field.offset, field.size), "little")


def find(cache: CodeCache, host: int, mode: int) -> int:
    """Address of the live Trace for a key, or 0: `traces.find` from the host's side, with every address checked."""
    mixed = (((host ^ mode << 40) * 0x9E3779B97F4A7C15) & (1 << 64) - 1) >> 64 - HASH_BITS
    trace = cache.word(int(cache.arena.buckets) + 8 * mixed)
    for _ in range(CHAIN):
        if not trace:
            break
        if _field(cache, trace, "host") == host and _field(cache, trace, "mode") == mode and not _field(cache, trace, "dead"):
            return trace
        trace = _field(cache, trace, "hash_next")
    return 0


def select(cache: CodeCache, names: dict[int, str], head: int) -> tuple[Loop, list[int]] | None:
    """The traces of the loops through the one at `head`, and their first Ops; None if there is no loop."""
    found: dict[int, list[tuple[str, int, bytes]]] = {}
    pending = [head]
    while pending and len(found) < TRACES and sum(map(len, found.values())) < OPS:
        trace = pending.pop(0)
        if trace in found or _field(cache, trace, "dead") or _field(cache, trace, "straddles"):
            continue
        found[trace] = _ops(cache, names, trace)
        pending += [target for _, target, _ in found[trace] if target]
    leads = {trace: {target for _, target, _ in ops} for trace, ops in found.items()}
    reaching = {head}
    while more := {trace for trace in found if trace not in reaching and reaching & leads[trace]}:
        reaching |= more
    if not any(head in leads[trace] for trace in found):
        return None
    order = [trace for trace in found if trace in reaching]
    numbers = {trace: number for number, trace in enumerate(order)}
    traces = tuple(
        tuple(OpImage(name, data, numbers.get(target, OUT)) for name, target, data in found[trace]) for trace in order
    )
    known = cache.tables["updates"]
    updates = {op.name: known[op.name] for trace_ in traces for op in trace_ if op.name in known}
    return Loop(traces, updates), [trace + Trace.SIZE for trace in order]


def _ops(cache: CodeCache, names: dict[int, str], trace: int) -> list[tuple[str, int, bytes]]:
    """(handler's name, linked Trace or 0, bytes without handler and link) of each Op."""
    found = []
    linked = cache.linked
    for number in range(min(_field(cache, trace, "count"), OPS)):
        data = bytearray(cache.bytes_at(trace + Trace.SIZE + number * OP_SIZE, OP_SIZE))
        name = names.get(_U64.unpack_from(data, 0)[0], "")
        data[:8] = bytes(8)
        target = 0
        if name in linked:
            link = _U64.unpack_from(data, LINK)[0]
            target = link - Trace.SIZE if link else 0
            data[LINK : LINK + 8] = bytes(8)
        found.append((name, target, bytes(data)))
    return found
