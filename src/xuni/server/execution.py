"""`xuni exec`: one more process in a container that runs, as the container's own is but for what is asked for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from xuni.server import ContainerError, bundle, rootless, runtime
from xuni.server.containers import paused, running
from xuni.server.identity import look_up
from xuni.server.kept import Containers, Record

RUNTIME_FAILED: Final = (1, 255)  # runc's, and ours: with words in the log, or it is the process's own status


def execute(wanted: str, command: Sequence[str], *, tty: bool = False, interactive: bool = False, detach: bool = False,
            env: Sequence[str] = (), workdir: str = "", user: str = "", privileged: bool = False) -> int:  # fmt: skip
    """Its exit status; 126 or 127 if it cannot be executed. Our standard streams are its. Raises ContainerError."""
    import subprocess

    record = running(wanted)
    rootless.enter()
    if paused(record):
        raise ContainerError(f"container {record.name} is paused; `xuni unpause {record.name}` lets it go on", 1)
    wish = process(record, command, tty=tty, env=env, workdir=workdir, user=user, privileged=privileged)
    found = runtime.find(record.runtime)
    asked, log = os.memfd_create("process"), os.memfd_create("log")
    os.write(asked, json.dumps(wish).encode())
    ours = f"/proc/{os.getpid()}/fd"
    options = [*(["--tty"] if tty else []), *(["--detach"] if detach else []), "--process", f"{ours}/{asked}"]
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGQUIT)}  # they are the process's
    try:
        done = subprocess.run([*found.command, "--log", f"{ours}/{log}", "exec", *options, record.id],
                              stdin=None if interactive or tty else subprocess.DEVNULL, check=False)  # fmt: skip
        said = os.pread(log, 1 << 16, 0)
    finally:
        os.close(log)
        os.close(asked)
        for number, handler in before.items():
            signal.signal(number, handler)
    if done.returncode in RUNTIME_FAILED and said:
        return runtime.status_of(runtime.said(said))
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def process(record: Record, command: Sequence[str], *, tty: bool, env: Sequence[str], workdir: str, user: str,
            privileged: bool) -> dict[str, Any]:  # fmt: skip
    """The process of the container's config.json, changed. No user has another's groups. Raises ContainerError."""
    found: dict[str, Any] = json.loads((Containers().place(record.id) / "config.json").read_bytes())["process"]
    given = dict(each.partition("=")[::2] for each in found["env"])
    if user:
        who = look_up(Path(f"/proc/{record.pid}/root"), user)
        found["user"] = {"uid": who.uid, "gid": who.gid, "additionalGids": [] if rootless.single() else list(who.groups)}
        if not any(each.startswith("HOME=") for each in record.request.env):
            given["HOME"] = who.home
    if tty:
        given.setdefault("TERM", "xterm")
    for each in env:
        name, equals, value = each.partition("=")
        if equals or name in os.environ:
            given[name] = value if equals else os.environ[name]
    if privileged:
        found["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), bundle.all_capabilities())
        found["noNewPrivileges"] = False
    return found | {"args": list(command), "terminal": tty, "cwd": workdir or found["cwd"],
                    "env": [f"{name}={value}" for name, value in given.items()]}  # fmt: skip
