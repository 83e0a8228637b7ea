"""Limits on this host, whatever its hierarchies are. They are verified by what happens, not by what a file says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xuni.container.cgroup import Group, hierarchy, place, reopen
from xuni.container.record import SpecError
from xuni.container.spec import Cpu, Memory, Resources

spec = importlib.util.spec_from_file_location("cgroup_behaviour", Path(__file__).with_name("behaviour.py"))
assert spec and spec.loader
behaviour = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = behaviour
spec.loader.exec_module(behaviour)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0 or not any(hierarchy.writable(f"{each.point}/xuni") for each in hierarchy.mounted()),
                       reason="this host has no control groups that we may make groups in (root, mounted read-write)"),
]  # fmt: skip


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with behaviour.new_group("g" + str(abs(hash(request.node.name)) % 10**6)) as made:
        yield made


@pytest.mark.parametrize("check", behaviour.BEHAVIOURS, ids=lambda check: check.__name__)
def test_behaviour(check: Callable[[Group], None], group: Group) -> None:
    try:
        check(group)
    except behaviour.NotHere as error:
        pytest.skip(str(error))


def test_a_process_moves_itself_in(group: Group) -> None:
    from xuni.host.linux.kernel import Linux

    entrances, target = group.entrances(), group.clone_target()
    pid, pidfd = Linux().clone3(0, target)
    if pid == 0:
        for each in entrances:
            os.write(each, b"0")
        own = hierarchy.groups_of()
        expected = all(directory.endswith(own[key]) for key, directory in group.paths.items())
        os._exit(0 if expected else 1)
    for each in (*entrances, pidfd, *((target,) if target >= 0 else ())):
        os.close(each)
    assert os.waitpid(pid, 0)[1] == 0


def test_exec_into_a_subgroup(group: Group) -> None:
    for directory in set(group.paths.values()):
        os.mkdir(f"{directory}/inner")
        if "/cpuset/" in directory:
            for name in ("cpuset.cpus", "cpuset.mems"):
                Path(f"{directory}/inner/{name}").write_text(Path(f"{directory}/{name}").read_text())
    with behaviour.inside(group, "input()") as program:
        group.join_sub(program.pid, {"": "inner"})
        assert all(path.endswith("/inner") for key, path in hierarchy.groups_of(program.pid).items() if key in group.paths)
        with pytest.raises(SpecError, match="unknown controller 'nosuch'"):
            group.join_sub(program.pid, {"nosuch": "inner"})
        program.communicate(b"\n")


def test_populated_and_reopened(group: Group) -> None:
    assert not group.populated()
    with behaviour.inside(group, "input()") as program:
        again = reopen(dict(group.paths))
        assert again.populated() and again.processes() == [program.pid]
        program.communicate(b"\n")


def test_the_path_stays_below_the_mount() -> None:
    for path in ("/../../etc/xuni", "../../xuni", "/./xuni/../xuni"):
        for directory in place(path, "c", rootless=False).paths.values():
            assert ".." not in directory and directory.endswith("xuni")
            assert directory.startswith(tuple(each.point for each in hierarchy.mounted()))
    with pytest.raises(SpecError, match="root group"):
        place("/..", "c", rootless=False)
    with pytest.raises(SpecError, match="1500 levels"):
        place("a/" * 1500, "c", rootless=False)


def test_clear_errors(group: Group) -> None:
    with pytest.raises(OSError) as refused:
        group.apply(Resources(cpu=Cpu(cpus="4000-5000")))
    assert "cpuset.cpus" in str(refused.value) and "4000-5000" in str(refused.value)
    if "memory" in group.paths:
        with pytest.raises(SpecError, match="0 … 100"):
            group.apply(Resources(memory=Memory(swappiness=101)))
    with pytest.raises(SpecError, match=r"names of files|cannot use unified on cgroup v1"):
        group.apply(Resources(unified={"../../etc/passwd": "x"}))


def test_subgroups_that_are_refused(group: Group) -> None:
    for path, said in (("..", "bad sub cgroup path"), ("./a/../b", "bad sub cgroup path"),
                       ("nonexistent", "adding pid .* no such file")):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            group.join_sub(os.getpid(), {"": path})
        key = next(iter(group.paths))
        with pytest.raises(SpecError, match=said):
            group.join_sub(os.getpid(), {key: path})


def test_a_subgroup_of_one_hierarchy(group: Group) -> None:
    if "memory" not in group.paths:
        pytest.skip("this host has no v1 hierarchy with memory")
    os.mkdir(group.paths["memory"] + "/only")
    with behaviour.inside(group, "input()") as program:
        group.join_sub(program.pid, {"": "only"})
        groups = hierarchy.groups_of(program.pid)
        assert groups["memory"].endswith("/only") and not groups["pids"].endswith("/only")
        program.communicate(b"\n")


def test_v1_controllers_have_no_unified_keys(group: Group) -> None:
    if "memory" not in group.paths or "" not in group.paths:
        pytest.skip("this host is not a hybrid one")
    with pytest.raises(SpecError, match=r"invalid configuration.*v1 hierarchy"):
        group.apply(Resources(unified={"memory.min": "131072"}))


def test_what_another_mount_hides_is_not_there() -> None:
    """As in a view of the v1 hierarchies alone, which is laid over the host's."""
    code = "from xuni.container.cgroup.hierarchy import mounted; print(mounted())"
    command = f"mount -t tmpfs none /sys/fs/cgroup && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", command], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "()\n"
