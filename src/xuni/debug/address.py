"""Where a gdb stub or a QMP server listens, in the words of QEMU's command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
SUN_PATH_SIZE: Final = 107
"""Bytes of a path that <sys/un.h> has room for, the final zero apart."""
_ON: Final = {"on": True, "off": False, "yes": True, "no": False}
_HOST_AND_PORT: Final = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:,\s]*)):(?P<port>\d{1,5})")


class Kind(Enum):
    """What carries the bytes."""

    UNIX = "unix"
    TCP = "tcp"
    STDIO = "stdio"


@dataclass(frozen=True, slots=True)
class Address:
    """An end of a connection. `server`: we listen, else we connect; `wait`: nothing runs before a client is there."""

    kind: Kind
    path: Path = Path()
    host: str = LOOPBACK
    port: int = 0
    server: bool = True
    wait: bool = False

    def __str__(self) -> str:
        match self.kind:
            case Kind.UNIX: return f"unix:{self.path}"
            case Kind.STDIO: return "stdio"
            case Kind.TCP: return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def gdb_address(text: str) -> Address:
    """`[HOST]:PORT`, `tcp:[HOST]:PORT`, `unix:PATH` or `stdio`; it listens, and waits for nobody.

    Raises ValueError with the rule that `text` breaks.
    """
    short = _HOST_AND_PORT.fullmatch(text) and text.partition(":")[0] not in {kind.value for kind in Kind}
    return _parse(text, f"tcp:{text}" if short else text, server=True, wait=False)


def qmp_address(text: str) -> Address:
    """`unix:PATH,server=on,wait=off`, `tcp:HOST:PORT,server=on,wait=off` or `stdio`, as QEMU's -qmp takes it.

    Without `server` we connect to someone who listens there. Raises ValueError with the rule that `text` breaks.
    """
    return _parse(text, text, server=False, wait=True)


def _parse(said: str, text: str, server: bool, wait: bool) -> Address:
    """`said` is what messages show, `text` the same in full."""
    kind, _, rest = text.partition(":")
    place, *options = rest.split(",")
    if kind == "stdio" and not rest:
        return Address(Kind.STDIO)
    switches = {"server": server, "wait": wait}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:  # the old way to write it
            name, value = (name[2:], "off") if name.startswith("no") and name != "nodelay" else (name, "on")
        if name in switches and value in _ON:
            switches[name] = _ON[value]
        elif name not in ("nodelay", "ipv4", "ipv6", "reconnect"):
            raise ValueError(f"{said}: {option} is not known here; server=on|off and wait=on|off are")
    wait = switches["wait"] and switches["server"]
    if kind == "unix" and place:
        if len(place.encode()) > SUN_PATH_SIZE:
            raise ValueError(f"{said}: a socket's path has at most {SUN_PATH_SIZE} bytes")
        return Address(Kind.UNIX, path=Path(place), server=switches["server"], wait=wait)
    where = _HOST_AND_PORT.fullmatch(place)
    if kind != "tcp" or where is None:
        raise ValueError(f"{said}: write tcp:HOST:PORT, unix:PATH or stdio")
    port = int(where["port"])
    if port > 0xFFFF:
        raise ValueError(f"{said}: a port is at most 65535")
    return Address(Kind.TCP, host=where["six"] or where["host"] or LOOPBACK, port=port, server=switches["server"], wait=wait)
