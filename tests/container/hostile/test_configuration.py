"""Configurations that mean harm, or nothing at all: what is wrong is a SpecError, and a start that fails leaves nothing."""

from __future__ import annotations

import copy
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.container.bundle import Bundle, groups_left, left_over, name, needs_busybox, needs_root
from xuni.container import json as quick_json
from xuni.container.example import example
from xuni.container.plan import Host, plan
from xuni.container.record import Record, SpecError, decode, encode
from xuni.container.seccomp import compile_filter
from xuni.container.spec import Spec


def everything() -> dict[str, Any]:
    """The example with every property of the specification that we know."""
    made = copy.deepcopy(example(rootless=False))  # which shares lists
    map_ = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    made["process"] |= {
        "terminal": False, "consoleSize": {"width": 80, "height": 25}, "oomScoreAdj": 100,
        "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1]},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 19, "priority": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4}, "execCPUAffinity": {"initial": "0", "final": "0"},
    }  # fmt: skip
    made["hooks"] = {point: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}] for point in
                     ("prestart", "createRuntime", "createContainer", "poststart", "poststop")}  # fmt: skip
    made["annotations"] = {"org.example.key": "value"}
    made["domainname"] = "domain"
    made["mounts"].append({"destination": "/given", "type": "bind", "source": "/etc/hostname", "options": ["rbind", "ro"]})
    there = [each["type"] for each in made["linux"]["namespaces"]]
    made["linux"]["namespaces"] += [{"type": each} for each in ("user", "time", "cgroup") if each not in there]
    made["linux"] |= {
        "uidMappings": map_, "gidMappings": map_, "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 2}},
        "devices": [{"type": "c", "path": "/dev/again", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
        "cgroupsPath": "", "rootfsPropagation": "private", "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmni": "1000"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": []}, "personality": {"domain": "LINUX", "flags": []},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["mkdir", "kexec_load"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28,
                          "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}]}],
        },
    }  # fmt: skip
    made["linux"]["resources"] |= {
        "memory": {"limit": 1 << 30, "reservation": 1 << 28, "swap": 1 << 31}, "pids": {"limit": 100},
        "cpu": {"shares": 100, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
        "blockIO": {"throttleReadBpsDevice": [{"major": 7, "minor": 0, "rate": 1 << 20}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}], "unified": {"cgroup.max.depth": "3"},
    }  # fmt: skip
    return made


Place = tuple[str | int, ...]


def places(value: object, here: Place = ()) -> list[Place]:
    """Every node of a configuration, the root left out."""
    found = [here] if here else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += places(each, (*here, key))
    return found


# Wrong in type, range, length, character; and what is right in another place.
HARM: list[Any] = [
    None, True, False, 0, -1, 1, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
    1 << 64, -(1 << 63), 10**40, 0.5, -0.0, 1e15, 1e300, float("inf"), float("nan"), "", "\0", "a\0b", "\ud800", "x\udfff/y",
    "x" * 300, "x" * 70_000, "a/" * 3000, "../../../../../../etc", "/", "//", "/..", ".", "%s%n{}", "a\nb", "\x1b[31m", "\u202e",
    "é", "9" * 5000, "1" * 5000 + ".0.0", "0x10", "-1", "１", "1.0.0", "=", "a=b", "CAP_SYS_ADMIN", "user", "mount", "pid",
    "/proc/1/ns/net", "/proc/self/exe", "/proc/self/fd/7", "/dev", "/dev/zero", "cgroup", "proc", "ro", "bind", "rbind", "idmap",
    "ridmap=@0-0-1",
    "tmpcopyup", "copy-symlink", "dest-nofollow", "size=-1", "mode=999", "0-99999999", "4095", "SCMP_ACT_NOTIFY", "SCMP_ACT_KILL",
    "SCHED_DEADLINE", "2MB", "a 8:0 rwm", [], [[]], [[[[[]]]]], [None], [""], ["a", 1], {}, {"": ""}, {"a": {"b": []}},
    {"path": "/x"},
]  # fmt: skip
BASE = everything()
KINDS = ("put", "drop", "repeat", "rename", "nest")
EDIT = st.tuples(st.sampled_from(places(BASE)), st.sampled_from(KINDS), st.sampled_from(HARM))


def edited(config: dict[str, Any], edits: list[tuple[Place, str, Any]]) -> dict[str, Any]:
    """Each edit where it still applies after those before it."""
    for (*way, last), kind, value in edits:
        node: Any = config
        try:
            for key in way:
                node = node[key]
            old = node[last]
        except (KeyError, IndexError, TypeError):
            continue
        if not isinstance(node, dict | list):
            continue
        if kind == "drop":
            del node[last]
        elif kind == "repeat" and isinstance(node, list):
            node += [copy.deepcopy(old) for _ in range(40)]
        elif kind == "rename" and isinstance(node, dict) and isinstance(value, str):
            node[value] = node.pop(last)
        elif kind == "nest":
            node[last] = [old] if isinstance(old, dict) else {"x": old}
        else:
            node[last] = copy.deepcopy(value)
    return config


def strings(value: object) -> list[str]:
    if isinstance(value, Record):
        return [each for field in value.fields for each in strings(getattr(value, field))]
    if isinstance(value, dict):
        return [each for pair in value.items() for item in pair for each in strings(item)]
    if isinstance(value, list | tuple):
        return [each for item in value for each in strings(item)]
    return [value] if isinstance(value, str) else []


def understood(text: bytes) -> None:
    """What parses and is planned is fit for the kernel; everything else is a SpecError that says where."""
    try:
        spec = decode(Spec, quick_json.loads(text, "config.json"))
        for each in strings(spec):
            assert "\0" not in each and each.encode() is not None
        for host in (Host(), Host(root=False, cgroups=False), Host(create=True, console_socket="/s", no_pivot=True)):
            try:
                steps = plan(spec, "/bundle", host)
            except SpecError as error:
                assert str(error)
                continue
            assert repr(steps).encode() and json.dumps(encode(steps))
        if spec.linux and spec.linux.seccomp:
            compile_filter(spec.linux.seccomp)
    except SpecError as error:
        assert str(error)


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.lists(EDIT, min_size=1, max_size=3))
def test_a_changed_configuration_is_planned_or_refused(edits: list[tuple[Place, str, Any]]) -> None:
    understood(json.dumps(edited(copy.deepcopy(BASE), edits)).encode())


TEXT = json.dumps(BASE).encode()
PIECES = (b"[" * 3000, b'{"a":' * 3000, b"1e999", b"NaN", b"-", b'"\\ud800"', b'"\\u0000"', b"\\", b'"', b",,", b"\xff",
          b"1" * 5000)  # fmt: skip


@settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 40), st.binary(max_size=6) | st.sampled_from(PIECES)),
                min_size=1, max_size=3))  # fmt: skip
