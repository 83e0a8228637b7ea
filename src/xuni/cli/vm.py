"""`xuni vm`: run virtual machines."""

from __future__ import annotations

from pathlib import Path

import click

from xuni.cli.failure import Refusal
from xuni.cli.units import CpuType, Seconds, Serial, SerialType, Size
from xuni.isa.x86 import models
from xuni.isa.x86.models import CpuModel

DEFAULT_MEMORY = "512M"
FILE = click.Path(path_type=Path)


class _Run(click.Command):
    """Keeps what stands behind `--` apart, so that `vm run -- CMD` does not take CMD for a guest's name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["command"] = tuple(args[at + 1 :])
            if at + 1 == len(args):
                raise click.UsageError("there is no command after --", ctx)
            args = args[:at]
        return super().parse_args(ctx, args)


@click.group()
def vm() -> None:
    """Run virtual machines."""


@vm.command("run", cls=_Run, options_metavar="[OPTIONS]", epilog="Exit status: the guest's own where it gives one "
            "(a command's; isa-debug-exit's value*2+1), 0 after power-off, 2 for bad input; README.md has the others.")
@click.argument("guest", required=False, metavar="[GUEST] [-- COMMAND...]")
@click.option("--kernel", type=FILE, metavar="FILE",
              help="Boot this kernel: a Linux bzImage, or an ELF file with a PVH note.")
@click.option("--multiboot", type=FILE, metavar="FILE", help="Boot this multiboot 1 kernel.")
@click.option("--initrd", type=FILE, metavar="FILE", multiple=True,
              help="Initial RAM disk, several are put behind each other. With --multiboot a module: 'FILE ARGUMENTS'.")
@click.option("--append", metavar="ARGS", help="The kernel's command line; added to a named guest's own.")
@click.option("--memory", type=Size(), default=DEFAULT_MEMORY, show_default=True, help="Guest memory: 512M, 2G.")
@click.option("--cpus", type=click.IntRange(1, 255), default=1, show_default=True, help="Virtual CPUs.")
@click.option("--cpu", type=CpuType(), default=models.XUNI, metavar="MODEL,+NAME,-NAME",
              help="The CPU: xuni (the default), or a model of `xuni qemu -cpu help`; features that it has besides "
                   "(+la57) or lacks (-pcid); phys-bits=N.")
@click.option("--serial", type=SerialType(), metavar="stdio|file:PATH|null",
              help="Where the first serial port ends; stdio unless a command's output takes it.")
@click.option("--timeout", type=Seconds(), help="End the guest after so many seconds, with status 124.")
@click.option("--engine", type=click.Choice(["auto", "soft", "kvm"]), default="auto", show_default=True,
              help="Who executes the guest; `xuni doctor` says what auto takes.")
@click.option("--gdb", metavar="[HOST]:PORT|unix:PATH",
              help="Serve gdb there (target remote :PORT); without HOST for this host alone.")
@click.option("--qmp", metavar="ADDRESS", multiple=True,
              help="Serve QEMU's machine protocol: unix:PATH,server=on,wait=off, tcp:HOST:PORT,server=on,wait=off.")
@click.option("--paused", "-S", is_flag=True, help="Wait for the debugger or the monitor before the first instruction.")
@click.option("--verbose", "-v", is_flag=True,
              help="Say on stderr which engine is taken, and show the boot messages of a guest that runs a command.")
@click.option("--trace", metavar="PATTERN", multiple=True,
              help="Write the events of these probes to stderr: 'vcpu_*', '*'.")
@click.pass_context
def run(ctx: click.Context, guest: str | None, kernel: Path | None, multiboot: Path | None, initrd: tuple[Path, ...],
        append: str | None, memory: int, cpus: int, cpu: CpuModel, serial: Serial | None, timeout: float | None,
        engine: str, gdb: str | None, qmp: tuple[str, ...], paused: bool, verbose: bool, trace: tuple[str, ...]) -> None:
    """Boot a guest by name (debian if none is given; see `xuni guest ls`), or a kernel of your own.

    On a terminal the guest's console is yours: Ctrl-A x leaves, Ctrl-A h helps, Ctrl-C goes to the guest. Without a
    terminal, standard input goes to the guest's shell and the guest powers off at its end; Ctrl-C twice ends it.

    With a COMMAND, the guest runs that instead of a shell: its output is on standard output and standard error, its
    exit status is this command's.

    \b
    Examples:
      xuni vm run debian
      xuni vm run debian -- sh -c 'uname -r; exit 7'
      echo 'cat /proc/cpuinfo' | xuni vm run debian
      xuni vm run --kernel bzImage --initrd root.cpio --append 'console=ttyS0 quiet' --memory 1G
      xuni vm run --multiboot test.flat --append 'arg1 arg2' --timeout 60
      xuni vm run debian --append nokaslr --gdb :1234 --paused
      xuni vm run memtest86+ --serial file:memtest.log --timeout 600
    """
    from xuni.cli import launch, plan
    from xuni.cli.description import Description
    from xuni.devices.test_ports import DebugExitConfig, TestDeviceConfig
    from xuni.devices.uart import COM_PORTS
    from xuni.machine.pc import PcConfig

    command: tuple[str, ...] = ctx.meta.get("command", ())
    sources = {"a guest's name": guest, "--kernel": kernel, "--multiboot": multiboot}
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        raise Refusal(f"{' and '.join(given)} exclude each other: what shall be booted?")
    if command and (kernel or multiboot):
        raise Refusal("only guests whose init is xuni's take a command: xuni vm run debian -- COMMAND")
    if kernel:
        chosen = plan.own_kernel(kernel, initrd, append or "", serial)
    elif multiboot:
        chosen = plan.multiboot(multiboot, initrd, append or "", serial)
    elif initrd:
        raise Refusal("a named guest has its own initrd; --initrd goes with --kernel or --multiboot")
    else:
        chosen = plan.named(guest or "debian", command, append, serial, verbose)
    board = PcConfig(
        serial=COM_PORTS,
        debug_exit=DebugExitConfig() if kernel or multiboot else None,
        test_device=TestDeviceConfig() if multiboot else None,
    )
    with launch.tracing(trace):
        status = launch.launch(Description(chosen, memory, cpus, cpu, board, engine, timeout,
                                           gdb=gdb, qmp=qmp, paused=paused, verbose=verbose))
    ctx.exit(status)
