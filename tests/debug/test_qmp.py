"""QMP: negotiation, commands, events, errors, and PyPI's client."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from uuid import UUID

import pytest

from tests.debug.conftest import COUNTER, QmpClient
from xuni.debug.qmp_commands import COMMANDS, Facts
from xuni.machine.control import RunState
from xuni.machine.stopped import Quit

FACTS = Facts(name="a machine", uuid=UUID(int=5), links=(("gdb", "tcp:127.0.0.1:1234"),))


def fresh(connect, rig) -> socket.socket:
    return socket.create_connection(("127.0.0.1", connect.serve(rig, FACTS).port))


def error(kind: str, text: str) -> dict[str, object]:
    return {"error": {"class": kind, "desc": text}}


def test_greeting_and_negotiation(rig, connect):
    with fresh(connect, rig()) as connection:
        client = QmpClient(connection, negotiate=False)
        version = client.greeting["QMP"]["version"]
        assert version["qemu"] == {"major": 7, "minor": 2, "micro": 0} and version["package"].startswith("xuni ")
        assert client.ask("query-status") == error(
            "CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        assert client.ask("qmp_capabilities", enable=["oob"]) == error("GenericError", "Capability oob not available")
        assert client.ask("qmp_capabilities", enable=1) == error(
            "GenericError", "Invalid parameter type for 'enable', expected: array")
        assert client.ask("qmp_capabilities", other=1) == error("GenericError", "Parameter 'other' is unexpected")
        assert client.ask("qmp_capabilities", enable=[]) == {"return": {}}
        assert client.ask("qmp_capabilities") == error(
            "CommandNotFound", "Capabilities negotiation is already complete, command ignored")


@pytest.mark.parametrize(("request_", "kind", "text"), [
    ("[1]", "GenericError", "QMP input must be a JSON object"),
    ("null\n", "GenericError", "QMP input must be a JSON object"),
    ("{}", "GenericError", "QMP input lacks member 'execute'"),
    ('{"exec": 1}', "GenericError", "QMP input member 'exec' is unexpected"),
    ('{"execute": 1}', "GenericError", "QMP input member 'execute' must be a string"),
    ('{"execute": "stop", "arguments": 3}', "GenericError", "QMP input member 'arguments' must be an object"),
    ('{"execute": "stop", "arguments": {"a": 1}}', "GenericError", "Parameter 'a' is unexpected"),
    ('{"execute": "memsave"}', "GenericError", "Parameter 'val' is missing"),
    ('{"execute": "memsave", "arguments": {"val": "a", "size": 1, "filename": "x"}}', "GenericError",
     "Invalid parameter type for 'val', expected: integer"),
    ('{"execute": "memsave", "arguments": {"val": true, "size": 1, "filename": "x"}}', "GenericError",
     "Invalid parameter type for 'val', expected: integer"),
    ('{"execute": "frobnicate"}', "CommandNotFound", "The command frobnicate has not been found"),
    ("frobnicate\n", "GenericError", "JSON parse error, invalid keyword 'frobnicate'"),
])  # fmt: skip
def test_errors_have_qemus_classes_and_words(rig, connect, request_, kind, text):
    client = connect(rig(), FACTS)
    assert client.raw(request_.encode()) == error(kind, text)
    assert client.say("query-name") == {"name": "a machine"}


def test_an_id_comes_back_with_answer_and_error(rig, connect):
    client = connect(rig(), FACTS)
    assert client.raw(b'{"execute": "query-target", "id": {"a": [1]}}') == {"id": {"a": [1]}, "return": {"arch": "x86_64"}}
    assert client.raw(b'{"execute": "no", "id": null}') == {
        "id": None, **error("CommandNotFound", "The command no has not been found")}


def test_stop_cont_and_their_events(rig, connect):
    machine = rig()
    client = connect(machine, FACTS)
    assert client.say("query-status") == {"status": "prelaunch", "singlestep": False, "running": False}
    before = time.time()
    client.say("cont")
    assert client.say("query-status") == {"status": "running", "singlestep": False, "running": True}
    machine.until(lambda: machine.machine.memory.read_u64(COUNTER) > 10)
    client.say("stop")
    count = machine.machine.memory.read_u64(COUNTER)
    assert client.say("query-status")["status"] == "paused"
    client.say("stop")
    assert [event["event"] for event in client.events] == ["RESUME", "STOP"]
    stamp = client.events[0]["timestamp"]
    assert before - 1 < stamp["seconds"] + stamp["microseconds"] / 1e6 < time.time() + 1
    assert set(client.events[0]) == {"timestamp", "event"}
    assert machine.machine.memory.read_u64(COUNTER) == count


def test_reset_power_button_nmi_and_quit(rig, connect):
    machine = rig()
    client = connect(machine, FACTS)
    client.say("cont")
    client.say("system_reset")
    client.say("system_powerdown")
    client.say("inject-nmi")
    assert machine.machine.acpi.state.status & 0x100
    client.say("quit")
    assert [(event["event"], event.get("data")) for event in client.events] == [
        ("RESUME", None), ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}), ("POWERDOWN", None),
        ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}),
    ]  # fmt: skip
    assert machine.end() == Quit()
    assert client.ask("cont") == error("GenericError", "Resetting the Virtual Machine is required")


def test_a_guest_that_dies_is_told(rig, connect):
    client = connect(rig("triple"), FACTS)
    client.say("cont")
    while not client.events or client.events[-1]["event"] != "SHUTDOWN":
        client.events.append(client.receive())
    assert [(event["event"], event.get("data")) for event in client.events][1:] == [
        ("GUEST_PANICKED", {"action": "poweroff"}), ("SHUTDOWN", {"guest": True, "reason": "guest-panic"})]


def test_what_the_machine_is(rig, connect):
    client = connect(rig("second", cpus=2), FACTS)
    assert client.say("query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000005"}
    assert client.say("query-kvm")["enabled"] is False
    assert client.say("query-memory-size-summary") == {"base-memory": 4 << 20, "plugged-memory": 0}
    assert client.say("query-machines")[0]["name"] == "pc"
    assert client.say("query-current-machine") == {"wakeup-suspend-support": False}
    assert client.say("query-chardev") == [{"label": "gdb", "filename": "tcp:127.0.0.1:1234", "frontend-open": True}]
    cpus = client.say("query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
    assert all(cpu["thread-id"] > 0 and cpu["target"] == "x86_64" for cpu in cpus)
    assert {command["name"] for command in client.say("query-commands")} == {*COMMANDS, "qmp_capabilities"}
    assert client.say("query-version")["package"].startswith("xuni ")


def test_memory_is_saved_to_files_while_the_machine_runs(rig, connect, tmp_path):
    machine = rig()
    client = connect(machine, FACTS)
    client.say("cont")
    image = tmp_path / "image"
    client.say("pmemsave", val=0x8000, size=0x20, filename=str(image))
    assert image.read_bytes() == machine.machine.memory.read(0x8000, 0x20)
    client.say("memsave", val=0x8000, size=3, filename=str(image), cpu_index=0)
    assert image.read_bytes() == machine.code.data[:3]
    assert client.ask("memsave", val=0x3FFFFF, size=2, filename=str(image)) == error(
        "GenericError", "Invalid addr 0x00000000003fffff/size 2 specified")
    missing = tmp_path / "no" / "file"
    assert client.ask("pmemsave", val=0, size=1, filename=str(missing)) == error(
        "GenericError", f"Could not open '{missing}': No such file or directory")
    assert client.ask("pmemsave", val=0, size=1, filename="a\0b")["error"]["class"] == "GenericError"
    assert client.ask("memsave", val=0, size=1, filename="x", cpu_index=1) == error(
        "GenericError", "Parameter 'cpu-index' expects a CPU number")
    assert "error" in client.ask("pmemsave", val=-1, size=1, filename=str(image))
    assert client.events[0]["event"] == "RESUME" and len(client.events) == 1


def test_the_human_monitor(rig, connect):
    client = connect(rig("second", cpus=2), FACTS)
    human = lambda line, **more: client.say("human-monitor-command", command_line=line, **more)  # noqa: E731
    assert human("info status") == "VM status: paused (prelaunch)\r\n"
    assert "RIP=0000000000008000" in human("info registers")
    assert human("info registers", cpu_index=1).startswith("\r\nCPU#1\r\nEAX=")
    assert client.ask("human-monitor-command", command_line="info status", cpu_index=2) == error(
        "GenericError", "Parameter 'cpu-index' expects a CPU number")


def test_clients_come_one_after_another_and_none_disturbs_the_next(rig, connect):
    machine = rig()
    endpoint = connect.serve(machine, FACTS)
    for last in (b"", b'{"execute": "st', b'{"a": "' + b"x" * 3_000_000, b"\xff\xff\0\0"):
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
            client = QmpClient(connection)
            client.say("cont")
            client.say("stop")
            assert [event["event"] for event in client.events] == ["RESUME", "STOP"]
            connection.sendall(last)
            client.file.close()
    machine.until(lambda: len(machine.control.listeners) == 1)
    assert machine.control.state is RunState.PAUSED


def test_a_browser_that_posts_to_our_port_gets_no_command_through(rig, connect, capfd):
    machine = rig()
    with fresh(connect, machine) as connection:
        connection.settimeout(20)
        connection.sendall(b'POST / HTTP/1.1\r\nHost: a\r\n\r\n{"execute": "qmp_capabilities"}{"execute": "quit"}')
        answers = b""
        while data := connection.recv(1 << 16):
            answers += data
    assert b'"return"' not in answers
    assert machine.thread.is_alive()
    machine.until(lambda: "does not speak QMP" in capfd.readouterr().err)


def test_pypis_client(rig, connect, tmp_path: Path):
    from qemu.qmp import EventListener, ExecuteError, QMPClient

    machine = rig()

    async def talk() -> None:
        client = QMPClient("xuni")
        await client.connect(("127.0.0.1", connect.serve(machine, FACTS).port))
        assert (await client.execute("query-status"))["status"] == "prelaunch"
        with client.listener(("RESUME", "STOP", "RESET")) as listener:
            assert isinstance(listener, EventListener)
            await client.execute("cont")
            await client.execute("system_reset")
            await client.execute("stop")
            names = [(await asyncio.wait_for(listener.get(), 20))["event"] for _ in range(3)]
        assert names == ["RESUME", "RESET", "STOP"]
        assert len(await client.execute("query-cpus-fast")) == 1
        registers = await client.execute("human-monitor-command", {"command-line": "info registers"})
        assert "RIP=" in str(registers)
        with pytest.raises(ExecuteError, match="has not been found"):
            await client.execute("device_add")
        await client.execute("quit")
        await client.disconnect()

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert machine.end() == Quit()
