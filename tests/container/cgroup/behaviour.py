"""What limits do, observed from outside: the same functions run on this host and inside a guest with cgroup v2.

Nothing but the standard library and xuni.container.cgroup: the guest has no more. Each takes a group that was just made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from xuni.container.cgroup import Group, place, reopen
from xuni.container.cgroup.files import read, write
from xuni.container.cgroup.stats import oom_kills
from xuni.container.record import SpecError
from xuni.container.spec import BlockIO, Cpu, DeviceCgroup, HugepageLimit, Memory, Pids, Resources, ThrottleDevice

MIB = 1 << 20
DENY_ALL = DeviceCgroup(allow=False)


class NotHere(Exception):
    """This machine lacks what a behaviour is about."""


@contextlib.contextmanager
def new_group(name: str) -> Iterator[Group]:
    """/xuni-test-PID/NAME in every hierarchy; whatever is in it is gone afterwards."""
    parent = f"/xuni-test-{os.getpid()}"
    group = place(f"{parent}/{name}", name, rootless=False)
    try:
        group.create()
        yield group
    finally:
        group.kill(signal.SIGKILL)
        reopen(dict(group.paths)).delete()
        for directory in set(group.paths.values()):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(os.path.dirname(directory))


def inside(group: Group, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python program whose every instruction runs in the group."""
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, preexec_fn=lambda: group.join(os.getpid()))


@contextlib.contextmanager
def ended(group: Group) -> Iterator[None]:
    """What goes wrong inside does not wait for processes of the group."""
    try:
        yield
    except BaseException:
        group.kill(signal.SIGKILL)
        raise


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


def a_memory_hog_is_killed(group: Group) -> None:
    group.apply(Resources(memory=Memory(limit=24 * MIB, swap=24 * MIB)))
    with inside(group, "x = []\nfor i in range(200): x.append(bytearray(b'x') * (1 << 20)); print(i, flush=True)") as hog:
        assert hog.stdout is not None
        reached = len(hog.stdout.read().split())
    assert hog.returncode == -signal.SIGKILL, hog.returncode
    assert 5 < reached < 24, reached
    assert group.stats()["memory"]["usage"]["limit"] == 24 * MIB
    assert oom_kills(group.paths) == 1
    print(f"   killed with {reached} of 24 MiB of its own", flush=True)


def limits_are_raised_and_lowered(group: Group) -> None:
    """v1 refuses a memory limit above that of memory and swap: the order of the writes matters, both ways."""
    for limit, swap in ((64, 96), (200, 300), (32, 40), (32, -1), (512, 1024), (16, 16)):
        group.apply(Resources(memory=Memory(limit=limit * MIB, swap=swap * MIB if swap > 0 else -1)))
        stats = group.stats()["memory"]
        assert stats["usage"]["limit"] == limit * MIB
        if swap > 0 and "limit" in stats["swap"] and stats["swap"]["limit"]:
            assert stats["swap"]["limit"] == swap * MIB, stats["swap"]


def a_quota_holds(group: Group) -> None:
    """A tenth of a CPU within 5 %, counted in the scheduler's own periods, so that a busy machine does not matter."""
    group.apply(Resources(cpu=Cpu(quota=5_000, period=50_000, shares=512)))
    before = group.stats()["cpu"]
    with inside(group, "while True: pass") as spinner:
        wait_for(lambda: group.stats()["cpu"]["throttling"]["throttledPeriods"] >= 20)
        spinner.kill()
    after = group.stats()["cpu"]
    periods = after["throttling"]["periods"] - before["throttling"]["periods"]
    used = (after["usage"]["total"] - before["usage"]["total"]) / 5_000_000
    assert periods >= 20 and used <= (periods + 1) * 1.05, (periods, used)
    throttled = after["throttling"]["throttledPeriods"]
    print(f"   {used:.2f} quotas used in {periods} periods, {throttled} of them throttled", flush=True)
    assert used >= throttled * 0.95, (used, after)


