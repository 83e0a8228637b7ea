"""What the container's process may do and who it is: the last steps before it begins."""

from __future__ import annotations

import _signal  # `signal` takes three milliseconds for its enums
import _stat as stat
import errno

from xuni.container.rooted import make_in_root, open_in_root
from xuni.container.step import CallError, Run, SpecError, Step
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os
from xuni.host.linux.trampoline import make as make_trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.spec import MemoryPolicy, Personality, Process, Scheduler
    from xuni.host.linux.kernel import Linux

# capabilities(7), by number.
CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
    "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
    "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

# getrlimit(2), by number.
RLIMITS: Final = (
    "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
)  # fmt: skip


class SetRlimit(Step):
    """Set a limit of init, from outside: raising one takes CAP_SYS_RESOURCE of the host."""

    type: str
    soft: int
    hard: int

    def apply(self, run: Run) -> None:
        run.kernel.prlimit(run.pid, RLIMITS.index(self.type), self.soft, self.hard, self.type)


class OomScore(Step):
    value: int

    def apply(self, run: Run) -> None:
        run.kernel.write_file("/proc/self/oom_score_adj", str(self.value))


class Keyring(Step):
    """A session keyring of the container's own, so that the runtime's keys stay outside."""

    def apply(self, run: Run) -> None:
        try:
            run.kernel.join_session_keyring("_ses." + run.container)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):  # no keyrings here, or no room for another
                raise


class SetPersonality(Step):
    persona: int

    def apply(self, run: Run) -> None:
        run.kernel.personality(self.persona)


class NoNewPrivileges(Step):
    def apply(self, run: Run) -> None:
        run.kernel.prctl(k.PR_SET_NO_NEW_PRIVS, 1)


