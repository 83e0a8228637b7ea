"""The OCI runtime, as a program with runc's command line: ours, runc, or crun."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xuni
from xuni.server import ContainerError, where

START: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from xuni.cli.oci import main; main()"


NOT_FOUND, NOT_EXECUTABLE = 127, 126


@dataclass(frozen=True, slots=True)
class Runtime:
    """Any program with runc's command line. `command` begins every call; what it says when it fails is a ContainerError."""

    name: str
    command: tuple[str, ...]
    root: str

    def create(self, container: str, bundle: Path, console: str, streams: tuple[int, int, int]) -> int:
        """The pid of its first process, which waits for `start`, with these three as its standard streams."""
        pid_file, log = bundle / "pid", bundle / "runtime.log"
        log.unlink(missing_ok=True)
        # The runtime's own words go to its log: standard error is the container's already.
        command = [*self.command, "--log", str(log), "create", "--bundle", str(bundle), "--pid-file", str(pid_file),
                   *(["--console-socket", console] if console else []), container]  # fmt: skip
        import subprocess

        done = subprocess.run(command, stdin=streams[0], stdout=streams[1], stderr=streams[2], check=False)
        if done.returncode:
            raise self.failed(log.read_bytes() if log.exists() else b"")
        pid = int(pid_file.read_text())
        pid_file.unlink()
        return pid

    def start(self, container: str) -> None:
        self.call("start", container)

    def delete(self, container: str) -> None:
        self.call("delete", "--force", container)

    def call(self, *arguments: str) -> None:
        import subprocess

        done = subprocess.run([*self.command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, check=False)  # fmt: skip
        if done.returncode:
            raise self.failed(done.stderr)

    def failed(self, errors: bytes) -> ContainerError:
        text = said(errors)
        if "hybrid mode" in text:
            text += "; this host has control groups of both versions, which `--runtime xuni` and runc work with"
        return ContainerError(f"{self.name}: {text}", status_of(text))


class Ours(Runtime):
    """xuni's own, as a library: a start by a new interpreter for each of create, start and delete takes longer than all three."""

    __slots__ = ()

    def create(self, container: str, bundle: Path, console: str, streams: tuple[int, int, int]) -> int:
        from xuni.container import life

        pid_file = bundle / "pid"
        wishes = life.Wishes(self.root, str(bundle), console_socket=console, pid_file=str(pid_file))
        with open(os.memfd_create("words"), "w+b") as words:
            # In a child, which has these streams instead of ours; the container's first process comes to us when it ends.
            if (child := os.fork()) == 0:
                status = 1
                try:
                    signal.set_wakeup_fd(-1)
                    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
                            signal.signal(number, signal.SIG_DFL)
                    for descriptor, target in zip(streams, (0, 1, 2), strict=True):
                        os.dup2(descriptor, target)
                    life.create(container, wishes, wait=True)
                    status = 0
                except BaseException as error:
                    words.write(_described(error).encode(errors="replace"))
                    words.flush()
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            if status:
                words.seek(0)
                raise self.failed(words.read())
        pid = int(pid_file.read_text())
        pid_file.unlink()
        return pid

    def start(self, container: str) -> None:
        from xuni.container import life
        from xuni.container.step import StepFailed

        try:
            life.start(life.open_container(self.root, container))
        except (ValueError, OSError, StepFailed) as error:
            raise self.failed(_described(error).encode()) from None
        except Exception as error:  # init's own words
            raise self.failed(str(error).encode()) from None

    def delete(self, container: str) -> None:
        from xuni.container import life

        try:
            life.delete(life.open_container(self.root, container), force=True)
        except ValueError as error:
            raise self.failed(str(error).encode()) from None


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and not hasattr(error, "call"):
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return str(error) or type(error).__name__


def status_of(text: str) -> int:
    """docker's: 127 if the program is not there, 126 if it cannot be executed, 125 for all else."""
    lower = text.lower()
    if any(each in lower for each in ("executable file not found", "no such file or directory", "not found in")):
        return NOT_FOUND
    refused = ("permission denied", "exec format error", "is a directory", "not executable", "findprogram:", "open executable")
    if any(each in lower for each in refused):
        return NOT_EXECUTABLE
    return 125


def said(errors: bytes) -> str:
    """The last line that is no warning."""
    lines = [line for line in errors.decode(errors="replace").strip().splitlines() if line and "level=warning" not in line]
    text = lines[-1] if lines else "it gave no reason"
    if 'msg="' in text:
        text = text.partition('msg="')[2].rpartition('"')[0].replace('\\"', '"')
    return text.removeprefix("xuni-oci: ")


def find(name: str) -> Runtime:
    """ "xuni", the name of a program, or its path. Raises ContainerError."""
    root = f"{where.run_directory()}/containers/{os.path.basename(name)}"
    if name == "xuni":
        source = str(Path(xuni.__file__).parent.parent)
        # -S and -I: nothing of the user's is imported, and the site packages take longer than the container.
        return Ours("xuni-oci", (sys.executable, "-I", "-S", "-c", START, source, "--root", root), root)
    import shutil

    program = shutil.which(name)
    if program is None:
        raise ContainerError(f"--runtime {name}: there is no such program; xuni, runc and crun are known to work")
    return Runtime(os.path.basename(name), (program, "--root", root), root)
