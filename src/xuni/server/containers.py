"""The verbs: run, start, stop, kill, pause, rm, exec. Each takes what it needs from the store, the records, a runtime.

The life of a container, in order: `run` claims a name, makes the root and the bundle, then somebody attends it (we, or a
process of its own); `_live` is what whoever attends does, `_ended` what is left to do after.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xuni.container import cgroup
from xuni.container.cgroup import Group, hierarchy
from xuni.container.cgroup.stats import oom_kills
from xuni.image import ImageError, rootfs
from xuni.image.content import Image, Store
from xuni.server import ContainerError, attend, bundle, network, rootless, runtime, system, where
from xuni.server.again import Again
from xuni.server.identity import look_up
from xuni.server.kept import Containers, Record, began, now
from xuni.server.request import Request

# docker's
HOSTS = ("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n"
         "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")  # fmt: skip
ALIVE = ("running", "restarting")
STOPPING = "stopping"  # a file of its directory: it is to stay ended, whatever --restart says
LIMITS = ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_shares", "cpuset", "pids", "blkio_weight")


def run(request: Request, claimed: Callable[[str], None] = lambda container: None) -> tuple[Record, int]:
    """Make and start a container. In the foreground until it ends, with its exit status; detached, until it has started.
    `claimed` is told its id before it starts.

    Raises ContainerError, ImageError; nothing is left behind then.
    """
    rootless.enter()
    record = create(request)
    try:
        claimed(record.id)
        return _begin(record)
    except BaseException:
        if request.remove or Containers().read(record.id).status == "created":
            remove(record.id, force=True)
        raise


def create(request: Request) -> Record:
    """Everything up to the process: the name, the root, the bundle."""
    if where.rootless():
        _check_rootless(request)
    store, containers = Store(), Containers()
    image = store.find(request.image)
    command = bundle.arguments(request, image.config)
    runtime.find(request.runtime)
    for volume in request.volumes:
        if volume.source and not os.path.exists(volume.source):
            raise ContainerError(f"-v {volume.source}:{volume.target}: {volume.source} is not there on the host; make it first")
    if any(not each.source for each in request.volumes):
        from xuni.server import volumes

        request = volumes.claim(request)
    record = containers.claim(Record(
        id=os.urandom(32).hex(), name=request.name, request=request, image=image.name, layers=image.config.diff_ids,
        command=command, created=now(), runtime=request.runtime,
    ))  # fmt: skip
    try:
        _bundle(store, image, record, containers.place(record.id))
    except BaseException:
        rootfs.release(containers.place(record.id))
        _forget_volumes(record)
        raise
    return record


def _check_rootless(request: Request) -> None:
    """Raises ContainerError for what takes the host's root."""
    if request.network == "bridge":
        raise ContainerError("--network bridge makes interfaces and rules of the host, which takes root; "
                             "without it there are --network none and --network host")  # fmt: skip
    if request.userns == "auto":
        raise ContainerError("--userns auto mounts layers with an id map, which takes root; without it, a container is in the "
                             "user namespace of all of yours, which --userns host names")  # fmt: skip


def prepare(request: Request) -> Record:
    """`create`: what `start` begins later."""
    rootless.enter()
    record = create(replace(request, detach=True))
    rootfs.unmount(Containers().place(record.id))
    return record


def _forget_volumes(record: Record) -> None:
    if any(each.name for each in record.request.volumes):
        from xuni.server import volumes

        volumes.forget(record)


