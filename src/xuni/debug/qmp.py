"""QEMU's machine protocol: greeting, negotiation, one command after another, and events between them.

A session is one client. Which commands there are says `qmp_commands`. Spec: QEMU's docs/interop/qmp-spec. Until the
capabilities are negotiated, a client that does not speak JSON is left, so that a web page that makes its browser post
to our port cannot slip a command in.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from xuni.debug.endpoint import HangUp, Link
from xuni.debug.json_stream import Broken, JsonReader
from xuni.debug.qmp_commands import CommandFailed, Commands, Facts
from xuni.machine.control import Controller, Event

SECOND: Final = 1_000_000_000
MEMBERS: Final = ("execute", "arguments", "id", "control")


class QmpSession:
    """One client."""

    def __init__(self, link: Link, controller: Controller, facts: Facts) -> None:
        self._link = link
        self._controller = controller
        self._commands = Commands(controller, facts)
        self._reader = JsonReader()
        self._negotiated = False
        self._events: deque[Event] = deque()
        greeting = {"version": facts.version(), "capabilities": []}
        self._send({"QMP": greeting})
        controller.listeners.append(self._hear)

    # -- the endpoint's side -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Requests, in whatever pieces they come."""
        for request in self._reader.feed(data):
            answer = self._answer(request)
            self.wake()  # what the command caused comes before its answer, as with QEMU
            self._send(answer)
            if isinstance(request, Broken) and not self._negotiated:
                raise HangUp("it does not speak QMP")

    def wake(self) -> None:
        """Pass events on."""
        while self._events:
            event = self._events.popleft()
            if self._negotiated:
                seconds, rest = divmod(event.nanoseconds, SECOND)
                stamp = {"seconds": seconds, "microseconds": rest // 1000}
                message: dict[str, Any] = {"timestamp": stamp, "event": event.name.value}
                self._send(message | ({"data": dict(event.data)} if event.data else {}))

    def close(self) -> None:
        """Listen no more."""
        self._controller.listeners.remove(self._hear)

    def _hear(self, event: Event) -> None:
        self._events.append(event)
        self._link.poke()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any]) -> None:
        self._link.send(json.dumps(message).encode() + b"\r\n")

    def _answer(self, request: Any) -> dict[str, Any]:
        identity = {"id": request["id"]} if isinstance(request, dict) and "id" in request else {}
        try:
            return identity | {"return": self._execute(request)}
        except CommandFailed as failure:
            return identity | {"error": {"class": failure.kind, "desc": str(failure)}}

    def _execute(self, request: Any) -> Any:
        if isinstance(request, Broken):
            raise CommandFailed(request.why)
        if not isinstance(request, dict):
            raise CommandFailed("QMP input must be a JSON object")
        for member in request:
            if member not in MEMBERS:
                raise CommandFailed(f"QMP input member '{member}' is unexpected")
        if "execute" not in request:
            raise CommandFailed("QMP input lacks member 'execute'")
        name, arguments = request["execute"], request.get("arguments", {})
        if not isinstance(name, str):
            raise CommandFailed("QMP input member 'execute' must be a string")
        if not isinstance(arguments, dict):
            raise CommandFailed("QMP input member 'arguments' must be an object")
        if name == "qmp_capabilities":
            return self._negotiate(arguments)
        if not self._negotiated:
            raise CommandFailed("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
        return self._commands.execute(name, arguments)

    def _negotiate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._negotiated:
            why = "Capabilities negotiation is already complete, command ignored"
            raise CommandFailed(why, "CommandNotFound")
        for name in arguments:
            if name != "enable":
                raise CommandFailed(f"Parameter '{name}' is unexpected")
        wanted = arguments.get("enable", [])
        if not isinstance(wanted, list):
            raise CommandFailed("Invalid parameter type for 'enable', expected: array")
        if wanted:
            raise CommandFailed(f"Capability {wanted[0]} not available")
        self._negotiated = True
        self._events.clear()
        return {}
