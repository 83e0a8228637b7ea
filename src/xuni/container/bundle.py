"""What a container is made from: the command line's wishes and the bundle's configuration."""

from __future__ import annotations

from xuni.container import json
from xuni.container.record import Record, SpecError, decode
from xuni.container.spec import Spec
from xuni.container.state import read_file, write_file
from xuni.host.linux import system as os

MAX_CONFIG = 8 << 20  # bytes of a configuration: more than any engine writes, and decoded before we could run out of memory


class Wishes(Record):
    """What the command line asks for."""

    root: str
    bundle: str
    config: str = "config.json"
    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    no_pivot: bool = False
    no_new_keyring: bool = False
    cgroups: bool = True
    trace: bool = False
    debug: bool = False
    log: str = ""
    log_json: bool | None = None
    pidfd_socket: str = ""
    notify: str = ""  # NOTIFY_SOCKET


def load(wishes: Wishes) -> tuple[Spec, bytes]:
    """The bundle's configuration. Raises SpecError."""
    path = wishes.config if wishes.config.startswith("/") else f"{wishes.bundle}/{wishes.config}"
    for each in (path, wishes.bundle, wishes.root):
        if not each.isascii():
            _encodable(each)
    try:
        text = read_file(path, MAX_CONFIG)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; a bundle is a directory with a config.json (`spec` writes one)") from None
    return decode(Spec, json.loads(text, path)), text


def _encodable(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{path!a}: the name is not UTF-8, and the state file could not keep it") from None


def rootfs(spec: Spec, bundle: str) -> str:
    path = spec.root.path if spec.root else ""
    return os.path.normpath(path if path.startswith("/") else f"{bundle}/{path}")


def mounts_below(spec: Spec, bundle: str) -> int:
    """Without a mount namespace the container's mounts are the host's: 1 and how many were at its root before, else 0."""
    if spec.linux and any(each.type == "mount" for each in spec.linux.namespaces):
        return 0
    from xuni.container.stacked import count_mounts

    return 1 + count_mounts(rootfs(spec, bundle))


def hand_out(wishes: Wishes, kind: bytes, pid: int, pidfd: int) -> None:
    """Tell whoever asked who the new process is: its pid in a file, its pidfd over a socket with runc's word for the kind
    of process. Raises SpecError if nobody listens there.
    """
    if wishes.pid_file:
        write_pid(wishes.pid_file, pid)
    if wishes.pidfd_socket:
        from xuni.container.terminal import connect, send_descriptor

        socket = connect(wishes.pidfd_socket, "--pidfd-socket: ")
        try:
            send_descriptor(socket, kind, pidfd)
        finally:
            os.close(socket)


def write_pid(path: str, pid: int) -> None:
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        write_file(temporary, str(pid).encode(), 0o666, os.O_EXCL)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