def _bundle(store: Store, image: Image, record: Record, place: Path) -> None:
    request = record.request
    owner = system.owner(request, record.id)
    root = rootfs.make(store, image, place, volatile=request.remove and not request.detach, owner=owner)
    identity = look_up(root.path, request.user or image.config.user, request.groups)
    if any(each.name for each in request.volumes):
        from xuni.server import volumes

        volumes.fill(request, root.path, owner)
    hostname = request.hostname or record.id[:12]
    (place / "hostname").write_text(f"{hostname}\n")
    (place / "hosts").write_text(HOSTS)
    files = {"/etc/hostname": "hostname", "/etc/hosts": "hosts"}
    beside = _joined(request)
    if request.network.startswith("container:"):
        other = Containers().place(Containers().find(request.network.partition(":")[2]).id)
        for name in ("hostname", "hosts", "resolv.conf"):
            if (other / name).exists():
                (place / name).write_bytes((other / name).read_bytes())
        files |= {"/etc/resolv.conf": "resolv.conf"} if (other / "resolv.conf").exists() else {}
    elif request.network != "none":
        servers = (network.NAME_SERVER,) if request.network == "bridge" else request.dns or network.host_servers()
        (place / "resolv.conf").write_text(network.resolv_conf(servers, request.dns_search, request.dns_options))
        files["/etc/resolv.conf"] = "resolv.conf"
    if request.system:
        system.identify(root.path, record.id, owner)
    if request.network == "host":
        del files["/etc/hostname"]
        (place / "hosts").write_bytes(Path("/etc/hosts").read_bytes())
    with open(place / "hosts", "a") as hosts:
        for name, address in request.hosts:
            hosts.write(f"{address}\t{name}\n")
    if owner:
        for name in files.values():
            os.chown(place / name, owner, owner)
    bound = {target: str(place / name) for target, name in files.items()}
    given = _given(request, record.id, beside)
    wanted = bundle.config(request, image.config, identity, record.id, str(root.path), bound, given)
    (place / "config.json").write_text(json.dumps(wanted))


def _given(request: Request, container: str, joined: dict[str, str]) -> bundle.Given:
    from xuni.server import host

    profile = None
    if request.seccomp not in ("", "unconfined"):
        profile = host.profile(request.seccomp, bundle.capabilities(request))
    return bundle.Given(tuple(host.devices(request)), {each.device: host.disk(each.device) for each in request.rates},
                        host.init() if request.init else "", profile, joined,
                        tuple(each for each in ("/dev/shm", "/dev/mqueue") if os.path.isdir(each)),
                        f"xuni-{container}" if where.rootless() else "",  # relative: beside the group that we were given
                        accounts_swap=_accounts_swap(), **(_confined(request) if where.rootless() else {}))  # fmt: skip


def _confined(request: Request) -> dict[str, bool]:
    """What root of a user namespace does without."""
    limits = any(getattr(request, name) for name in LIMITS) or request.rates
    groups = any(cgroup.place("xuni-none", "none", rootless=True).paths)
    return {"grouped": groups or bool(limits), "nodes": False, "proc": request.pid != "host",
            "sysfs": request.network != "host", "several_ids": not rootless.single()}  # fmt: skip


def _joined(request: Request) -> dict[str, str]:
    """Namespaces of other containers that this one is in, as `container:NAME` says."""
    found = {}
    for kind, name, wanted in (("network", "net", request.network), ("pid", "pid", request.pid), ("ipc", "ipc", request.ipc)):
        if wanted.startswith("container:"):
            found[kind] = f"/proc/{running(wanted.partition(':')[2]).pid}/ns/{name}"
    return found


def _accounts_swap() -> bool:
    v1 = [each.point for each in hierarchy.mounted() if "memory" in each.keys]
    return all(os.path.exists(f"{each}/memory.memsw.limit_in_bytes") for each in v1)


def start(wanted: str, *, attached: bool = False, interactive: bool = False) -> tuple[Record, int]:
    """A container that was created, or once more one that has ended: it keeps what it wrote. Attached, until it ends, with its
    exit status. Raises ContainerError."""
    rootless.enter()
    record = Containers().find(wanted)
    if record.status in ALIVE:
        return record, attach(wanted, interactive=interactive) if attached else 0
    store = Store()
    place = Containers().place(record.id)
    interactive = record.request.interactive and (interactive or not attached)
    request = replace(record.request, detach=not attached, interactive=interactive)
    record = replace(record, request=replace(record.request, detach=True), status="created", error="")
    rootfs.unmount(place)
    _bundle(store, store.find(record.image), record, place)
    return _begin(record, request)


def restart(wanted: str, patience: float | None = None) -> Record:
    """Raises ContainerError."""
    return start(stop(wanted, patience).id)[0]


