"""Programs that the configuration has us run at points of a container's life (config.md, "POSIX-platform Hooks")."""

from __future__ import annotations

import _signal  # `signal` takes three milliseconds for its enums
import os
import select
import time

from xuni.container.step import Run, SpecError, Step

TYPE_CHECKING = False


class RunHook(Step):
    """Run one hook: the container's state on its standard input, `timeout` seconds to end by itself with status 0."""

    point: str
    index: int
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    def apply(self, run: Run) -> None:
        execute(self, run)


def execute(hook: RunHook, run: Run) -> None:
    """Raises SpecError if the hook cannot be run, fails, or takes too long."""
    inward, outward = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(inward[0], 0)
            for descriptor in (1, 2):
                kept = run.hook_output.get(descriptor, -1)
                os.dup2(outward[1] if kept < 0 else kept, descriptor)
            run.kernel.close_range(3)
            for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            if hook.point != "startContainer":
                os.chdir(run.bundle)
            # Without an environment of its own a hook has ours; startContainer, which runs inside, has the process's.
            given = hook.env or (run.environment if hook.point == "startContainer" else ())
            environment = dict(each.partition("=")[::2] for each in given) if given else os.environ
            os.execve(hook.path, hook.args or (hook.path,), environment)
        except OSError as error:
            os.write(2, f"{error.strerror}".encode())
        finally:
            os._exit(127)
    os.close(inward[0])
    os.close(outward[1])
    pidfd = run.kernel.pidfd_open(pid)
    try:
        said = _converse(hook, run, inward[1], outward[0], pidfd)
    finally:
        os.close(outward[0])
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    if said is None:
        raise SpecError(f"error running {hook.point} hook #{hook.index}: {hook.path} was still running after its timeout of "
                        f"{hook.timeout} s (deadline exceeded)")  # fmt: skip
    if status:
        code = os.waitstatus_to_exitcode(status)
        ended = f"failed with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
        text = said.decode(errors="replace").strip()
        raise SpecError(f"error running {hook.point} hook #{hook.index}: {hook.path}: {hook.point} hook "
                        f"{ended}" + (f": {text}" if text else ""))


def _converse(hook: RunHook, run: Run, inward: int, outward: int, pidfd: int) -> bytes | None:
    """Give the state, take what is said (its first 64 KiB), until the hook has ended; None if it had to be killed."""
    deadline = time.monotonic() + hook.timeout if hook.timeout else None
    waiting = select.poll()
    waiting.register(outward, select.POLLIN)
    waiting.register(pidfd, select.POLLIN)
    # Of old, prestart hooks ran in a container that was "created"; those that read it were written for that.
    state = run.state.replace(b'"status":"creating"', b'"status":"created"') if hook.point == "prestart" else run.state
    rest, said = state, b""
    os.set_blocking(inward, False)
    os.set_blocking(outward, False)
    waiting.register(inward, select.POLLOUT)
    while True:
        left = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
        ready = waiting.poll(left)
        if not ready:
            run.kernel.pidfd_send_signal(pidfd, 9)
            if inward >= 0:
                os.close(inward)
            return None
        for descriptor, _ in ready:
            if descriptor == inward:
                try:
                    rest = rest[os.write(inward, rest) :]
                except OSError:  # it does not want to know
                    rest = b""
                if not rest:
                    waiting.unregister(inward)
                    os.close(inward)
                    inward = -1
        for descriptor, _ in ready:
            if descriptor == outward:
                try:
                    piece = os.read(outward, 65536)
                except BlockingIOError:
                    continue
                said = (said + piece)[:65536]
                if not piece:
                    waiting.unregister(outward)
        if any(descriptor == pidfd for descriptor, _ in ready):
            if inward >= 0:
                os.close(inward)
            return said
