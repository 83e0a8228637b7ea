"""What QEMU's options print when their argument is `help`: scripts look there for what a machine can do."""

from __future__ import annotations

from typing import Final

from xuni import __version__
from xuni.cli.qemu.options import OPTIONS, Fate, Given

QEMU_VERSION: Final = "7.2.0"
"""The QEMU whose command line this is; scripts read the numbers."""
PROGRAM: Final = "xuni-qemu-system-x86_64"
USAGE: Final = """usage: {program} [options]

The machine is xuni's; the options are QEMU's. An option that cannot be had is an error that names it.

Example:
  {program} -kernel bzImage -initrd root.cpio -append 'console=ttyS0' -m 512 -nographic -no-reboot

-kernel FILE      a Linux bzImage, a multiboot kernel or an ELF file with a PVH note
-initrd FILE      its initial RAM disk; for multiboot its modules: 'file arguments,file arguments'
-append ARGS      its command line
-m SIZE           memory: 512 (MiB), 2G
-smp N            processors; also cpus=, sockets=, cores=, threads=
-cpu MODEL        its features more and fewer: MODEL,+feature,-feature,property=value (-cpu help)
-machine pc,accel=tcg|kvm    who executes the guest: xuni's own engine, or the processor (-accel help)
-device NAME      isa-debug-exit,iobase=,iosize=, pc-testdev, edu or intel-iommu,intremap=on (-device help)
-serial END       stdio, file:PATH, null, none or chardev:ID; the n-th is COMn
-nographic        the same as -serial mon:stdio; on a terminal Ctrl-A x leaves
-no-reboot        a guest's reset ends the machine
-gdb DEV, -s, -S  a gdb stub (-s: on TCP port 1234); begin paused
-qmp DEV          a monitor for programs: unix:PATH,server=on,wait=off
-d trace:PATTERN  write the events of these probes to standard error, or to the file of -D
"""


def version() -> str:
    """In QEMU's form: scripts take the fourth to sixth word, split at dots, as numbers."""
    return f"QEMU emulator version {QEMU_VERSION} (its command line; the machine is xuni {__version__})"


def listing(given: Given) -> str | None:
    """What this option prints instead of starting a machine; None if it does not."""
    name, value = given.option.name, given.value
    if name in ("h", "help"):
        return f"{version()}\n{USAGE.format(program=PROGRAM)}\n{_all_options()}"
    if name == "version":
        return version()
    words = value.split(",")
    if not {"help", "?"} & {words[0], words[-1]}:
        return None
    match name:
        case "cpu": return _cpus()
        case "machine" | "M":
            return "Supported machines are:\npc                   a PC of xuni's own (default)\nq35                  the same"
        case "accel": return "Accelerators supported in QEMU binary:\ntcg\nkvm"
        case "device": return _devices(words[0])
        case "chardev": return "Available chardev backend types:\n  stdio\n  file\n  null\n  socket"
        case "d": return "trace:PATTERN   write the events of these probes ('*', 'vcpu_*'): " + _probes()
        case "trace": return _probes()
        case "display": return "Available display backend types:\nnone"
        case "object": return "List of user creatable objects:\n"
        case "serial" | "monitor" | "smp" | "m" | "net" | "nic": return None
        case _: return None


def _all_options() -> str:
    by_fate = {fate: [f"-{option.name}" for option in OPTIONS.values() if option.fate is fate] for fate in Fate}
    return "\n".join([
        "Options that do what they do in QEMU:", _wrapped(by_fate[Fate.DONE]),
        "Options that are ignored, since they would change nothing:", _wrapped(by_fate[Fate.HARMLESS] + by_fate[Fate.NOTED]),
        "Options that are refused:", _wrapped(by_fate[Fate.REFUSED]),
    ])  # fmt: skip


def _wrapped(words: list[str]) -> str:
    from textwrap import fill

    return fill(" ".join(words), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _cpus() -> str:
    from xuni.isa.x86.models import IMPLEMENTED, MODELS, qemu_name

    lines = ["Available CPUs:"]
    for name, model in MODELS.items():
        about = {"xuni": "what makes guests fast", "max": "all that is implemented", "host": "the same as max"}.get(name)
        lines.append(f"x86 {name:21} {about or model.identity.brand.decode()}".rstrip())
    flags = sorted(map(qemu_name, IMPLEMENTED - {"base", "amd"}))
    return "\n".join([*lines, "", "Recognized CPUID flags:", _wrapped(flags)])


def _devices(name: str) -> str:
    from xuni.cli.qemu.devices import DEVICES

    if name in DEVICES:
        properties = DEVICES[name].properties
        lines = [f"  {key}=<{_kind(value)}>  -  (default: {value})" for key, value in properties.items()]
        return "\n".join([f"{name} options:", *lines])
    rows = [f'name "{name}", bus {kind.bus}, desc "{kind.about}"' for name, kind in DEVICES.items()]
    return "\n".join(["Misc devices:", *rows])


def _kind(default: str) -> str:
    return "OnOffAuto" if default in ("on", "off") else "uint32"


def _probes() -> str:
    import xuni.cli.launch  # noqa: F401 (what defines probes is imported with it)
    from xuni import trace

    return " ".join(trace.known())
