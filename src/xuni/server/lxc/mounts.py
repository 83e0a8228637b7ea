"""lxc.mount.*: lines of fstab(5), and the mounts that LXC makes by itself."""

from __future__ import annotations

import os
import re
from typing import Final

from xuni.server.lxc.text import ConfigurationError, Line, regular
from xuni.server.lxc.translation import Draft, Verdict

MAX_MOUNTS: Final = 1000
QUIET: Final = ["nosuid", "noexec", "nodev"]


def entry(draft: Draft, line: Line) -> Verdict:
    """One line of fstab(5)."""
    return _mount(draft, line.value)


def table(draft: Draft, line: Line) -> Verdict:
    """A file of such lines."""
    left_out = []
    count = 0
    for number, each in enumerate(regular(line.value, line.place).splitlines(), 1):
        if not each.strip() or each.strip().startswith("#"):
            continue
        try:
            verdict = _mount(draft, each)
        except ValueError as error:
            raise ConfigurationError(f"{line.value}:{number}: {error}") from None
        count += 1
        if verdict.status == "refused" or "left out" in verdict.about:
            left_out.append(f"line {number}: {verdict.about}")
    if left_out:
        return Verdict("translated", f"mounts, {count - len(left_out)} of {count} ({'; '.join(left_out[:3])})")
    return Verdict("honoured", f"mounts, {count} of them")


def _mount(draft: Draft, text: str) -> Verdict:
    words = [_unescaped(each) for each in text.split()]
    if not 3 <= len(words) <= 6:
        raise ValueError("SOURCE TARGET TYPE OPTIONS [0 0], as in fstab(5), belongs there")
    if len(draft.config["mounts"]) >= MAX_MOUNTS:
        raise ValueError(f"more than {MAX_MOUNTS} mounts")
    source, target, kind = words[:3]
    options = [each for each in (words[3] if len(words) > 3 else "defaults").split(",") if each and each != "defaults"]
    own = [each for each in options if each == "optional" or each.startswith(("create=", "relative", "idmap="))]
    if any(each.startswith("idmap=") for each in own):
        return Verdict("refused", "an id map of one mount stands in mounts[].uidMappings, as numbers")
    if "relative" in own:
        return Verdict("refused", "a source inside of the container cannot be bound; use a link, or its path on the host")
    options = [each for each in options if each not in own]
    root = draft.config["root"]["path"]
    inside = target.removeprefix(root) if root and f"{target}/".startswith(root + "/") else target
    if ".." in inside.split("/"):
        raise ValueError(f"{target}: a target without .. belongs there")
    bind = "bind" in options or "rbind" in options
    if bind and not source.startswith("/"):
        raise ValueError(f"{source}: an absolute path belongs there")
    if bind and "optional" in own and not os.path.exists(source):
        return Verdict("translated", f"left out: {source} is not there, and it is optional")
    made = {"destination": os.path.normpath("/" + inside.lstrip("/")), "type": "bind" if bind else kind, "source": source}
    draft.config["mounts"].append(made | ({"options": options} if options else {}))
    if "optional" in own:
        return Verdict("translated", "mounts; that it may fail cannot be said")
    return Verdict("honoured", "mounts")


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8) & 0xFF), word)


def automatic(draft: Draft, line: Line) -> Verdict:
    """proc, sys and cgroup, each with a mode."""
    refused, told = [], []
    for each in line.value.split():
        name, _, mode = each.partition(":")
        if name == "proc" and mode in ("", "mixed", "rw"):
            paths = [] if mode == "rw" else ["/proc/sys", "/proc/sysrq-trigger"]
            draft.linux["readonlyPaths"] = [*draft.linux.get("readonlyPaths", ()), *paths]
            told.append("mounts of /proc" + (" and linux.readonlyPaths, /proc/sys/net among them" if paths else ""))
        elif name == "sys" and mode in ("", "mixed", "ro", "rw"):
            _replace(draft, "/sys", "sysfs", mode == "rw")
            told.append("a mount of /sys" + (", read-only with /sys/devices/virtual/net" if mode in ("", "mixed") else ""))
        elif name in ("cgroup", "cgroup-full") and mode.removesuffix(":force") in ("", "mixed", "ro", "rw", "force"):
            _replace(draft, "/sys/fs/cgroup", "cgroup", not mode.startswith("ro"))
            told.append("a mount of /sys/fs/cgroup, as the container's cgroup namespace shows it")
        else:
            refused.append(each)
    if refused:
        return Verdict("refused", f"{' '.join(refused)}: proc, sys and cgroup with mixed, ro or rw can be mounted"
                       + (f" (but {', '.join(told)})" if told else ""))  # fmt: skip
    return Verdict("translated", "; ".join(told))


def _replace(draft: Draft, target: str, kind: str, writable: bool) -> None:
    mounts = [each for each in draft.config["mounts"] if each["destination"] != target]
    made = {"destination": target, "type": kind, "source": kind, "options": [*QUIET, "rw" if writable else "ro"]}
    draft.config["mounts"] = [*mounts, made]
