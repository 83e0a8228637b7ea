"""A kernel or module file as the loaders see it: bytes with a name, read under bounds.

Everything in the file is untrusted: `Image` turns each read outside into a `BootError` that names the file.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

MAX_IMAGE_SIZE = 1 << 32
"""Larger files are surely not what was meant, and would only exhaust the host's memory."""


class BootError(Exception):
    """Nothing to boot here: the message names the file, the rule that it breaks, and a way out."""


Source = Path | bytes
"""Where an image comes from: a file, or bytes already at hand (built initramfs, hand-written code)."""


@dataclass(frozen=True, slots=True)
class Image:
    """The contents of one file."""

    name: str
    """For messages: the path, or what the bytes are."""
    data: bytes

    def __len__(self) -> int:
        return len(self.data)

    def error(self, message: str) -> BootError:
        """The same failure everywhere: `name: message`."""
        return BootError(f"{self.name}: {message}")

    def bytes_at(self, offset: int, length: int, what: str) -> bytes:
        """Return `length` bytes at `offset`; `what` names them in the message if the file is too short."""
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise self.error(
                f"truncated: {what} needs bytes {offset:#x} to {offset + length:#x}, "
                f"and the file has {len(self.data):#x}; fetch or build it again"
            )
        return self.data[offset : offset + length]

    def unsigned(self, offset: int, size: int, what: str) -> int:
        """Return the little-endian integer of `size` bytes at `offset`."""
        return int.from_bytes(self.bytes_at(offset, size, what), "little")


def read_image(source: Source, what: str) -> Image:
    """Read a whole file; `what` says in messages what it was to be. Raises BootError if that is not possible."""
    if isinstance(source, bytes):
        return Image(f"<{what}>", source)
    try:
        mode = source.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            kind = "directory" if stat.S_ISDIR(mode) else "device"
            raise BootError(f"{source}: a {kind} cannot be the {what}; name a file")
        with source.open("rb") as file:
            # One byte more than allowed: a pipe has no size to ask for.
            data = file.read(MAX_IMAGE_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BootError(f"{source}: cannot read the {what}: {reason}; check the path and its permissions") from error
    if len(data) > MAX_IMAGE_SIZE:
        raise BootError(f"{source}: more than {MAX_IMAGE_SIZE >> 20} MiB cannot be a {what}; name another file")
    if not data:
        raise BootError(f"{source}: the {what} is empty; fetch or build it again")
    return Image(str(source), data)
