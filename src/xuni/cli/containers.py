"""`xuni ps`, `exec` and the other verbs of containers, with docker's flags. `run` is in run.py."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from xuni.server.kept import Record

INTERSPERSED = {"allow_interspersed_args": False, "ignore_unknown_options": False}


class Failed(click.ClickException):
    """docker's exit statuses: 125 of ours, 126 and 127 of the program, 1 of the other verbs."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_code = status  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"xuni: {self.format_message()}", err=True)


@contextmanager
def told() -> Iterator[None]:
    from xuni.image import ImageError
    from xuni.server import ContainerError

    try:
        yield
    except ContainerError as error:
        raise Failed(str(error), error.status) from None
    except ImageError as error:
        raise Failed(str(error), 125) from None


def ended_by_hand(function: Callable[..., None]) -> Callable[..., None]:
    """What goes on until Ctrl-C says nothing of it."""

    @wraps(function)
    def going_on(*arguments: Any, **named: Any) -> None:
        try:
            function(*arguments, **named)
        except KeyboardInterrupt:
            click.get_current_context().exit(130)

    return going_on


def verb(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def telling(*arguments: Any, **named: Any) -> None:
        with told():
            function(*arguments, **named)

    return telling


def given(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """`-m=1g` is `-m 1g`, as docker has it; click leaves the sign of equality to us."""
    if isinstance(value, str):
        return value.removeprefix("=")
    if isinstance(value, tuple):
        return tuple(each.removeprefix("=") for each in value)
    return value


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that have ended, too.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@verb
def ps(everything: bool, quiet: bool, no_trunc: bool, as_json: bool) -> None:
    """List the containers.

    \b
    Example:
      xuni ps -a
    """
    from xuni.server.kept import Containers

    found = [each for each in Containers().all() if everything or each.status in ("running", "restarting")]
    if as_json:
        click.echo(json.dumps([_as_json(each) for each in found], indent=2))
    elif quiet:
        for each in found:
            click.echo(each.id if no_trunc else each.id[:12])
    else:
        rows = [("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")]
        for each in found:
            command = " ".join(each.command)
            shown = command if no_trunc or len(command) <= 20 else command[:19] + "…"
            name = each.id if no_trunc else each.id[:12]
            created = f"{_ago(each.created)} ago"
            rows.append((name, each.image, f'"{shown}"', created, _status(each), _ports(each), each.name))
        table(rows)


def _status(record: Record) -> str:
    from xuni.server.containers import paused

    match record.status:
        case "running": return f"Up {_ago(record.started)}" + (" (Paused)" if paused(record) else "")
        case "restarting": return f"Restarting ({record.exit}) {_ago(record.finished)} ago"
        case "exited": return f"Exited ({record.exit})" + (f" {_ago(record.finished)} ago" if record.finished else "")
    return "Created"


def _ports(record: Record) -> str:
    if record.status != "running":
        return ""
    ports = record.request.ports
    return ", ".join(f"{each.address or '0.0.0.0'}:{each.host}->{each.container}/{each.protocol}" for each in ports)


def _ago(when: str) -> str:
    from datetime import UTC, datetime

    seconds = int((datetime.now(UTC) - datetime.fromisoformat(when.replace("Z", "+00:00"))).total_seconds()) if when else 0
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} seconds"


def table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command("exec", context_settings=INTERSPERSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-e", "--env", multiple=True, callback=given, metavar="NAME=VALUE", help="Environment.")
@click.option("-w", "--workdir", default="", callback=given, help="Its working directory.")
@click.option("-u", "--user", default="", callback=given, metavar="USER[:GROUP]", help="Who runs it.")
@click.option("--privileged", is_flag=True, help="With every capability.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@verb
def exec_(container: str, command: tuple[str, ...], **same: Any) -> None:
    """Run one more command in a container that runs.

    \b
    Example:
      xuni exec -it web sh
    """
    from xuni.server import execution

    click.get_current_context().exit(execution.execute(container, command, **same))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("-n", "--tail", type=int, default=-1, help="The last lines only.")
@click.option("-t", "--timestamps", is_flag=True, help="When each line came.")
@click.argument("container")
@verb
@ended_by_hand
def logs(container: str, follow: bool, tail: int, timestamps: bool) -> None:
    """Print what a container has said.

    \b
    Example:
      xuni logs -f web
    """
    from xuni.server.kept import Containers

    record = Containers().find(container)
    path = Containers().place(record.id) / "log.json"
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file if tail < 0 else deque(file, tail):
            _print_line(line, timestamps)
        while follow:
            line = file.readline()
            if line.endswith(b"\n"):
                _print_line(line, timestamps)
                continue
            file.seek(-len(line), 1)
            if not line and (not path.exists() or Containers().find(record.id).status not in ("running", "restarting")):
                break
            time.sleep(0.1)


def _print_line(line: bytes, timestamps: bool) -> None:
    try:
        said = json.loads(line)
    except ValueError:
        return  # the machine stopped in the middle of it
    text = (f"{said['time']} " if timestamps else "") + said["log"]
    click.echo(text, nl=False, err=said["stream"] == "stderr")


def _many(name: str, about: str, example: str, act: Callable[..., Any], *options: Callable[[Any], Any]) -> click.Command:
    """A verb for several containers: does what it can, and tells what it could not."""

    def each_of(containers: tuple[str, ...], **same: Any) -> None:
        status = 0
        for each in containers:
            try:
                with told():
                    act(each, **same)
                click.echo(each)
            except Failed as error:
                error.show()
                status = 1
        click.get_current_context().exit(status)

    each_of.__doc__ = f"{about}\n\n\b\nExample:\n  {example}"
    made: Any = click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")(each_of)
    for option in options:
        made = option(made)
    command: click.Command = click.command(name)(made)
    return command


def _stop(container: str, seconds: float | None) -> None:
    from xuni.server import containers

    containers.stop(container, seconds)


def _kill(container: str, sent: str) -> None:
    from xuni.server import containers

    containers.kill(container, sent)


def _rm(container: str, force: bool, volumes: bool) -> None:
    from xuni.server import containers

    containers.remove(container, force=force, volumes=volumes)


def _pause(container: str) -> None:
    from xuni.server import containers

    containers.pause(container)


def _unpause(container: str) -> None:
    from xuni.server import containers

    containers.resume(container)


def _restart(container: str, seconds: float | None) -> None:
    from xuni.server import containers

    containers.restart(container, seconds)


stop = _many("stop", "Ask containers to end; after some seconds they are killed.", "xuni stop web", _stop,
             click.option("-t", "--time", "seconds", type=float, help="Seconds; else its --stop-timeout."))
kill = _many("kill", "Send a signal to containers.", "xuni kill -s HUP web", _kill,
             click.option("-s", "--signal", "sent", default="KILL", show_default=True, callback=given, help="Which."))
rm = _many("rm", "Remove containers, and what they wrote.", "xuni rm -f web", _rm,
           click.option("-f", "--force", is_flag=True, help="Kill them if they run."),
           click.option("-v", "--volumes", is_flag=True, help="And their volumes that have no name."))
pause = _many("pause", "Stop every process of containers.", "xuni pause web", _pause)
unpause = _many("unpause", "Let them go on.", "xuni unpause web", _unpause)
restart = _many("restart", "Stop containers, and start them again.", "xuni restart web", _restart,
                click.option("-t", "--time", "seconds", type=float, help="Seconds; else its --stop-timeout."))


@click.command()
@click.option("-a", "--attach", "attached", is_flag=True, help="Stay with it, as run does; one container only.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@verb
def start(containers: tuple[str, ...], attached: bool, interactive: bool) -> None:
    """Start containers that were created, or that have ended: these keep what they wrote.

    \b
    Examples:
      xuni start web
      xuni start -ai shell
    """
    from xuni.server import containers as verbs

    if attached or interactive:
        if len(containers) > 1:
            raise Failed("-a and -i are for one container: which one would have the terminal?", 1)
        _, status = verbs.start(containers[0], attached=True, interactive=interactive)
        click.get_current_context().exit(status)
    status = 0
    for each in containers:
        try:
            with told():
                verbs.start(each)
            click.echo(each)
        except Failed as error:
            error.show()
            status = 1
    click.get_current_context().exit(status)


@click.command()
@click.argument("container")
@click.argument("name")
@verb
def rename(container: str, name: str) -> None:
    """Give a container another name.

    \b
    Example:
      xuni rename web old-web
    """
    from xuni.server import containers

    containers.rename(container, name)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.argument("container")
@verb
def port(container: str, as_json: bool) -> None:
    """List the ports of a container that are published.

    \b
    Example:
      xuni port web
    """
    from dataclasses import asdict

    from xuni.server.kept import Containers

    record = Containers().find(container)
    ports = record.request.ports if record.status == "running" else ()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in ports], indent=2))
        return
    for each in ports:
        click.echo(f"{each.container}/{each.protocol} -> {each.address or '0.0.0.0'}:{each.host}")


@click.command()
@click.option("--no-stdin", is_flag=True, help="Do not pass on standard input.")
@click.option("--sig-proxy/--no-sig-proxy", "proxy", default=True, help="Pass on signals.")
@click.argument("container")
@verb
def attach(container: str, no_stdin: bool, proxy: bool) -> None:
    """Be with a container that runs by itself: its output and, if it was run with -i, its input. Ctrl-P Ctrl-Q leaves.

    \b
    Example:
      xuni run -dit --name shell busybox && xuni attach shell
    """
    from xuni.server import containers

    click.get_current_context().exit(containers.attach(container, interactive=not no_stdin, proxy=proxy))


@click.command()
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@verb
def wait(containers: tuple[str, ...]) -> None:
    """Wait until containers end, and print their exit statuses.

    \b
    Example:
      xuni wait web
    """
    from xuni.server import containers as verbs

    for each in containers:
        click.echo(verbs.wait(each))


@click.command()
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@verb
def inspect(containers: tuple[str, ...]) -> None:
    """Print all that is known about containers as JSON.

    \b
    Example:
      xuni inspect web
    """
    from xuni.server.kept import Containers

    click.echo(json.dumps([_as_json(Containers().find(each)) for each in containers], indent=2))


def _as_json(record: Record) -> dict[str, Any]:
    from dataclasses import asdict

    from xuni.server.containers import paused

    request = record.request
    return {
        "Id": record.id, "Name": record.name, "Created": record.created, "Image": record.image,
        "Path": record.command[0], "Args": list(record.command[1:]), "Runtime": record.runtime,
        "RestartCount": record.restarts,
        "State": {"Status": "paused" if paused(record) else record.status, "Running": record.status == "running",
                  "Restarting": record.status == "restarting",
                  "Pid": record.pid, "ExitCode": record.exit, "OOMKilled": record.oom_killed, "Error": record.error,
                  "StartedAt": record.started,
                  "FinishedAt": record.finished},
        "NetworkSettings": {"IPAddress": record.address, "Ports": [asdict(each) for each in request.ports]},
        "Mounts": [asdict(each) for each in request.volumes],
        "Config": asdict(request),
    }  # fmt: skip


@click.command()
@click.option("--no-stream", is_flag=True, help="Once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, once.")
@click.argument("containers", nargs=-1, metavar="[CONTAINER...]")
@verb
@ended_by_hand
def stats(containers: tuple[str, ...], no_stream: bool, as_json: bool) -> None:
    """Show what containers use, every second; all that run if none is named.

    \b
    Example:
      xuni stats --no-stream
    """
    from xuni.server.containers import measured
    from xuni.server.kept import Containers

    while True:
        found = [Containers().find(each) for each in containers] or Containers().all()
        found = [each for each in found if each.status == "running" and measured(each, must=bool(containers))]
        rows = _usage(found)
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        if not no_stream:
            click.clear()
        table([("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "BLOCK I/O", "PIDS"),
                *((each["id"][:12], each["name"], f"{each['cpu_percent']:.2f}%",
                   f"{_mib(each['memory'])} / {_mib(each['memory_limit']) if each['memory_limit'] else 'none'}",
                   f"{_mib(each['read'])} / {_mib(each['written'])}", str(each["processes"])) for each in rows)])  # fmt: skip
        if no_stream:
            return


def _usage(records: list[Record]) -> list[dict[str, Any]]:
    from xuni.server.containers import group

    first = [(group(each).stats(), time.monotonic()) for each in records]
    time.sleep(1)
    rows = []
    for record, (before, at) in zip(records, first, strict=True):
        now = group(record).stats()
        used = now["cpu"]["usage"]["total"] - before["cpu"]["usage"]["total"]
        memory, limit = now["memory"]["usage"], now["memory"]["usage"]["limit"]
        moved = {"Read": 0, "Write": 0}
        for entry in now["blkio"]["ioServiceBytesRecursive"]:
            if entry["op"] in moved:
                moved[entry["op"]] += entry["value"]
        rows.append({"id": record.id, "name": record.name, "cpu_percent": used / (time.monotonic() - at) / 1e7,
                     "memory": memory["usage"], "memory_limit": limit if limit < 1 << 60 else 0, "read": moved["Read"],
                     "written": moved["Write"], "processes": now["pids"]["current"]})  # fmt: skip
    return rows


def _mib(size: int) -> str:
    return f"{size / (1 << 30):.2f}GiB" if size >= 1 << 30 else f"{size / (1 << 20):.2f}MiB"


TOP = ("PID", "PPID", "UID", "TIME", "COMMAND")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.argument("container")
@verb
def top(container: str, as_json: bool) -> None:
    """List the processes of a container, by their numbers on the host.

    \b
    Example:
      xuni top web
    """
    from xuni.server.containers import processes

    rows = []
    for pid in processes(container):
        try:
            place = Path(f"/proc/{pid}")
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            words = (place / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
            seconds = (int(fields[11]) + int(fields[12])) // 100
            rows.append((str(pid), fields[1], str(place.stat().st_uid), f"{seconds // 60:02}:{seconds % 60:02}",
                         words or f"[{(place / 'comm').read_text().strip()}]"))  # fmt: skip
        except OSError:
            continue  # it has just ended
    if as_json:
        click.echo(json.dumps([dict(zip(TOP, row, strict=True)) for row in rows], indent=2))
    else:
        table([TOP, *rows])


@click.command()
@click.argument("source")
@click.argument("target")
@verb
def cp(source: str, target: str) -> None:
    """Copy files between a container and the host: CONTAINER:PATH on one side, a path of the host on the other.

    \b
    Examples:
      xuni cp web:/etc/passwd .
      xuni cp index.html web:/www/
      xuni cp site/. web:/www
    """
    from xuni.server import ContainerError, copying
    from xuni.server.kept import Containers

    (there, there_path), (here, here_path) = _sides(source), _sides(target)
    if bool(there) == bool(here):
        raise ContainerError("one side is CONTAINER:PATH and the other a path of the host, like `xuni cp web:/etc/passwd .`", 1)
    if there:
        copying.out(Containers().find(there), there_path, Path(here_path), contents=_contents(there_path))
    else:
        copying.into(Containers().find(here), Path(there_path), here_path, contents=_contents(there_path))


def _contents(path: str) -> bool:
    """As docker has it, DIRECTORY/. is what is in it."""
    return path == "." or path.endswith("/.")


def _sides(text: str) -> tuple[str, str]:
    container, colon, path = text.partition(":")
    return (container, path) if colon and "/" not in container and not container.startswith(".") else ("", text)
