"""Plans: the order of steps, without root and without a container."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xuni.container.example import example
from xuni.container.execute import ExecWishes, plan_exec
from xuni.container.mounts import Options, sort_options
from xuni.container.plan import Host, Plan, plan
from xuni.container.record import SpecError, decode
from xuni.container.seccomp import FLAGS, LoadSeccomp
from xuni.container.spec import Linux, Process, Spec
from xuni.container.spec_rare import MemoryPolicy
from xuni.host.linux import kernel as k


def planned(change: dict[str, Any] | None = None, **host: Any) -> Plan:
    config = example(rootless=False)
    for path, value in (change or {}).items():
        place = config
        *way, last = path.split(".")
        for each in way:
            place = place.setdefault(each, {})
        place[last] = value
    return plan(decode(Spec, config), "/bundle", Host(**host))


def names(steps: tuple[object, ...]) -> list[str]:
    return [type(each).__name__ for each in steps]


def test_the_same_configuration_gives_the_same_plan() -> None:
    assert planned({"process.terminal": False}) == planned({"process.terminal": False})


def test_the_example_in_order() -> None:
    steps = planned({"process.terminal": False})
    assert names(steps.prepare) == ["MakeGroup"]
    assert names(steps.limit) == ["LimitGroup"]
    assert steps.clone == ("pid",)
    assert names(steps.enter)[:3] == ["EnterGroup", "Unshare", "Loopback"]
    assert names(steps.build)[:4] == ["Propagation", "OpenRoot", "AttachRoot", "Filesystem"]
    assert names(steps.seal) == ["ReadOnlyRoot", "ReadOnly", "Mask", "PivotRoot", "NewSession"]
    assert names(steps.begin)[-1] == "Execute"


def test_the_filter_goes_on_last_and_only_capabilities_and_execve_follow() -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW"}
    steps = planned({"process.terminal": False, "linux.seccomp": seccomp})
    assert names(steps.begin)[-2:] == ["LoadSeccomp", "Execute"]
    steps = planned({"process.terminal": False, "process.noNewPrivileges": False, "linux.seccomp": seccomp})
    assert names(steps.begin)[-3:] == ["LoadSeccomp", "FinishCapabilities", "Execute"]


def test_a_joined_pid_namespace_is_joined_before_init_is_made() -> None:
    kinds = [{"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "uts"}]
    steps = planned({"process.terminal": False, "linux.namespaces": kinds})
    assert names(steps.outside) == ["Join"]
    assert steps.clone == ()


def test_in_a_user_namespace_the_runtime_opens_what_init_may_not() -> None:
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    kinds = [{"type": each} for each in ("mount", "pid", "user", "network", "ipc", "uts")]
    steps = planned({"process.terminal": False, "linux.namespaces": kinds, "linux.uidMappings": maps, "linux.gidMappings": maps})
    assert "OpenRoot" in names(steps.prepare) and "OpenRoot" not in names(steps.build)
    assert names(steps.adopt)[0] == "MapIds"
    assert "PrepareTrampoline" in names(steps.begin)  # its root may be who owns our program


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("ro", "rw"), Options(clear=k.MOUNT_ATTR_RDONLY)),
        (("nosuid", "noexec"), Options(set=k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC)),
        (("rbind", "rro"), Options(bind=True, recursive=True, recursive_set=k.MOUNT_ATTR_RDONLY)),
        (("noatime", "relatime"), Options(clear=k.MOUNT_ATTR__ATIME)),
        (("rslave",), Options(propagation=((k.MS_SLAVE, True),))),
        (("size=64k", "newinstance"), Options(data=(("size", "64k"), ("newinstance", None)))),
    ],
)
def test_mount_options(options: tuple[str, ...], expected: Options) -> None:
    assert sort_options(options) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ociVersion": "2.0.0"}, "ociVersion: 2.0.0 is not supported"),
        ({"process.args": []}, "process.args is empty"),
        ({"process.cwd": "here"}, "process.cwd: 'here' is not an absolute path"),
        ({"hostname": "x", "linux.namespaces": [{"type": "mount"}]}, "without a private UTS namespace"),
        ({"linux.namespaces": [{"type": "mount"}, {"type": "mount"}]}, "linux.namespaces[1]: mount is there twice"),
        ({"linux.namespaces": [{"type": "moon"}]}, "linux.namespaces[0].type: 'moon' is none of"),
        ({"linux.sysctl": {"vm.swappiness": "1"}}, "vm.swappiness is not in a separate kernel namespace"),
        ({"linux.sysctl": {"net.ipv4.ip_forward": "1"}, "hostname": "",
          "linux.namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]},
         "net.ipv4.ip_forward is not allowed in the host's network namespace"),
        ({"linux.sysctl": {"kernel.hostname": "x"}}, "kernel.hostname is what the property hostname sets"),
        ({"linux.intelRdt": {"closID": "x"}}, "linux.intelRdt is not supported"),
        ({"process.rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}, "the soft limit 2 exceeds the hard one, 1"),
        ({"hooks": {"prestart": [{"path": "relative"}]}}, "hooks.prestart[0].path: 'relative' is not an absolute path"),
        ({"linux.seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}, None),
        ({"linux.memoryPolicy": {"mode": "MPOL_DEFAULT", "nodes": "0-7"}}, "mode requires 0 nodes but got 8"),
    ],
)
def test_what_a_configuration_may_not_say(change: dict[str, Any], said: str | None) -> None:
    if said is None:  # told when the filter is compiled
        from xuni.container.seccomp import check
        from xuni.container.spec import Seccomp

        with pytest.raises(SpecError, match="SCMP_ACT_NOTIFY cannot be used as default action"):
            check(decode(Seccomp, change["linux.seccomp"]))
        return
    with pytest.raises(SpecError) as caught:
        planned({"process.terminal": False, **change})
    assert said in str(caught.value)


@settings(max_examples=60)
@given(st.lists(st.text(max_size=12), max_size=4), st.text(max_size=12), st.text(max_size=12))
def test_no_mount_makes_the_plan_fail_otherwise(options: list[str], kind: str, target: str) -> None:
    mounts = [{"destination": target, "type": kind, "options": options}]
    try:
        planned({"process.terminal": False, "mounts": mounts})
    except SpecError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("given", "bits"),
    [({}, 4), ({"flags": []}, 0), ({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}, 2)],
)
def test_the_flags_of_a_filter(given: dict[str, Any], bits: int) -> None:
    steps = planned({"process.terminal": False, "linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW"} | given})
    load = next(each for each in steps.begin if isinstance(each, LoadSeccomp))
    assert sum(FLAGS[each] for each in load.flags) == bits


@pytest.mark.parametrize("listener", ["", "/run/agent.sock"])
def test_nothing_is_prepared_under_the_filter(listener: str) -> None:
    """What we do ourselves may be just what it forbids, or asks a listener about."""
    filter_ = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": listener}
    hook = {"path": "/bin/hook"}
    steps = planned({"process.terminal": False, "linux.seccomp": filter_, "hooks": {"startContainer": [hook]}})
    order = names(steps.become + steps.begin)
    assert order.index("PrepareTrampoline") < order.index("LoadSeccomp") < order.index("RunHook") < order.index("Execute")


def test_a_plan_is_shown_whole_and_in_words() -> None:
    from xuni.container import inspect
    from xuni.container.plan import Plan
    from xuni.container.process import BoundCapabilities

    assert {name for name, _ in inspect.SECTIONS} == set(Plan.fields)
    options = sort_options(("nosuid", "strictatime", "ro", "mode=755"))
    assert repr(options) == "Options(set=ro,nosuid,strictatime, clear=atime, data=(('mode', '755'),))"
    assert repr(BoundCapabilities(1 << 5 | 1 << 29)) == "BoundCapabilities(kept=CAP_KILL,CAP_AUDIT_WRITE)"


def test_exec_takes_the_memory_policy_that_a_child_of_init_would_inherit() -> None:
    linux = Linux(memoryPolicy=MemoryPolicy("MPOL_PREFERRED", "0"))
    steps = plan_exec(Process("/", args=("sh",)), linux, ExecWishes(("sh",)), Host(), groups=True, userns=False)
    assert "SetMemoryPolicy" in names(steps.join)
