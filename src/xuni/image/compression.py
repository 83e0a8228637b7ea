"""Layers as tar streams, however they are compressed, with the digest of the tar file (the layer's diff_id)."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from typing import IO, Any, Final

from xuni.image import ImageError

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
XZ: Final = b"\xfd7zXZ\0"
BZIP2: Final = b"BZh"
MAX_LAYER: Final = 64 << 30  # bytes of tar; a bomb of a few MB must not fill the disk before it is noticed


class TarStream:
    """The tar file inside `source`, read forwards once. Bounded, and hashed on the way.

    It can `seek` forwards and one byte back, which is what `tarfile` needs to walk an archive that is not on disk.
    """

    def __init__(self, source: IO[bytes], most: int = MAX_LAYER) -> None:
        head = _peek(source, 6)
        self.compression = "gzip" if head.startswith(GZIP) else "zstd" if head.startswith(ZSTD) else ""
        if head.startswith((XZ, BZIP2)):
            self.compression = "xz" if head.startswith(XZ) else "bzip2"
        self._source: Any = _opened(source, self.compression)
        self._digest = hashlib.sha256()
        self._last = b""
        self._again = False
        self._most = most
        self._at = 0
        self.longest_read = 8 << 20
        """No header of an honest archive is longer; a hostile one would have it all in memory."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.longest_read:
            raise ImageError(f"the archive has a header of {size} bytes; at most {self.longest_read} are read")
        pieces = []
        if self._again and size:
            self._again = False
            pieces.append(self._last)
            size -= 1
            self._at += 1
        while size:
            piece = self._next(size)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        try:
            piece: bytes = self._source.read(size)
        except (OSError, EOFError, zlib.error, ValueError, ArithmeticError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ImageError(f"damaged {self.compression or 'tar'} data: {error}") from None
        except Exception as error:  # the error of zstd and lzma is a plain Exception of their own
            raise ImageError(f"damaged {self.compression} data: {error}") from None
        if piece:
            self._at += len(piece)
            if self._at > self._most:
                raise ImageError(f"the archive unpacks to more than {self._most} bytes")
            self._digest.update(piece)
            self._last = piece[-1:]
        return piece

    def seek(self, to: int, whence: int = 0) -> int:
        assert whence == 0
        if to == self._at - 1 and self._last and not self._again:
            self._again = True
            self._at -= 1
            return to
        if to < self._at:
            raise ImageError("the archive's headers point backwards")
        while self._at < to:
            if not self.read(min(to - self._at, 1 << 20)):
                break
        return self._at

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def finish(self) -> str:
        """The digest of the whole, once the rest has been read."""
        while self.read(1 << 20):
            pass
        return f"sha256:{self._digest.hexdigest()}"


def _peek(source: IO[bytes], size: int) -> bytes:
    head = source.read(size)
    source.seek(0)
    return head


def _opened(source: IO[bytes], kind: str) -> Any:
    match kind:
        case "gzip": return gzip.GzipFile(fileobj=source)
        case "zstd": return zstd().ZstdFile(source)
        case "xz":
            import lzma

            return lzma.LZMAFile(source)
        case "bzip2":
            import bz2

            return bz2.BZ2File(source)
    return source


def zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
