"""`xuni oci install FILE`: a launcher for engines to call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from xuni.cli import quick
from xuni.container.record import SpecError

# The distribution's is one file, where others load a shared library of 6 MB and relocate it: a millisecond or two of each start.
SYSTEM: Final = "/usr/bin/python3"
NEEDED: Final = "import sys, _ctypes, _json, _signal, _socket; sys.exit(sys.version_info < (3, 11))"
LONGEST: Final = 120  # bytes of an interpreter's path: the kernel's #! line has 256 with its arguments, older ones 128


def install(file: str, python: str = "") -> None:
    """Write the launcher, and try it. It names the interpreter (`python`, or the quickest) and this source by their absolute
    paths: it must not be moved to another host. Raises SpecError, OSError.
    """
    source = str(Path(quick.__file__).resolve().parents[2])
    interpreter = os.path.realpath(python) if python else _quickest()
    if len(os.fsencode(interpreter)) > LONGEST:
        raise SpecError(f"{interpreter} is too long for the kernel's #! line; --python names another")
    if python and not _serves(interpreter):
        raise SpecError(f"--python {python}: not an interpreter of Python 3.11 or later with its usual modules")
    temporary = f"{file}.{os.getpid()}"
    try:
        with open(temporary, "x") as stream:
            stream.write(quick.launcher(interpreter, source))
        os.chmod(temporary, 0o755)
        # Also makes the file that it reads, while we may write there.
        tried = subprocess.run([temporary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if tried.returncode or " version " not in tried.stdout:
            raise SpecError(f"a launcher with {interpreter} does not run: {tried.stderr.strip() or 'it says nothing'}")
        os.rename(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _quickest() -> str:
    own, system = os.path.realpath(sys.executable), os.path.realpath(SYSTEM)
    return system if system != own and _serves(system) else own


def _serves(interpreter: str) -> bool:
    try:
        return subprocess.run([interpreter, "-IS", "-c", NEEDED], stdin=subprocess.DEVNULL, capture_output=True, check=False,
                              timeout=20).returncode == 0  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
