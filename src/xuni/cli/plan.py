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
    """Where the first serial line, the guest's console, ends."""

    STDOUT = "stdout"
    STDERR = "stderr"
    HIDDEN = "hidden"  # remembered, and shown if the guest ends badly
    FILE = "file"
    NOWHERE = "null"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to boot, and how its console and standard input are wired."""

    kernel: Path
    initrd: tuple[Source | Module, ...]
    append: str
    console: End
    input: Input
    format: Format = Format.AUTO
    file: Path | None = None
    session: Session | None = None


def own_kernel(kernel: Path, initrd: tuple[Path, ...], append: str, serial: Serial | None) -> Plan:
    """A Linux kernel that the user brings; its console is on our terminal unless told otherwise."""
    end = _end(serial, End.STDOUT)
    return Plan(kernel, initrd, append, end, _input(end), file=_file(serial))


def multiboot(kernel: Path, modules: tuple[Path, ...], append: str, serial: Serial | None) -> Plan:
    """A multiboot kernel that the user brings. A module may have arguments behind its path: `FILE ARGUMENTS`."""
    end = _end(serial, End.STDOUT)
    return Plan(kernel, tuple(map(_module, modules)), append, end, _input(end), Format.MULTIBOOT, _file(serial))


def _module(words: Path) -> Module:
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
    end = _end(serial, end)
    if end is End.STDOUT and isinstance(session, Command):
        end = End.STDERR  # standard output is the command's
    how = Input.FRAMES if isinstance(session, Command) and session.stdin else _input(end)
    line = " ".join(filter(None, (guest.append, "quiet" if quiet else "", append)))
    initrd = tuple(part for part in (guest.initrd, session and session.archive()) if part)
    return Plan(guest.kernel, initrd, line, end, how, file=_file(serial), session=session)


def has_input() -> bool:
    """Whether standard input may ever give something: not if it is closed or /dev/null."""
    try:
        return not os.path.samestat(os.fstat(STDIN), os.stat(os.devnull))
    except OSError:
        return False


def _end(serial: Serial | None, default: End) -> End:
    match serial and serial.kind:
        case "stdio": return End.STDOUT
        case "file": return End.FILE
        case "null": return End.NOWHERE
        case _: return default


def _file(serial: Serial | None) -> Path | None:
    return serial.path if serial else None


def _input(end: End) -> Input:
    """How standard input reaches the console, if it ends where the user sees it."""
    if end is not End.STDOUT or not has_input():
        return Input.NONE
    return Input.KEYS if terminal.is_interactive(STDIN) else Input.STREAM
