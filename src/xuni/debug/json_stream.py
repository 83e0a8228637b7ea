"""JSON values out of a stream of bytes, as QMP's clients send them: one after another, with or without line ends.

Bounds: a value has at most MAX_SIZE bytes and MAX_DEPTH brackets in brackets. What is wrong is said in QEMU's words, and
the stream goes on behind it: after an incomplete value with the next line, or with the byte FFh that clients send to
begin anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

MAX_SIZE: Final = 1 << 20
MAX_DEPTH: Final = 64
FRESH: Final = 0xFF
"""No UTF-8 has this byte; it ends whatever was begun."""
_SPACE: Final = b" \t\r\n"
_WORD: Final = re.compile(r"(?<![\w\"'])[A-Za-z_]\w*")
# What matters to the nesting: strings of either quote, whole or not yet ended, and brackets.
_PIECE: Final = re.compile(rb"\"(?:[^\"\\\xff]|\\[^\xff])*\"?|'(?:[^'\\\xff]|\\[^\xff])*'?|[\[\]{}]|\xff", re.DOTALL)
_MORE: Final = object()  # the value goes on in what the client has not sent yet


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes that are no JSON value."""

    why: str


class JsonReader:
    """Splits a stream into values."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._depth = 0
        self._scanned = 0
        """How far the nesting of the value at the buffer's start is known."""

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values that are complete now, and `Broken` for what is none."""
        self._buffer += data
        while (item := self._next()) is not _MORE:
            yield item

    def _next(self) -> Any:
        buffer = self._buffer
        if not self._depth:
            del buffer[: len(buffer) - len(buffer.lstrip(_SPACE + b"\xff"))]
            self._scanned = 0
            if not buffer:
                return _MORE
            if buffer[0] not in b"{[":
                return self._scalar()
        while found := _next_piece(buffer, self._scanned):
            text, end = found
            if text == b"\xff":
                return self._drop(end, "JSON parse error, incomplete value")
            if text[:1] in b"\"'" and (len(text) == 1 or text[-1:] != text[:1] or _ends_in_escape(text)):
                fresh = end + (buffer[end : end + 1] == b"\\")  # not escaped by a backslash before it
                if buffer[fresh : fresh + 1] == b"\xff":
                    return self._drop(fresh + 1, "JSON parse error, incomplete value")
                break  # the string goes on
            if text in (b"{", b"["):
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    return self._drop(self._line_end(), "JSON nesting depth limit exceeded")
            elif text in (b"}", b"]"):
                self._depth -= 1
                if not self._depth:
                    return self._value(end)
            self._scanned = end
        if len(buffer) > MAX_SIZE:
            return self._drop(len(buffer), "JSON token size limit exceeded")
        return _MORE

    def _scalar(self) -> Any:
        """Something outside of brackets: no request begins so. It ends with its line."""
        end = self._line_end()
        if end == len(self._buffer) and bytes(self._buffer[-1:]) not in (b"\n", b"\xff"):
            return _MORE if len(self._buffer) <= MAX_SIZE else self._drop(end, "JSON token size limit exceeded")
        brace = self._buffer.find(b"{", 0, end)
        return self._value(end if brace < 0 else brace)

    def _line_end(self) -> int:
        ends = [end + 1 for end in (self._buffer.find(b"\n"), self._buffer.find(FRESH)) if end >= 0]
        return min(ends, default=len(self._buffer))

    def _drop(self, count: int, why: str) -> Broken:
        del self._buffer[:count]
        self._depth = self._scanned = 0
        return Broken(why)

    def _value(self, end: int) -> Any:
        text = bytes(self._buffer[:end]).rstrip(b"\xff").decode(errors="replace")
        self._drop(end, "")
        try:
            return _parse(text)
        except ValueError as error:  # of json, of int for a number with thousands of digits, ours
            try:
                return _parse(_double_quoted(text))
            except ValueError:
                return Broken(_why(text, error))


def _parse(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, strict=False, parse_constant=refuse)


def _next_piece(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    """What counts next, and where it ends. The match itself would keep the buffer from shrinking."""
    piece = _PIECE.search(buffer, at)
    return piece and (piece[0], piece.end())


def _ends_in_escape(text: bytes) -> bool:
    """Whether the last quote is escaped, so that it does not end the string."""
    body = text[:-1]
    return (len(body) - len(body.rstrip(b"\\"))) % 2 == 1


def _double_quoted(text: str) -> str:
    """QEMU's parser takes 'strings' as well."""

    def quoted(match: re.Match[str]) -> str:
        if match[0][0] == '"':
            return match[0]
        return '"' + match[0][1:-1].replace("\\'", "'").replace('"', '\\"') + '"'

    return re.sub(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", quoted, text, flags=re.DOTALL)


def _why(text: str, error: Exception) -> str:
    """QEMU's words for the commonest mistakes."""
    bare = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", '""', text, flags=re.DOTALL)
    for word in _WORD.findall(bare):
        if word not in ("true", "false", "null"):
            return f"JSON parse error, invalid keyword '{word}'"
    match error.msg if isinstance(error, json.JSONDecodeError) else "":
        case "Expecting ':' delimiter": return "JSON parse error, missing : in object pair"
        case "Expecting ',' delimiter": return f"JSON parse error, expected separator in {_container(text, error)}"
        case message if message.startswith("Expecting property name"): return "JSON parse error, key is not a string in object"
    return "JSON parse error, expecting value"


def _container(text: str, error: Exception) -> str:
    assert isinstance(error, json.JSONDecodeError)
    depth = 0
    for letter in reversed(text[: error.pos]):
        depth += (letter in "]}") - (letter in "[{")
        if depth < 0:
            return "list" if letter == "[" else "dict"
    return "dict"
