"""`xuni oci` and `xuni-oci`: runc's command line. No click: a container's start has milliseconds.

Options are a table; each command is a function of what was given. To add a command: a function, its line in COMMANDS, its
options in OPTIONS.
"""

from __future__ import annotations

import gc
import sys

from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from xuni.container.bundle import Wishes


class UsageError(Exception):
    """The command line is wrong; the text says how."""


# Command: its options with a value, its options without, the names of its arguments ("CONTAINER", "[SIGNAL]", "COMMAND…").
GLOBAL: Final = (("root", "log", "log-format", "criu", "rootless", "cgroup-manager"), ("debug", "systemd-cgroup", "trace"))
SHORT: Final = {"b": "bundle", "f": "force", "a": "all", "d": "detach", "t": "tty", "e": "env", "u": "user", "p": "process", "g":
    "additional-gids", "c": "cap", "q": "quiet", "h": "help", "v": "version", "r": "resources"}  # fmt: skip
_CREATE = ("bundle", "config", "console-socket", "pidfd-socket", "pid-file", "preserve-fds")
_CREATE_FLAGS = ("no-pivot", "no-new-keyring", "no-subreaper")
COMMANDS: Final = {
    "create": (_CREATE, _CREATE_FLAGS, ("CONTAINER",), "create a container; `start` begins its process"),
    "start": ((), (), ("CONTAINER",), "begin the process of a created container"),
    "run": (_CREATE, (*_CREATE_FLAGS, "detach", "keep"), ("CONTAINER",), "create and start a container, wait for its end"),
    "state": ((), (), ("CONTAINER",), "print the state of a container"),
    "exec": (("console-socket", "cwd", "env", "user", "additional-gids", "process", "pid-file", "process-label",
              "apparmor", "cap",
              "preserve-fds", "cgroup", "pidfd-socket"), ("tty", "detach", "no-new-privs", "ignore-paused"),
             ("CONTAINER", "[COMMAND…]"), "execute one more process in a container that runs"),
    "list": (("format",), ("quiet",), (), "list containers"),
    "ps": (("format",), (), ("CONTAINER", "[PS-OPTION…]"), "list the processes of a container"),
    "pause": ((), (), ("CONTAINER",), "stop every process of a container"),
    "resume": ((), (), ("CONTAINER",), "let them go on"),
    "update": (("resources", "blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-rt-period",
                "cpu-rt-runtime", "cpuset-cpus", "cpuset-mems", "kernel-memory", "kernel-memory-tcp", "memory",
                "memory-reservation",
                "memory-swap", "pids-limit", "l3-cache-schema", "mem-bw-schema", "cpu-idle"), (), ("CONTAINER",),
               "change the limits of a container"),
    "events": (("interval",), ("stats",), ("CONTAINER",), "print usage, once with --stats or every INTERVAL (5s)"),
    "spec": (("bundle",), ("rootless",), (), "write a config.json to begin with"),
    "features": ((), (), (), "print what this runtime can do"),
    "install": (("python",), (), ("FILE",), "write a launcher that starts quickest, for engines to call"),
    "plan": (("bundle", "config", "console-socket"), ("json", "no-pivot", "no-new-keyring"), ("[BUNDLE]",),
             "print the steps that a bundle would take, without taking them"),
    "kill": ((), ("all",), ("CONTAINER", "[SIGNAL]"), "send a signal (TERM) to a container's first process"),
    "checkpoint": ((), (), ("CONTAINER",), "refused, with the reason"),
    "restore": ((), (), ("CONTAINER",), "refused, with the reason"),
    "delete": ((), ("force", "regex"), ("CONTAINER",), "remove a container that has stopped; with --regex, all whose id matches"),
}
_NO_CRIU = "the processes of a container are not saved and taken up again here: that takes CRIU, which is not driven here"
REFUSED: Final = {"checkpoint": _NO_CRIU, "restore": _NO_CRIU}
RUNTIME_FAILED: Final = 255  # of exec, whose process may well exit with 1 itself


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    gc.disable()  # nothing here lives long enough to be worth it
    given = sys.argv[1:] if arguments is None else arguments
    log = Log()
    try:
        options, rest = parse(given, *GLOBAL, stop=True)
        log.open(options)
        status = _command(options, rest)
    except UsageError as error:
        log.error(str(error))
        status = 1
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if os.getenv("XUNI_DEBUG"):
            raise
        log.error(describe(error))
        status = RUNTIME_FAILED if "exec" in given else 1
    try:
        sys.stdout.flush()
    except OSError:
        pass
    os._exit(status)  # there is nothing to tear down, and the interpreter takes two milliseconds for it


