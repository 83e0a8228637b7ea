"""A child process whose standard output is read line by line, each line with the CPU time spent until then."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

MAX_LINE = 1 << 16  # bytes: a guest that never ends its line must not fill our memory


@dataclass(frozen=True, slots=True)
class Line:
    """`wall` and `cpu` are seconds since the start; `cpu` counts every thread of the process and its children."""

    text: str
    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class End:
    """How the process ended. `status` is its exit status, negative for a signal; `cpu` in seconds; `rss` in MiB."""

    status: int
    wall: float
    cpu: float
    rss: float
    timed_out: bool


class Watched:
    """Starts the command; the process is gone when the `with` block ends."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self._start = time.monotonic()
        self._deadline = self._start + timeout
        self.end: End | None = None
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()

    def lines(self) -> Iterator[Line]:
        """Lines as they come, until the output ends or the time is over; an unended last line counts as one."""
        assert self._process.stdout is not None
        out, rest = self._process.stdout.fileno(), b""
        while (left := self._deadline - time.monotonic()) > 0:
            if not select.select([out], [], [], left)[0]:
                break
            data = os.read(out, 1 << 16)
            if not data:
                break
            wall, cpu = time.monotonic() - self._start, cpu_seconds(self._process.pid)
            *complete, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE:
                complete, rest = [*complete, rest], b""
            for line in complete:
                yield Line(line.decode("latin-1").strip("\r"), wall, cpu)
        if rest:
            yield Line(rest.decode("latin-1"), time.monotonic() - self._start, cpu_seconds(self._process.pid))

    def finish(self, grace: float = 2.0) -> End:
        """Wait for the process, or kill it (with the children in its session) when its time or `grace` is over."""
        if self.end is not None:
            return self.end
        process = self._process
        timed_out = time.monotonic() >= self._deadline
        last = time.monotonic() + grace
        result = os.wait4(process.pid, os.WNOHANG)
        while result[0] == 0 and time.monotonic() < last and not timed_out:
            time.sleep(0.01)
            result = os.wait4(process.pid, os.WNOHANG)
        if result[0] == 0:
            os.killpg(process.pid, 9)
            result = os.wait4(process.pid, 0)
        usage = result[2]
        process.returncode = os.waitstatus_to_exitcode(result[1])
        if process.stdout is not None:
            process.stdout.close()
        wall = time.monotonic() - self._start
        cpu = usage.ru_utime + usage.ru_stime
        self.end = End(process.returncode, wall, cpu, usage.ru_maxrss / 1024, timed_out)
        return self.end


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process: its threads, and its children's. What has gone meanwhile counts as nothing."""
    total = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0.0
    children: list[str] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children += file.read().split()
        except (OSError, IndexError):
            continue
    return total / 1e9 + sum(cpu_seconds(int(child)) for child in children)
