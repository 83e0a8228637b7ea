"""`xuni run` and `xuni create`: docker's flags, and the request that they make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from xuni.cli.containers import INTERSPERSED, Failed, given, verb

if TYPE_CHECKING:
    from xuni.server.request import Request


def _text(*names: str, metavar: str | None = None, help: str) -> Callable[[Any], Any]:
    return click.option(*names, default="", callback=given, metavar=metavar, help=help)


def _several(*names: str, metavar: str | None = None, help: str) -> Callable[[Any], Any]:
    return click.option(*names, multiple=True, callback=given, metavar=metavar, help=help)


def _flag(*names: str, help: str) -> Callable[[Any], Any]:
    return click.option(*names, is_flag=True, help=help)


OPTIONS: Final = (
    _flag("-i", "--interactive", help="Pass on standard input."),
    _flag("-t", "--tty", help="Give it a terminal."),
    _flag("--rm", "remove", help="Remove it when it ends."),
    _text("--name", help="What to call it."),
    _several("-e", "--env", metavar="NAME=VALUE", help="Environment; NAME alone takes ours."),
    click.option("--env-file", multiple=True, type=click.Path(path_type=Path), help="Environment, one a line."),
    _several("-v", "--volume", metavar="SOURCE:TARGET[:ro]", help="A directory of the host, or a volume by its name."),
    _several("--mount", metavar="type=…,source=…,target=…", help="The same of bind, volume or tmpfs, in more words."),
    _several("--tmpfs", metavar="PATH[:OPTIONS]", help="Memory as a directory."),
    _text("--shm-size", metavar="SIZE", help="Of /dev/shm; 64m is usual."),
    _text("-m", "--memory", metavar="SIZE", help="Most memory: 512m, 1g."),
    _text("--memory-swap", metavar="SIZE", help="Most memory and swap together; -1 for any."),
    _text("--memory-reservation", metavar="SIZE", help="What it keeps when memory is short."),
    click.option("--cpus", type=float, default=0, help="Most CPU time: 0.5 is half of one."),
    click.option("-c", "--cpu-shares", type=int, default=0, help="Weight among others; 1024 is usual."),
    _text("--cpuset-cpus", metavar="LIST", help="Which CPUs: 0-2,7."),
    click.option("--pids-limit", type=int, default=0, help="Most processes; -1 for any."),
    click.option("--blkio-weight", type=int, default=0, help="Weight among others at disks, 10 … 1000."),
    _several("--device-read-bps", metavar="DISK:RATE", help="Most bytes a second from a disk."),
    _several("--device-write-bps", metavar="DISK:RATE", help="Most bytes a second to a disk."),
    _several("--device-read-iops", metavar="DISK:RATE", help="Most reads a second."),
    _several("--device-write-iops", metavar="DISK:RATE", help="Most writes a second."),
    _several("--ulimit", metavar="NAME=SOFT[:HARD]", help="A limit of setrlimit(2), like nofile=1024."),
    click.option("--oom-score-adj", "oom_score", type=int, default=0, help="Who dies first when memory is short, -1000 … 1000."),
    click.option("--network", "--net", default="", callback=given, metavar="bridge|none|host|container:NAME",
                 help="Its network; without root there is no bridge."),
    _several("-p", "--publish", metavar="[HOST:]CONTAINER", help="A port of it on the host."),
    _several("--dns", metavar="ADDRESS", help="Name servers, instead of the host's."),
    _several("--dns-search", metavar="DOMAIN", help="Where short names belong."),
    _several("--dns-option", "dns_options", metavar="OPTION", help="Of resolv.conf(5)."),
    _several("--add-host", metavar="NAME:ADDRESS", help="A line of /etc/hosts."),
    _text("-h", "--hostname", help="Its host name."),
    click.option("--entrypoint", default=None, callback=given, help="Instead of the image's."),
    _text("-w", "--workdir", help="Its working directory."),
    _text("-u", "--user", metavar="USER[:GROUP]", help="Who runs it."),
    _several("--group-add", "groups", metavar="GROUP", help="A group more."),
    _flag("--init", help="A first process that passes on signals and waits for orphans."),
    _flag("--read-only", help="It cannot change its root."),
    _flag("--privileged", help="Every capability and device, nothing hidden."),
    _several("--cap-add", help="A capability more."),
    _several("--cap-drop", help="A capability less; ALL for none."),
    _several("--device", metavar="HOST[:CONTAINER[:rwm]]", help="A device of the host."),
    _several("--security-opt", metavar="no-new-privileges|seccomp=FILE", help="seccomp=unconfined for none."),
    _several("--sysctl", metavar="NAME=VALUE", help="A parameter of its namespaces."),
    _text("--pid", metavar="host|container:NAME", help="Whose processes it sees."),
    _text("--ipc", metavar="host|container:NAME", help="Whose shared memory it has."),
    _text("--uts", metavar="host", help="Whose host name it has."),
    _several("-l", "--label", "labels", metavar="NAME=VALUE", help="A note."),
    _text("--stop-signal", help="What `xuni stop` sends first."),
    click.option("--stop-timeout", type=float, default=10, help="Seconds from then until it is killed; 10 is usual."),
    _text("--restart", metavar="on-failure[:MOST]|always", help="Start it again when it ends."),
    click.option("--cidfile", type=click.Path(path_type=Path), help="A new file for its id."),
    _flag("--system", help="Boot the image's init system; `reboot` in it restarts it."),
    _text("--userns", metavar="auto|host", help="auto: 65,536 ids of its own, as --system has."),
    click.option("--runtime", default="xuni", callback=given, metavar="xuni|runc|crun|PATH", help="The OCI runtime."),
    click.help_option("--help"),
)


def _options(function: Callable[..., None]) -> Callable[..., None]:
    return reduce(lambda made, option: option(made), reversed(OPTIONS), function)


@click.command(context_settings=INTERSPERSED)
@_flag("-d", "--detach", help="Print its id and leave it to itself.")
@_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@verb
def run(cidfile: Path | None, **words: Any) -> None:
    """Run a command in a new container of IMAGE.

    \b
    Examples:
      xuni image build-rootfs busybox
      xuni run --rm -it busybox
      xuni run --rm -m 64m --cpus 0.5 --pids-limit 20 --network none busybox sh -c 'echo $HOSTNAME'
      xuni run -d --name web -p 8080:80 -v ./site:/www:ro busybox httpd -f -h /www
      xuni run -d --name db -v data:/var/lib/data busybox sleep inf
      xuni run -d --name box --system debian:systemd
    """
    from xuni.server import ContainerError, containers

    wanted = request_of(**words)
    if wanted.tty and not wanted.detach and not sys.stdin.isatty() and wanted.interactive:
        raise ContainerError("-t with -i takes a terminal, and standard input is none: leave -t out", 1)
    with _noted(cidfile) as note:
        record, status = containers.run(wanted, note)
    if wanted.detach:
        click.echo(record.id)
    click.get_current_context().exit(status)


@click.command(context_settings=INTERSPERSED)
@_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@verb
def create(cidfile: Path | None, **words: Any) -> None:
    """Make a container of IMAGE that `xuni start` starts.

    \b
    Example:
      xuni create --name web -p 8080:80 busybox httpd -f && xuni start web
    """
    from xuni.server import containers

    with _noted(cidfile) as note:
        record = containers.prepare(request_of(**words))
        note(record.id)
    click.echo(record.id)


@click.command()
@_text("-m", "--memory", metavar="SIZE", help="Most memory.")
@_text("--memory-swap", metavar="SIZE", help="Most memory and swap together; -1 for any.")
@_text("--memory-reservation", metavar="SIZE", help="What it keeps when memory is short.")
@click.option("--cpus", type=float, help="Most CPU time.")
@click.option("-c", "--cpu-shares", type=int, help="Weight among others.")
@_text("--cpuset-cpus", "cpuset", metavar="LIST", help="Which CPUs.")
@click.option("--pids-limit", "pids", type=int, help="Most processes; -1 for any.")
@click.option("--blkio-weight", type=int, help="Weight among others at disks.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@verb
def update(containers: tuple[str, ...], memory: str, memory_swap: str, memory_reservation: str, **others: Any) -> None:
    """Change the limits of containers, at once and for every start.

    \b
    Example:
      xuni update -m 256m --cpus 1.5 web
    """
    from xuni.server import containers as verbs
    from xuni.server import request

    sizes = {"memory": memory, "memory_swap": memory_swap, "memory_reservation": memory_reservation}
    changes = {name: request.size(text, f"--{name.replace('_', '-')}") for name, text in sizes.items() if text}
    changes |= {name: value for name, value in others.items() if value not in (None, "")}
    if not changes:
        raise Failed("update takes at least one limit, like -m 256m", 1)
    for each in containers:
        verbs.update(each, changes)
        click.echo(each)


class _noted:
    """--cidfile: a file that is not there before, and not after a failure."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> Callable[[str], None]:
        if self.path is not None:
            try:
                self.path.open("x").close()
            except FileExistsError:
                raise Failed(f"--cidfile {self.path}: it is there already, maybe of a container that runs", 125) from None
            except OSError as error:
                raise Failed(f"--cidfile {self.path}: {error.strerror}", 125) from None
        return self._note

    def _note(self, container: str) -> None:
        if self.path is not None:
            self.path.write_text(container)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.path is not None and not self.path.read_bytes():
            self.path.unlink()