class Log:
    """Where errors go: standard error, and what --log names, in the format that engines read."""

    def __init__(self) -> None:
        self.path, self.json, self.debug = "", False, False

    def open(self, options: dict[str, str]) -> None:
        self.path, self.json, self.debug = options.get("log", ""), options.get("log-format") == "json", "debug" in options
        if options.get("log-format", "text") not in ("text", "json"):
            raise UsageError(f"--log-format: unknown log-format {options['log-format']!r}; text and json are known")
        if "systemd-cgroup" in options or options.get("cgroup-manager") == "systemd":
            raise UsageError("--systemd-cgroup: control groups are made directly, without asking systemd over D-Bus; "
                             "use cgroupfs (podman: --cgroup-manager cgroupfs)")  # fmt: skip

        if self.path:
            try:
                os.close(open_log(self.path))
            except OSError as error:
                failed, self.path = self.path, ""
                raise UsageError(f"--log: {failed}: {error.strerror}") from None

    def error(self, text: str) -> None:
        self.line("error", text)
        os.write(2, f"xuni-oci: {text}\n".encode(errors="backslashreplace"))

    def line(self, level: str, text: str) -> None:
        if not self.path:
            return
        from xuni.container.state import log_line

        try:
            descriptor = open_log(self.path)
            os.write(descriptor, log_line(level, text, self.json))
            os.close(descriptor)
        except OSError as error:
            os.write(2, f"xuni-oci: {self.path}: {error.strerror}\n".encode())


def open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def describe(error: Exception) -> str:
    from xuni.container.record import SpecError
    from xuni.container.step import StepFailed
    from xuni.container.talk import InitFailed

    if isinstance(error, SpecError | StepFailed | InitFailed):
        return one_line(str(error))
    if isinstance(error, OSError):
        if hasattr(error, "call"):
            from xuni.container.rules import find

            rule = find("", error.call, error.errno or 0)
            return one_line(f"{error}; {rule}" if rule else str(error))
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    return one_line(f"this is a bug of xuni: {type(error).__name__}: {error} (XUNI_DEBUG=1 shows where)")


LONGEST: Final = 4096  # characters of an error: a name in a configuration may have megabytes


