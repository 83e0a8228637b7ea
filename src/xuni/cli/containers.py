"""`xuni run`, `ps`, `exec` and the other verbs of containers, with docker's flags."""

from __future__ import annotations

import json
import sys
import time
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
def _told() -> Iterator[None]:
    from xuni.image import ImageError
    from xuni.server import ContainerError

    try:
        yield
    except ContainerError as error:
        raise Failed(str(error), error.status) from None
    except ImageError as error:
        raise Failed(str(error), 125) from None


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def told(*arguments: Any, **named: Any) -> None:
        with _told():
            function(*arguments, **named)

    return told


def _value(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """`-m=1g` is `-m 1g`, as docker has it; click leaves the sign of equality to us."""
    if isinstance(value, str):
        return value.removeprefix("=")
    if isinstance(value, tuple):
        return tuple(each.removeprefix("=") for each in value)
    return value


@click.command(context_settings=INTERSPERSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Print its id and leave it to itself.")
@click.option("--rm", "remove", is_flag=True, help="Remove it when it ends.")
@click.option("--name", default="", callback=_value, help="What to call it.")
@click.option("-e", "--env", multiple=True, callback=_value, metavar="NAME=VALUE", help="Environment; NAME alone takes ours.")
@click.option("--env-file", multiple=True, type=click.Path(path_type=Path), help="Environment, one a line.")
@click.option("-v", "--volume", multiple=True, callback=_value, metavar="HOST:CONTAINER[:ro]", help="A directory of the host.")
@click.option("--tmpfs", multiple=True, callback=_value, metavar="PATH[:OPTIONS]", help="Memory as a directory.")
@click.option("-m", "--memory", default="", callback=_value, metavar="SIZE", help="Most memory: 512m, 1g.")
@click.option("--memory-swap", default="", callback=_value, metavar="SIZE", help="Most memory and swap together; -1 for any.")
@click.option("--cpus", type=float, default=0, help="Most CPU time: 0.5 is half of one.")
@click.option("-c", "--cpu-shares", type=int, default=0, help="Weight among others; 1024 is usual.")
@click.option("--cpuset-cpus", default="", callback=_value, metavar="LIST", help="Which CPUs: 0-2,7.")
@click.option("--pids-limit", type=int, default=0, help="Most processes; -1 for any.")
@click.option("--network", "--net", default="bridge", callback=_value, metavar="bridge|none|host", help="Its network.")
@click.option("-p", "--publish", multiple=True, callback=_value, metavar="[HOST:]CONTAINER", help="A port of it on the host.")
@click.option("--dns", multiple=True, callback=_value, metavar="ADDRESS", help="Name servers, instead of the host's.")
@click.option("--dns-search", multiple=True, callback=_value, metavar="DOMAIN", help="Where short names belong.")
@click.option("--dns-option", "dns_options", multiple=True, callback=_value, help="Options of resolv.conf(5).")
@click.option("--add-host", multiple=True, callback=_value, metavar="NAME:ADDRESS", help="A line of /etc/hosts.")
@click.option("-h", "--hostname", default="", callback=_value, help="Its host name.")
@click.option("--entrypoint", default=None, callback=_value, help="Instead of the image's.")
@click.option("-w", "--workdir", default="", callback=_value, help="Its working directory.")
@click.option("-u", "--user", default="", callback=_value, metavar="USER[:GROUP]", help="Who runs it.")
@click.option("--read-only", is_flag=True, help="It cannot change its root.")
@click.option("--privileged", is_flag=True, help="Every capability and device, nothing hidden.")
@click.option("--cap-add", multiple=True, callback=_value, help="A capability more.")
@click.option("--cap-drop", multiple=True, callback=_value, help="A capability less; ALL for none.")
@click.option("-l", "--label", multiple=True, callback=_value, metavar="NAME=VALUE", help="A note.")
@click.option("--stop-signal", default="", callback=_value, help="What `xuni stop` sends first.")
@click.option("--system", is_flag=True, help="Boot the image's init system; `reboot` in it restarts it.")
@click.option("--userns", default="", callback=_value, metavar="auto|host", help="auto: 65,536 ids of its own, as --system has.")
@click.option("--runtime", default="xuni", callback=_value, metavar="xuni|runc|crun|PATH", help="The OCI runtime.")
@click.help_option("--help")
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_verb
def run(image: str, command: tuple[str, ...], env_file: tuple[Path, ...], volume: tuple[str, ...], publish: tuple[str, ...],
        memory: str, memory_swap: str, pids_limit: int, cpuset_cpus: str, entrypoint: str | None, label: tuple[str, ...],
        env: tuple[str, ...], add_host: tuple[str, ...], **same: Any) -> None:
    """Run a command in a new container of IMAGE.

    \b
    Examples:
      xuni image build-rootfs busybox
      xuni run --rm -it busybox
      xuni run --rm -m 64m --cpus 0.5 --pids-limit 20 --network none busybox sh -c 'echo $HOSTNAME'
      xuni run -d --name web -p 8080:80 -v ./site:/www:ro busybox httpd -f -h /www
      xuni run -d --name box --system debian:systemd
    """
    from xuni.server import ContainerError, containers, request

    lines = [line for file in env_file for line in _lines(file)]
    same["userns"] = same["userns"] or ("auto" if same["system"] else "host")
    if same["system"]:
        same["tty"] = True  # its console
        same["stop_signal"] = same["stop_signal"] or "SIGRTMIN+3"  # systemd's for a halt (systemd(1), "SIGNALS")
    with _told():
        wanted = request.Request(
            image=image, command=command, env=(*lines, *env), volumes=tuple(map(request.volume, volume)),
            ports=tuple(port for each in publish for port in request.ports(each)),
            memory=request.size(memory, "-m") if memory else 0,
            memory_swap=request.size(memory_swap, "--memory-swap") if memory_swap else 0,
            hosts=tuple(map(request.host, add_host)), pids=pids_limit, cpuset=cpuset_cpus, labels=label,
            entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()), **same,
        )  # fmt: skip
        if wanted.tty and not wanted.detach and not sys.stdin.isatty() and wanted.interactive:
            raise ContainerError("-t with -i takes a terminal, and standard input is none: leave -t out")
    record, status = containers.run(wanted)
    if wanted.detach:
        click.echo(record.id)
    click.get_current_context().exit(status)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text()
    except OSError as error:
        raise Failed(f"--env-file {file}: {error.strerror}", 125) from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that have ended, too.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@_verb
def ps(everything: bool, quiet: bool, no_trunc: bool, as_json: bool) -> None:
    """List the containers.

    \b
    Example:
      xuni ps -a
    """
    from xuni.server.kept import Containers

    found = [each for each in Containers().all() if everything or each.status == "running"]
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
        _table(rows)


def _status(record: Record) -> str:
    from xuni.server.containers import paused

    match record.status:
        case "running": return f"Up {_ago(record.started)}" + (" (Paused)" if paused(record) else "")
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


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command("exec", context_settings=INTERSPERSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-e", "--env", multiple=True, callback=_value, metavar="NAME=VALUE", help="Environment.")
@click.option("-w", "--workdir", default="", callback=_value, help="Its working directory.")
@click.option("-u", "--user", default="", callback=_value, metavar="USER[:GROUP]", help="Who runs it.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_verb
def exec_(container: str, command: tuple[str, ...], **same: Any) -> None:
    """Run one more command in a container that runs.

    \b
    Example:
      xuni exec -it web sh
    """
    from xuni.server import containers

    click.get_current_context().exit(containers.execute(container, command, **same))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("-n", "--tail", type=int, default=-1, help="The last lines only.")
@click.option("-t", "--timestamps", is_flag=True, help="When each line came.")
@click.argument("container")
@_verb
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
        lines = file.readlines()
        for line in lines[-tail:] if tail > 0 else [] if tail == 0 else lines:
            _print_line(line, timestamps)
        while follow:
            line = file.readline()
            if line.endswith(b"\n"):
                _print_line(line, timestamps)
                continue
            file.seek(-len(line), 1)
            if not line and (not path.exists() or Containers().find(record.id).status != "running"):
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

    def verb(containers: tuple[str, ...], **same: Any) -> None:
        status = 0
        for each in containers:
            try:
                with _told():
                    act(each, **same)
                click.echo(each)
            except Failed as error:
                error.show()
                status = 1
        click.get_current_context().exit(status)

    verb.__doc__ = f"{about}\n\n\b\nExample:\n  {example}"
    made: Any = click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")(verb)
    for option in options:
        made = option(made)
    command: click.Command = click.command(name)(made)
    return command


def _stop(container: str, seconds: float) -> None:
    from xuni.server import containers

    containers.stop(container, seconds)


def _kill(container: str, sent: str) -> None:
    from xuni.server import containers

    containers.kill(container, sent)


def _rm(container: str, force: bool) -> None:
    from xuni.server import containers

    containers.remove(container, force=force)


def _pause(container: str) -> None:
    from xuni.server import containers

    containers.pause(container)


def _unpause(container: str) -> None:
    from xuni.server import containers

    containers.resume(container)


def _restart(container: str, seconds: float) -> None:
    from xuni.server import containers

    containers.restart(container, seconds)


stop = _many("stop", "Ask containers to end; after some seconds they are killed.", "xuni stop web", _stop,
             click.option("-t", "--time", "seconds", type=float, default=10, show_default=True, help="Seconds."))
kill = _many("kill", "Send a signal to containers.", "xuni kill -s HUP web", _kill,
             click.option("-s", "--signal", "sent", default="KILL", show_default=True, callback=_value, help="Which."))
rm = _many("rm", "Remove containers, and what they wrote.", "xuni rm -f web", _rm,
           click.option("-f", "--force", is_flag=True, help="Kill them if they run."))
pause = _many("pause", "Stop every process of containers.", "xuni pause web", _pause)
unpause = _many("unpause", "Let them go on.", "xuni unpause web", _unpause)
restart = _many("restart", "Stop containers, and start them again.", "xuni restart web", _restart,
                click.option("-t", "--time", "seconds", type=float, default=10, show_default=True, help="Seconds to end in."))


@click.command()
@click.option("-a", "--attach", "attached", is_flag=True, help="Stay with it, as run does; one container only.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@_verb
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
            with _told():
                verbs.start(each)
            click.echo(each)
        except Failed as error:
            error.show()
            status = 1
    click.get_current_context().exit(status)


@click.command()
@click.option("--no-stdin", is_flag=True, help="Do not pass on standard input.")
@click.option("--sig-proxy/--no-sig-proxy", "proxy", default=True, help="Pass on signals.")
@click.argument("container")
@_verb
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
@_verb
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
@_verb
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
        "State": {"Status": "paused" if paused(record) else record.status, "Running": record.status == "running",
                  "Pid": record.pid, "ExitCode": record.exit, "Error": record.error, "StartedAt": record.started,
                  "FinishedAt": record.finished},
        "NetworkSettings": {"IPAddress": record.address, "Ports": [asdict(each) for each in request.ports]},
        "Mounts": [asdict(each) for each in request.volumes],
        "Config": asdict(request),
    }  # fmt: skip


@click.command()
@click.option("--no-stream", is_flag=True, help="Once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, once.")
@click.argument("containers", nargs=-1, metavar="[CONTAINER...]")
@_verb
def stats(containers: tuple[str, ...], no_stream: bool, as_json: bool) -> None:
    """Show what containers use, every second; all that run if none is named.

    \b
    Example:
      xuni stats --no-stream
    """
    from xuni.server.kept import Containers

    while True:
        found = [Containers().find(each) for each in containers] or Containers().all()
        rows = _usage([each for each in found if each.status == "running"])
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        if not no_stream:
            click.clear()
        _table([("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "BLOCK I/O", "PIDS"),
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


@click.command()
@click.argument("container")
@_verb
def top(container: str) -> None:
    """List the processes of a container, by their numbers on the host.

    \b
    Example:
      xuni top web
    """
    from xuni.server.containers import group
    from xuni.server.kept import Containers

    rows = [("PID", "PPID", "UID", "TIME", "COMMAND")]
    for pid in group(Containers().find(container)).processes():
        try:
            place = Path(f"/proc/{pid}")
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            words = (place / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
            seconds = (int(fields[11]) + int(fields[12])) // 100
            rows.append((str(pid), fields[1], str(place.stat().st_uid), f"{seconds // 60:02}:{seconds % 60:02}",
                         words or f"[{(place / 'comm').read_text().strip()}]"))  # fmt: skip
        except OSError:
            continue  # it has just ended
    _table(rows)


@click.command()
@click.argument("source")
@click.argument("target")
@_verb
def cp(source: str, target: str) -> None:
    """Copy files between a container and the host: CONTAINER:PATH on one side, a path of the host on the other.

    \b
    Examples:
      xuni cp web:/etc/passwd .
      xuni cp index.html web:/www/
    """
    from xuni.server import ContainerError, copying
    from xuni.server.kept import Containers

    (there, there_path), (here, here_path) = _sides(source), _sides(target)
    if bool(there) == bool(here):
        raise ContainerError("one side is CONTAINER:PATH and the other a path of the host, like `xuni cp web:/etc/passwd .`", 1)
    if there:
        copying.out(Containers().find(there), there_path, Path(here_path))
    else:
        copying.into(Containers().find(here), Path(there_path), here_path)


def _sides(text: str) -> tuple[str, str]:
    container, colon, path = text.partition(":")
    return (container, path) if colon and "/" not in container and not container.startswith(".") else ("", text)
