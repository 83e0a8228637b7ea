"""QMP's commands, as far as our machine has what they are about, with QEMU's arguments, answers and error texts.

To add one: a method with its `@command` line, and its test in tests/debug/test_qmp.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import xuni
from xuni.debug import memory
from xuni.debug.memory import AddressSpace, NotMapped
from xuni.debug.monitor import Monitor
from xuni.machine.control import Controller, Refused, RunState

INTERFACE: Final = (7, 2, 0)
"""The version of QEMU whose QMP this is."""
CHUNK: Final = 1 << 20  # bytes of guest memory saved at once
KINDS: Final = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object"}


class CommandFailed(Exception):
    """The error that the client gets; `kind` is QMP's error class."""

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Facts:
    """What a client may ask about a machine that the machine itself does not know."""

    name: str | None = None
    uuid: UUID | None = None
    kvm: bool = False
    """Whether KVM executes it."""
    machine_type: str = "pc"
    links: tuple[tuple[str, str], ...] = ()
    """(label, address) of the character devices: serial lines, monitors, the gdb stub."""

    def version(self) -> dict[str, Any]:
        """The greeting's version."""
        major, minor, micro = INTERFACE
        return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"xuni {xuni.__version__}"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what carries it out, and its arguments by name with their types; those with `?` may be missing."""

    function: Callable[..., Any]
    arguments: Mapping[str, type]


COMMANDS: Final[dict[str, Command]] = {}
"""All commands but qmp_capabilities, which belongs to the session."""


def command(name: str, **arguments: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command. An argument's name has `_` for QMP's `-`, and one more at its end if it may be missing."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        COMMANDS[name] = Command(function, arguments)
        return function

    return register


class Commands:
    """Carries commands out for one client."""

    def __init__(self, controller: Controller, facts: Facts) -> None:
        self._controller = controller
        self._machine = controller.machine
        self._facts = facts
        self._monitor = Monitor(controller)

    def execute(self, name: str, given: Mapping[str, Any]) -> Any:
        """The command's answer. Raises CommandFailed."""
        wanted = COMMANDS.get(name)
        if wanted is None:
            raise CommandFailed(f"The command {name} has not been found", "CommandNotFound")
        values: dict[str, Any] = {}
        names = {argument.rstrip("_").replace("_", "-"): argument for argument in wanted.arguments}
        for public, argument in names.items():
            kind = wanted.arguments[argument]
            if public not in given:
                if not argument.endswith("_"):
                    raise CommandFailed(f"Parameter '{public}' is missing")
            elif type(given[public]) is not kind:  # bool is no int here
                raise CommandFailed(f"Invalid parameter type for '{public}', expected: {KINDS[kind]}")
            else:
                values[argument] = given[public]
        for public in given:
            if public not in names:
                raise CommandFailed(f"Parameter '{public}' is unexpected")
        try:
            return wanted.function(self, **values)
        except Refused as error:
            raise CommandFailed(str(error)) from error

    # -- the machine -------------------------------------------------------------------------------------------------

    @command("stop")
    def _stop(self) -> Any:
        self._controller.pause()
        return {}

    @command("cont")
    def _continue(self) -> Any:
        self._controller.resume()
        return {}

    @command("system_reset")
    def _reset(self) -> Any:
        self._controller.reset()
        return {}

    @command("system_powerdown")
    def _power_down(self) -> Any:
        self._controller.press_power_button()
        return {}

    @command("quit")
    def _quit(self) -> Any:
        self._controller.quit()
        return {}

    @command("inject-nmi")
    def _nmi(self) -> Any:
        self._controller.nmi()
        return {}

    @command("query-status")
    def _status(self) -> Any:
        state = self._controller.state
        return {"status": state.value, "singlestep": False, "running": state is RunState.RUNNING}

    # -- what it is --------------------------------------------------------------------------------------------------

    @command("query-version")
    def _version(self) -> Any:
        return self._facts.version()

    @command("query-commands")
    def _commands(self) -> Any:
        return [{"name": name} for name in sorted([*COMMANDS, "qmp_capabilities"])]

    @command("query-name")
    def _name(self) -> Any:
        return {"name": self._facts.name} if self._facts.name is not None else {}

    @command("query-uuid")
    def _uuid(self) -> Any:
        return {"UUID": str(self._facts.uuid or UUID(int=0))}

    @command("query-kvm")
    def _kvm(self) -> Any:
        return {"enabled": self._facts.kvm, "present": os.path.exists("/dev/kvm")}

    @command("query-target")
    def _target(self) -> Any:
        return {"arch": "x86_64"}

    @command("query-machines")
    def _machines(self) -> Any:
        return [{
            "name": self._facts.machine_type, "is-default": True, "cpu-max": 255, "hotpluggable-cpus": False,
            "numa-mem-supported": False, "deprecated": False, "acpi": True,
        }]  # fmt: skip

    @command("query-current-machine")
    def _current_machine(self) -> Any:
        return {"wakeup-suspend-support": False}

    @command("query-cpus-fast")
    def _cpus(self) -> Any:
        return [
            {
                "cpu-index": processor.index, "qom-path": f"/machine/unattached/device[{processor.index}]",
                "thread-id": processor.thread_id, "target": "x86_64",
                "props": {"socket-id": 0, "core-id": processor.index, "thread-id": 0},
            }
            for processor in self._machine.processors
        ]  # fmt: skip

    @command("query-memory-size-summary")
    def _memory_size(self) -> Any:
        return {"base-memory": self._machine.memory.size, "plugged-memory": 0}

    @command("query-chardev")
    def _character_devices(self) -> Any:
        return [{"label": label, "filename": address, "frontend-open": True} for label, address in self._facts.links]

    # -- memory and registers ----------------------------------------------------------------------------------------

    @command("human-monitor-command", command_line=str, cpu_index_=int)
    def _human(self, command_line: str, cpu_index_: int | None = None) -> Any:
        if cpu_index_ is not None:
            self._monitor.cpu = self._checked(cpu_index_)
        return self._monitor.execute(command_line).replace("\n", "\r\n")

    @command("memsave", val=int, size=int, filename=str, cpu_index_=int)
    def _save_linear(self, val: int, size: int, filename: str, cpu_index_: int = 0) -> Any:
        vcpu = self._machine.vcpus[self._checked(cpu_index_)]
        return self._save(memory.linear(self._machine.memory, vcpu), val, size, filename)

    @command("pmemsave", val=int, size=int, filename=str)
    def _save_physical(self, val: int, size: int, filename: str) -> Any:
        return self._save(memory.physical(self._machine.memory), val, size, filename)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self._machine.vcpus):
            raise CommandFailed("Parameter 'cpu-index' expects a CPU number")
        return index

    def _save(self, space: AddressSpace, address: int, size: int, filename: str) -> Any:
        if address < 0 or size < 0:
            raise CommandFailed(f"Invalid addr {address:#x}/size {size} specified")
        try:
            with open(filename, "wb") as file, self._controller.still():
                for at in range(0, size, CHUNK):
                    file.write(space.read_all(address + at, min(CHUNK, size - at)))
        except NotMapped as error:
            raise CommandFailed(f"Invalid addr {address:#018x}/size {size} specified") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CommandFailed(f"Could not open '{filename}': {why}") from error
        return {}
