"""`exec`: one more process in a container that runs. Its life, in order, is `execute`.

The runtime makes a child that joins the container's control groups and then all its namespaces; since a PID namespace takes
only children, that child makes the process's own, as the runtime's child (CLONE_PARENT), and goes away.
"""

from __future__ import annotations

import os

from xuni.container import mounts as mnt
from xuni.container import namespaces as ns
from xuni.container import plan
from xuni.container import process as proc
from xuni.container.bundle import Wishes, hand_out
from xuni.container.existing import Container, state_text
from xuni.container.groups import EnterGroup
from xuni.container.record import Record, SpecError, decode
from xuni.container.spec import Capabilities, Linux, Process, User
from xuni.container.step import Run, Step, apply
from xuni.container.talk import Talk
from xuni.host.linux import kernel as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn


class ExecWishes(Record):
    """What `exec` was given; what is None or empty is the container's own."""

    args: tuple[str, ...]
    process: str = ""  # a file with a whole process object
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    groups: tuple[int, ...] = ()
    caps: tuple[str, ...] = ()
    terminal: bool = False
    no_new_privileges: bool = False
    apparmor: str = ""
    label: str = ""
    cgroup: dict[str, str] | None = None
    ignore_paused: bool = False


def wanted(container: Container, wishes: ExecWishes) -> Process:
    """The process to execute. Raises SpecError."""
    from xuni.container import json, state

    if wishes.process:
        return decode(Process, json.loads(state.read_file(wishes.process), wishes.process), "process")
    own = container.home.spec().process
    assert own is not None
    values = {name: getattr(own, name) for name in Process.fields}
    values["args"] = wishes.args
    values["terminal"] = wishes.terminal
    values["consoleSize"] = None
    values["env"] = own.env + wishes.env
    values["cwd"] = wishes.cwd or own.cwd
    user = {name: getattr(own.user, name) for name in User.fields}
    if wishes.user:
        uid, _, gid = wishes.user.partition(":")
        if not uid.isdecimal() or gid and not gid.isdecimal():
            raise SpecError(f"--user: {wishes.user!r} is not UID[:GID] in numbers; names are for engines, which know the image")
        user["uid"] = int(uid)
        user["gid"] = int(gid) if gid else 0
    if wishes.groups:
        user["additionalGids"] = user["additionalGids"] + wishes.groups
    values["user"] = User(**user)
    if wishes.caps:
        caps = own.capabilities or Capabilities()
        for each in wishes.caps:
            if not proc.mask((each,)):
                raise SpecError(f"--cap: {each} is not a capability of capabilities(7)")
        more = {name: tuple(dict.fromkeys(getattr(caps, name) + wishes.caps)) for name in ("bounding", "effective", "permitted")}
        ambient = caps.ambient + tuple([each for each in wishes.caps if each in caps.inheritable])
        values["capabilities"] = Capabilities(**more, inheritable=caps.inheritable, ambient=ambient)
    if wishes.no_new_privileges:
        values["noNewPrivileges"] = True
    values["apparmorProfile"] = wishes.apparmor or own.apparmorProfile
    values["selinuxLabel"] = wishes.label or own.selinuxLabel
    return Process(**values)


class JoinGroup(Step):
    """Into the container's control groups, or into groups below them."""

    below: tuple[tuple[str, str], ...] = ()

    def apply(self, run: Run) -> None:
        assert run.group is not None
        if not run.joining:
            return  # it enters by itself
        if self.below:
            run.group.join_sub(run.joining, dict(self.below))
        else:
            run.group.join(run.joining)


class Joining(Record):
    """The plan of an exec."""

    prepare: tuple[Step, ...]
    adopt: tuple[Step, ...]
    join: tuple[Step, ...]
    enter: tuple[Step, ...]
    become: tuple[Step, ...]
    begin: tuple[Step, ...]


def plan_exec(process: Process, linux: Linux, wishes: ExecWishes, host: plan.Host, groups: bool, userns: bool) -> Joining:
    """Raises SpecError."""
    from xuni.container.check import check_process

    check_process(process, host)
    prepare: list[Step] = []
    if linux.seccomp is not None:
        from xuni.container.seccomp import CompileSeccomp

        prepare.append(CompileSeccomp(linux.seccomp))
    if host.console_socket:
        from xuni.container.terminal import ConnectConsole

        prepare.append(ConnectConsole(host.console_socket))
    adopt: list[Step] = [JoinGroup(tuple((wishes.cgroup or {}).items()))] if groups else []
    adopt += [proc.SetRlimit(each.type, each.soft, each.hard) for each in process.rlimits]
    join: list[Step] = [EnterGroup()] if groups else []
    if process.oomScoreAdj is not None:
        join.append(proc.OomScore(process.oomScoreAdj))
    if process.execCPUAffinity is not None:
        if process.execCPUAffinity.initial:
            join.append(proc.SetAffinity(process.execCPUAffinity.initial))
    if linux.memoryPolicy is not None:
        join.append(proc.SetMemoryPolicy(linux.memoryPolicy))  # a process takes it from its parent, and ours is not init
    if process.apparmorProfile or process.selinuxLabel:
        from xuni.container.labels import OpenLabel

        join.append(OpenLabel(process.apparmorProfile, process.selinuxLabel))
    join.append(ns.JoinAll())
    enter: list[Step] = []
    if userns:
        enter.append(ns.BecomeRoot(own_files=False))
    enter.append(mnt.FindRoot())
    if process.terminal:
        from xuni.container.terminal import OpenTerminal

        size = process.consoleSize
        enter.append(OpenTerminal(size.width if size else 0, size.height if size else 0, process.user.uid, False))
    else:
        enter.append(proc.NewSession())
    become, begin = plan.identity(process, linux)
    if process.execCPUAffinity is not None:
        # From its first moment in the container's control groups on; without `final` the initial one stays.
        become[:] = [each for each in become if not isinstance(each, proc.ResetAffinity)]
        if process.execCPUAffinity.final:
            become.insert(0, proc.SetAffinity(process.execCPUAffinity.final))
    return Joining(tuple(prepare), tuple(adopt), tuple(join), tuple(enter), tuple(become), tuple(begin))


