"""Ids of one mount, written into its option: `idmap=uids=0-1-10#10-21-5;gids=0-1-10`, or ridmap for the tree below as well.

crun and podman have it so. A triple is the first id in the files, the first on the host, and how many; with `@` before it
the second is the container's, and the host's is looked up in the container's own maps.
"""

from __future__ import annotations

from xuni.container.record import SpecError
from xuni.container.spec_rare import IDMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.spec import Linux

    Maps = tuple[IDMapping, ...]

MOST: Final = 340  # lines that the kernel takes of a map (user_namespaces(7))


def given(option: str, linux: Linux, place: str) -> tuple[str, tuple[Maps, Maps]]:
    """ "idmap" or "ridmap", and the maps of users and groups. Raises SpecError."""
    name, _, text = option.partition("=")
    found: dict[str, Maps] = {}
    for part in text.split(";"):
        kind, _, triples = part.partition("=")
        if kind not in ("uids", "gids") or kind in found:
            raise SpecError(f"{place}: {option}: {part!r} is not the one uids=… or gids=… of an id map")
        own = linux.uidMappings if kind == "uids" else linux.gidMappings
        found[kind] = tuple([_triple(each, own, f"{place}: {option}") for each in triples.split("#", MOST)])
    if len(found) < 2:
        raise SpecError(f"{place}: {option}: uids and gids belong together")
    return name, (found["uids"], found["gids"])


def _triple(text: str, own: Maps, place: str) -> IDMapping:
    numbers = text.removeprefix("@").split("-")
    if len(numbers) != 3 or not all(each.isdecimal() and len(each) <= 10 for each in numbers):
        raise SpecError(f"{place}: {text!r} is not FIRST-HOST-SIZE, with a @ before it if HOST is the container's")
    first, host, size = [int(each) for each in numbers]
    if text.startswith("@"):
        outside = [each.hostID + host - each.containerID for each in own
                   if each.containerID <= host and host + size <= each.containerID + each.size]  # fmt: skip
        if not outside:
            raise SpecError(f"{place}: {text!r}: no map of the container's has ids {host} … {host + size - 1} in one piece")
        host = outside[0]
    if not size or max(first, host) + size > 1 << 32:
        raise SpecError(f"{place}: {text!r}: ids are below 4294967296, and a range has at least one")
    return IDMapping(first, host, size)
