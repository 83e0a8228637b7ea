"""Readiness (sd_notify(3)): a container that is a service tells us that it is ready, and we tell who started us.

Whoever runs us puts the path of a socket into NOTIFY_SOCKET. In the container there is a directory at that path, with a
socket of ours in it, and the variable names this one. Of what the container says, only what is about its own condition goes
on: which process is the main one, and what descriptors to keep, is not for it to say.
"""

from __future__ import annotations

import _socket
import select

from xuni.container.spec import Mount, Process, Spec
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.state import Home

MOST: Final = 4096  # bytes of a message
PASSED: Final = (b"READY=", b"RELOADING=", b"STOPPING=", b"STATUS=", b"ERRNO=", b"MONOTONIC_USEC=", b"WATCHDOG=",
                 b"EXTEND_TIMEOUT_USEC=")  # fmt: skip
BARRIER: Final = 5000  # milliseconds that systemd may take to have read everything
SCM_RIGHTS: Final = 1


def with_socket(spec: Spec, home: Home, host: str) -> Spec:
    """The configuration with the directory of our socket, and its name. `host` is the NOTIFY_SOCKET that we have."""
    if spec.process is None:
        return spec
    inside = host if host.startswith("/") else "/run/notify"  # "@…" is not in any file system
    mount = Mount(inside, "bind", f"{home.path}/notify", ("bind", "nosuid", "noexec", "nodev", "ro"))
    env = [each for each in spec.process.env if not each.startswith("NOTIFY_SOCKET=")]
    process = Process(**{**vars(spec.process), "env": (*env, f"NOTIFY_SOCKET={inside}/notify")})
    return Spec(**{**vars(spec), "process": process, "mounts": (*spec.mounts, mount)})


def prepare(home: Home) -> None:
    """The directory that is mounted."""
    os.mkdir(f"{home.path}/notify", 0o755)


def prepared(home: Home) -> bool:
    return os.path.isdir(f"{home.path}/notify")


class Notify:
    """Our socket, and `host`, whom we tell. Made before the process begins. Raises OSError."""

    def __init__(self, home: Home, host: str) -> None:
        self._host = "\0" + host[1:] if host.startswith("@") else host
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        directory = os.open(f"{home.path}/notify", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            place = f"/proc/self/fd/{directory}/notify"  # a socket's path has at most 107 bytes
            self._socket.bind(place)
            os.chmod(place, 0o777)  # for whatever user the process is
        finally:
            os.close(directory)

    def wait(self, pid: int, pidfd: int) -> None:
        """Until the process is ready, which is told with its number, or has ended: for a runtime that does not stay."""
        waiting = select.poll()
        waiting.register(self._socket.fileno(), select.POLLIN)
        waiting.register(pidfd, select.POLLIN)
        while True:
            ready = dict(waiting.poll())
            if self._socket.fileno() in ready:
                said = self._said()
                if any(each.startswith(b"READY=1") for each in said):
                    self._tell(b"\n".join([*said, b"MAINPID=%d" % pid]))
                    self._barrier()
                    return
                self._tell(b"\n".join(said))
            elif ready:
                return

    def pass_on(self) -> None:
        """All that is said, as long as we stay, beside whatever else we do; we are the main process then."""
        import _thread

        def forever() -> None:
            while True:
                self._tell(b"\n".join(self._said()))

        _thread.start_new_thread(forever, ())

    def _said(self) -> list[bytes]:
        lines = self._socket.recv(MOST).split(b"\n")
        return [each for each in lines if each.startswith(PASSED)]

    def _tell(self, message: bytes) -> None:
        if message:
            try:
                self._socket.sendto(message, self._host)
            except OSError:
                pass  # nobody listens any more: no reason to end the service

    def _barrier(self) -> None:
        """systemd knows a message's sender only while it lives: wait until it has closed what it gets now."""
        reading, writing = os.pipe()
        try:
            rights = [(_socket.SOL_SOCKET, SCM_RIGHTS, writing.to_bytes(4, "little"))]
            self._socket.sendmsg([b"BARRIER=1"], rights, 0, self._host)
            os.close(writing)
            writing = -1
            waiting = select.poll()
            waiting.register(reading, 0)
            waiting.poll(BARRIER)
        except OSError:
            pass
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
