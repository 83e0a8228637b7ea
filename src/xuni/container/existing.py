"""A container that exists, and what is done to it while it lives. life.py tells how it comes and goes."""

from __future__ import annotations

from xuni.container import json, state
from xuni.container.record import SpecError
from xuni.container.state import Home, State, process, read_file, report
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.cgroup import Group
    from xuni.container.spec import Resources


class Container:
    """One container whose state is on disk."""

    def __init__(self, home: Home, kept: State) -> None:
        self.home = home
        self.kept = kept

    def status(self) -> str:
        found = state.status(self.home, self.kept)
        if found == "stopped" and self.kept.phase == "creating":  # or its runtime has made it and ended since we read this
            try:
                self.kept = self.home.read()
            except SpecError:
                return found
            found = state.status(self.home, self.kept)
        return found


def open_container(root: str, container: str) -> Container:
    """Raises SpecError if there is none."""
    home = Home(root, container)
    return Container(home, home.read())


def open_made(root: str, container: str, seconds: float) -> Container:
    """The same, but waits so long for a creation under way: with runc a container is not seen before it has been made, and
    who asks for its state until there is one goes on with `start`. Raises SpecError.
    """
    from time import monotonic, sleep

    deadline = monotonic() + seconds
    while (found := open_container(root, container)).status() == "creating" and monotonic() < deadline:
        sleep(0.005)
    return found


def signal(container: Container, number: int, *, quiet: bool = False) -> None:
    """Send to init, if it is still the process that we made."""
    kept = container.kept
    linux = k.Linux()
    try:
        pidfd = linux.pidfd_open(kept.pid) if kept.pid else -1
    except OSError:
        pidfd = -1
    try:
        if kept.phase == "creating" and not quiet:
            raise SpecError(f"container not running: {kept.id} is being created")
        if pidfd < 0 or process(kept.pid)[1] != kept.started or process(kept.pid)[0] in ("Z", "X"):
            if quiet:
                return
            raise SpecError(f"container not running: {kept.id}")
        linux.pidfd_send_signal(pidfd, number)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def kill(container: Container, number: int, *, everything: bool = False) -> None:
    """Raises SpecError unless it has been created and not ended."""
    if everything and container.kept.cgroups:
        from xuni.container.cgroup import reopen

        reopen(container.kept.cgroups).kill(number)
        return
    if number == 9 and container.kept.cgroups and container.kept.phase != "creating" and not _has_pid_namespace(container):
        group_of(container).kill(9)  # nobody else would end what init leaves
        return
    signal(container, number)


def _has_pid_namespace(container: Container) -> bool:
    spec = container.home.spec()
    return any(each.type == "pid" and not each.path for each in (spec.linux.namespaces if spec.linux else ()))


def pause(container: Container) -> None:
    status = container.status()
    if status not in ("running", "created"):
        raise SpecError(f"cannot pause a container that is {status}: {container.kept.id}")
    group_of(container).freeze()


def resume(container: Container) -> None:
    status = container.status()
    if status != "paused":
        raise SpecError(f"cannot resume a container that is {status}, not paused: {container.kept.id}")
    group_of(container).thaw()


def update(container: Container, resources: Resources) -> None:
    status = container.status()
    if status == "stopped":
        raise SpecError(f"cannot update a container that is not running: {container.kept.id}")
    group_of(container).apply(resources)


def group_of(container: Container) -> Group:
    if not container.kept.cgroups:
        raise SpecError(f"{container.kept.id} has no control groups (it was made with --cgroup-manager disabled)")
    from xuni.container.cgroup import reopen

    return reopen(container.kept.cgroups)


def forget(root: str, container: str) -> None:
    """What a runtime leaves that was killed before it could write the state: the claimed id. Where there is a state that
    nobody can read, the container's groups are where its configuration has them."""
    home = Home(root, container)
    if os.path.exists(f"{home.path}/state.json"):
        try:
            linux = home.spec().linux
        except (SpecError, OSError):
            linux = None
        from xuni.container.cgroup import place

        group = place(linux.cgroupsPath if linux else "", container, rootless=os.geteuid() != 0)
        group.kill(9)
        group.delete()
    home.remove()


def wait_for_end(kept: State, seconds: float = 10.0) -> None:
    """Until init is gone or a zombie of its parent's. Raises OSError ETIMEDOUT."""
    import errno
    import time

    deadline = time.monotonic() + seconds
    while kept.pid:
        letter, began = process(kept.pid)
        if letter in ("", "Z", "X") or began != kept.started:
            return
        if letter == "D" and time.monotonic() > deadline - seconds + 0.2:
            _thaw(kept.pid)
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"process {kept.pid} of {kept.id} does not end (state {letter})")
        time.sleep(0.002)


def _thaw(pid: int) -> None:
    """A frozen process does not die; somebody may have moved it into a frozen v1 group that is not ours."""
    try:
        for line in read_file(f"/proc/{pid}/cgroup").decode().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                k.Linux().write_file(f"/sys/fs/cgroup/freezer{path}/freezer.state", "THAWED")
    except OSError:
        pass


def state_text(container: Container) -> bytes:
    return json.dumps(report(container.kept, container.status()))
