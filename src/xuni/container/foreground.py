"""`run`: create, start, and stay with the container until it ends, or (--detach) leave it alone."""

from __future__ import annotations

import os

from xuni.container import life
from xuni.container.step import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.life import Wishes


def run(container: str, wishes: Wishes, *, detach: bool, keep: bool) -> int:
    """The exit status: the process's, or 128 and its signal."""
    import _signal

    old = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    made = life.create(container, wishes, wait=False)
    found = life.open_container(wishes.root, container)
    spec = made.spec
    if spec.hooks and spec.hooks.poststart:
        life.after(found, spec, "poststart")
    if detach:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, old)
        return 0
    status = attend(made)
    if not keep:
        life.delete(found, force=True)
    return status


def attend(made: Run) -> int:
    """Wait for init, and pass signals on to it."""
    import _signal

    while True:
        got = _signal.sigwaitinfo(_signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP})
        if got.si_signo == _signal.SIGCHLD:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                if pid == made.pid:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
            continue
        try:
            made.kernel.pidfd_send_signal(made.pidfd, got.si_signo)
        except OSError:
            pass
