"""What can be read of containers: lists, processes, usage, plans."""

from __future__ import annotations

import os

from xuni.container import json, state
from xuni.container.bundle import load
from xuni.container.existing import group_of
from xuni.container.plan import Host, Plan, plan
from xuni.container.record import SpecError, encode
from xuni.container.state import Home, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from xuni.container.bundle import Wishes
    from xuni.container.existing import Container


def list_all(root: str, form: str, quiet: bool, *, must_exist: bool = False) -> str:
    """runc's table, or JSON."""
    if form not in ("table", "json"):
        raise SpecError(f"--format: {form!r} is neither table nor json")
    if must_exist and not os.path.isdir(root):
        raise SpecError(f"--root: stat {root}: no such file or directory")
    found: list[tuple[State, str]] = []
    for name in state.names(root):
        try:
            home = Home(root, name)
            kept = home.read()
            found.append((kept, state.status(home, kept)))
        except (SpecError, OSError):
            continue  # being made or removed right now
    if quiet:
        return "".join([kept.id + "\n" for kept, _ in found])
    if form == "json":
        said = [state.report(kept, status) | {"rootfs": kept.rootfs, "created": kept.created, "owner": kept.owner}
                for kept, status in found]  # fmt: skip
        return json.dumps(said or None).decode() + "\n"
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    rows += [(kept.id, str(0 if status == "stopped" else kept.pid), status, kept.bundle, kept.created, kept.owner)
             for kept, status in found]  # fmt: skip
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    lines = ["".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]) for row in rows]
    return "".join([line.rstrip() + "\n" for line in lines])


def processes(container: Container, form: str, options: list[str]) -> str:
    """The container's lines of ps(1), or its pids as JSON."""
    if form not in ("table", "json"):
        raise SpecError(f"--format: {form!r} is neither table nor json")
    pids = group_of(container).processes()
    if form == "json":
        return json.dumps(pids).decode() + "\n"
    import subprocess

    command = ["ps", *(options or ["-ef"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise SpecError("ps is not installed (Debian: procps); --format json does without") from None
    if done.returncode:
        raise SpecError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    lines = done.stdout.splitlines(keepends=True)
    heads = lines[0].split()
    if "PID" not in heads:
        raise SpecError(f"{' '.join(command)} prints no column PID, by which the container's lines could be found")
    column = heads.index("PID")
    wanted = {str(pid) for pid in pids}
    return lines[0] + "".join([line for line in lines[1:] if line.split()[column] in wanted])


def events(container: Container, *, once: bool, interval: str) -> Iterator[str]:
    """runc's stats events, one JSON object a line, until the container ends."""
    import time

    if container.status() == "stopped":
        raise SpecError(f"container is not running: {container.kept.id}")
    from xuni.container.cgroup.stats import oom_kills

    seconds, paths = _seconds(interval), container.kept.cgroups or {}
    kills = oom_kills(paths)
    while container.status() != "stopped":
        try:
            data = group_of(container).stats()
        except FileNotFoundError:
            return  # ended meanwhile
        yield json.dumps({"type": "stats", "id": container.kept.id, "data": data}).decode() + "\n"
        if once:
            return
        until = time.monotonic() + seconds
        while True:
            ended = container.status() == "stopped"  # asked first: what is counted then is all there will be
            now = oom_kills(paths)
            if now > kills:
                kills = now
                yield json.dumps({"type": "oom", "id": container.kept.id}).decode() + "\n"
            left = until - time.monotonic()
            if ended or left <= 0:
                break
            time.sleep(min(left, 0.1))


def _seconds(text: str) -> float:
    """Go's way to write a duration: 5s, 100ms, 1m."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            if float(number) > 0:
                return float(number) * factor
            break
    raise SpecError(f"--interval: duration interval must be greater than 0 and look like 5s, not {text!r}")


# ---- plans

SECTIONS: Final = (
    ("prepare", "the runtime, before init exists"),
    ("outside", "a process between the two joins namespaces"),
    ("clone", "init is born into new namespaces"),
    ("adopt", "the runtime: id maps, limits of init itself"),
    ("enter", "init: its control groups and namespaces"),
    ("limit", "the runtime meanwhile: the limits of the groups"),
    ("build", "init: the tree of files"),
    ("host_hooks", "the runtime: prestart and createRuntime hooks"),
    ("seal", "init: createContainer hooks, hidden paths, the new root"),
    ("become", "init: who it is and what it may"),
    ("begin", "init, after `start`: startContainer hooks, the process"),
    ("poststart", "the runtime, once it runs"),
    ("poststop", "the runtime, once it is over"),
)


def show_plan(wishes: Wishes, *, as_json: bool) -> str:
    """The steps that `create` and `start` would take. Raises SpecError."""
    spec, _ = load(wishes)
    made = plan(spec, wishes.bundle, Host(os.geteuid() == 0, wishes.cgroups, wishes.no_pivot, wishes.no_new_keyring,
                                          wishes.console_socket))  # fmt: skip
    return _plan_json(made) if as_json else _plan_text(made)


def _plan_text(made: Plan) -> str:
    lines: list[str] = []
    for name, about in SECTIONS:
        steps = getattr(made, name)
        if steps:
            lines.append(f"{name}  ({about})")
            lines += [f"    {step}" for step in steps]
    return "\n".join(lines) + "\n"


def _plan_json(made: Plan) -> str:
    said: dict[str, object] = {}
    for name, _ in SECTIONS:
        steps = getattr(made, name)
        said[name] = list(steps) if name == "clone" else [{"step": type(step).__name__, **encode(step)} for step in steps]
    return json.dumps(said, indent=2).decode() + "\n"