def a_fork_bomb_stops(group: Group) -> None:
    group.apply(Resources(pids=Pids(limit=8)))
    program = """
import os, sys, time
for n in range(100):
    try:
        if not os.fork(): time.sleep(100)
    except BlockingIOError:
        print(n, flush=True); break
sys.stdin.read()
"""
    with inside(group, program) as bomb:
        assert bomb.stdout is not None and bomb.stdin is not None
        assert int(bomb.stdout.readline()) == 7
        assert group.stats()["pids"] == {"current": 8, "limit": 8}
        assert len(group.processes()) == 8
        group.kill(signal.SIGKILL)
        wait_for(lambda: not group.populated() or group.processes() == [bomb.pid])
    assert bomb.returncode == -signal.SIGKILL


OPEN = """
import os, sys
for path in sys.argv[1:]:
    for mode in (os.O_RDONLY, os.O_WRONLY):
        try: os.close(os.open(path, mode)); print("yes", end=" ")
        except OSError as error: print(os.strerror(error.errno).split()[0], end=" ")
"""


def devices_are_refused(group: Group) -> None:
    def ask() -> list[str]:
        with inside(group, OPEN, "/dev/null", "/dev/kmsg") as program:
            assert program.stdout is not None
            return program.stdout.read().decode().split()

    group.apply(Resources(devices=(DENY_ALL,)))
    assert ask() == ["yes", "yes", "Operation", "Operation"]
    group.apply(Resources(devices=(DENY_ALL, DeviceCgroup(allow=True, type="c", major=1, minor=11, access="r"))))
    assert ask() == ["yes", "yes", "yes", "Operation"]
    group.apply(Resources(devices=(DENY_ALL, DeviceCgroup(allow=True, type="c", major=1, minor=11, access="wm"))))
    assert ask() == ["yes", "yes", "Operation", "yes"]
    group.apply(Resources(devices=(DeviceCgroup(allow=True),)))
    assert ask() == ["yes"] * 4


def freezing_freezes(group: Group) -> None:
    """A process that answers stays silent, and the time of one that spins stands still."""
    with inside(group, "while True: pass") as spinner:
        wait_for(lambda: group.stats()["cpu"]["usage"]["total"] > 20_000_000)
        group.freeze()
        before = group.stats()["cpu"]["usage"]["total"]
        time.sleep(0.2)
        assert group.stats()["cpu"]["usage"]["total"] - before < 5_000_000, "it still runs"
        group.thaw()
        wait_for(lambda: group.stats()["cpu"]["usage"]["total"] > before + 20_000_000)
        spinner.kill()
    with inside(group, "import os\nwhile True:\n  os.write(1, b'x'); os.read(0, 1)") as program:
        assert program.stdout is not None and program.stdin is not None
        assert os.read(program.stdout.fileno(), 10) == b"x"
        assert not group.frozen()
        group.freeze()
        assert group.frozen()
        program.stdin.write(b"y")
        program.stdin.flush()
        os.set_blocking(program.stdout.fileno(), False)
        time.sleep(0.1)
        assert program.stdout.read() is None, "it still runs"
        group.thaw()
        assert not group.frozen()
        wait_for(lambda: program.stdout.read() == b"x")  # type: ignore[union-attr]
        group.freeze()
        group.kill(signal.SIGKILL)  # a frozen one dies too
        assert program.wait(10) == -signal.SIGKILL


@contextlib.contextmanager
def loop_device(size: int) -> Iterator[str]:
    """A block device of our own, gone with its last descriptor (LOOP_CONFIGURE with LO_FLAGS_AUTOCLEAR)."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
    except OSError as error:
        raise NotHere(f"there are no loop devices: /dev/loop-control: {error.strerror}") from None
    content = os.memfd_create("content")
    os.ftruncate(content, size)
    for left in range(20, -1, -1):
        path = f"/dev/loop{fcntl.ioctl(control, 0x4C82)}"  # LOOP_CTL_GET_FREE
        device = os.open(path, os.O_RDWR)
        try:
            fcntl.ioctl(device, 0x4C0A, struct.pack("=2I52xI", content, 4096, 4).ljust(304, b"\0"))
            break
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY or not left:  # somebody was quicker
                raise
    os.close(control)
    os.close(content)
    try:
        yield path
    finally:
        os.close(device)


TIMED = """
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page, began = mmap.mmap(-1, 262144), time.monotonic()
for _ in range(6): getattr(os, sys.argv[2])(file, [page])
print(time.monotonic() - began)
"""


def input_and_output_are_throttled(group: Group) -> None:
    """1.5 MiB at a MiB a second, both ways: the lower bound holds on any machine."""
    with loop_device(2 * MIB) as path:
        device = os.stat(path).st_rdev
        for call in ("readv", "writev"):
            limit = (ThrottleDevice(os.major(device), os.minor(device), MIB),)
            group.apply(Resources(blockIO=BlockIO(throttleReadBpsDevice=limit if call == "readv" else (),
                                                  throttleWriteBpsDevice=limit if call == "writev" else ())))  # fmt: skip
            with inside(group, TIMED, path, call) as program:
                assert program.stdout is not None
                taken = float(program.stdout.read())
            print(f"   {call}: 1.5 MiB in {taken:.2f} s with 1 MiB/s", flush=True)
            assert taken > 1.0, (call, taken)
        served = group.stats()["blkio"]["ioServiceBytesRecursive"]
        for name in ("Read", "Write"):
            assert sum(each["value"] for each in served if each["op"] == name and each["minor"] == os.minor(device)
                       and each["major"] == os.major(device)) >= 6 << 18, served  # fmt: skip


HUGE = """
import mmap
taken = []
for _ in range(3):
    try:
        taken.append(mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))  # MAP_HUGETLB
        taken[-1][0] = 1
    except OSError: break
