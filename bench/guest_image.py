"""Builds what the benchmark's guest boots: the suite, compiled statically, as the only program of an initramfs."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xuni.guest.cpio import Archive

SOURCE = Path(__file__).parent / "guest" / "suite.c"
# The C library's errno after sqrt() would hide the machine's own square root; nothing else of -ffast-math.
FLAGS = ("-O2", "-fno-math-errno", "-static")
CONSOLE = (5, 1)  # major and minor number of /dev/console


class Missing(Exception):
    """The image cannot be built or booted; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Image:
    """The suite as a program for this host, and as an initramfs."""

    suite: Path
    initramfs: Path


def build(directory: Path) -> Image:
    """Compile and pack into `directory`. Raises `Missing` without a C compiler or its static C library."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise Missing("the guest needs a C compiler: apt-get install gcc libc6-dev")
    suite, initramfs = directory / "suite", directory / "initramfs"
    result = subprocess.run([compiler, *FLAGS, "-o", suite, SOURCE], capture_output=True, text=True, check=False)
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:]
        raise Missing(f"the guest does not compile: {compiler}: {' '.join(last)}")
    archive = Archive()
    archive.folder("dev")
    archive.device("dev/console", *CONSOLE)
    for folder in ("proc", "sys", "tmp"):
        archive.folder(folder)
    archive.file("init", suite.read_bytes(), mode=0o755)
    initramfs.write_bytes(gzip.compress(archive.to_bytes(), mtime=0))
    return Image(suite, initramfs)


def default_kernel() -> Path:
    """The kernel of xuni's own Debian guest, fetched if need be. Raises `Missing` when it cannot be had."""
    from xuni.guest import catalogue

    try:
        return catalogue.ensure("debian").kernel
    except (catalogue.GuestError, OSError) as error:
        raise Missing(f"no kernel to boot ({error}): give one with --kernel") from error