def test_a_damaged_text_is_understood_or_refused(damages: list[tuple[int, int, bytes]]) -> None:
    text = TEXT
    for at, length, put in damages:
        text = text[:at] + put + text[at + length :]
    understood(text)


@pytest.mark.parametrize(("text", "said"), [
    (b'{"ociVersion": "1.0.0", "ociVersion": 7}', "ociVersion: a string belongs here"),  # the last one counts
    (b'{"ociVersion": "1.0.0", "hostname": "\\ud800"}', "half of a surrogate pair"),
    (b'{"ociVersion": "1.0.0", "annotations": {"a\\u0000": "b"}}', "annotations: a name in it: a string without NUL"),
    (b'{"ociVersion": "1.0.0", "process": {"cwd": "/", "args": ["a\\u0000b"]}}', "process.args[0]: a string without NUL"),
    (b'{"ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": 1e400}}}', "process.user.uid: an integer belongs here"),
    (b'{"ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": 1%s}}}' % (b"0" * 5000), "config.json: not JSON"),
    (b'{"ociVersion": "1%s.0.0"}' % (b"0" * 5000), "is not a version"),
    (b"[" * 1_000_000, "nested too deeply"),
])  # fmt: skip
def test_refusals_of_hostile_texts_say_where(text: bytes, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(decode(Spec, quick_json.loads(text, "config.json")), "/bundle", Host())
    assert said in str(caught.value)


@pytest.mark.parametrize(("change", "said"), [
    ({"user": {"uid": (1 << 32) - 1, "gid": 0}}, "process.user.uid: 4294967295 is no id"),
    ({"user": {"uid": 1, "gid": (1 << 32) - 1}}, "process.user.gid: 4294967295 is no id"),
    ({"user": {"uid": 1, "gid": 1, "additionalGids": [1, (1 << 32) - 1]}}, "process.user.additionalGids: 4294967295 is no id"),
    ({"consoleSize": {"width": 1 << 20, "height": 1}}, "process.consoleSize"),
])  # fmt: skip
def test_ids_that_mean_something_else_to_the_kernel(change: dict[str, Any], said: str) -> None:
    """setresuid(-1) changes nothing: the process would be root."""
    config = example(rootless=False)
    config["process"] |= change
    with pytest.raises(SpecError, match=said):
        plan(decode(Spec, config), "/bundle", Host())


# ---- whole starts


@needs_root
def test_the_configuration_to_be_changed_works(bundle: Bundle) -> None:
    """Else every change of it would fail early, for the same reason."""
    bundle.config = everything() | {"root": {"path": "rootfs"}}
    (bundle.rootfs / "given").write_text("")
    done = bundle.run("/bin/sh", "-c", "cat /proc/sys/kernel/shmmni; cat /given; id -u")
    assert done.returncode == 0 and done.stdout.startswith("1000\n") and done.stdout.endswith("\n0\n"), done.stderr


def keep_to_itself(bundle: Bundle) -> bool:
    """Whether the configuration asks for nothing of the host's, which it would be given: a configuration is obeyed."""
    linux, root = bundle.config.get("linux"), bundle.config.get("root")
    spaces = linux.get("namespaces") if isinstance(linux, dict) else None
    if not isinstance(linux, dict) or not isinstance(spaces, list):
        return False
    new = [each.get("type") for each in spaces if isinstance(each, dict) and not each.get("path")]
    if isinstance(root, dict) and isinstance(root.get("path"), str) and not root["path"].isalnum():
        return False
    linux["cgroupsPath"] = f"/above-{name(bundle)}/{name(bundle)}"
    return all(each in new for each in ("mount", "network", "ipc", "uts"))


@needs_root
@needs_busybox
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(EDIT, min_size=1, max_size=2), st.sampled_from(("create", "create", "plan")))
def test_a_start_from_a_changed_configuration_works_or_leaves_nothing(edits: list[tuple[Place, str, Any]], command: str) -> None:
    with tempfile.TemporaryDirectory(prefix="xuni-test-") as scratch:
        bundle = Bundle(Path(scratch))
        (bundle.rootfs / "given").write_text("")
        bundle.config = edited(everything() | {"root": {"path": "rootfs"}}, edits)
        if not keep_to_itself(bundle):
            return
        bundle.write()
        try:
            process = bundle.start(command, *((name(bundle),) if command == "create" else ()), umask=0o022)
            try:
                status = process.wait(30)
                if status == 0 and command == "create":
                    assert bundle.call("delete", "--force", name(bundle)).returncode == 0
                _, said = process.communicate(timeout=10)
            finally:
                process.kill()
            lines = [line for line in said.splitlines() if "warning: " not in line]
            assert status == 0 or (status == 1 and len(lines) == 1), (status, said)
            assert "Traceback" not in said and "bug of xuni" not in said, said
            assert not (left := left_over(bundle)), left
        finally:
            bundle.call("delete", "--force", name(bundle))
            for each in groups_left(f"above-{name(bundle)}"):
                os.rmdir(each)