def _begin(record: Record, request: Request | None = None) -> tuple[Record, int]:
    """`request`, if this start is asked for in another way than the container was."""
    request = request or record.request
    if not request.detach:
        return _live(record, -1, interactive=request.interactive)
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        os.close(read_end)
        _detached(record, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    if said:
        told = json.loads(said)
        raise ContainerError(told["error"], told["status"])
    return Containers().read(record.id), 0


def _detached(record: Record, pipe: int) -> None:
    """A process of its own, whose parent is not ours; it writes to the pipe why it failed, or closes it."""
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for each in (0, 1, 2):
            os.dup2(null, each)
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _live(record, pipe)
    except BaseException as error:
        with contextlib.suppress(OSError):
            told = {"error": str(error) or type(error).__name__, "status": getattr(error, "status", 125)}
            os.write(pipe, json.dumps(told).encode())
    finally:
        os._exit(0)


def _live(record: Record, pipe: int, *, interactive: bool = True) -> tuple[Record, int]:
    """From birth to end. `pipe` is closed once the process runs."""
    containers, request = Containers(), record.request
    place = containers.place(record.id)
    known_hosts = (place / "hosts").read_text()
    again = Again(request.restart, request.restart_most, place / STOPPING)
    turns = 0

    def created(pid: int) -> tuple[attend.Company, ...]:
        nonlocal record
        if request.system and request.userns == "auto":
            system.delegate(group(record), system.base(record.id))
        if request.network != "bridge":
            return ()
        there = network.attach(record.id, pid, request.ports, (record.name, record.id[:12]))
        record = replace(record, address=there.address)
        with open(place / "hosts", "w") as hosts:
            hosts.write(f"{known_hosts}{there.address}\t{request.hostname or record.id[:12]}\n"
                        f"{there.gateway}\thost.docker.internal host.containers.internal\n")  # fmt: skip
        from xuni.server.names import Resolver

        try:
            return there.held, Resolver(pid, network.names(), request.dns or network.host_servers())
        except OSError as error:
            raise ContainerError(f"the container cannot have a name server at {network.NAME_SERVER}: {error.strerror}") from None

    def started(pid: int) -> None:
        nonlocal record
        record = containers.change(record.id, status="running", pid=pid, began=began(pid), started=now(), finished="", exit=0,
                                   error="", address=record.address, monitor=os.getpid())  # fmt: skip
        if pipe >= 0 and not turns:
            os.close(pipe)

    def ended() -> None:
        nonlocal record
        with contextlib.suppress(ContainerError):  # removed meanwhile
            record = containers.change(record.id, oom_killed=oom_kills(group(record).paths) > 0)

    attending = attend.Attendance(runtime.find(record.runtime), record.id, place, request.tty,
                                  request.interactive and interactive, pipe < 0,
                                  door(record) if pipe >= 0 else "", request.system)  # fmt: skip
    try:
        while True:
            since = time.monotonic()
            status = attend.run(attending, created, started, ended)
            lived = time.monotonic() - since
            if request.network == "bridge":
                network.detach(record.id)
            if not (request.system and status == system.REBOOT and lived >= system.SHORTEST_LIFE):
                if not again.wanted(status, lived):
                    break
                containers.change(record.id, status="restarting", pid=0, exit=status, finished=now(), restarts=again.times + 1)
                if not again.wait():
                    break
            turns += 1
        if request.system and status == system.POWER_OFF:
            status = 0
    except BaseException as error:
        network.detach(record.id)
        with contextlib.suppress(ContainerError):  # it has been removed meanwhile
            containers.change(record.id, status="exited" if turns or record.status == "running" else "created", error=str(error))
        raise
    return _ended(containers, record, status), status


def _ended(containers: Containers, record: Record, status: int) -> Record:
    """It may have been renamed meanwhile, or have other limits."""
    record = replace(record, status="exited", exit=status, finished=now(), pid=0, address="")
    if record.request.network == "bridge":
        network.detach(record.id)
    place = containers.place(record.id)
    rootfs.unmount(place)
    _forget_parent_group()
    if record.request.remove:
        rootfs.release(place)
        _forget_volumes(record)
    elif place.exists():
        record = containers.change(record.id, status="exited", exit=status, finished=record.finished, pid=0, address="")
    return record


def _forget_parent_group() -> None:
    """/xuni goes with the last container in it."""
    for directory in {os.path.dirname(each) for each in cgroup.place("/xuni/none", "none", rootless=False).paths.values()}:
        with contextlib.suppress(OSError):  # others are in it
            os.rmdir(directory)


# ---- from outside


def stop(wanted: str, patience: float | None = None) -> Record:
    """The stop signal, then SIGKILL, then until its end has been noted. Raises ContainerError."""
    record = Containers().find(wanted)
    if record.status not in ALIVE:
        return record
    _mark(record)
    if record.status == "restarting":
        return settle(record)
    image = _config_of(record)
    patience = record.request.stop_timeout if patience is None else patience
    try:
        _signal(record, signal_number(record.request.stop_signal or image or "TERM"))
        if not wait_gone(record, patience):
            kill(record.id, "KILL")
    except ContainerError:
        if not wait_gone(record, 2):  # else it has just ended by itself
            raise
    return settle(record)


def _config_of(record: Record) -> str:
    with contextlib.suppress(ImageError):
        return Store().find(record.image).config.stop_signal
    return ""


def kill(wanted: str, name: str = "KILL") -> Record:
    record = running(wanted)
    number = signal_number(name)
    if number in (signal.SIGKILL, signal_number(record.request.stop_signal or "TERM")):
        _mark(record)
    if number == signal.SIGKILL and paused(record):
        _runtime(record, "resume", record.id)
    _signal(record, number)
    return record


def _mark(record: Record) -> None:
    """It is to stay ended."""
    with contextlib.suppress(FileNotFoundError):
        (Containers().place(record.id) / STOPPING).touch()


def _signal(record: Record, number: int) -> None:
    _runtime(record, "kill", record.id, str(number))


def signal_number(name: str) -> int:
    """KILL, SIGKILL, 9 or RTMIN+3. Raises ContainerError."""
    text = name.upper().removeprefix("SIG")
    realtime = re.fullmatch(r"RTMIN\+(\d{1,2})", text)
    if realtime and int(realtime[1]) <= signal.SIGRTMAX - signal.SIGRTMIN:
        return signal.SIGRTMIN + int(realtime[1])
    if text.isdecimal() and 0 < int(text) < 65:
        return int(text)
    found = getattr(signal, f"SIG{text}", None)
    if not isinstance(found, signal.Signals):
        raise ContainerError(f"{name!r} is not a signal; `kill -l` lists them", 1)
    return int(found)


def wait_gone(record: Record, seconds: float | None) -> bool:
    """Whether its first process has ended within that time."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        if began(record.pid) != record.began:
            return True
        import select

        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else int(seconds * 1000)))
    finally:
        os.close(pidfd)


def settle(record: Record) -> Record:
    """After its end: once whoever attends it has noted it."""
    wait_gone(record, None)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            found = Containers().find(record.id)
        except ContainerError:
            return replace(record, status="exited")  # --rm
        if found.status not in ALIVE:
            return found
        time.sleep(0.01)
    raise ContainerError(f"container {record.name} has ended, but process {record.monitor}, which attends it, does not note it")


def wait(wanted: str) -> int:
    """Its exit status once it stays ended."""
    record = Containers().find(wanted)
    while record.status in ALIVE:
        wait_gone(record, None)
        if record.request.restart:
            time.sleep(0.1)
            record = Containers().find(record.id)
        else:
            record = settle(record)
    return record.exit


def door(record: Record) -> str:
    """Where its attendant listens for visitors. Short: a socket's name has at most 107 bytes."""
    return f"{where.run_directory()}/door-{record.id[:16]}"


def attach(wanted: str, *, interactive: bool = True, proxy: bool = True) -> int:
    """Our standard streams are the container's, until it ends: its exit status; or until Ctrl-P Ctrl-Q. Raises ContainerError."""
    from xuni.server import visitors

    record = running(wanted)
    if paused(record):
        raise ContainerError(f"container {record.name} is paused; `xuni unpause {record.name}` lets it go on", 1)

    def passed_on(number: int) -> None:
        with contextlib.suppress(ContainerError):
            _signal(record, number)

    interactive = interactive and record.request.interactive
    if record.monitor == 0 or not os.path.exists(door(record)):
        raise ContainerError(f"container {record.name} has a terminal or a program of its own in front of it; "
                             f"`xuni exec -it {record.name} sh` runs one more command in it", 1)  # fmt: skip
    ended = visitors.visit(door(record), terminal=record.request.tty, interactive=interactive,
                           passed_on=passed_on if proxy else lambda number: None)  # fmt: skip
    return settle(record).exit if ended else 0


def pause(wanted: str) -> Record:
    record = running(wanted)
    measured(record)
    _runtime(record, "pause", record.id)
    return record


def resume(wanted: str) -> Record:
    record = running(wanted)
    _runtime(record, "resume", record.id)
    return record


def paused(record: Record) -> bool:
    return record.status == "running" and group(record).frozen()


def group(record: Record) -> Group:
    """Its control groups."""
    if where.rootless():
        state = Path(runtime.find("xuni").root, record.id, "state.json")
        try:
            return cgroup.reopen(dict(json.loads(state.read_bytes())["cgroups"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cgroup.reopen({})
    found = cgroup.place(f"/xuni/{record.id}", record.id, rootless=False).paths
    return cgroup.reopen({key: path for key, path in found.items() if os.path.isdir(path)})  # crun leaves out some


def measured(record: Record, *, must: bool = True) -> bool:
    """Whether somebody counts what it uses. Raises ContainerError if it `must`."""
    if any(os.path.isdir(each) for each in group(record).paths.values()):
        return True
    if must:
        raise ContainerError(f"container {record.name} has no control groups, which count what it uses: it was made by a user "
                             "who may make none", 1)  # fmt: skip
    return False


def processes(wanted: str) -> list[int]:
    """Of a container that runs, by their numbers here: those in its control groups, or in its PID namespace."""
    record = running(wanted)
    found = group(record).processes()
    if found:
        return found
    namespace = os.readlink(f"/proc/{record.pid}/ns/pid")
    for each in os.listdir("/proc"):
        if each.isdecimal():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{each}/ns/pid") == namespace:
                    found.append(int(each))
    return sorted(found)


def remove(wanted: str, *, force: bool = False, volumes: bool = False) -> Record:
    """Forget a container, and all that it wrote; with `volumes`, those of its volumes that have no name. Raises ContainerError
    if it runs, unless forced."""
    rootless.enter()
    containers = Containers()
    record = containers.find(wanted)
    if record.status in ALIVE:
        if not force:
            raise ContainerError(f"container {record.name} runs: `xuni stop {record.name}` first, or remove it with -f", 1)
        with contextlib.suppress(ContainerError):
            _mark(record)
            kill(record.id, "KILL")
        if not wait_gone(record, 2):
            group(record).kill(signal.SIGKILL)  # whatever has become of its runtime
        record = settle(record)
    if force:
        with contextlib.suppress(ContainerError):
            _runtime(record, "delete", "--force", record.id)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(door(record))
    network.detach(record.id)
    _forget_parent_group()
    with containers.lock():
        rootfs.release(containers.place(record.id))
    if volumes or record.request.remove:
        _forget_volumes(record)
    return record


def rename(wanted: str, name: str) -> Record:
    """Raises ContainerError if another has the name."""
    record = Containers().rename(wanted, name)
    network.rename(record.id, (record.name, record.id[:12]))
    return record


def update(wanted: str, changes: dict[str, Any]) -> Record:
    """Other limits, at once and for every start: fields of the request. Raises ContainerError."""
    containers = Containers()
    record = containers.find(wanted)
    record = replace(record, request=replace(record.request, **changes))  # which checks them
    if record.status == "running":
        measured(record)
        only = replace(Request(record.request.image, network="none"), **{key: getattr(record.request, key) for key in LIMITS})
        resources = bundle.resources(only, bundle.Given(accounts_swap=_accounts_swap()))
        del resources["devices"]
        file = containers.place(record.id) / "update.json"
        file.write_text(json.dumps(resources))
        try:
            _runtime(record, "update", "--resources", str(file), record.id)
        finally:
            file.unlink()
    return containers.change(record.id, request=record.request)


def running(wanted: str) -> Record:
    record = Containers().find(wanted)
    if record.status != "running":
        raise ContainerError(f"container {record.name} is {record.status}; `xuni start {record.name}` starts it", 1)
    return record


def _runtime(record: Record, *arguments: str) -> None:
    rootless.enter()
    runtime.find(record.runtime).call(*arguments)