def one_line(text: str) -> str:
    """For a terminal and a log, whatever a configuration, an image or a hook has put into it."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 1024]} … {text[-1000:]}"
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else each.encode("unicode_escape").decode() for each in text])


def parse(given: list[str], valued: tuple[str, ...], flags: tuple[str, ...], *, stop: bool) -> tuple[dict[str, str], list[str]]:
    """Options by name, and the rest; with `stop`, everything from the first argument on is the rest."""
    options: dict[str, str] = {}
    rest: list[str] = []
    items = iter(given)
    for item in items:
        if item == "--":
            rest += items
            break
        if not item.startswith("-") or item == "-":
            rest.append(item)
            if stop:
                rest += items
                break
            continue
        name, equals, value = item.lstrip("-").partition("=")
        name = SHORT.get(name, name)
        if name == "force" and "format" in valued:
            name = "format"
        if name in flags or name in ("help", "version"):
            if equals and value not in ("true", "false"):
                raise UsageError(f"{item}: --{name} takes no value")
            if value != "false":
                options[name] = ""
        elif name in valued:
            if not equals:
                try:
                    value = next(items)
                except StopIteration:
                    raise UsageError(f"--{name} needs a value") from None
            options[name] = options[name] + "\0" + value if name in options and name in REPEATED else value
        else:
            raise UsageError(f"unknown option {item}")
    return options, rest


REPEATED: Final = ("env", "cap", "additional-gids", "cgroup")


def _command(options: dict[str, str], rest: list[str]) -> int:
    if "version" in options:
        from xuni.cli import oci_help

        sys.stdout.write(oci_help.version())
        return 0
    if not rest or "help" in options or rest[0] == "help":
        from xuni.cli import oci_help

        sys.stdout.write(oci_help.everything())
        return 0
    name = rest.pop(0)
    help_wanted = rest[:1] in (["-h"], ["--help"])
    if name not in COMMANDS:
        what = f"No help topic for {name!r}" if help_wanted else f"unknown command {name!r}"
        raise UsageError(f"{what}; `xuni-oci --help` lists the commands")
    if name in REFUSED and not help_wanted:
        raise UsageError(f"{name}: {REFUSED[name]}")
    valued, flags, names, _ = COMMANDS[name]
    given, arguments = parse(rest, valued, flags, stop=name in ("exec", "ps"))
    if "help" in given:
        from xuni.cli import oci_help

        sys.stdout.write(oci_help.command(name))
        return 0
    needed = sum(not each.startswith("[") for each in names)
    if len(arguments) < needed:
        raise UsageError(f"{name}: {' '.join(names[len(arguments) :])} is missing; usage: xuni-oci {name} {' '.join(names)}")
    if len(arguments) > len(names) and not names[-1].endswith("…]"):
        raise UsageError(f"{name}: {arguments[len(names)]!r} is one argument too many; usage: xuni-oci {name} {' '.join(names)}")
    command = globals()["_" + name]
    status: int = command(options, given, arguments)
    return status


def _root(options: dict[str, str]) -> str:
    if options.get("root"):
        return os.path.abspath(options["root"])
    if os.geteuid() == 0 and os.access("/run", os.W_OK):  # the root of a user namespace may be nobody there
        return "/run/xuni-oci"
    return f"{os.getenv('XDG_RUNTIME_DIR') or f'/tmp/xuni-oci-{os.geteuid()}'}/xuni-oci"


def _wishes(options: dict[str, str], given: dict[str, str]) -> Wishes:
    from xuni.container.bundle import Wishes

    preserve = given.get("preserve-fds", "0")
    if not preserve.isdecimal():
        raise UsageError(f"--preserve-fds: {preserve!r} is not a number")
    return Wishes(_root(options), os.path.abspath(given.get("bundle", ".")), given.get("config", "config.json"),
                  given.get("console-socket", ""), given.get("pid-file", ""),
                  int(preserve) + int(os.getenv("LISTEN_FDS", "0") or "0"), "no-pivot" in given, "no-new-keyring" in given,
                  options.get("cgroup-manager") != "disabled", "trace" in options,
                  "debug" in options, options.get("log", ""),
                  (options.get("log-format") == "json") if options.get("log") else None,
                  given.get("pidfd-socket", ""), os.getenv("NOTIFY_SOCKET") or "")  # fmt: skip


def _create(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import life

    life.create(arguments[0], _wishes(options, given), wait=True)
    return 0


def _start(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, life

    life.start(existing.open_made(_root(options), arguments[0], 10), os.getenv("NOTIFY_SOCKET") or "")
    return 0


def _run(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import foreground

    wishes = _wishes(options, given)
    return foreground.run(arguments[0], wishes, detach="detach" in given, keep="keep" in given)


def _state(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, json, state

    found = existing.open_made(_root(options), arguments[0], 1)
    kept = found.kept
    said = state.report(kept, found.status()) | {"rootfs": kept.rootfs, "created": kept.created, "owner": kept.owner}
    sys.stdout.write(json.dumps(said, indent=2).decode() + "\n")
    return 0


def _kill(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing

    found = existing.open_container(_root(options), arguments[0])
    existing.kill(found, _signal_number(arguments[1] if len(arguments) > 1 else "TERM"), everything="all" in given)
    return 0


def _delete(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, life, state
    from xuni.container.record import SpecError

    if "regex" in given:
        import re

        try:
            pattern = re.compile(arguments[0])
        except re.error as error:
            raise UsageError(f"--regex: {arguments[0]!r} is not a regular expression: {error}") from None
        root = _root(options)
        for name in state.names(root):
            if pattern.search(name):
                _delete(options, {each: "" for each in given if each != "regex"}, [name])
        return 0
    try:
        found = existing.open_container(_root(options), arguments[0])
    except SpecError:
        if "force" not in given:
            raise
        existing.forget(_root(options), arguments[0])
        return 0
    life.delete(found, force="force" in given)
    return 0


def _exec(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, foreground
    from xuni.container.execute import ExecWishes, cgroup_option

    if not given.get("process") and len(arguments) < 2:
        raise UsageError("exec: COMMAND is missing (or --process FILE)")
    groups = _several(given, "additional-gids")
    if not all(each.isdecimal() for each in groups):
        raise UsageError(f"--additional-gids: {' '.join(groups)!r} are not numbers")
    caps = tuple([each if each.startswith("CAP_") else "CAP_" + each for each in map(str.upper, _several(given, "cap"))])
    wishes = ExecWishes(tuple(arguments[1:]), given.get("process", ""), _several(given, "env"), given.get("cwd", ""),
                        given.get("user", ""), tuple(map(int, groups)), caps, "tty" in given, "no-new-privs" in given,
                        given.get("apparmor", ""), given.get("process-label", ""),
                        dict(cgroup_option(list(_several(given, "cgroup")))), "ignore-paused" in given)  # fmt: skip
    found = existing.open_container(_root(options), arguments[0])
    return foreground.execute(found, _wishes(options, given), wishes, detach="detach" in given)


def _several(given: dict[str, str], name: str) -> tuple[str, ...]:
    return tuple(given[name].split("\0")) if name in given else ()


def _list(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import inspect

    sys.stdout.write(inspect.list_all(_root(options), given.get("format", "table"), "quiet" in given,
                                      must_exist="root" in options))  # fmt: skip
    return 0


def _ps(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, inspect

    found = existing.open_container(_root(options), arguments[0])
    sys.stdout.write(inspect.processes(found, given.get("format", "table"), arguments[1:]))
    return 0


def _pause(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing

    existing.pause(existing.open_container(_root(options), arguments[0]))
    return 0


def _resume(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing

    existing.resume(existing.open_container(_root(options), arguments[0]))
    return 0


def _update(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing
    from xuni.container.update import changed

    found = existing.open_container(_root(options), arguments[0])
    existing.update(found, changed(given))
    return 0


def _events(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import existing, inspect

    found = existing.open_container(_root(options), arguments[0])
    for line in inspect.events(found, once="stats" in given, interval=given.get("interval", "5s")):
        sys.stdout.write(line)
        sys.stdout.flush()
    return 0


def _spec(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container.example import write

    write(given.get("bundle", "."), rootless="rootless" in given)
    return 0


def _features(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import json
    from xuni.container.features import features

    sys.stdout.write(json.dumps(features(), indent=2).decode() + "\n")
    return 0


def _plan(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.container import inspect

    if arguments:
        given = given | {"bundle": arguments[0]}
    sys.stdout.write(inspect.show_plan(_wishes(options, given), as_json="json" in given))
    return 0


def _install(options: dict[str, str], given: dict[str, str], arguments: list[str]) -> int:
    from xuni.cli import oci_install
    from xuni.container.record import SpecError

    try:
        oci_install.install(arguments[0], given.get("python", ""))
    except SpecError as error:
        raise UsageError(f"install: {error}") from None
    return 0


def _signal_number(name: str) -> int:
    if name.lstrip("-").isdecimal():
        number = int(name)
        if not 0 <= number <= 64:
            raise UsageError(f"kill: {name} is not a signal's number")
        return number
    import _signal

    wanted = name.upper().removeprefix("SIG")
    if wanted.startswith("RTMIN"):
        return 34 + int(wanted[5:] or "0")
    if wanted.startswith("RTMAX"):
        return 64 + int(wanted[5:] or "0")
    found = getattr(_signal, "SIG" + wanted, None)
    if not isinstance(found, int) or wanted.startswith("_"):
        raise UsageError(f"kill: unknown signal {name!r}")
    return found
