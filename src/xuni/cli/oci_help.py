"""What `xuni-oci` says of itself, by the name that it was called by: under runc's or crun's name it is those who ask for
runc or crun that read it.
"""

from __future__ import annotations

import os
import sys

from xuni.cli.oci import COMMANDS, REFUSED

HEAD = """NAME:
   {program} - Open Container Initiative runtime: runs containers from OCI bundles, with runc's command line

Usage: {program} [OPTION...] COMMAND [ARGUMENT...]

Options:
  --root DIR               where the state of containers is kept (/run/xuni-oci)
  --log FILE               write errors there as well
  --log-format text|json   how
  --cgroup-manager cgroupfs|disabled
  --debug                  write what is done into the log
  --trace                  print each step of a start with its time

Commands:
"""
# What the names of a command's arguments do not tell.
USAGE = {"exec": "CONTAINER cmd [ARGUMENT...], or with --process FILE: CONTAINER"}


def program() -> str:
    """`xuni oci`, or the name of the file that was executed."""
    name = os.path.basename(sys.argv[0])
    return "xuni oci" if name in ("xuni", "__main__.py", "") else name


def everything() -> str:
    name = program()
    return (HEAD.format(program=name) + "".join([f"  {each:<10}{about}\n" for each, (*_, about) in COMMANDS.items()])
            + f"\nExample:\n  {name} spec && {name} run --bundle . first\n")  # fmt: skip


def command(which: str) -> str:
    valued, flags, names, about = COMMANDS[which]
    options = "".join([f"   --{each} VALUE\n" for each in valued] + [f"   --{each}\n" for each in flags])
    return (f"NAME:\n   {program()} {which} - {about}\n\nUsage: {program()} [OPTION...] {which} {usage(which, names)}\n"
            + (f"\nOptions:\n{options}" if options else "")
            + (f"\nWhy:\n   {REFUSED[which]}\n" if which in REFUSED else ""))  # fmt: skip


def usage(which: str, names: tuple[str, ...]) -> str:
    return USAGE.get(which, " ".join(names))


def version() -> str:
    from xuni import __version__
    from xuni.container.state import VERSION

    # The last line is crun's way of saying what it can do; of systemd, sd_notify(3) is all that we know.
    return f"{program()} version {__version__}\nspec: {VERSION}\n+SECCOMP +EBPF +CAP +APPARMOR +SELINUX +SYSTEMD-NOTIFY\n"