@pytest.mark.parametrize(("kind", "said"), [
    ("pipe", "not a regular file"), ("device", "not a regular file"), ("directory", "not a regular file"), ("huge", "8 MiB"),
    ("loop", "symbolic link"), ("nothing", "No such file"), ("socket", "No such device"),
])  # fmt: skip
@needs_root
def test_a_configuration_that_is_no_file(bundle: Bundle, kind: str, said: str) -> None:
    place = bundle.path / "config.json"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "directory":
        place.mkdir()
    elif kind == "huge":
        bundle.config["annotations"] = {str(at): "x" * 1000 for at in range(9000)}
        bundle.write()
    elif kind == "loop":
        place.symlink_to("config.json")
    elif kind == "socket":
        os.mknod(place, stat.S_IFSOCK)
    for command in (("create", name(bundle)), ("plan",)):
        done = bundle.call(*command)
        assert done.returncode == 1 and said in done.stderr and "config.json" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    assert not left_over(bundle)


@pytest.mark.parametrize("kind", ["pipe", "device", "file", "loop", "nothing", "long"])
@needs_root
def test_a_bundle_that_is_no_directory(bundle: Bundle, kind: str) -> None:
    place = bundle.path / "odd"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        os.mknod(place, stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "file":
        place.write_text("{}")
    elif kind == "loop":
        place.symlink_to("odd")
    elif kind == "long":
        place = place / ("x" * 300)
    done = bundle.call("create", "--bundle", str(place), name(bundle))
    assert done.returncode == 1 and "a bundle is a directory with a config.json" in done.stderr and "odd" in done.stderr
    assert done.stderr.count("\n") == 1 and not left_over(bundle)


@pytest.mark.parametrize("container", ["../up", "a/b", ".", "..", "", "a\nb", "x" * 256, "é", "a b"])
@needs_root
def test_names_that_lead_elsewhere(bundle: Bundle, container: str) -> None:
    bundle.write()
    before = sorted(os.listdir(bundle.path))
    for command in (("create",), ("delete",), ("delete", "--force"), ("state",), ("kill",), ("exec",)):
        done = bundle.call(*command, "--", container, *(("true",) if command == ("exec",) else ()))
        assert done.returncode != 0 and "invalid container ID" in done.stderr, (command, done.stderr)
        assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(bundle.path)) == before
