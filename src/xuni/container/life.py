"""The life of a container, in order. `plan.py` has decided what each step is; here is when, and by whom.

    the runtime                                    init
    ───────────                                    ────
    create: prepare  (sources, control groups)
            clone ────────────────────────────────▶ (waits)
            adopt    (id maps, rlimits) ──"a"─────▶ enter   (groups, namespaces)
            limit    (its groups)                   build   (mounts, devices)
            host_hooks (prestart, createRuntime) ◀──"b"──
                                        ──"h"─────▶ seal    (createContainer, the new root)
                                                    become  (user, capabilities)
            the state is "created"      ◀──"r"──
    start:  connects to start.sock ───────────────▶ begin   (seccomp, startContainer, execve)
            poststart
    kill:   signals
    delete: the groups are emptied and removed, poststop, the state is forgotten

What can be left behind is written into the state before it is made, so `delete --force` finishes whatever a killed runtime
began. `run` is create and start without the socket between them.
"""

from __future__ import annotations

from xuni.container import json, state
from xuni.container.bundle import Wishes, hand_out, load, mounts_below, rootfs
from xuni.container.existing import Container, open_container, signal, wait_for_end
from xuni.container.namespaces import KINDS
from xuni.container.plan import Host, plan
from xuni.container.process import end_on_signals
from xuni.container.record import SpecError
from xuni.container.state import Home, State, process, report
from xuni.container.step import Run, StepFailed, apply
from xuni.container.talk import InitFailed, Talk
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from xuni.container.plan import Plan
    from xuni.container.spec import Spec


# ---- create


def create(container: str, wishes: Wishes, *, wait: bool, detach: bool = False) -> Run:
    """Everything up to the process itself. With `wait`, init stays until `start`; else it goes on at once, and with `detach`
    we shall not stay to attend its terminal.

    Raises SpecError or StepFailed after undoing what was done.
    """
    spec, text = load(wishes)
    home = Home(wishes.root, container)
    if wishes.notify:
        from xuni.container import notify

        spec = notify.with_socket(spec, home, wishes.notify)
    host = Host(os.geteuid() == 0, wishes.cgroups, wishes.no_pivot, wishes.no_new_keyring, wishes.console_socket,
                wait or detach)
    run = Run(k.Linux(), spec, container, wishes.bundle)
    run.traced, run.debug = wishes.trace, wishes.debug
    run.cache = f"{wishes.root}/.seccomp"
    run.preserve(wishes.preserve_fds)
    run.open_log(wishes.log, wishes.log_json)
    run.open_hook_output()
    steps = plan(spec, wishes.bundle, host)
    if wishes.cgroups:
        from xuni.container.cgroup import place

        run.group = place(spec.linux.cgroupsPath if spec.linux else "", container, rootless=not host.root)
    kept = State(container, wishes.bundle, rootfs(spec, wishes.bundle), wishes.config, state.now(), state.owner(),
                 os.getpid(), process(os.getpid())[1], None, spec.annotations,
                 rootless=not host.root, mounts_below=mounts_below(spec, wishes.bundle))  # fmt: skip
    home.claim()
    try:
        home.keep_config(text)
        if run.group:
            from xuni.container.groups import refuse_used

            refuse_used(run.group, container)  # before the state names them: what ends a container ends its groups
            kept = kept.replaced(cgroups=dict(run.group.paths))
        home.write(kept)
        if wishes.notify:
            notify.prepare(home)
            run.notify = None if wait else notify.Notify(home, wishes.notify)
        if wait:
            run.files["start"] = home.listen()
        apply(steps.prepare, run)
        talk = Talk(rootless=not host.root)
        pid = _clone(steps, run, talk)
        if pid == 0:
            _init(steps, run, talk, kept)
        if not steps.outside:
            talk.runtime()
        apply(steps.adopt, run)
        talk.tell(b"a")
        apply(steps.limit, run)
        talk.expect(b"b", run.take)
        kept = kept.replaced(pid=run.pid, started=process(run.pid)[1], phase="made")
        run.state = json.dumps(report(kept, "creating"))
        apply(steps.host_hooks, run)
        talk.tell(b"h")
        talk.expect(b"r", run.take)
        home.write(kept)
        hand_out(wishes, b"standard", run.pid, run.pidfd)
        talk.tell(b"g")
        if not wait:
            talk.expect_end()
    except BaseException as error:
        run.close()
        if isinstance(error, InitFailed) and run.group:
            from xuni.container.cgroup.stats import oom_kills

            error.kills = oom_kills(run.group.paths)
        undo(Container(home, kept.replaced(phase="creating")), run)
        raise
    run.close()
    run.home, run.kept = home, kept
    return run


def _clone(steps: Plan, run: Run, talk: Talk) -> int:
    """Make init: 0 in it, its pid in the runtime. With namespaces to join first, by a child that only does that."""
    flags = 0
    for kind in steps.clone:
        flags |= KINDS[kind][0]
    if not steps.outside:
        run.pid, run.pidfd = run.kernel.clone3(flags, run.birthplace)
        return run.pid
    between, pidfd = run.kernel.clone3(0)
    if between == 0:
        try:
            apply(steps.outside, run)
            pid, _ = run.kernel.clone3(flags | k.CLONE_PARENT, run.birthplace)
        except Exception as error:
            talk.init()
            talk.fail(error)
            os._exit(1)
        if pid == 0:
            return 0
        talk.init()
        talk.tell(b"p%d\n" % pid)
        os._exit(0)
    os.close(pidfd)
    talk.runtime()
    run.pid = talk.number()
    os.waitpid(between, 0)
    run.pidfd = run.kernel.pidfd_open(run.pid)
    return run.pid