class BoundCapabilities(Step):
    """Drop from the bounding set what is not in `kept` (a mask)."""

    kept: int

    def shown(self, name: str) -> str:
        return capabilities(getattr(self, name))

    def apply(self, run: Run) -> None:
        for number in range(64):
            if self.kept >> number & 1:
                continue
            try:
                run.kernel.prctl(k.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # past the last capability of this kernel
                    return
                raise


class BecomeUser(Step):
    """Take the process's ids, keeping capabilities for the next step to decide on."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int | None = None
    keep_groups: bool = False  # the runtime's own additional groups stay

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        kernel.prctl(k.PR_SET_KEEPCAPS, 1)
        kernel.setresgid(self.gid)
        try:
            if not self.keep_groups:
                kernel.setgroups(self.groups)
        except OSError as error:
            if error.errno != errno.EPERM or self.groups:
                raise
            with open("/proc/self/setgroups") as file:
                if file.read().strip() != "deny":  # with "deny" there are no others to drop
                    raise
        kernel.setresuid(self.uid)
        kernel.prctl(k.PR_SET_KEEPCAPS, 0)
        os.umask(0o022 if self.umask is None else self.umask)


class SetCapabilities(Step):
    """The permitted, effective, inheritable and ambient sets, as masks.

    What we do not have ourselves, and ambient ones that are not permitted and inheritable, cannot be granted: config.md wants
    a warning then, not a failure.
    """

    permitted: int
    effective: int
    inheritable: int
    ambient: int = 0
    keep: int = 0  # held on to until FinishCapabilities

    def shown(self, name: str) -> str:
        return capabilities(getattr(self, name))

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        _, ours, _ = kernel.capget()
        permitted = self.permitted & ours
        inheritable = self.inheritable and self.inheritable & bounding(kernel)
        ambient = self.ambient & permitted & inheritable
        for lost, reason in (
            ((self.permitted | self.effective) & ~permitted, "can't grant capability {}: the runtime itself does not have it"),
            (self.inheritable & ~inheritable, "can't make capability {} inheritable: it is not in the bounding set"),
            (self.ambient & ~ambient, "can't raise ambient capability {}: it must be permitted and inheritable as well"),
        ):
            for number, name in enumerate(CAPABILITIES):
                if lost >> number & 1:
                    run.warn(reason.format(name))
        kernel.capset(self.effective & permitted | self.keep & ours, permitted | self.keep & ours, inheritable)
        run.capabilities = self.effective & permitted, permitted, inheritable
        kernel.prctl(k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(64):
            if ambient >> number & 1:
                kernel.prctl(k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, number)


def bounding(kernel: Linux) -> int:
    """The bounding set, as a mask."""
    bits = 0
    for number in range(len(CAPABILITIES)):
        try:
            bits |= kernel.prctl(k.PR_CAPBSET_READ, number) << number
        except OSError:  # newer than the kernel
            break
    return bits


class ChangeDirectory(Step):
    """Go where the process is to begin, and see that this is inside the root (a leaked descriptor can lead out:
    CVE-2024-21626).

    Once with the rights of the container's root (`early`), once as the process's user: a directory that only one of the two
    may enter is entered, and which one it is depends on the image's permissions and on file systems such as NFS and FUSE.
    """

    path: str
    early: bool = False

    def apply(self, run: Run) -> None:
        try:
            run.kernel.chdir(self.path)
        except OSError as error:
            if error.errno != errno.EACCES or not (self.early or run.arrived):
                raise
            return
        try:
            here = os.getcwd()
        except OSError:
            here = "(unreachable)"
        if not here.startswith("/"):
            raise SpecError(f"process.cwd: {self.path} leads out of the container's root")
        run.arrived = True


class FindHome(Step):
    """HOME, unless the environment has it: from the image's /etc/passwd, else "/"."""

    uid: int

    def apply(self, run: Run) -> None:
        run.environment = (*[each for each in run.environment if each != "HOME="], "HOME=" + self._look(run))

    def _look(self, run: Run) -> str:
        try:
            place = open_in_root(run.kernel, run.root, "/etc/passwd")
            regular = stat.S_ISREG(os.fstat(place).st_mode)  # opening a device may do something already
            os.close(place)
            if not regular:
                return "/"
            descriptor = open_in_root(run.kernel, run.root, "/etc/passwd", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return "/"
        try:
            for line in os.read(descriptor, 1 << 20).decode(errors="replace").split("\n"):
                fields = line.split(":")
                if len(fields) >= 7 and fields[2] == str(self.uid):
                    return fields[5] or "/"
        except OSError:
            pass
        finally:
            os.close(descriptor)
        return "/"


class Environment(Step):
    """The variables of the process."""

    env: tuple[str, ...] = ()

    def apply(self, run: Run) -> None:
        run.environment = self.env


class PrepareTrampoline(Step):
    """What executes the process in our stead, so that nothing of ours is /proc/self/exe meanwhile (CVE-2019-5736)."""

    def apply(self, run: Run) -> None:
        run.files["trampoline"] = make_trampoline(run.kernel)


class Execute(Step):
    """Become the process."""

    args: tuple[str, ...]

    def apply(self, run: Run) -> None:
        # Nothing but the call itself: the filter of system calls is on by now.
        run.kernel.execve(run.program, [each.encode() for each in self.args], [each.encode() for each in run.environment],
                          run.files.pop("trampoline", -1))  # fmt: skip


class NewSession(Step):
    def apply(self, run: Run) -> None:
        os.setsid()


class MakeDirectory(Step):
    """The working directory, if the image lacks it."""

    path: str

    def apply(self, run: Run) -> None:
        try:
            os.close(make_in_root(run.kernel, run.root, self.path, directory=True))
        except OSError:
            pass  # ChangeDirectory will say what is wrong, as the process's user


class OwnStreams(Step):
    """Give standard input, output and error to the process's user, who may want to open /dev/stdout again."""

    uid: int
    gid: int = 0

    def apply(self, run: Run) -> None:
        for descriptor in (0, 1, 2):
            try:
                status = os.fstat(descriptor)
                if status.st_uid == self.uid or stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
                    continue
                os.fchown(descriptor, self.uid, -1 if stat.S_ISCHR(status.st_mode) else self.gid)
            except OSError as error:
                # Not ours to give away: files of another user namespace, a read-only file system.
                if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS, errno.EBADF):
                    raise


class FindProgram(Step):
    """Find what `args[0]` names, in PATH unless it has a slash, while whoever creates the container still listens."""

    args: tuple[str, ...]

    def apply(self, run: Run) -> None:
        run.program = self.find(run)

    def find(self, run: Run) -> str:
        """The file to execute. Raises OSError as execvp(3) would."""
        name = self.args[0]
        if "/" in name:
            if not os.path.isfile(name):
                number = errno.EACCES if os.path.lexists(name) else errno.ENOENT
                raise _refused(name, number)
            if not _executable(name):
                raise _refused(name, errno.EACCES)
            return name
        path = next((each[5:] for each in run.environment if each.startswith("PATH=")), "/bin:/usr/bin")
        denied = False
        for directory in path.split(":"):
            candidate = f"{directory or '.'}/{name}"
            if os.path.isfile(candidate):
                if _executable(candidate):
                    return candidate
                denied = True
        if denied:
            raise OSError(errno.EACCES, f'exec: "{name}": permission denied (found in PATH={path}, not executable)')
        raise OSError(errno.ENOENT, f'exec: "{name}": executable file not found in $PATH ({path})')


def _executable(path: str) -> bool:
    """As execve will see it: plain access(2) leaves out the capabilities of who is not root, CAP_DAC_OVERRIDE among them."""
    return os.access(path, os.X_OK, effective_ids=True)


def _refused(name: str, number: int) -> OSError:
    """In runc's words: docker's exit statuses 126 and 127 depend on them, in small letters."""
    return OSError(number, f'exec: "{name}": {os.strerror(number).lower()}')


class SetScheduler(Step):
    scheduler: Scheduler

    def apply(self, run: Run) -> None:
        s = self.scheduler
        flags = sum(1 << SCHEDULER_FLAGS.index(each) for each in s.flags)
        packed = b"".join([(48).to_bytes(4, "little"), POLICIES[s.policy].to_bytes(4, "little"), flags.to_bytes(8, "little"),
                           s.nice.to_bytes(4, "little", signed=True), s.priority.to_bytes(4, "little"),
                           *[(each or 0).to_bytes(8, "little") for each in (s.runtime, s.deadline, s.period)]])  # fmt: skip
        try:
            run.kernel.sched_setattr(packed, repr(s))
        except CallError as error:
            if error.errno != errno.EPERM or s.policy not in ("SCHED_FIFO", "SCHED_RR"):
                raise
            raise SpecError(f"process.scheduler: {s.policy}: operation not permitted: it takes CAP_SYS_NICE, and on cgroup v1 a "
                            "budget that the group has been given (linux.resources.cpu.realtimeRuntime)") from None  # fmt: skip


POLICIES: Final = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
                   "SCHED_DEADLINE": 6}  # fmt: skip