print(len(taken))
"""


def huge_pages_are_counted(group: Group) -> None:
    spare = "/proc/sys/vm/nr_overcommit_hugepages"
    if not os.path.exists("/sys/kernel/mm/hugepages/hugepages-2048kB"):
        raise NotHere("this kernel has no huge pages of 2 MiB")
    with open(spare) as file:
        before = file.read()
    try:
        with open(spare, "w") as file:
            file.write(str(int(before) + 4))
        for limit, expected in ((1, b"1"), (2, b"2"), (4, b"3")):
            group.apply(Resources(hugepageLimits=(HugepageLimit("2MB", limit * 2 * MIB),)))
            with inside(group, HUGE) as program:
                assert program.stdout is not None
                assert program.stdout.read().strip() == expected
            assert group.stats()["hugetlb"]["2MB"]["usage"] == 0
    finally:
        with open(spare, "w") as file:
            file.write(before)


def everything_below_is_removed(group: Group) -> None:
    for directory in set(group.paths.values()):
        os.makedirs(f"{directory}/one/two")
    group.delete()
    group.delete()
    assert not any(os.path.exists(directory) for directory in group.paths.values())


def what_a_container_makes_below_is_found_and_removed(group: Group) -> None:
    """Deep, by names that no path could hold all of, with a process in the deepest that is frozen there."""
    deep = [key for key in ("freezer", "pids", "") if key in group.paths]
    with inside(group, "while True: pass") as program, ended(group):
        for key in deep:
            here = os.open(group.paths[key], os.O_RDONLY)
            for level in range(70):
                name = f"{level:0200}"
                os.mkdir(name, dir_fd=here)
                there = os.open(name, os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = there
            write(f"/proc/self/fd/{here}", "cgroup.procs", program.pid)
            for file, state in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
                with contextlib.suppress(OSError):
                    write(f"/proc/self/fd/{here}", file, state)
            os.close(here)
        assert group.processes() == [program.pid], group.processes()
        assert reopen(dict(group.paths)).populated()
        group.kill(signal.SIGKILL)
        assert program.wait(10) == -signal.SIGKILL
    group.delete()
    assert not any(os.path.exists(directory) for directory in group.paths.values())


# ---- what only the unified hierarchy does


def groups_with_processes_hand_nothing_down(group: Group) -> None:
    with inside(group, "input()") as program:
        below = reopen({"": group.paths[""] + "/below"})
        below.create()
        try:
            below.apply(Resources(memory=Memory(limit=MIB)))
            raise AssertionError("it was taken")
        except SpecError as error:
            assert "memory" in str(error) and "no internal processes" in str(error), error
        program.communicate(b"\n")


def who_comes_later_follows_the_first(group: Group) -> None:
    unified = group.paths[""]
    with inside(group, "input()") as first, inside(group, "input()") as second:
        os.mkdir(f"{unified}/init.scope")
        for program in (first, second):
            write(f"{unified}/init.scope", "cgroup.procs", program.pid)
        write(unified, "cgroup.subtree_control", "+pids")
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as late:
            group.join(late.pid)
            assert late.pid in group.processes()
            assert read(f"{unified}/init.scope", "cgroup.procs").split()[-1] == str(late.pid)
            group.kill(signal.SIGKILL)
            assert late.wait(10) == -signal.SIGKILL


def unified_keys_are_written(group: Group) -> None:
    group.apply(Resources(unified={"memory.high": "16777216", "cpu.weight": "17", "cgroup.max.depth": "3"}))
    unified = group.paths[""]
    assert [read(unified, name) for name in ("memory.high", "cpu.weight", "cgroup.max.depth")] == ["16777216", "17", "3"]
    for name, said in (("memory/high", "names of files"), ("nosuch.max", "controller `nosuch` is not available")):
        try:
            group.apply(Resources(unified={name: "1"}))
            raise AssertionError(name)
        except SpecError as error:
            assert said in str(error), error


def a_swap_of_zero_alone_means_none(group: Group) -> None:
    unified = group.paths[""]
    group.apply(Resources(memory=Memory(limit=MIB, swap=0)))
    assert read(unified, "memory.swap.max") == "max"
    group.apply(Resources(memory=Memory(swap=0)))
    assert read(unified, "memory.swap.max") == "0"


def what_v2_lacks_is_refused(group: Group) -> None:
    for resources in (Resources(memory=Memory(swappiness=10)), Resources(memory=Memory(disableOOMKiller=True)),
                      Resources(cpu=Cpu(realtimeRuntime=1000))):  # fmt: skip
        try:
            group.apply(resources)
            raise AssertionError(resources)
        except SpecError as error:
            assert "unified hierarchy" in str(error)


BEHAVIOURS: tuple[Callable[[Group], None], ...] = (
    a_memory_hog_is_killed, limits_are_raised_and_lowered, a_quota_holds, a_fork_bomb_stops, devices_are_refused,
    freezing_freezes, input_and_output_are_throttled, huge_pages_are_counted, everything_below_is_removed,
    what_a_container_makes_below_is_found_and_removed,
)  # fmt: skip


def a_user_limits_what_was_delegated(group: Group) -> None:
    """Rootless: a subtree that belongs to the user; its first level holds no process (cgroup-v2.rst, "Delegation")."""
    base = group.paths[""]
    write(base, "cgroup.subtree_control", "+memory +pids")
    own = f"{base}/user"
    os.mkdir(own)
    os.mkdir(f"{own}/session")
    for place_ in (own, f"{own}/cgroup.procs", f"{own}/cgroup.subtree_control", f"{own}/session", f"{own}/session/cgroup.procs"):
        os.chown(place_, 1000, 1000)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            write(f"{own}/session", "cgroup.procs", os.getpid())
            os.setgid(1000)
            os.setuid(1000)
            mine = place("", "mine", rootless=True)
            assert mine.paths == {"": f"{own}/mine"}, mine.paths
            mine.create()
            mine.apply(Resources(memory=Memory(limit=16 * MIB), pids=Pids(limit=5), devices=(DENY_ALL,)))
            assert mine.stats()["memory"]["usage"]["limit"] == 16 * MIB
            try:
                mine.apply(Resources(cpu=Cpu(shares=100)))
                raise AssertionError("the cpu controller was not delegated")
            except SpecError as error:
                assert "the cpu controller" in str(error), error
            mine.join(os.getpid())
            assert mine.processes() == [os.getpid()]
            write(f"{own}/session", "cgroup.procs", os.getpid())
            mine.delete()
            assert not place("/elsewhere", "x", rootless=True).paths
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


UNIFIED: tuple[Callable[[Group], None], ...] = (
    groups_with_processes_hand_nothing_down, who_comes_later_follows_the_first, unified_keys_are_written,
    a_swap_of_zero_alone_means_none, what_v2_lacks_is_refused, a_user_limits_what_was_delegated,
)  # fmt: skip


def main() -> int:
    """In the guest: every behaviour, a line each."""
    import traceback

    failed = 0
    for each in BEHAVIOURS + UNIFIED:
        try:
            with new_group(each.__name__.replace("_", "-")) as group:
                each(group)
            print(f"== {each.__name__} holds", flush=True)
        except NotHere as error:
            print(f"== {each.__name__} cannot be seen: {error}", flush=True)
        except Exception:
            failed += 1
            print(f"== {each.__name__} FAILS\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
