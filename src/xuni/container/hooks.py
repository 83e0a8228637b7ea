"""Programs that the configuration has us run at points of a container's life (config.md, "POSIX-platform Hooks")."""

from __future__ import annotations

import _signal  # `signal` takes three milliseconds for its enums
import os
import select
import time

from xuni.container.step import Run, SpecError, Step
from xuni.host.linux import kernel as k

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
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            run.kernel.prctl(k.PR_SET_PDEATHSIG, _signal.SIGKILL)  # killed while it waits, the runtime leaves no hook behind
            if os.getppid() != parent:
                os._exit(127)
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
                try:
                    os.chdir(run.bundle)
                except PermissionError:
                    if hook.point != "createContainer":  # which a user namespace's root may have to do elsewhere
                        raise
            # Without an environment of its own a hook has ours; startContainer, which runs inside, has the process's.
            given = hook.env or (run.environment if hook.point == "startContainer" else ())
            environment = [each.encode() for each in given] or [b"%s=%s" % each for each in os.environb.items()]
            # One that is in the image may lead to /proc/self/exe, as the container's program may.
            through = run.files.get("trampoline", -1) if hook.point == "startContainer" else -1
            if through < 0 and hook.point == "startContainer":
                from xuni.container.ourselves import refuse

                refuse(hook.path)
            run.kernel.execve(hook.path, [each.encode() for each in hook.args or (hook.path,)], environment, through)
        except (OSError, SpecError) as error:
            os.write(2, str(error.strerror if isinstance(error, OSError) else error).encode(errors="backslashreplace"))
        finally:
            os._exit(127)
    os.close(inward[0])
    os.close(outward[1])
    pidfd = run.kernel.pidfd_open(pid)
    try:
        said = _converse(hook, run, inward[1], outward[0], pid, pidfd)
    finally:
        os.close(outward[0])
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    if said is None:
        raise SpecError(f"error running {hook.point} hook #{hook.index}: {hook.path} was still running after its timeout of "
                        f"{hook.timeout} s (deadline exceeded)")  # fmt: skip
    if status:
        code = os.waitstatus_to_exitcode(status)
        ended = f"failed with exit code {code}" if code >= 0 else f"was killed by signal {-code}, {_strsignal(-code)}"
        text = said.decode(errors="backslashreplace").replace("\0", "\\0").strip()
        raise SpecError(f"error running {hook.point} hook #{hook.index}: {hook.path}: {hook.point} hook "
                        f"{ended}" + (f": {text}" if text else ""))


def _strsignal(number: int) -> str:
    return (_signal.strsignal(number) or "unknown").lower()  # "bad system call": a seccomp filter's


def _converse(hook: RunHook, run: Run, inward: int, outward: int, pid: int, pidfd: int) -> bytes | None:
    """Give the state, take what is said (its first 64 KiB), until the hook has ended; None if it had to be killed, with all
    that it has started and that did not leave its session."""
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
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:  # looked at first: it may be saying something all the time
            try:
                os.killpg(pid, _signal.SIGKILL)
            except ProcessLookupError:  # not even that far yet
                run.kernel.pidfd_send_signal(pidfd, _signal.SIGKILL)
            if inward >= 0:
                os.close(inward)
            return None
        ready = waiting.poll(None if left is None else min(int(left * 1000) + 1, 1 << 30))
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