SCHEDULER_FLAGS: Final = ("SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY",
                          "SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX")  # fmt: skip
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES: Final = {"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
                       "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6}  # fmt: skip
MEMORY_FLAGS: Final = {"MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15}


class FinishCapabilities(Step):
    """Let go of what SetCapabilities kept."""

    def apply(self, run: Run) -> None:
        run.kernel.capset(*run.capabilities)


class RestoreSignals(Step):
    """As execve(2) leaves them to a program: what the interpreter ignores is back at its default, nothing is blocked."""

    def apply(self, run: Run) -> None:
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def end_on_signals() -> None:
    """In a created init, which waits: the kernel keeps from the first process of a PID namespace every signal that it has no
    handler for (pid_namespaces(7)), and `kill` shall end it all the same. execve takes the handlers away.
    """
    for number in _signal.valid_signals() - _NOT_TO_END:
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, lambda number, _: os._exit(128 + number))


# What nothing can handle, what ends nobody by default, and faults of our own, which would come again and again.
_NOT_TO_END: Final = frozenset((_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGCONT, _signal.SIGTSTP,
                              _signal.SIGTTIN, _signal.SIGTTOU, _signal.SIGURG, _signal.SIGWINCH, _signal.SIGSEGV,
                              _signal.SIGBUS, _signal.SIGILL, _signal.SIGFPE))  # fmt: skip


class ResetAffinity(Step):
    """Every processor that the control group has, whichever ones the runtime itself was confined to."""

    def apply(self, run: Run) -> None:
        try:
            os.sched_setaffinity(0, range(1024))
        except OSError:
            pass  # no more than what it has been so far, then


class SetAffinity(Step):
    """The processors that the process may run on, "0-3,5"."""

    cpus: str

    def apply(self, run: Run) -> None:
        os.sched_setaffinity(0, numbers(self.cpus, "process.execCPUAffinity"))


class SetIoPriority(Step):
    level: str
    priority: int = 0

    def apply(self, run: Run) -> None:
        run.kernel.ioprio_set(IO_CLASSES[self.level] << 13 | self.priority)


class SetMemoryPolicy(Step):
    policy: MemoryPolicy

    def apply(self, run: Run) -> None:
        mode = MEMORY_MODES[self.policy.mode]
        for each in self.policy.flags:
            mode |= MEMORY_FLAGS[each]
        nodes = 0
        for number in numbers(self.policy.nodes, "linux.memoryPolicy.nodes"):
            nodes |= 1 << number
        run.kernel.set_mempolicy(mode, nodes, self.policy.mode)


def numbers(text: str, place: str) -> list[int]:
    """"0-2,7" as [0, 1, 2, 7]. Raises SpecError."""
    found: list[int] = []
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        low, dash, high = part.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise SpecError(f"{place}: {text!r} is not a list such as 0-2,7") from None
        if not 0 <= first <= last < 4096:
            raise SpecError(f"{place}: {part!r} is not within 0 … 4095 in ascending order")
        found += range(first, last + 1)
    return found


def mask(names: tuple[str, ...]) -> int:
    """Capabilities as the kernel counts them. Those this table does not know are dropped, as the specification allows."""
    bits = 0
    for name in names:
        number = _NUMBER.get(name.upper())
        if number is not None:
            bits |= 1 << number
    return bits


_NUMBER: Final = {name: number for number, name in enumerate(CAPABILITIES)}


def capabilities(mask: int) -> str:
    """The names of what is in a mask."""
    return ",".join([name for number, name in enumerate(CAPABILITIES) if mask >> number & 1]) or "none"


def persona(personality: Personality) -> int:
    """personality(2): PER_LINUX or PER_LINUX32."""
    if personality.flags:
        raise SpecError("linux.personality.flags: none are defined")
    if personality.domain not in ("LINUX", "LINUX32"):
        raise SpecError(f"linux.personality.domain: {personality.domain!r} is neither LINUX nor LINUX32")
    return 8 if personality.domain == "LINUX32" else 0


def environment(process: Process) -> tuple[str, ...]:
    """The variables as configured, the last of each name."""
    last: dict[str, str] = {}
    for each in process.env:
        last[each.partition("=")[0]] = each
    if os.getenv("LISTEN_FDS"):  # socket activation goes on into the container, where the process is number 1
        last["LISTEN_FDS"] = "LISTEN_FDS=" + (os.getenv("LISTEN_FDS") or "")
        last["LISTEN_PID"] = "LISTEN_PID=1"
    return tuple(last.values())
