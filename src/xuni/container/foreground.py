"""`run` and `exec` in the foreground: stay with the process until it ends, pass on signals, and its terminal if we have it."""

from __future__ import annotations

import _signal  # `signal` takes three milliseconds for its enums

from xuni.container import life
from xuni.container.step import Run, StepFailed
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.execute import ExecWishes
    from xuni.container.life import Container, Wishes

# Those that stop or continue us from the keyboard, faults of our own, and what cannot be caught, are not for the container.
_NOT_PASSED: Final = frozenset((_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGSEGV, _signal.SIGBUS,
                                _signal.SIGILL, _signal.SIGFPE, _signal.SIGPIPE, _signal.SIGURG))  # fmt: skip


def run(container: str, wishes: Wishes, *, detach: bool, keep: bool) -> int:
    """The exit status: the process's, or 128 and its signal."""
    old = _block()
    made = life.create(container, wishes, wait=False, detach=detach)
    hooks = made.spec.hooks
    if hooks and hooks.poststart:
        found = life.open_container(wishes.root, container)
        try:
            life.after(found, made.spec, "poststart")
        except StepFailed:
            life.delete(found, force=True)
            raise
    if detach:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, old)
        if made.notify:
            made.notify.wait(made.pid, made.pidfd)
        return 0
    if made.notify:
        made.notify.pass_on()
    status = _attend(made)
    if not keep:
        life.finish(made)
    return status


def execute(container: Container, command: Wishes, wishes: ExecWishes, *, detach: bool) -> int:
    """As `run`."""
    from xuni.container.execute import execute as begin

    old = _block()
    made = begin(container, command, wishes, detach=detach)
    if detach:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, old)
        return 0
    return _attend(made)


def _block() -> set[int]:
    """From before init exists, so that none is lost; init unblocks them for its process."""
    own = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGILL, _signal.SIGFPE}
    before: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals() - own)
    return before


def _attend(made: Run) -> int:
    """Until the process ends."""
    if made.console >= 0:
        from xuni.container.console import attend

        return attend(made)
    waited = _signal.valid_signals() - (_NOT_PASSED - {_signal.SIGCHLD})
    while True:
        got = _signal.sigwaitinfo(waited)
        if got.si_signo != _signal.SIGCHLD:
            pass_on(made, got.si_signo)
        elif (status := reap(made.pid)) is not None:
            return status


def pass_on(made: Run, number: int) -> None:
    if number in _NOT_PASSED:
        return
    try:
        made.kernel.pidfd_send_signal(made.pidfd, number)
    except OSError:
        pass  # it has just ended


def reap(wanted: int) -> int | None:
    """Take every child that has ended; the status if the wanted one is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == wanted:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code
