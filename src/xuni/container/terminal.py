"""The container's terminal: made by init in its own devpts, handed out as a descriptor."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
import termios

from xuni.container.rooted import make_in_root, open_in_root
from xuni.container.step import CallError, Run, SpecError, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

TIOCSCTTY: Final = 0x540E
TIOCSWINSZ: Final = 0x5414
TIOCSPTLCK: Final = 0x40045431
TIOCGPTN: Final = 0x80045430
TIOCGPTPEER: Final = 0x5441


def connect(path: str, place: str) -> int:
    """A stream socket connected to `path`. Raises SpecError that begins with `place`, where the path came from."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    directory = -1
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")  # a socket's path has at most 107 bytes
    except OSError as error:
        socket.close()
        raise SpecError(f"{place}nobody listens on {path}: {error.strerror}") from None
    finally:
        if directory >= 0:
            os.close(directory)
    return socket.detach()


def send_descriptor(socket: int, text: bytes, descriptor: int) -> None:
    """`text`, and the descriptor as SCM_RIGHTS."""
    over = _socket.socket(fileno=socket)
    try:
        over.sendmsg([text], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, "little"))])
    finally:
        over.detach()


def receive_descriptor(socket: int) -> int:
    """The other side of `send_descriptor` with one byte of text. Raises OSError if the sender is gone."""
    over = _socket.socket(fileno=socket)
    try:
        _, sent, _, _ = over.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
    finally:
        over.detach()
    if not sent:
        raise OSError(errno.EPIPE, "init is gone, which was to send a descriptor")
    return int.from_bytes(sent[0][2][:4], "little")


class ConnectConsole(Step):
    """Connect to whoever will attend the terminal (--console-socket)."""

    path: str

    def apply(self, run: Run) -> None:
        run.files["console socket"] = connect(self.path, "--console-socket: ")


class OpenTerminal(Step):
    """A new pair in the container's devpts: its end becomes the controlling terminal and /dev/console, the other end goes to
    the console socket or the runtime. The pair is opened by descriptor, so nothing in /dev can stand in
    for it (CVE-2025-52565)."""

    width: int = 0
    height: int = 0
    uid: int = 0
    console: bool = True

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        try:
            place = open_in_root(kernel, run.root, "/dev/pts/ptmx")
        except CallError as error:
            if error.errno != errno.ENOENT:
                raise
            raise SpecError("process.terminal: the container has no devpts on /dev/pts (add one to mounts)") from None
        status = os.fstat(place)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(5, 2):
            raise SpecError("process.terminal: /dev/pts/ptmx in the container is not the terminal multiplexer")
        os.close(place)
        master = open_in_root(kernel, run.root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        number = int.from_bytes(fcntl.ioctl(master, TIOCGPTN, bytes(4)), "little")
        own = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if self.width or self.height:
            size = self.height.to_bytes(2, "little") + self.width.to_bytes(2, "little") + bytes(4)
            fcntl.ioctl(own, TIOCSWINSZ, size)
        try:
            os.fchown(own, self.uid, -1)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
        if self.console:
            place = make_in_root(kernel, run.root, "/dev/console", directory=False)
            tree = kernel.open_tree(own, "")
            kernel.move_mount(tree, place)
            os.close(tree)
            os.close(place)
        os.setsid()
        fcntl.ioctl(own, TIOCSCTTY, 0)
        socket = run.files.pop("console socket", -1)
        if socket >= 0:
            send_descriptor(socket, f"/dev/pts/{number}".encode(), master)
            os.close(socket)
        else:
            assert run.talk is not None
            mode = termios.tcgetattr(own)
            mode[1] &= ~termios.ONLCR  # the runtime's own terminal does that
            termios.tcsetattr(own, termios.TCSANOW, mode)
            run.talk.hand_over("terminal", master)
        os.close(master)
        for descriptor in (0, 1, 2):
            os.dup2(own, descriptor)
        if own > 2:
            os.close(own)
