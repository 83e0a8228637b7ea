"""`xuni qemu` and `xuni-qemu-system-x86_64`: run what QEMU's command line asks for, and end as QEMU does.

Exit statuses: what isa-debug-exit gives ((value << 1) | 1); 0 after power-off, a reset or a processor's shutdown with
-no-reboot, and a signal; 2 for what cannot be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from xuni.cli.failure import Refusal
from xuni.cli.qemu import options
from xuni.cli.qemu.listing import PROGRAM, listing

if TYPE_CHECKING:
    from xuni.cli.launch import Ended


@click.command("qemu", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
               options_metavar="[QEMU OPTIONS]", add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def qemu(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run a machine by QEMU's command line."""
    ctx.exit(run(arguments))


def main() -> NoReturn:
    """The entry point `xuni-qemu-system-x86_64`."""
    from xuni.cli.main import conclude

    conclude(lambda: run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Returns the exit status. What cannot be is one line on standard error, and 2."""
    try:
        given, notes = options.read(arguments)
        for one in given:
            if (text := listing(one)) is not None:
                print(text)
                return 0
        return _run(given, notes)
    except Refusal as refusal:
        _say(refusal.format_message())
        return refusal.exit_code


def _run(given: list[options.Given], notes: list[str]) -> int:
    from xuni.cli import launch
    from xuni.cli.qemu.assemble import assemble

    request = assemble(given, notes)
    for note in request.notes:
        _say(f"warning: {note}")
    with _log(request.log) as log, launch.tracing(request.trace, log), _pidfile(request.pidfile):
        return launch.launch(request.machine, conclude, patient=False)


def conclude(ended: Ended) -> int:
    """The exit status that QEMU would give."""
    from xuni.machine.stopped import DebugExit, PowerOff, Quit, Reset, TripleFault

    if ended.signal:
        _say(f"terminating on signal {ended.signal}")
        return 0
    if ended.left:
        return 0
    if ended.ends.stdout.failure:
        return 128 + 13  # SIGPIPE, which would have ended QEMU
    match ended.stopped:
        case TripleFault():
            _say(str(ended.stopped))
            return 0
        case PowerOff() | Reset() | Quit(): return 0
        case DebugExit(): pass
        case stopped: _say(str(stopped))
    return ended.stopped.exit_status


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


@contextmanager
def _log(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise Refusal(f"-D {path}: {error.strerror}; name a file to write to") from error
    with file:
        yield file


@contextmanager
def _pidfile(path: Path | None) -> Iterator[None]:
    """Our process number in a file, as long as we run."""
    if path is None:
        yield
        return
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise Refusal(f"-pidfile {path}: {error.strerror}; name a file to write to") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
