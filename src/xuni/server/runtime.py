"""The OCI runtime, as a program with runc's command line: ours, runc, or crun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xuni
from xuni.server import ContainerError

STATE: Final = "/run/xuni/containers"
START: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from xuni.cli.oci import main; main()"


@dataclass(frozen=True, slots=True)
class Runtime:
    """`command` begins every call."""

    name: str
    command: tuple[str, ...]

    def call(self, *arguments: str, **options: object) -> None:
        """Raises ContainerError with the runtime's own words."""
        done = subprocess.run([*self.command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, check=False)  # fmt: skip
        if done.returncode:
            raise ContainerError(f"{self.name}: {said(done.stderr)}")


def said(errors: bytes) -> str:
    """The last line that is no warning."""
    lines = [line for line in errors.decode(errors="replace").strip().splitlines() if line and "level=warning" not in line]
    text = lines[-1] if lines else "it gave no reason"
    if 'msg="' in text:
        text = text.partition('msg="')[2].rpartition('"')[0].replace('\\"', '"')
    return text.removeprefix("xuni-oci: ")


def find(name: str) -> Runtime:
    """ "xuni", the name of a program, or its path. Raises ContainerError."""
    root = f"{STATE}/{os.path.basename(name)}"
    if name == "xuni":
        source = str(Path(xuni.__file__).parent.parent)
        # -S and -I: nothing of the user's is imported, and the site packages take longer than the container.
        return Runtime("xuni-oci", (sys.executable, "-I", "-S", "-c", START, source, "--root", root))
    program = shutil.which(name)
    if program is None:
        raise ContainerError(f"--runtime {name}: there is no such program; xuni, runc and crun are known to work")
    return Runtime(os.path.basename(name), (program, "--root", root))
