"""A probe stands at the top of the file that fires it, and is named `subject_event`:

    vcpu_exit = Probe("vcpu_exit", "cpu", "exit")
    ...
    if vcpu_exit.on:
        vcpu_exit(processor.index, event)

While nobody listens that costs one attribute read. To add one: these lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple


class Event(NamedTuple):
    """One firing. `nanoseconds` is the host's monotonic clock."""

    nanoseconds: int
    name: str
    fields: tuple[str, ...]
    values: tuple[object, ...]

    def __str__(self) -> str:
        shown = (f"{field}={value}" for field, value in zip(self.fields, self.values, strict=True))
        return f"{self.name} {' '.join(shown)}"


Sink = Callable[[Event], object]


class NoSuchProbe(ValueError):
    """No probe has such a name; the message says which there are."""


_probes: dict[str, Probe] = {}


class Probe:
    """Calls its sinks with what it is given, on the thread that fires it."""

    __slots__ = ("_sinks", "fields", "name", "on")

    def __init__(self, name: str, *fields: str) -> None:
        assert name not in _probes, f"two probes named {name}"
        self.name = name
        self.fields = fields
        self.on = False
        self._sinks: tuple[Sink, ...] = ()
        _probes[name] = self

    def __call__(self, *values: object) -> None:
        event = Event(time.monotonic_ns(), self.name, self.fields, values)
        for sink in self._sinks:
            sink(event)

    def add(self, sink: Sink) -> None:
        """Have `sink` called from now on."""
        self._sinks = (*self._sinks, sink)
        self.on = True

    def remove(self, sink: Sink) -> None:
        """Undo one `add`."""
        rest = list(self._sinks)
        rest.remove(sink)
        self._sinks = tuple(rest)
        self.on = bool(rest)


def known() -> list[str]:
    """The names of all probes in the modules imported so far."""
    return sorted(_probes)


@contextmanager
def listen(patterns: Sequence[str], sink: Sink) -> Iterator[list[str]]:
    """Give `sink` the events of all probes whose name matches one of the shell patterns; yields those names.

    Raises NoSuchProbe for a pattern that matches none.
    """
    chosen: dict[str, Probe] = {}
    for pattern in patterns:
        found = {name: probe for name, probe in _probes.items() if fnmatchcase(name, pattern)}
        if not found:
            raise NoSuchProbe(f"no probe matches {pattern!r}; there are {', '.join(known())}")
        chosen |= found
    for probe in chosen.values():
        probe.add(sink)
    try:
        yield sorted(chosen)
    finally:
        for probe in chosen.values():
            probe.remove(sink)
