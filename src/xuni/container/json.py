"""JSON through the interpreter's own accelerator: importing `json` takes four milliseconds, most of them for `re`."""

from __future__ import annotations

import _json

from xuni.container.record import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Options:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def loads(text: bytes, name: str) -> Any:
    """Raises SpecError that names the line."""
    try:
        decoded = text.decode()
        start = len(decoded) - len(decoded.lstrip(" \t\r\n"))
        value, end = _json.make_scanner(_Options())(decoded, start)  # type: ignore[arg-type]
        if decoded[end:].strip(" \t\r\n"):
            raise StopIteration(end)
        return value
    except StopIteration as stop:
        line = decoded.count("\n", 0, stop.value) + 1
        raise SpecError(f"{name}: line {line} is not JSON") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: byte {error.start} is not UTF-8") from None
    except SystemError:  # it looks its own exception up in a module that nobody has imported so far
        import json.decoder  # noqa: F401

        return loads(text, name)
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError
        raise SpecError(f"{name}: not JSON: {error}") from None


def dumps(value: object, indent: int = 0) -> bytes:
    """On one line, or with `indent` spaces a level."""
    if indent:
        import json  # what people read need not be fast

        return json.dumps(value, indent=indent).encode()

    def refuse(item: object) -> object:
        raise AssertionError(f"no JSON for {item!r}")

    encoder = _json.make_encoder(None, refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(encoder(value, 0)).encode()
