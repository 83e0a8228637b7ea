"""QEMU's human monitor, as far as our machine has what it talks about: for gdb's `monitor` and QMP's
human-monitor-command.

To add a command: a method and a line of `COMMANDS` or `SUBJECTS`, and its test in tests/debug/test_monitor.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import xuni
from xuni.debug import dump, memory, pages
from xuni.debug.memory import ADDRESS_MASK, AddressSpace, NotMapped
from xuni.debug.registers import Frame, describe
from xuni.isa.x86.state import Cr0
from xuni.machine.control import Controller, Refused, RunState

if TYPE_CHECKING:
    from xuni.isa.x86.cpustate import VcpuState

MOST_LINES: Final = 1 << 14
MOST_ITEMS: Final = 1 << 14
SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
LINE: Final = 16  # bytes of a line of memory
BYTE_LINE: Final = 8  # the same where bytes are shown
_FORMAT: Final = re.compile(r"/(\d*)([a-z]*)")
_TERM: Final = re.compile(r"\s*([+-]?)\s*(0[xX][0-9A-Fa-f]+|\d+|\$\w+)")


class Misused(Exception):
    """The command is there, but not like this; the text is the answer."""


class Monitor:
    """One user's monitor: which processor it looks at, and in which format it looked last."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._machine = controller.machine
        self.cpu = 0
        """The processor that commands are about."""
        self._format, self._size = "x", 4

    def execute(self, line: str) -> str:
        """Carry out one command. What there is to say, in lines; an unknown or misused command says so there."""
        name, _, rest = line.strip().partition(" ")
        name, slash, form = name.partition("/")  # `x/4i` means `x /4i`
        rest = f"{slash}{form} {rest}".strip()
        if not name:
            return ""
        command = COMMANDS.get(name)
        if command is None:
            return f"unknown command: '{name}'\n"
        try:
            return "".join(f"{text}\n" for text in command(self, rest))
        except (Misused, Refused) as error:
            return f"{error}\n"

    # -- what it does ------------------------------------------------------------------------------------------------

    def _info(self, rest: str) -> Iterable[str]:
        name, _, options = rest.partition(" ")
        if not name:
            return self._help("")
        subject = SUBJECTS.get(name)
        if subject is None:
            raise Misused(f"unknown command: 'info {name}'")
        return subject(self, options.strip())

    def _help(self, rest: str) -> Iterable[str]:
        yield f"commands: {' '.join(COMMANDS)}"
        yield f"info: {' '.join(SUBJECTS)}"

    def _stop(self, rest: str) -> Iterable[str]:
        self._controller.pause()
        return ()

    def _continue(self, rest: str) -> Iterable[str]:
        self._controller.resume()
        return ()

    def _quit(self, rest: str) -> Iterable[str]:
        self._controller.quit()
        return ()

    def _reset(self, rest: str) -> Iterable[str]:
        self._controller.reset()
        return ()

    def _power_down(self, rest: str) -> Iterable[str]:
        self._controller.press_power_button()
        return ()

    def _nmi(self, rest: str) -> Iterable[str]:
        self._controller.nmi()
        return ()

    def _choose(self, rest: str) -> Iterable[str]:
        if not rest.isdigit() or int(rest) >= len(self._machine.processors):
            raise Misused("invalid CPU index")
        self.cpu = int(rest)
        return ()

    # -- registers ---------------------------------------------------------------------------------------------------

    def _save(self, cpu: int) -> VcpuState:
        with self._controller.still():
            return self._machine.vcpus[cpu].save()

    def _registers(self, options: str) -> Iterable[str]:
        cpus = range(len(self._machine.processors)) if options == "-a" else (self.cpu,)
        for cpu in cpus:
            yield from dump.lines(cpu, self._save(cpu))

    def _cpus(self, options: str) -> Iterable[str]:
        for processor in self._machine.processors:
            yield f"{'*' if processor.index == self.cpu else ' '} CPU #{processor.index}: thread_id={processor.thread_id}"

    def _status(self, options: str) -> Iterable[str]:
        state = self._controller.state
        if state is RunState.RUNNING:
            yield "VM status: running"
        elif state is RunState.PAUSED:
            yield "VM status: paused"
        else:
            yield f"VM status: paused ({state.value})"

    def _version(self, options: str) -> Iterable[str]:
        yield f"xuni {xuni.__version__}"

    # -- memory ------------------------------------------------------------------------------------------------------

    def _tables(self, lines: Callable[[pages.Walk], Iterator[str]]) -> Iterable[str]:
        with self._controller.still():
            registers = self._machine.vcpus[self.cpu].save().registers
            if not registers.cr0 & Cr0.PG:
                return ["PG disabled"]
            walk = pages.Walk(self._machine.memory, registers)
            text = list(islice(lines(walk), MOST_LINES + 1))
        if walk.cut or len(text) > MOST_LINES:
            return [*text[:MOST_LINES], "... and more"]
        return text

    def _ranges(self, options: str) -> Iterable[str]:
        return self._tables(pages.range_lines)

    def _pages(self, options: str) -> Iterable[str]:
        return self._tables(pages.tlb_lines)

    def _examine(self, rest: str) -> Iterable[str]:
        return self._dump(rest, memory.linear(self._machine.memory, self._machine.vcpus[self.cpu]))

    def _examine_physical(self, rest: str) -> Iterable[str]:
        return self._dump(rest, memory.physical(self._machine.memory))

    def _dump(self, rest: str, space: AddressSpace) -> Iterable[str]:
        count = 1
        form = _FORMAT.match(rest)
        if form:
            count = int(form[1] or 1)
            rest = rest[form.end() :]
            for letter in form[2]:
                if letter in SIZES:
                    self._size = SIZES[letter]
                elif letter in "xduoc":
                    self._format = letter
                elif letter == "i":
                    raise Misused("this monitor does not disassemble; gdb does, with x/i")
                else:
                    raise Misused(f"invalid char in format: '{letter}'")
        if count > MOST_ITEMS:
            raise Misused(f"at most {MOST_ITEMS} items at once")
        size = self._size
        if self._format == "c":
            count, size = count * size, 1
        with self._controller.still():
            address = self._address(rest)
            return list(self._memory_lines(space, address, count, size))

    def _memory_lines(self, space: AddressSpace, address: int, count: int, size: int) -> Iterator[str]:
        per_line = BYTE_LINE if size == 1 else LINE // size
        while count > 0:
            now = min(count, per_line)
            try:
                data = space.read_all(address, now * size)
            except NotMapped:
                yield f"{address:016x}: Cannot access memory"
                return
            values = (int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))
            yield f"{address:016x}:" + "".join(f" {self._value(value, size)}" for value in values)
            address = address + now * size & ADDRESS_MASK
            count -= now

    def _value(self, value: int, size: int) -> str:
        decimal = (8 * size * 10 + 32) // 33
        match self._format:
            case "o": return (f"0{value:o}" if value else "0").rjust((8 * size + 2) // 3)
            case "u": return f"{value:{decimal}d}"
            case "d": return f"{value - (value >> 8 * size - 1 << 8 * size):{decimal}d}"
            case "c": return _character(value)
            case _: return f"0x{value:0{2 * size}x}"

    def _address(self, text: str) -> int:
        """Numbers and $registers, added and subtracted."""
        total, at = 0, 0
        while term := _TERM.match(text, at):
            if at and not term[1]:
                break
            total += -self._value_of(term[2]) if term[1] == "-" else self._value_of(term[2])
            at = term.end()
        if not at or text[at:].strip():
            raise Misused("unexpected address: numbers and $registers, joined by + and -, are understood")
        return total & ADDRESS_MASK

    def _value_of(self, word: str) -> int:
        if word[0] != "$":
            return int(word, 0) if word.lower().startswith("0x") else int(word)
        name = {"pc": "rip", "eip": "rip", "sp": "rsp", "esp": "rsp"}.get(word[1:], word[1:])
        for register in describe(long_mode=True).registers:
            if register.name == name:
                apic = self._machine.processors[self.cpu].apic
                return register.place.read(Frame(self._machine.vcpus[self.cpu].save(), apic.tpr_class))
        raise Misused(f"unknown register '{word}'")


def _character(value: int) -> str:
    match chr(value):
        case "\n": text = "\\n"
        case "\r": text = "\\r"
        case "'" | "\\": text = f"\\{chr(value)}"
        case letter if 32 <= value < 127: text = letter
        case _: text = f"\\x{value:02x}"
    return f"'{text}'"


Command = Callable[[Monitor, str], Iterable[str]]
COMMANDS: Final[dict[str, Command]] = {
    "c": Monitor._continue, "cont": Monitor._continue, "cpu": Monitor._choose, "help": Monitor._help,
    "info": Monitor._info, "nmi": Monitor._nmi, "q": Monitor._quit, "quit": Monitor._quit, "s": Monitor._stop,
    "stop": Monitor._stop, "system_powerdown": Monitor._power_down, "system_reset": Monitor._reset,
    "x": Monitor._examine, "xp": Monitor._examine_physical,
}  # fmt: skip
SUBJECTS: Final[dict[str, Command]] = {
    "cpus": Monitor._cpus, "mem": Monitor._ranges, "registers": Monitor._registers, "status": Monitor._status,
    "tlb": Monitor._pages, "version": Monitor._version,
}