def request_of(image: str, command: tuple[str, ...], env_file: tuple[Path, ...], env: tuple[str, ...], volume: tuple[str, ...],
               mount: tuple[str, ...], tmpfs: tuple[str, ...], publish: tuple[str, ...], add_host: tuple[str, ...],
               memory: str, memory_swap: str, memory_reservation: str, shm_size: str, pids_limit: int, cpuset_cpus: str,
               entrypoint: str | None, ulimit: tuple[str, ...], device: tuple[str, ...], sysctl: tuple[str, ...],
               restart: str, security_opt: tuple[str, ...], device_read_bps: tuple[str, ...], device_write_bps: tuple[str, ...],
               device_read_iops: tuple[str, ...], device_write_iops: tuple[str, ...], **same: Any) -> Request:  # fmt: skip
    """Raises ContainerError."""
    from xuni.server import ContainerError, request
    from xuni.server.request import Request, Volume

    if restart:
        from xuni.server import again

        same["restart"], same["restart_most"] = again.policy(restart)
    lines = [line for file in env_file for line in _lines(file)]
    same["userns"] = same["userns"] or ("auto" if same["system"] else "host")
    if same["system"]:
        same["tty"] = True  # its console
        same["stop_signal"] = same["stop_signal"] or "SIGRTMIN+3"  # systemd's for a halt (systemd(1), "SIGNALS")
    for each in security_opt:
        name, _, value = each.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            same["no_new_privileges"] = value != "false"
        elif name == "seccomp" and value:
            same["seccomp"] = value
        else:
            raise ContainerError(f"--security-opt {each!r}: no-new-privileges and seccomp=unconfined|FILE are known")
    mounted = list(map(request.mount, mount))
    throttled = {"ReadBps": device_read_bps, "WriteBps": device_write_bps,
                 "ReadIOPS": device_read_iops, "WriteIOPS": device_write_iops}  # fmt: skip
    rates = [request.rate(f"throttle{kind}Device", each) for kind, several in throttled.items() for each in several]
    return Request(
        image=image, command=command, env=(*lines, *env),
        volumes=(*map(request.volume, volume), *(each for each in mounted if isinstance(each, Volume))),
        tmpfs=(*tmpfs, *(each for each in mounted if isinstance(each, str))),
        ports=tuple(port for each in publish for port in request.ports(each)),
        memory=request.size(memory, "-m") if memory else 0,
        memory_swap=request.size(memory_swap, "--memory-swap") if memory_swap else 0,
        memory_reservation=request.size(memory_reservation, "--memory-reservation") if memory_reservation else 0,
        shm_size=request.size(shm_size, "--shm-size") if shm_size else 0,
        hosts=tuple(map(request.host, add_host)), pids=pids_limit, cpuset=cpuset_cpus,
        ulimits=tuple(map(request.ulimit, ulimit)), devices=tuple(map(request.device, device)), rates=tuple(rates),
        sysctls=tuple(request.pair(each, "--sysctl") for each in sysctl),
        entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()), **same,
    )  # fmt: skip


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text()
    except OSError as error:
        raise Failed(f"--env-file {file}: {error.strerror}", 125) from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