def execute(container: Container, command: Wishes, wishes: ExecWishes, *, detach: bool) -> Run:
    """Up to the process itself. Raises SpecError or StepFailed."""
    status = container.status()
    if status not in ("running", "created") and not (status == "paused" and wishes.ignore_paused):
        raise SpecError(f"cannot exec in a {status} container" + (" (use --ignore-paused)" if status == "paused" else ""))
    spec = container.home.spec()
    linux = spec.linux or Linux()
    process = wanted(container, wishes)
    host = plan.Host(os.geteuid() == 0, True, console_socket=command.console_socket, create=detach)
    run = Run(k.Linux(), spec, container.kept.id, container.kept.bundle)
    run.traced, run.debug = command.trace, command.debug
    run.cache = f"{command.root}/.seccomp"
    run.preserve(command.preserve_fds)
    run.open_log(command.log, command.log_json)
    kept = container.kept
    if kept.cgroups:
        from xuni.container.cgroup import reopen

        run.group = reopen(kept.cgroups)
    userns = os.stat(f"/proc/{kept.pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    steps = plan_exec(process, linux, wishes, host, run.group is not None, userns)
    run.state = state_text(container)
    apply(steps.prepare, run)
    run.pid = kept.pid
    run.pidfd = run.kernel.pidfd_open(kept.pid)
    talk = Talk(rootless=not host.root)
    if run.group and not wishes.cgroup:
        run.entrances = run.group.entrances()
        run.birthplace = run.group.clone_target()
    try:
        between, between_fd = run.kernel.clone3(0, run.birthplace)
        entered = run.birthplace >= 0 or bool(run.entrances)
    except OSError:  # v2: a group that has handed its controllers to sub-groups takes no process; join knows where to go
        for descriptor in run.entrances:
            os.close(descriptor)
        run.entrances = []
        between, between_fd = run.kernel.clone3(0)
        entered = False
    if between == 0:
        _join(steps, run, talk)
    talk.runtime()
    try:
        run.joining = 0 if entered else between
        run.pid = between
        apply(steps.adopt, run)
        talk.tell(b"a")
        pid = talk.number()
        os.close(run.pidfd)
        run.pid, run.pidfd = pid, run.kernel.pidfd_open(pid)
        talk.tell(b"e")
        talk.expect(b"r", run.take)
        hand_out(command, b"setns", run.pid, run.pidfd)
        talk.tell(b"g")
        talk.expect_end()
    except BaseException:
        run.kernel.pidfd_send_signal(between_fd, 9)  # it may still wait for us
        raise
    finally:
        os.close(between_fd)
        os.waitpid(between, 0)
    run.close()
    return run


def _join(steps: Joining, run: Run, talk: Talk) -> NoReturn:
    """The child: joins, makes the process, goes away. Its child goes on here."""
    talk.init()
    run.party, run.talk = "exec", talk
    try:
        run.kernel.prctl(k.PR_SET_DUMPABLE, 0)
        talk.expect(b"a")
        apply(steps.join, run)
        mnt.forget_modules()
        pid, _ = run.kernel.clone3(k.CLONE_PARENT)
        if pid:
            talk.tell(b"p%d\n" % pid)
            os._exit(0)
        talk.expect(b"e")
        apply(steps.enter, run)
        apply(steps.become, run)
        talk.tell(b"r")
        talk.expect(b"g")
        run.keep_only_preserved()
        apply(steps.begin, run)
    except Exception as error:
        talk.fail(error)
    finally:
        os._exit(1)


def cgroup_option(values: list[str]) -> Mapping[str, str]:
    """`--cgroup [CONTROLLER[,CONTROLLER…]:]PATH`: controllers ("" for all) and paths."""
    found: dict[str, str] = {}
    for value in values:
        names, colon, path = value.rpartition(":")
        for name in names.split(",") if colon else ("",):
            found[name] = path
    return found