def _init(steps: Plan, run: Run, talk: Talk, kept: State) -> NoReturn:
    """The life of init, up to its process."""
    talk.init()
    run.party, run.talk = "init", talk
    try:
        talk.expect(b"a")
        apply(steps.enter, run)
        run.kernel.prctl(k.PR_SET_DUMPABLE, 0)  # nobody inside looks into us, nor at /proc/PID/exe (CVE-2019-5736)
        run.kernel.prctl(k.PR_SET_PDEATHSIG, 9)  # a runtime that is killed leaves no init in the middle of a hook
        apply(steps.build, run)
        talk.tell(b"b")
        talk.expect(b"h")
        run.state = json.dumps(report(kept.replaced(pid=os.getpid()), "creating"))  # for hooks in here
        apply(steps.seal, run)
        apply(steps.become, run)
        run.kernel.prctl(k.PR_SET_PDEATHSIG, 0)
        if "start" in run.files:
            run.close_log()  # whoever reads the runtime's standard error shall not wait for `start`
            run.wait_with(talk.into, talk.out, run.files["start"])
            end_on_signals()
        talk.tell(b"r")
        talk.expect(b"g")
        if "start" in run.files:
            talk.become_started(run.files["start"])
        run.keep_only_preserved()
        run.state = json.dumps(report(kept.replaced(pid=os.getpid()), "created"))
        apply(steps.begin, run)
    except Exception as error:
        talk.fail(error)
    finally:
        os._exit(1)


# ---- start


def start(container: Container, notify: str = "") -> None:
    """Let a created container's process begin; with `notify`, a NOTIFY_SOCKET, return when it is ready. Raises SpecError with
    init's words if it cannot."""
    status = container.status()
    if status != "created":
        raise SpecError(f"cannot start a container that is {status}: {container.kept.id}")
    if notify:
        from xuni.container.notify import Notify, prepared

        told = Notify(container.home, notify) if prepared(container.home) else None
        pidfd = k.Linux().pidfd_open(container.kept.pid)
    talk = Talk.starting(container.home.socket)
    os.unlink(container.home.socket)
    talk.expect_end()
    spec = container.home.spec()
    if spec.hooks and spec.hooks.poststart:
        try:
            after(container, spec, "poststart")
        except StepFailed:
            delete(container, force=True)
            raise
    if notify and told:
        told.wait(container.kept.pid, pidfd)


def after(container: Container, spec: Spec, point: str) -> None:
    """The hooks of a point after the start. A poststop hook that fails is a warning, a poststart hook raises StepFailed."""
    from xuni.container.hooks import RunHook

    run = Run(k.Linux(), spec, container.kept.id, container.kept.bundle)
    # The process may have ended by now, or may not have been waited for yet: the point says where in its life this is.
    run.state = json.dumps(report(container.kept, "running" if point == "poststart" else "stopped"))
    run.open_hook_output()
    for index, each in enumerate(getattr(spec.hooks, point, ())):
        try:
            apply((RunHook(point, index, each.path, each.args, each.env, each.timeout),), run)
        except StepFailed as error:
            if point != "poststop":
                raise
            os.write(2, f"xuni-oci: warning: {error}\n".encode())


# ---- delete


def delete(container: Container, *, force: bool = False) -> None:
    """Remove a container that has stopped (runtime.md, "Delete": no other); with `force`, whatever it does."""
    status = container.status()
    if status != "stopped" and not force:
        raise SpecError(f"cannot delete container {container.kept.id} that is not stopped: {status} (--force kills it first)")
    _end(container)
    try:
        spec = container.home.spec()
    except (SpecError, OSError):
        spec = None  # killed before it was kept: no hook of it has run either
    if spec and spec.hooks and spec.hooks.poststop:
        after(container, spec, "poststop")
    container.home.remove()


def _end(container: Container, *, ended: bool = False) -> None:
    """No process and no group of it are left. With `ended`, init has been waited for, and was first in a PID namespace: the
    kernel has killed all others with it."""
    kept = container.kept
    group = None
    if kept.cgroups:
        from xuni.container.cgroup import reopen

        group = reopen(kept.cgroups)
    if not ended:
        if kept.pid != os.getpid():  # else it is us, who could not make it; init has been waited for
            signal(container, 9, quiet=True)
        if group:
            group.kill(9)
        if kept.pid != os.getpid():
            wait_for_end(kept)
    if group:
        group.delete()
    if kept.mounts_below:
        from xuni.container.stacked import unmount_extra

        unmount_extra(k.Linux(), kept.rootfs, kept.mounts_below - 1)


def finish(run: Run) -> None:
    """After `run`: init has ended and was waited for."""
    assert run.kept is not None and run.home is not None
    namespaces = run.spec.linux.namespaces if run.spec.linux else ()
    container = Container(run.home, run.kept)
    _end(container, ended=any(each.type == "pid" and not each.path for each in namespaces))
    if run.spec.hooks and run.spec.hooks.poststop:
        after(container, run.spec, "poststop")
    run.home.remove()


def undo(container: Container, run: Run) -> None:
    """After a failed create: what delete does, and poststop hooks as the specification asks."""
    if run.pidfd >= 0:
        try:
            run.kernel.pidfd_send_signal(run.pidfd, 9)
            os.waitpid(run.pid, 0)
        except OSError:
            pass
    delete(container, force=True)


__all__ = ["Container", "Wishes", "after", "create", "delete", "finish", "open_container", "start"]
