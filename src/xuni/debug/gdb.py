"""The remote end of gdb's serial protocol: one thread a processor, memory through the page tables of the chosen one.

A session answers packet by packet; only the reply to a continue or step comes later, when the machine stands still
again. Breakpoints and watchpoints are linear addresses and the guest sees nothing of them. Packets of QEMU's own that
its users know work here: `maintenance packet qqemu.PhyMemMode`, `Qqemu.PhyMemMode:1`, `qqemu.sstep`, `Qqemu.sstep=5`.

Spec: "Debugging with GDB", appendix E. To add a packet: a line of `_answer`, its method, and its test in
tests/debug/test_gdb.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from xuni.debug import memory
from xuni.debug.endpoint import HangUp, Link
from xuni.debug.gdb_packets import PACKET_SIZE, Garbage, PacketReader, Signal, escape, frame
from xuni.debug.memory import AddressSpace, NotMapped
from xuni.debug.monitor import Monitor
from xuni.debug.registers import Description, Frame
from xuni.exits import DebugCause, Debugged, Watchpoint
from xuni.isa.x86.cpustate import VcpuState
from xuni.isa.x86.msr import Msr
from xuni.machine.control import NEED_RESET, Controller, Event, EventName, Refused, RunState
from xuni.machine.stopped import EngineFailed

if TYPE_CHECKING:
    from xuni.machine.processor import Processor

SIGINT, SIGTRAP, SIGABRT, SIGSEGV = 2, 5, 6, 11  # gdb's numbers
BAD_ADDRESS, INVALID, BUSY, UNAVAILABLE = (b"E%02x" % number for number in (14, 22, 16, 1))
OK, UNSUPPORTED = b"OK", b""
EXECUTE, HARDWARE, WRITE, READ, ACCESS = range(5)  # the Z packets' types
REASONS: Final = {WRITE: b"watch", READ: b"rwatch", ACCESS: b"awatch"}
STEP_ENABLE, STEP_NO_IRQ = 1, 2
MAX_POINTS: Final = 1 << 12
"""More breakpoints or watchpoints than a debugger has use for."""
_ACTION: Final = re.compile(rb"([cCsSt])([0-9A-Fa-f]{2})?(?::(-1|(?:p[0-9A-Fa-f]+\.)?(?:-1|[0-9A-Fa-f]+)))?")


class Wrong(Exception):
    """A packet that cannot be obeyed; the argument is its answer."""


class GdbSession:
    """One debugger. It stops the machine when it comes, as every stub does, and lets it go when it detaches.

    A debugger whose connection breaks leaves no breakpoints behind; a machine that stood still goes on standing, for
    the next one.
    """

    def __init__(self, link: Link, controller: Controller, description: Description) -> None:
        self._link = link
        self._controller = controller
        self._machine = controller.machine
        self._description = description
        self._monitor = Monitor(controller)
        self._reader = PacketReader()
        self._last = b""
        self._acknowledges = True
        self._told = frozenset[bytes]()
        self._general = self._resumed = 0
        """The processors that registers and memory (Hg), and steps (Hc), are about."""
        self._waiting = False
        """A stop is owed: the answer to the last continue or step."""
        self._interrupted = False
        self._physical = False
        self._stop: tuple[int, Debugged] | None = None
        self._frames: dict[int, VcpuState] = {}
        self._points: set[tuple[int, int, int]] = set()
        """Type, address and length of what Z packets inserted."""
        controller.listeners.append(self._hear)
        controller.debugger_attached = True
        controller.pause()
        self._stop = controller.take_report()

    # -- the endpoint's side -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Packets, acknowledgements, Ctrl-C."""
        try:
            for item in self._reader.feed(data):
                match item:
                    case bytes(): self._serve(item)
                    case Signal.INTERRUPT: self._interrupt()
                    case Signal.BAD_SUM: self._link.send(b"-")
                    case Signal.NACK if self._last: self._link.send(self._last)
        except Garbage as error:
            raise HangUp(str(error)) from error

    def wake(self) -> None:
        """Something happened to the machine: perhaps what gdb waits for."""
        if self._waiting and self._controller.state is not RunState.RUNNING:
            self._waiting = False
            self._frames.clear()
            self._stop = self._controller.take_report()
            if self._stop is not None:
                self._general = self._resumed = self._stop[0]
            self._send(self._why())

    def close(self) -> None:
        """Leave nothing behind."""
        self._controller.listeners.remove(self._hear)
        self._controller.debugger_attached = False
        self._controller.mask_steps = True
        self._controller.set_debug(frozenset(), ())
        self._controller.let_end()

    def _hear(self, event: Event) -> None:
        if event.name in (EventName.STOP, EventName.SHUTDOWN, EventName.GUEST_PANICKED):
            self._link.poke()

    # -- packets -----------------------------------------------------------------------------------------------------

    def _serve(self, packet: bytes) -> None:
        if self._acknowledges:
            self._link.send(b"+")
        try:
            answer = self._answer(packet)
        except Wrong as wrong:
            answer = wrong.args[0]
        except (NotMapped, LookupError):
            answer = BAD_ADDRESS
        except ValueError:  # numbers that are none, registers that cannot have a value, too many watchpoints
            answer = INVALID
        if answer is not None:
            self._send(answer)

    def _send(self, data: bytes) -> None:
        self._last = frame(data)
        self._link.send(self._last)

    def _answer(self, packet: bytes) -> bytes | None:
        """The reply, or None if there is none, or it comes later."""
        kind, rest = packet[:1], packet[1:]
        match kind:
            case b"q" | b"Q": return self._general_packet(packet)
            case b"v": return self._long_packet(packet)
            case b"?": return self._why()
            case b"H": return self._choose(rest)
            case b"T": return OK if self._thread(rest) is not None else INVALID
            case b"D": return self._detach()
            case b"k": self._kill()
        self._need_standstill()
        match kind:
            case b"g": return self._read_registers()
            case b"G": return self._write_registers(_bytes(rest))
            case b"p": return self._read_register(_number(rest))
            case b"P": return self._write_register(*rest.split(b"=", 1))
            case b"m": return self._read(*_range(rest)).hex().encode()
            case b"x": return b"b" + escape(self._read(*_range(rest)))
            case b"M": return self._write(rest, _bytes)
            case b"X": return self._write(rest, bytes)
            case b"Z": return self._insert(rest)
            case b"z": return self._remove(rest)
            case b"c" | b"s": self._continue_at(rest, kind == b"s")
            case b"C" | b"S": self._continue_at(rest.partition(b";")[2], kind == b"S")
            case _: return UNSUPPORTED
        return None

    def _general_packet(self, packet: bytes) -> bytes | None:
        name, _, rest = packet.partition(b":")
        match name:
            case b"qSupported": return self._supported(rest)
            case b"QStartNoAckMode":
                self._acknowledges = False
                return OK
            case b"qXfer": return self._transfer(rest)
            case b"qfThreadInfo":
                return b"m" + b",".join(b"%02x" % (processor.index + 1) for processor in self._machine.processors)
            case b"qsThreadInfo": return b"l"
            case b"qC": return b"QC%02x" % (self._general + 1)
            case b"qAttached": return b"1"
            case b"qSymbol": return OK
            case b"qqemu.Supported": return b"sstepbits;sstep;PhyMemMode"
            case b"qqemu.sstepbits": return b"ENABLE=%x,NOIRQ=%x" % (STEP_ENABLE, STEP_NO_IRQ)
            case b"qqemu.sstep":
                return b"0x%x" % (STEP_ENABLE | STEP_NO_IRQ * self._controller.mask_steps)
            case b"qqemu.PhyMemMode": return b"%d" % self._physical
            case b"Qqemu.PhyMemMode":
                self._physical = bool(_number(rest))
                return OK
        if packet.startswith(b"Qqemu.sstep="):
            self._controller.mask_steps = bool(_number(packet[12:].removeprefix(b"0x")) & STEP_NO_IRQ)
            return OK
        if packet.startswith(b"qThreadExtraInfo,"):
            return self._thread_name(self._known_thread(packet[17:])).encode().hex().encode()
        if packet.startswith(b"qRcmd,"):
            return self._command(packet[6:])
        return UNSUPPORTED

    def _long_packet(self, packet: bytes) -> bytes | None:
        name, _, rest = packet.partition(b";")
        match name:
            case b"vCont?": return b"vCont;c;C;s;S;t"
            case b"vCont":
                self._need_standstill()
                self._resume(*self._actions(rest))
                return None
            case b"vKill":
                self._send(OK)
                self._kill()
        return UNSUPPORTED

    def _supported(self, told: bytes) -> bytes:
        self._told = frozenset(told.split(b";"))
        ours = [b"PacketSize=%x" % PACKET_SIZE, b"QStartNoAckMode+", b"qXfer:features:read+", b"qXfer:threads:read+",
                b"vContSupported+", b"binary-upload+"]  # fmt: skip
        ours += [name for name in (b"swbreak+", b"hwbreak+") if name in self._told]
        return b";".join(ours)

    def _transfer(self, rest: bytes) -> bytes:
        """qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH."""
        match rest.split(b":"):
            case [b"features", b"read", b"target.xml", where]: document = self._describe()
            case [b"threads", b"read", b"", where]: document = self._threads()
            case [b"features" | b"threads", b"read", _, _]: return b"E00"
            case _: return UNSUPPORTED
        offset, length = _range(where)
        piece = document[offset : offset + min(length, PACKET_SIZE // 2)]
        return (b"m" if offset + len(piece) < len(document) else b"l") + escape(piece)

    def _describe(self) -> bytes:
        running = self._controller.state is RunState.RUNNING
        return self._description.xml(not running and self._frame().real_mode)

    def _command(self, text: bytes) -> bytes:
        """qRcmd: gdb's `monitor`."""
        output = self._monitor.execute(_bytes(text).decode(errors="replace")).encode()
        self._frames.clear()
        for at in range(0, len(output), PACKET_SIZE // 4):
            self._send(b"O" + output[at : at + PACKET_SIZE // 4].hex().encode())
        return OK

    # -- threads -----------------------------------------------------------------------------------------------------

    def _threads(self) -> bytes:
        lines = "".join(
            f'<thread id="{processor.index + 1:02x}" core="{processor.index}">{self._thread_name(processor.index)}</thread>'
            for processor in self._machine.processors
        )
        return f'<?xml version="1.0"?><threads>{lines}</threads>'.encode()

    def _thread_name(self, cpu: int) -> str:
        if self._machine.processors[cpu].apic.state.waiting_for_sipi:
            doing = "waiting for a start-up IPI"
        else:
            running = self._controller.state is RunState.RUNNING
            doing = "halted" if not running and self._state(cpu).halted else "running"
        return f"CPU#{cpu} [{doing}]"

    def _thread(self, text: bytes) -> int | None:
        """The processor behind a thread's number, which counts from 1; 0 and -1 are whichever we like."""
        text = text.partition(b".")[2] if text[:1] == b"p" else text
        number = _number(text) if text != b"-1" else 0
        if number <= 0:
            return self._general
        return number - 1 if number <= len(self._machine.processors) else None

    def _known_thread(self, text: bytes) -> int:
        cpu = self._thread(text)
        if cpu is None:
            raise Wrong(INVALID)
        return cpu

    def _choose(self, rest: bytes) -> bytes:
        cpu = self._known_thread(rest[1:])
        match rest[:1]:
            case b"g": self._general = cpu
            case b"c": self._resumed = cpu
            case _: return INVALID
        return OK

    # -- registers ---------------------------------------------------------------------------------------------------

    @property
    def _processor(self) -> Processor:
        return self._machine.processors[self._general]

    def _state(self, cpu: int) -> VcpuState:
        if cpu not in self._frames:
            self._frames[cpu] = self._machine.processors[cpu].vcpu.save()
        return self._frames[cpu]

    def _frame(self) -> Frame:
        def read(address: int, length: int) -> bytes:
            try:
                return memory.linear(self._machine.memory, self._processor.vcpu).read_all(address, length)
            except NotMapped as error:
                raise LookupError(str(error)) from error

        return Frame(self._state(self._general), self._processor.apic.tpr_class, read)

    def _store(self, after: Frame) -> None:
        # The TSC is not among what a debugger changes; to write it back would set it back.
        msrs = {index: value for index, value in after.state.msrs.items() if index != Msr.TSC}
        self._frames.pop(self._general, None)
        self._processor.vcpu.load(replace(after.state, msrs=msrs))
        if after.tpr != self._processor.apic.tpr_class:
            with self._machine.bus.lock:
                self._processor.apic.tpr_class = after.tpr

    def _read_registers(self) -> bytes:
        now = self._frame()
        members = self._description.registers[: self._description.in_g]
        return b"".join(register.encode(now) for register in members).hex().encode()

    def _write_registers(self, data: bytes) -> bytes:
        now, at = self._frame(), 0
        for register in self._description.registers[: self._description.in_g]:
            size = register.bits // 8
            if at + size > len(data):
                break
            if register.encode(now) != data[at : at + size]:
                now = register.decode(now, data[at : at + size])
            at += size
        self._store(now)
        return OK

    def _read_register(self, number: int) -> bytes:
        if number >= len(self._description.registers):
            return INVALID
        return self._description.registers[number].encode(self._frame()).hex().encode()

    def _write_register(self, number: bytes, value: bytes = b"") -> bytes:
        which = _number(number)
        if which >= len(self._description.registers):
            return INVALID
        self._store(self._description.registers[which].decode(self._frame(), _bytes(value)))
        return OK

    # -- memory ------------------------------------------------------------------------------------------------------

    def _space(self) -> AddressSpace:
        if self._physical:
            return memory.physical(self._machine.memory)
        return memory.linear(self._machine.memory, self._processor.vcpu)

    def _read(self, address: int, length: int) -> bytes:
        length = min(length, PACKET_SIZE // 2 - 1)
        return self._space().read(address, length) if length else b""

    def _write(self, rest: bytes, decode: Callable[[bytes], bytes]) -> bytes:
        head, _, payload = rest.partition(b":")
        address, length = _range(head)
        data = decode(payload)
        if len(data) != length:
            return INVALID
        self._space().write(address, data)
        return OK

    # -- breakpoints and watchpoints ---------------------------------------------------------------------------------

    def _insert(self, rest: bytes) -> bytes:
        point = _point(rest)
        if point is None:
            return UNSUPPORTED
        if len(self._points) >= MAX_POINTS:
            return INVALID
        self._set_points(self._points | {point})
        return OK

    def _remove(self, rest: bytes) -> bytes:
        point = _point(rest)
        if point is None:
            return UNSUPPORTED
        self._set_points(self._points - {point})
        return OK

    def _set_points(self, points: set[tuple[int, int, int]]) -> None:
        breakpoints = frozenset(address for kind, address, _ in points if kind <= HARDWARE)
        watchpoints = [
            Watchpoint(start, size, kind == WRITE)
            for kind, address, length in sorted(points) if kind > HARDWARE
            for start, size in _aligned(address, length)
        ]  # fmt: skip
        self._controller.set_debug(breakpoints, tuple(dict.fromkeys(watchpoints)))
        self._points = points

    # -- running -----------------------------------------------------------------------------------------------------

    def _need_standstill(self) -> None:
        if self._controller.state is RunState.RUNNING:
            raise Wrong(BUSY)
        if self._controller.state is RunState.SHUTDOWN:
            raise Wrong(UNAVAILABLE)

    def _continue_at(self, address: bytes, step: bool) -> None:
        """The old packets: a step is one processor's, and the others run, as in QEMU."""
        if address:
            self._write_register(b"%x" % self._description.pc,
                                 _number(address).to_bytes(self._description.registers[0].bits // 8, "little").hex().encode())
        self._resume({self._resumed} if step else set(), set())

    def _actions(self, rest: bytes) -> tuple[set[int], set[int]]:
        """vCont: which processors step, and which stand still. The first action that fits a thread is its."""
        todo = {processor.index for processor in self._machine.processors}
        step: set[int] = set()
        run: set[int] = set()
        for text in rest.split(b";"):
            action = _ACTION.fullmatch(text)
            if action is None:
                raise Wrong(INVALID)
            kind, _, thread = action.groups()
            everyone = thread is None or thread.rpartition(b".")[2] == b"-1"
            meant = todo if everyone else todo & {self._known_thread(thread)}
            todo = todo - meant
            if kind in b"sS":
                step |= meant
            elif kind in b"cC":
                run |= meant
        return step, {processor.index for processor in self._machine.processors} - step - run

    def _resume(self, step: set[int], hold: set[int]) -> None:
        self._frames.clear()
        self._stop = None
        self._interrupted = False
        self._waiting = True
        if self._controller.state in NEED_RESET:
            self._controller.let_end()  # there is nothing to go on with
            return
        try:
            self._controller.resume(step, hold)
        except Refused as error:
            self._waiting = False
            raise Wrong(BUSY) from error

    def _interrupt(self) -> None:
        self._interrupted = True
        self._controller.pause()
        self.wake()

    def _detach(self) -> bytes:
        self._set_points(set())
        if self._controller.state in NEED_RESET:
            self._controller.let_end()
        else:
            self._controller.resume()
        return OK

    def _kill(self) -> NoReturn:
        self._controller.quit("host-signal")
        self._link.flush()
        raise HangUp

    def _why(self) -> bytes:
        """The stop reply."""
        controller = self._controller
        if controller.state is RunState.SHUTDOWN:
            status = controller.ended.exit_status if controller.ended is not None else 0
            return b"W%02x" % (status & 0xFF)
        thread = b"thread:%02x;" % (self._general + 1)
        if controller.state in NEED_RESET:
            return b"T%02x" % (SIGABRT if isinstance(controller.ended, EngineFailed) else SIGSEGV) + thread
        if self._stop is not None:
            thread = b"thread:%02x;" % (self._stop[0] + 1)
            return b"T%02x" % SIGTRAP + thread + self._reason(*self._stop)
        return b"T%02x" % (SIGINT if self._interrupted or controller.state is RunState.PAUSED else SIGTRAP) + thread

    def _reason(self, cpu: int, stop: Debugged) -> bytes:
        match stop.cause:
            case DebugCause.BREAKPOINT:
                # gdb compares the address that it inserted with the program counter. Where CS has a base they differ,
                # and gdb would silently go on; without a reason it shows a SIGTRAP.
                if self._state(cpu).registers.rip != stop.address:
                    return b""
                kinds = {kind for kind, address, _ in self._points if address == stop.address}
                name = b"swbreak" if EXECUTE in kinds else b"hwbreak"
                return name + b":;" if name + b"+" in self._told else b""
            case DebugCause.WATCHPOINT:
                for kind, address, length in sorted(self._points):
                    if kind > HARDWARE and address <= stop.address < address + length:
                        return b"%s:%x;" % (REASONS[kind], stop.address)
                for kind, address, _ in sorted(self._points):
                    if kind > HARDWARE and stop.address <= address < stop.address + 64:  # the access began before it
                        return b"%s:%x;" % (REASONS[kind], address)
        return b""


def _number(text: bytes) -> int:
    """A hexadecimal number of at most 64 bits. Raises ValueError."""
    if not 0 < len(text) <= 16 or not re.fullmatch(rb"[0-9A-Fa-f]+", text):
        raise ValueError(f"{text!r} is no number")
    return int(text, 16)


def _bytes(text: bytes) -> bytes:
    """Hexadecimal bytes. Raises ValueError."""
    return bytes.fromhex(text.decode("ascii"))


def _range(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH. Raises ValueError."""
    address, _, length = text.partition(b",")
    return _number(address), _number(length)


def _point(rest: bytes) -> tuple[int, int, int] | None:
    """TYPE,ADDRESS,KIND of a Z packet; None for a type that there is not. Raises ValueError."""
    parts = rest.partition(b";")[0].split(b",")
    if len(parts) != 3:
        raise ValueError(f"{rest!r} is no breakpoint")
    kind, address, length = map(_number, parts)
    if kind > ACCESS:
        return None
    if kind > HARDWARE and not 0 < length <= 32:
        raise ValueError("a watchpoint has 1 to 32 bytes")
    return kind, address, length


def _aligned(address: int, length: int) -> Iterator[tuple[int, int]]:
    """A range in pieces of 1, 2, 4 or 8 bytes that lie at multiples of their size."""
    while length:
        size = min(8, address & -address or 8)
        while size > length:
            size >>= 1
        yield address, size
        address, length = address + size, length - size
