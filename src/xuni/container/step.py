"""A step: one change on the way to a container, as a record that can be printed, compared and applied.

`plan.py` decides (pure), `apply` acts through `run.kernel`; whatever steps hand to one another lies in the `Run`.

To add one: a Step beside its family (namespaces.py, mounts.py, devices.py, process.py, …), its line in plan.py, its test in
tests/container; if the kernel may refuse it for a reason worth telling, a line in rules.py.
"""

from __future__ import annotations

from xuni.container.record import Record, SpecError
from xuni.host.linux import system as os
from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import Linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xuni.container.cgroup import Group
    from xuni.container.notify import Notify
    from xuni.container.spec import Spec
    from xuni.container.state import Home, State
    from xuni.container.talk import Talk


class Run:
    """What the steps of one container share: the kernel, open descriptors, and who is who."""

    def __init__(self, kernel: Linux, spec: Spec, container: str, bundle: str) -> None:
        self.kernel = kernel
        self.spec = spec
        self.container = container
        self.bundle = bundle
        self.entrances: list[int] = []  # files through which a process enters the groups (Group.entrances)
        self.birthplace = -1  # the v2 group that it is born into (Group.clone_target)
        self.party = "runtime"  # or "init": who runs
        self.group: Group | None = None
        self.pid = 0  # of init, as the runtime sees it
        self.pidfd = -1
        self.joining = 0  # the process that is to enter the container's groups, for exec
        self.root = -1  # the container's root directory, in init
        self.files: dict[str, int] = {}  # descriptors that one step opens and another uses, by name
        self.links: dict[int, str] = {}  # what mounts with copy-symlink copy
        self.console = -1  # the runtime's end of the container's terminal
        self.listener = -1  # the socket of who is notified by seccomp
        self.filter = b""  # the seccomp program
        self.cache = ""  # a directory for compiled ones
        self.talk: Talk | None = None  # in init
        self.notify: Notify | None = None
        self.home: Home | None = None
        self.kept: State | None = None  # what the state file says, once the container is made
        self.preserved: list[int] = []  # descriptors that go on into the container
        self.state = b""  # what hooks read
        self.traced = self.debug = False
        self.log = -1
        self.log_json: bool | None = None
        self.arrived = False  # in the process's working directory
        self.program = ""  # the file to execute
        self.capabilities = 0, 0, 0  # effective, permitted, inheritable in the end
        self.environment: tuple[str, ...] = ()  # of the process
        self.hook_output: dict[int, int] = {}  # for descriptors 1 and 2 of hooks, where an annotation says so

    def open_log(self, path: str, as_json: bool | None) -> None:
        """--log; standard error without it."""
        if path:
            self.log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self.log_json = as_json
        else:
            self.log = os.dup(2)  # init's own standard error becomes the container's

    def close_log(self) -> None:
        if self.log >= 0:
            os.close(self.log)
            self.log = -1

    def open_hook_output(self) -> None:
        """Annotations of crun's that engines use: files that take what hooks print."""
        for descriptor, name in ((1, "run.oci.hooks.stdout"), (2, "run.oci.hooks.stderr")):
            path = (self.spec.annotations or {}).get(name)
            if path:
                self.hook_output[descriptor] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def preserve(self, count: int) -> None:
        """Descriptors 3 … 2+count were given to us for the container. Before we open any of our own."""
        for descriptor in range(3, 3 + count):
            try:
                os.set_inheritable(descriptor, False)  # hooks need not have it
            except OSError:
                continue  # not open; there may be others after it
            self.preserved.append(descriptor)

    def close(self) -> None:
        """What is still open of the runtime's own."""
        for descriptor in (*self.files.values(), *self.entrances, self.birthplace):
            if descriptor >= 0:
                os.close(descriptor)
        self.files.clear()
        self.entrances, self.birthplace = [], -1

    def take(self, what: str, descriptor: int, ours: bool) -> None:
        """In the runtime: what init hands over, by its number there, or sent and ours already."""
        taken = descriptor if ours else self.kernel.pidfd_getfd(self.pidfd, descriptor)
        if what == "terminal":
            self.console = taken
            return
        try:
            if what == "seccomp":
                from xuni.container.seccomp import send_listener

                send_listener(self, taken, self.pid)
            else:
                from xuni.container.binds import put_id_map

                put_id_map(self, what, taken)
        finally:
            os.close(taken)

    def keep_only_preserved(self) -> None:
        """In init: nothing but standard streams and what the user handed over goes on into the process."""
        self.kernel.close_range(3)
        for descriptor in self.preserved:
            os.set_inheritable(descriptor, True)

    def wait_with(self, *needed: int) -> None:
        """In a created init, before it waits for `start`: whatever else the runtime had open, or was given, is not its own."""
        first = 3
        for descriptor in sorted({*needed, *self.preserved, *self.hook_output.values()}):
            if descriptor > first:
                self.kernel.close_range(first, 0, descriptor - 1)
            first = max(first, descriptor + 1)
        self.kernel.close_range(first, 0)

    def warn(self, text: str) -> None:
        self.say("warning", text)

    def say(self, level: str, text: str) -> None:
        """Into the log: a descriptor, since init no longer sees the host's files."""
        if self.log >= 0:
            from xuni.container.state import log_line

            try:
                os.write(self.log, log_line(level, text, self.log_json))
            except OSError:  # its disk is full, or nobody reads it any more
                pass

    def trace(self, step: object, since: float) -> None:
        import time

        os.write(2, f"{(time.perf_counter() - since) * 1000:9.3f} ms  {self.party:<8} {step}\n".encode())


class Step(Record):
    """Base of all steps. Its name is its class; its fields are all it needs to know."""

    def apply(self, run: Run) -> None:
        raise NotImplementedError


class StepFailed(Exception):
    """A step did not succeed; the text names the step, the call, and the rule behind it."""

    def __init__(self, step: str, said: str, call: str = "", number: int = 0) -> None:
        super().__init__(step, said, call, number)
        self.step, self.said, self.call, self.number = step, said, call, number

    @classmethod
    def of(cls, step: Step, error: OSError | SpecError) -> StepFailed:
        if isinstance(error, SpecError):
            return cls(repr(step), str(error))
        call = getattr(error, "call", "")
        said = str(error) if call else f"{error.strerror}{': ' + str(error.filename) if error.filename else ''}"
        return cls(repr(step), said, call, error.errno or 0)

    def __str__(self) -> str:
        from xuni.container.rules import explain

        return explain(self.step, self.said, self.call, self.number)

    def pack(self) -> bytes:
        """For the runtime, which has the rules at hand."""
        return "\0".join((self.step, self.said, self.call, str(self.number))).encode(errors="backslashreplace")

    @classmethod
    def unpack(cls, packed: bytes) -> StepFailed:
        step, said, call, number = packed.decode().split("\0")
        return cls(step, said, call, int(number))


def apply(steps: Iterable[Step], run: Run) -> None:
    """Apply each in order; the first that fails ends it, as StepFailed."""
    if run.traced or run.debug:
        import time

        for step in steps:
            since = time.perf_counter()
            _apply(step, run)
            if run.traced:
                run.trace(step, since)
            if run.debug:
                run.say("debug", f"{run.party}: {step}")
        return
    for step in steps:
        _apply(step, run)


def _apply(step: Step, run: Run) -> None:
    try:
        step.apply(run)
    except (OSError, SpecError) as error:
        raise StepFailed.of(step, error) from error


__all__ = ["CallError", "Run", "SpecError", "Step", "StepFailed", "apply"]
