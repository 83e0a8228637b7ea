"""From the options of `xuni vm run` to what is to be booted and where its serial lines end. Nothing is started here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from xuni.boot import Format, Module, Source
from xuni.cli.attend import STDIN, Input
from xuni.cli.failure import Refusal
from xuni.cli.units import Serial
from xuni.guest import catalogue
from xuni.guest.session import Command, Session, Shell, words
from xuni.host import terminal

SHELL = ("sh",)


class End(Enum):
    """Where a serial line ends. The first line is the guest's console."""

    STDOUT = "stdout"
    STDERR = "stderr"
    HIDDEN = "hidden"  # remembered, and shown if the guest ends badly
    FILE = "file"
    NOWHERE = "null"
    CONTROL = "control"  # ours: the guest's init speaks to us, see `xuni.guest.session`


@dataclass(frozen=True, slots=True)
class SerialEnd:
    """The host's end of one serial line."""

    end: End
    file: Path | None = None
    append: bool = False
    """Behind what is in the file already, rather than in its place."""


SESSION_LINES = (SerialEnd(End.STDOUT), SerialEnd(End.STDERR), SerialEnd(End.CONTROL))
"""Behind the console: data, errors, control, as `xuni.guest.session` numbers them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to boot, and how its serial lines and standard input are wired."""

    kernel: Path
    initrd: tuple[Source | Module, ...]
    append: str
    serial: tuple[SerialEnd, ...]
    input: Input
    input_line: int = 0
    """The serial line that standard input goes to."""
    format: Format = Format.AUTO
    session: Session | None = None


def own_kernel(kernel: Path, initrd: tuple[Path, ...], append: str, serial: Serial | None) -> Plan:
    """A Linux kernel that the user brings; its console is on our terminal unless told otherwise."""
    console = _console(serial, End.STDOUT)
    return Plan(kernel, initrd, append, (console, *SESSION_LINES), input_for(console))


def multiboot(kernel: Path, modules: tuple[Path, ...], append: str, serial: Serial | None) -> Plan:
    """A multiboot kernel that the user brings. A module may have arguments behind its path: `FILE ARGUMENTS`."""
    console = _console(serial, End.STDOUT)
    return Plan(kernel, tuple(map(module, modules)), append, (console, *SESSION_LINES), input_for(console),
                format=Format.MULTIBOOT)


def module(words: Path) -> Module:
    """A multiboot module from `FILE` or `FILE ARGUMENTS`."""
    path, _, arguments = str(words).partition(" ")
    return Module(words) if words.exists() else Module(Path(path), arguments)


def named(name: str, command: tuple[str, ...], append: str | None, serial: Serial | None, verbose: bool) -> Plan:
    """A guest of the catalogue, fetched if need be. Raises `Refusal` if it cannot be had or takes no command."""
    try:
        guest = catalogue.ensure(name)
    except catalogue.GuestError as error:
        raise Refusal(str(error)) from error
    if command and not guest.takes_commands:
        raise Refusal(f"the guest {name} has no init of xuni's that could run a command; debian has one")
    session: Session | None = None
    end, quiet = End.STDOUT, False
    if guest.takes_commands:
        if command:
            end = End.STDERR if verbose else End.HIDDEN
            session, quiet = Command(words(command), stdin=has_input()), not verbose
        elif terminal.is_interactive(STDIN):
            session = Shell(os.environ.get("TERM", "linux"), terminal.size())
        else:
            end, session = End.STDERR, Command(words(SHELL), stdin=has_input())
    console = _console(serial, end)
    if console.end is End.STDOUT and isinstance(session, Command):
        console = SerialEnd(End.STDERR)  # standard output is the command's
    frames = isinstance(session, Command) and session.stdin
    how = Input.FRAMES if frames else input_for(console)
    line = " ".join(filter(None, (guest.append, "quiet" if quiet else "", append)))
    initrd = tuple(part for part in (guest.initrd, session and session.archive()) if part)
    return Plan(guest.kernel, initrd, line, (console, *SESSION_LINES), how, int(frames), session=session)


def has_input() -> bool:
    """Whether standard input may ever give something: not if it is closed or /dev/null."""
    try:
        return not os.path.samestat(os.fstat(STDIN), os.stat(os.devnull))
    except OSError:
        return False


def _console(serial: Serial | None, default: End) -> SerialEnd:
    match serial and serial.kind:
        case "stdio": return SerialEnd(End.STDOUT)
        case "file": return SerialEnd(End.FILE, serial.path if serial else None)
        case "null": return SerialEnd(End.NOWHERE)
        case _: return SerialEnd(default)


def input_for(console: SerialEnd) -> Input:
    """How standard input reaches the console, if it ends where the user sees it."""
    if console.end is not End.STDOUT or not has_input():
        return Input.NONE
    return Input.KEYS if terminal.is_interactive(STDIN) else Input.STREAM
