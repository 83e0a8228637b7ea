"""Where serial lines and monitors end: `-chardev`, and the words of `-serial`, `-monitor` and `-qmp`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xuni.cli.failure import Refusal
from xuni.cli.plan import End, SerialEnd
from xuni.cli.qemu.properties import Properties

UNSUPPORTED = frozenset(
    "pty tty serial parallel parport pipe udp tcp telnet unix socket braille msmouse ringbuf spicevmc spiceport con wctablet "
    "dbus memory testdev hub websocket tn3270 qemu-vdagent fdset".split()
)


@dataclass(slots=True)
class Chardev:
    """One `-chardev`: where it ends, or for a socket the address that a monitor may listen at."""

    end: SerialEnd | None
    address: str = ""


def chardev(option: str, text: str) -> tuple[str, Chardev]:
    """The id and the meaning of a `-chardev`."""
    properties = Properties(option, text, "backend")
    backend, name = properties.text_of("backend"), properties.text_of("id", "")
    if not name:
        raise properties.refusal("id= is missing")
    properties.switch("mux")
    if "logfile" in properties:
        raise properties.refusal("logfile= is not supported; take a file: -chardev file,id=...,path=...")
    match backend:
        case "null": found = Chardev(SerialEnd(End.NOWHERE))
        case "vc": found = Chardev(SerialEnd(End.NOWHERE))
        case "stdio":
            properties.switch("signal")
            found = Chardev(SerialEnd(End.STDOUT))
        case "file": found = Chardev(_file(properties.text_of("path"), properties.switch("append")))
        case "socket": return name, Chardev(None, _address(properties))
        case _ if backend in UNSUPPORTED: raise properties.refusal(f"{backend} is not supported; take stdio, file or null")
        case _: raise properties.refusal(f"{backend!r} is not a kind of character device")
    properties.done()
    return name, found


def _address(properties: Properties) -> str:
    """A socket as `-qmp` writes it."""
    if "path" in properties:
        where = f"unix:{properties.text_of('path')}"
    else:
        where = f"tcp:{properties.text_of('host', '')}:{properties.text_of('port')}"
    return ",".join([where, *(f"{key}={value}" for key, value in properties.left())])


def serial(option: str, text: str, chardevs: dict[str, Chardev]) -> SerialEnd | None:
    """The end of a serial line; None for `none`, a line that is not there."""
    kind, colon, rest = text.partition(":")
    match kind:
        case "none" if not colon: return None
        case "null" if not colon: return SerialEnd(End.NOWHERE)
        case "vc": return SerialEnd(End.NOWHERE)  # a window of a screen that there is not
        case "stdio" if not colon: return SerialEnd(End.STDOUT)
        case "mon" if colon: return serial(option, rest, chardevs)
        case "file" if rest: return _file(rest.replace(",,", ","), False)
        case "chardev" if colon:
            if rest not in chardevs:
                raise Refusal(f"{option} {text}: there is no -chardev with id={rest}")
            end = chardevs[rest].end
            if end is None:
                raise Refusal(f"{option} {text}: a serial line cannot end in a socket; take stdio, file or null")
            return end
        case _ if kind in UNSUPPORTED:
            raise Refusal(f"{option} {text}: {kind} is not supported; take stdio, file:PATH, null or none")
    raise Refusal(f"{option} {text}: {text!r} is not a valid character device; take stdio, file:PATH, null or none")


def _file(path: str, append: bool) -> SerialEnd:
    return SerialEnd(End.FILE, Path(path), append)
