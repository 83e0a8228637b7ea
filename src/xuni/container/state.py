"""What the runtime remembers of a container: one directory below --root, written before each effect it describes.

`ROOT/ID/state.json` is replaced whole; `config.json` beside it is the configuration that the container was made from;
`start.sock` is there from create until start, and init listens on it.
"""

from __future__ import annotations

import errno

from xuni.container import json
from xuni.container.record import Record, SpecError, decode, encode, i64
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.spec import Spec

VERSION: Final = "1.3.0"
_ALLOWED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class State(Record):
    """What survives the runtime's process."""

    id: str
    bundle: str
    rootfs: str
    config: str = "config.json"  # where it came from
    created: str = ""
    owner: str = ""
    pid: i64 = 0  # of init; while the container is being made, of the runtime that makes it
    started: i64 = 0  # when the pid began, in clock ticks after boot: another process may have its number by now
    cgroups: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    phase: str = "creating"  # "creating", "made": processes decide the rest
    rootless: bool = False
    mounts_below: i64 = 0  # if the container has no mount namespace: 1 and how many mounts its root had before

    def replaced(self, **changes: object) -> State:
        return State(**({name: getattr(self, name) for name in self.fields} | changes))


class Home:
    """The directory of one container's state."""

    def __init__(self, root: str, container: str) -> None:
        if not container or container[0] == "." or not set(container) <= _ALLOWED:
            raise SpecError(f"invalid container ID format: {container!r}: an invalid character (a container ID is made of "
                            "letters, digits and _+-., and does not begin with a dot)")  # fmt: skip
        if len(container) > 255:
            raise SpecError(f"invalid container ID format: {len(container)} characters; 255 are the limit of a file name")
        self.root = root
        self.container = container
        self.path = f"{root}/{container}"
        self.socket = f"{self.path}/start.sock"

    def claim(self) -> None:
        """Take the id. Raises SpecError if it is taken."""
        try:
            try:
                os.mkdir(self.path, 0o711)
            except FileNotFoundError:
                os.makedirs(self.root, 0o711, exist_ok=True)
                os.mkdir(self.path, 0o711)
        except FileExistsError:
            raise SpecError(f"container with given ID already exists: {self.container}") from None

    def write(self, state: State) -> None:
        temporary = f"{self.path}/.state.json.{os.getpid()}"
        write_file(temporary, json.dumps(encode(state)), 0o600, os.O_TRUNC)
        os.rename(temporary, f"{self.path}/state.json")

    def keep_config(self, text: bytes) -> None:
        write_file(f"{self.path}/config.json", text, 0o600, os.O_TRUNC)

    def listen(self) -> int:
        """The socket on which init waits for `start`."""
        import _socket

        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            socket.bind(f"/proc/self/fd/{directory}/start.sock")  # a socket's path has at most 107 bytes
            socket.listen(1)
        finally:
            os.close(directory)
        return socket.detach()

    def read(self) -> State:
        """Raises SpecError if there is no such container."""
        try:
            text = read_file(f"{self.path}/state.json")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise SpecError(f"container does not exist: {self.container} (in {self.root})") from None
        return decode(State, json.loads(text, f"{self.path}/state.json"))

    def spec(self) -> Spec:
        from xuni.container.spec import Spec

        return decode(Spec, json.loads(read_file(f"{self.path}/config.json"), f"{self.path}/config.json"))

    def remove(self) -> None:
        """Forget the container; what is missing already is fine."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        names.sort(key=lambda name: name == "state.json")  # last: without it nobody would know how to finish the rest
        for name in names:
            try:
                os.unlink(f"{self.path}/{name}")
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                for each in os.listdir(f"{self.path}/{name}"):  # notify.py's
                    os.unlink(f"{self.path}/{name}/{each}")
                os.rmdir(f"{self.path}/{name}")
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass


def now() -> str:
    """RFC 3339, in UTC."""
    import time

    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e9):09d}Z"


def log_line(level: str, text: str, as_json: bool | None) -> bytes:
    """One line of --log, in runc's two formats; None for people on standard error."""
    if as_json is None and level != "debug":
        return f"xuni-oci: {level}: {text}\n".encode(errors="backslashreplace")
    if as_json:
        return json.dumps({"level": level, "msg": text, "time": now()}) + b"\n"
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'time="{now()}" level={level} msg="{quoted}"\n'.encode(errors="backslashreplace")


def owner() -> str:
    """The user's name, or number."""
    uid = os.geteuid()
    if uid == 0:
        return "root"
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def read_file(path: str, most: int = 0) -> bytes:
    """The content. With `most`, somebody else's file: waits for no pipe, and reads nothing but files of at most that many
    bytes. Raises OSError, SpecError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if most else 0))
    try:
        if most:
            status = os.fstat(descriptor)
            if status.st_mode & 0o170000 != 0o100000 or status.st_size > most:  # S_IFMT, S_IFREG
                raise SpecError(f"{path} is not a regular file of at most {most >> 20} MiB")
        content = b""
        while piece := os.read(descriptor, 1 << 20):
            content += piece
            if most and len(content) > most:  # it grew while we read
                raise SpecError(f"{path} is not a regular file of at most {most >> 20} MiB")
        return content
    finally:
        os.close(descriptor)


def write_file(path: str, content: bytes, mode: int, flags: int) -> None:
    """All of it, or OSError that names the file: a disk may be full in the middle of a write."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = path
        raise


def names(root: str) -> list[str]:
    """Of the containers below --root; `.seccomp` beside them is a cache."""
    return sorted([each for each in os.listdir(root) if each[0] != "."]) if os.path.isdir(root) else []


def process(pid: int) -> tuple[str, int]:
    """The state letter of /proc/PID/stat and when the process began; ("", 0) if there is none."""
    try:
        fields = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return "", 0
    return fields[0].decode(), int(fields[19])


def status(home: Home, state: State, frozen: bool | None = None) -> str:
    """creating, created, running, paused or stopped (runtime.md, "State")."""
    if state.phase == "creating":
        return "creating" if _alive(state) else "stopped"
    if not _alive(state):
        return "stopped"
    if os.path.exists(home.socket):
        return "created"
    if frozen is None and state.cgroups:
        from xuni.container.cgroup import reopen

        frozen = reopen(state.cgroups).frozen()
    return "paused" if frozen else "running"


def _alive(state: State) -> bool:
    if not state.pid:
        return False
    letter, began = process(state.pid)
    return letter not in ("", "Z", "X") and began == state.started


def report(state: State, status: str) -> dict[str, object]:
    """The object that hooks and `state` see."""
    said: dict[str, object] = {"ociVersion": VERSION, "id": state.id}
    if state.phase != "creating":
        said["pid"] = 0 if status == "stopped" else state.pid
    said |= {"status": status, "bundle": state.bundle}
    if state.annotations:
        said["annotations"] = state.annotations
    return said
