"""The entry point of `xuni`: finds the command, runs it, turns what goes wrong into one line and an exit status.

A command's file is imported only when it is called, so that `xuni --help` and a guest's start stay fast.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

import click

from xuni import __version__

# Name: where it is, and what `xuni --help` says of it. To add one: a line here, a file beside this one, its test in
# tests/cli, and its lines in README.md and README.zh-CN.md.
COMMANDS: Final = {
    "vm": ("xuni.cli.vm:vm", "Run virtual machines."),
    "guest": ("xuni.cli.guest:guest", "Fetch kernels to boot, made of Debian packages."),
    "qemu": ("xuni.cli.qemu.command:qemu", "Run a machine by QEMU's command line."),
    "run": ("xuni.cli.run:run", "Run a command in a new container."),
    "create": ("xuni.cli.run:create", "Make a container that `start` starts."),
    "ps": ("xuni.cli.containers:ps", "List the containers."),
    "exec": ("xuni.cli.containers:exec_", "Run one more command in a container."),
    "logs": ("xuni.cli.containers:logs", "Print what a container has said."),
    "attach": ("xuni.cli.containers:attach", "Be with a container that runs by itself."),
    "start": ("xuni.cli.containers:start", "Start containers that were created or have ended."),
    "restart": ("xuni.cli.containers:restart", "Stop containers, and start them again."),
    "stop": ("xuni.cli.containers:stop", "Ask containers to end."),
    "kill": ("xuni.cli.containers:kill", "Send a signal to containers."),
    "wait": ("xuni.cli.containers:wait", "Wait until containers end."),
    "pause": ("xuni.cli.containers:pause", "Stop every process of containers."),
    "unpause": ("xuni.cli.containers:unpause", "Let them go on."),
    "update": ("xuni.cli.run:update", "Change the limits of containers."),
    "rename": ("xuni.cli.containers:rename", "Give a container another name."),
    "port": ("xuni.cli.containers:port", "List the ports of a container that are published."),
    "rm": ("xuni.cli.containers:rm", "Remove containers."),
    "inspect": ("xuni.cli.containers:inspect", "Print all that is known about containers."),
    "stats": ("xuni.cli.containers:stats", "Show what containers use."),
    "top": ("xuni.cli.containers:top", "List the processes of a container."),
    "cp": ("xuni.cli.containers:cp", "Copy files between a container and the host."),
    "volume": ("xuni.cli.volume:volume", "Directories that outlive containers."),
    "image": ("xuni.cli.image:image", "Images for containers: taken in, built, listed, given out."),
    "cgroup": ("xuni.cli.cgroup:cgroup", "Explain the control groups that limit a process."),
    "lxc-config": ("xuni.cli.lxc_config:lxc_config", "Say what becomes of each key of an LXC configuration."),
    "oci": ("xuni.cli.oci_command:oci", "Run OCI bundles, with runc's command line."),
    "doctor": ("xuni.cli.doctor:doctor", "Say what this host offers and what xuni will use."),
}
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
HOST_FAILED: Final = 74  # EX_IOERR of <sysexits.h>
XUNI_FAILED: Final = 70  # EX_SOFTWARE


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="xuni", message="%(prog)s %(version)s")
def xuni() -> None:
    """Virtual machines and containers in Python, on an x86-64 engine and an OCI runtime of xuni's own.

    \b
    Examples:
      xuni vm run debian                 boot Debian's kernel; Ctrl-A x leaves
      xuni vm run debian -- uname -a     run a command in a guest
      xuni vm run --kernel bzImage --append console=ttyS0
      xuni image build-rootfs busybox    make an image of Debian packages
      xuni run --rm -it busybox          run a container of it
      xuni doctor                        what this host offers
    """


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    conclude(lambda: xuni.main(prog_name="xuni", standalone_mode=False))


def conclude(run: Callable[[], int | None]) -> NoReturn:
    """Exit with the status that `run` returns; what it raises is one line and a status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)  # by an exception: what is half done is undone on the way out
    try:
        status = run()
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("xuni: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would try to flush it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    except OSError as error:
        print(f"xuni: {_describe(error)}", file=sys.stderr)
        status = HOST_FAILED
    except Exception as error:
        if os.environ.get("XUNI_DEBUG"):
            raise
        print(f"xuni: a bug in xuni: {type(error).__name__}: {error}\n"
              "Please report it, with what XUNI_DEBUG=1 in the environment makes this print.", file=sys.stderr)
        status = XUNI_FAILED
    sys.exit(status or 0)


def _exit(number: int, at: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"
