"""The words between the runtime and init: one letter each way at a time, or why it went wrong.

`!TEXT` and the end of the stream is a failure. The end alone, after init has been told to go, is success: execve closed it.
"""

from __future__ import annotations

from xuni.container.record import SpecError
from xuni.container.step import StepFailed
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _sockets() -> tuple[int, int]:
    import _socket

    import xuni.container.terminal  # noqa: F401 - which sends what init hands over, once there is nothing to import it from

    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return one.detach(), other.detach()


class InitFailed(Exception):
    """Init went away without a word. `kills` are those of its group's memory limit."""

    kills = 0

    def __str__(self) -> str:
        if self.kills:
            return ("init was killed by the memory limit while it prepared the container: linux.resources.memory.limit, or that "
                    "of a group above, is too small even for init")  # fmt: skip
        return "init was killed while it prepared the container, by somebody's signal"


class Talk:
    """One side's end. Made before the clone; each side then says which it is."""

    def __init__(self, *, rootless: bool = False) -> None:
        # Root takes descriptors from init by pidfd_getfd(2). Init is closed to everybody else, who is sent them.
        self._sends = rootless
        self._up = _sockets() if rootless else os.pipe()  # init to runtime
        self._down = os.pipe()
        self.into = self.out = -1

    def runtime(self) -> None:
        os.close(self._up[1])
        os.close(self._down[0])
        self.into, self.out = self._up[0], self._down[1]

    def init(self) -> None:
        os.close(self._up[0])
        os.close(self._down[1])
        self.into, self.out = self._down[0], self._up[1]

    def tell(self, word: bytes) -> None:
        try:
            os.write(self.out, word)
        except BrokenPipeError:
            pass  # what the other side says last is read by expect

    def fail(self, error: Exception) -> None:
        if isinstance(error, OSError):  # of what is done between steps: the process itself is made
            error = StepFailed("Clone", str(error), getattr(error, "call", ""), error.errno or 0)
        if not isinstance(error, StepFailed):
            error = StepFailed("", f"this is a bug of xuni: {type(error).__name__}: {error}")
        self.tell(b"!" + error.pack())

    def hand_over(self, what: str, descriptor: int) -> None:
        """In init: the runtime takes a copy of the descriptor, and says so."""
        self.tell(b"f%s %d\n" % (what.encode(), descriptor))
        if self._sends:
            from xuni.container.terminal import send_descriptor

            send_descriptor(self.out, b"d", descriptor)
        if os.read(self.into, 1) != b"k":
            os._exit(1)  # the runtime is gone, or has told already what is wrong

    def expect(self, word: bytes, take: Callable[[str, int, bool], None] | None = None) -> None:
        """`take` is given what is handed over meanwhile. Raises StepFailed with what the other side says instead."""
        while (heard := os.read(self.into, 1)) != word:
            if heard != b"f" or take is None:
                raise self._failed(heard, word)
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(self.into, 1)
            what, _, descriptor = line.decode().rpartition(" ")
            if self._sends:
                from xuni.container.terminal import receive_descriptor

                take(what, receive_descriptor(self.into), True)
            else:
                take(what, int(descriptor), False)
            self.tell(b"k")

    def expect_end(self) -> None:
        """Until the process has begun."""
        heard = os.read(self.into, 1)
        if heard:
            raise self._failed(heard, b"")

    def _failed(self, heard: bytes, word: bytes) -> Exception:
        if heard == b"!":
            said = b""
            while piece := os.read(self.into, 65536):
                said += piece
            return StepFailed.unpack(said)
        assert not heard, f"heard {heard!r} instead of {word!r}"
        return InitFailed()

    def number(self) -> int:
        """`pN` newline: the pid of what the other side has made."""
        self.expect(b"p")
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.into, 1)
        return int(line)

    def become_started(self, listener: int) -> None:
        """In init: wait for `start`, and talk with it from now on."""
        import _socket

        socket = _socket.socket(fileno=listener)
        os.close(self.out)
        os.close(self.into)
        descriptor, _ = socket._accept()  # type: ignore[attr-defined]
        socket.close()
        self.into = self.out = descriptor

    @classmethod
    def starting(cls, path: str) -> Talk:
        """In `start`: connected with init. Raises SpecError if it is gone."""
        import _socket

        made = cls.__new__(cls)
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        try:
            # A path of a socket has at most 107 bytes.
            socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        except OSError as error:
            raise SpecError(f"cannot start: init does not answer on {path}: {error.strerror}") from None
        finally:
            os.close(directory)
        made.into = made.out = socket.detach()
        return made
