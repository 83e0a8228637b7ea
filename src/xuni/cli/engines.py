"""From an engine's name to what makes its virtual CPUs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final

import xuni.engine.kvm.probes  # noqa: F401  `--trace` has to know them before an engine is chosen
from xuni.cli.failure import EngineError, Refusal
from xuni.exits import Vcpu
from xuni.host import offers
from xuni.host.progress import Progress
from xuni.isa.x86.models import CpuModel
from xuni.machine.machine import CpuConfig, Engine
from xuni.memory.guest import GuestMemory

if TYPE_CHECKING:
    from xuni.engine.soft.code_cache import CodeCache
    from xuni.engine.soft.vcpu import SoftVcpu

STDERR: Final = 2
SHOWN: Final = 5  # kinds of instructions


@dataclass(frozen=True, slots=True)
class Chosen:
    """What makes processors, its name (soft or kvm), and why it was taken."""

    engine: Engine
    name: str
    reason: str


def choose(names: str, cpu: CpuModel) -> Chosen:
    """What makes processors of this kind. `names`: auto, soft or kvm, or several with colons between, of which the first
    that can be had is taken. Raises `Refusal` if none can.
    """
    *first, last = names.split(":")
    for name in first:
        try:
            return _one(name, cpu)
        except Refusal as refusal:
            print(f"xuni: warning: {refusal.format_message()}; the next engine is tried", file=sys.stderr)
    return _one(last, cpu)


def decide() -> tuple[str, str]:
    """The engine that auto takes here, and why."""
    name, reason = offers.engine()
    if name == "kvm":
        from xuni.engine.kvm.engine import lacking

        if why_not := lacking():
            return "soft", f"xuni's own x86-64 engine; KVM here is of no use: {why_not}"
    return name, reason


def remarks(vcpus: Sequence[Vcpu]) -> list[str]:
    """What a user who wants to know more is told of a run that has ended."""
    given_up: Counter[str] = Counter()
    for vcpu in vcpus:
        given_up.update(getattr(getattr(vcpu, "fallback", None), "instructions", {}))
    if not given_up:
        return []
    most = ", ".join(f"{text} ({count})" for text, count in given_up.most_common(SHOWN))
    return [f"KVM gave up on {given_up.total()} instructions, which xuni's own semantics executed; most often on {most}"]


def _one(name: str, cpu: CpuModel) -> Chosen:
    reason = "as asked for"
    if name == "auto":
        name, reason = decide()
    elif name == "kvm" and not (kind := offers.kvm_kind()).hardware:
        reason += f", though {kind.value} is no hardware virtualization: operating systems are slow on it"
    return Chosen(kvm(cpu) if name == "kvm" else soft(cpu), name, reason)


def kvm(cpu: CpuModel) -> Engine:
    """KVM's."""
    from xuni.engine.kvm.engine import KvmEngine, lacking
    from xuni.host.kvm import KvmUnavailable

    if why_not := lacking():
        raise Refusal(f"no KVM engine: {why_not}")
    engine = KvmEngine(cpu.features, cpu.physical_bits, cpu.identity, cpu.topology)

    def make(memory: GuestMemory, config: CpuConfig) -> Vcpu:
        try:
            return engine(memory, config)
        except (KvmUnavailable, OSError) as error:
            raise Refusal(f"no KVM engine: {error}") from error

    return make


def soft(cpu: CpuModel) -> Engine:
    """xuni's own engine, compiled now if need be."""
    from xuni.engine.soft.build import BuildError
    from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu, code

    try:
        with workers_end_with_us(), Progress("compiling xuni's engine, once") as progress:
            compiled = code(lambda done, total: progress(done / total))
    except BuildError as error:
        raise EngineError(str(error)) from error
    base = time.monotonic_ns()

    caches: dict[int, CodeCache] = {}

    def make(memory: GuestMemory, config: CpuConfig) -> SoftVcpu:
        cache = caches.get(id(memory)) or caches.setdefault(id(memory), compiled.cache(memory, cpu.features))
        kind = SoftConfig(cpu.features, config.index, config.count, cpu.physical_bits, cpu.identity, cpu.topology)
        return SoftVcpu(memory, kind, clock_base=base, compiled=compiled, cache=cache)

    return make


@contextmanager
def workers_end_with_us() -> Iterator[None]:
    """Processes that compile for us end when we are told to end, and quietly.

    We end at once then, without unwinding: a pool whose workers are gone may wait for them forever, and there is
    nothing to put back yet, neither a terminal nor a file.
    """
    us = os.getpid()

    def on_signal(number: int, at: FrameType | None) -> None:
        if os.getpid() == us:
            from multiprocessing import active_children  # here: a start that compiles nothing has not imported it

            for worker in active_children():
                worker.kill()
            os.write(STDERR, b"\nxuni: interrupted\n")
        os._exit(128 + number)  # in a worker too: it was forked with this handler

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
