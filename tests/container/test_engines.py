"""podman, Docker and containerd with xuni-oci as their runtime: what they do with runc, they do with it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import engines
from tests.container.bundle import needs_busybox
from tests.container.engines import Engine

pytestmark = [pytest.mark.long, pytest.mark.timeout(300), needs_busybox]
FIRST = "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.1; done"
HOG = "a=x; while :; do a=$a$a$a$a; done"


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with getattr(engines, request.param)() as made:
        yield made


@pytest.fixture(scope="module")
def podman() -> Iterator[Engine]:
    with engines.podman() as made:
        yield made


@pytest.fixture
def rootless() -> Iterator[Engine]:
    with engines.podman_without_root() as made:
        yield made


@pytest.fixture(scope="module")
def ctr() -> Iterator[Engine]:
    with engines.containerd() as made:
        yield made


def typed(engine: Engine, *words: str) -> tuple[int, str]:
    """A command at a terminal: its exit status, and what was seen."""
    master, slave = pty.openpty()
    with subprocess.Popen([*engine.box.enter, *engine.command, *words], stdin=slave, stdout=slave, stderr=slave,
                          env=engine.box.environment, start_new_session=True) as process:  # fmt: skip
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):
            while piece := os.read(master, 4096):
                seen += piece
        os.close(master)
        return process.wait(engines.SECONDS), seen.decode(errors="replace")


def until(engine: Engine, said: str, *words: str) -> str:
    end = time.monotonic() + engines.SECONDS
    while said not in (found := engine(*words).stdout):
        assert time.monotonic() < end, f"{words}: {found!r}"
        time.sleep(0.1)
    return found


# ---- podman and Docker: the same verbs


def test_output_input_and_status(engine: Engine) -> None:
    done = engine.run("--rm", "-i", "-e", "A=b", "-w", "/tmp", "-u", "12:34", "busybox",
                      "sh", "-c", "cat; echo $A $PWD $(id -u) $(id -g); echo no >&2; exit 7", stdin="from here\n")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "from here\nb /tmp 12 34\n", "no\n")


def test_programs_that_cannot_be_executed(engine: Engine) -> None:
    """The engines read the runtime's words, and make docker's exit statuses of them."""
    for program, status in (("nosuch", 127), ("/no/such", 127), ("/etc", 126)):
        assert engine.run("--rm", "busybox", program).returncode == status, program


def test_a_life(engine: Engine, tmp_path: Path) -> None:
    done = engine.run("-d", "--name", "life", "busybox", "sh", "-c", FIRST)
    assert done.returncode == 0, done.stderr
    until(engine, "begun", "logs", "life")
    done = engine("exec", "-i", "-e", "A=b", "-w", "/tmp", "life", "sh", "-c", "cat; echo $A $PWD; exit 9", stdin="in\n")
    assert (done.returncode, done.stdout) == (9, "in\nb /tmp\n")
    assert engine("exec", "life", "nosuch").returncode in (126, 127)
    assert engine("exec", "-d", "life", "touch", "/tmp/detached").returncode == 0
    until(engine, "detached", "exec", "life", "ls", "/tmp")
    assert "sleep" in engine("top", "life").stdout
    assert "life" in engine("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "life").stdout
    assert engine("pause", "life").returncode == 0
    assert "aused" in engine("ps", "-a", "--format", "{{.Status}}").stdout
    assert engine("exec", "life", "true").returncode != 0 and engine("unpause", "life").returncode == 0
    (tmp_path / "file").write_text("copied")
    assert engine("cp", str(tmp_path / "file"), "life:/tmp/").returncode == 0
    assert engine("exec", "life", "cat", "/tmp/file").stdout == "copied"
    assert engine("inspect", "-f", "{{.State.Status}}", "life").stdout == "running\n"
    assert engine("stop", "-t", "20", "life").returncode == 0
    assert engine("wait", "life").stdout == "3\n" and engine("logs", "life").stdout == "begun\nbye\n"
    assert engine("start", "life").returncode == 0 and engine("restart", "-t", "0", "life").returncode == 0
    assert engine("kill", "life").returncode == 0 and engine("wait", "life").stdout == "137\n"
    assert engine("rm", "life").returncode == 0


def test_terminals(engine: Engine) -> None:
    apart = [*engine.runtime, "--network", "none"]
    status, seen = typed(engine, "run", "--rm", "-it", *apart, "busybox", "sh", "-c", "tty; exit 5")
    assert status == 5 and "/dev/pts/0" in seen
    engine.run("-d", "--name", "terminal", "busybox", "sleep", "1000")
    status, seen = typed(engine, "exec", "-it", "terminal", "sh", "-c", "tty; exit 6")
    assert status == 6 and "/dev/pts/" in seen
    assert engine("rm", "-f", "terminal").returncode == 0


def test_limits(engine: Engine) -> None:
    engine.run("-d", "--name", "hog", "-m", "32m", "--memory-swap", "32m", "busybox", "sh", "-c", HOG)
    assert engine("wait", "hog").stdout == "137\n"
    if engine.command[0] == "docker":  # podman's monitor does not see it where control groups are of both versions
        assert engine("inspect", "-f", "{{.State.OOMKilled}}", "hog").stdout == "true\n"
    bomb = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>&1; wait"
    done = engine.run("--rm", "--pids-limit", "5", "busybox", "sh", "-c", bomb)
    assert "can't fork" in done.stdout + done.stderr
    script = "cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; grep Cpus_allowed_list /proc/1/status"
    done = engine.run("--rm", "--cpus", "0.5", "--cpuset-cpus", "0", "busybox", "sh", "-c", script)
    assert "50000" in done.stdout and "Cpus_allowed_list:\t0\n" in done.stdout
    assert engine("rm", "hog").returncode == 0


def test_volumes_and_what_is_hidden(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    script = "cat /v/file; touch /t/x && echo written; touch /v/x; touch /x; ls /sys/firmware; cat /proc/kcore"
    done = engine.run("--rm", "-v", f"{tmp_path}:/v:ro", "--tmpfs", "/t", "--read-only", "busybox", "sh", "-c", script)
    assert done.stdout == "of the host\nwritten\n" and done.stderr.count("Read-only file system") == 2
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_published_port(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("the page")
    done = engine.run("-d", "--name", "web", "-p", "18080:80", "-v", f"{tmp_path}:/www:ro", "busybox",
                      "httpd", "-f", "-h", "/www", network="bridge")  # fmt: skip
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + engines.SECONDS
    while (done := engine.box(str(engines.BUSYBOX), "wget", "-q", "-O", "-", "http://127.0.0.1:18080/")).returncode:
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)
    assert done.stdout == "the page"
    assert engine("rm", "-f", "web").returncode == 0


# ---- podman's own


def test_a_health_check(podman: Engine) -> None:
    podman.run("-d", "--name", "sick", "--health-cmd", "test -f /tmp/well", "--health-interval", "disable", "busybox",
               "sleep", "1000")  # fmt: skip
    assert podman("healthcheck", "run", "sick").returncode == 1
    podman("exec", "sick", "touch", "/tmp/well")
    assert podman("healthcheck", "run", "sick").returncode == 0
    assert podman("inspect", "-f", "{{.State.Health.Status}}", "sick").stdout == "healthy\n"
    assert podman("rm", "-f", "-t", "0", "sick").returncode == 0


def test_attach(podman: Engine) -> None:
    podman.run("-d", "-i", "--name", "held", "busybox", "sh", "-c", "read word; echo got $word; exit 4")
    done = podman("attach", "held", stdin="this\n")
    assert done.stdout.startswith("got this\n") and podman("wait", "held").stdout == "4\n"
    assert podman("rm", "held").returncode == 0


def test_a_pod(podman: Engine) -> None:
    """Containers that enter one another's namespaces, by way of a first one that does nothing."""
    pod = ["--cgroup-parent", podman.box.parent, "--network", "none", "--share", "ipc,net,uts,pid"]
    done = podman("pod", "create", "--name", "pod", "--infra-image", "busybox", "--infra-command", "sleep 1000", *pod)
    assert done.returncode == 0, done.stderr
    done = podman("run", "-d", "--pod", "pod", "--name", "first", "busybox", "httpd", "-f", "-h", "/etc")
    assert done.returncode == 0, done.stderr
    done = podman("run", "--rm", "--pod", "pod", "busybox", "sh", "-c", "hostname; ps; wget -q -O - 127.0.0.1/hostname")
    assert done.returncode == 0 and done.stdout.startswith("pod\n") and "httpd" in done.stdout, done
    assert podman("pod", "pause", "pod").returncode == 0 and podman("pod", "unpause", "pod").returncode == 0
    podman("pod", "rm", "-f", "-t", "0", "pod")  # fails with runc, too, where control groups are of both versions
    assert podman("ps", "-aq").stdout == ""


def test_a_user_namespace(podman: Engine) -> None:
    done = podman.run("--rm", "--uidmap", "0:100000:65536", "busybox", "sh", "-c", "id -u; cat /proc/self/uid_map")
    assert done.stdout.split() == ["0", "0", "100000", "65536"], done


def test_without_root(rootless: Engine) -> None:
    none = ("--network", "none")
    done = rootless("run", "--rm", *none, "busybox", "sh", "-c", "id -u; cat /proc/self/uid_map; exit 5")
    assert done.returncode == 5 and done.stdout.split()[:5] == ["0", "0", str(engines.UID), "1", "1"], done
    done = rootless("run", "--rm", "--network", "host", "--userns", "keep-id", "busybox", "id", "-u")
    assert done.stdout == f"{engines.UID}\n", done
    done = rootless("run", "-d", "--name", "life", *none, "busybox", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    assert rootless("exec", "life", "sh", "-c", "exit 9").returncode == 9
    assert rootless("stop", "-t", "0", "life").returncode == 0 and rootless("rm", "life").returncode == 0


# ---- containerd's `ctr`


def ctr_run(ctr: Engine, name: str, *words: str, options: tuple[str, ...] = ()) -> engines.Done:
    group = ("--cgroup", f"{ctr.box.parent}/{name}")
    return ctr("run", *ctr.runtime, *group, *options, "busybox:latest", name, *words)


def test_ctr_run(ctr: Engine) -> None:
    done = ctr_run(ctr, "one", "sh", "-c", "echo out; exit 7", options=("--rm",))
    assert (done.returncode, done.stdout) == (7, "out\n")
    done = ctr_run(ctr, "two", "nosuch", options=("--rm",))
    assert done.returncode == 1 and "executable file not found" in done.stderr
    options = ("--rm", "--read-only", "--memory-limit", "33554432", "--seccomp", "--cap-drop", "CAP_CHOWN")
    done = ctr_run(ctr, "three", "sh", "-c", "touch /x; " + HOG, options=options)
    assert done.returncode == 137 and "Read-only file system" in done.stderr
    assert ctr("container", "ls", "-q").stdout == ""


def test_a_task_of_containerd(ctr: Engine) -> None:
    done = ctr_run(ctr, "task", "sh", "-c", FIRST, options=("-d",))
    assert done.returncode == 0, done.stderr
    done = ctr("task", "exec", "--exec-id", "one", "--cwd", "/tmp", "task", "sh", "-c", "cat; pwd; exit 9", stdin="in\n")
    assert (done.returncode, done.stdout) == (9, "in\n/tmp\n")
    status, seen = typed(ctr, "task", "exec", "-t", "--exec-id", "two", "task", "sh", "-c", "tty; exit 6")
    assert status == 6 and "/dev/pts/" in seen
    assert ctr("task", "pause", "task").returncode == 0 and "PAUSED" in ctr("task", "ls").stdout
    assert ctr("task", "resume", "task").returncode == 0 and "RUNNING" in ctr("task", "ls").stdout
    used = json.loads(ctr("task", "metrics", "--format", "json", "task").stdout)
    assert used["pids"]["current"] >= 1
    assert ctr("task", "ps", "task").stdout.count("\n") >= 2
    assert ctr("task", "kill", "-s", "TERM", "task").returncode == 0
    until(ctr, "STOPPED", "task", "ls")
    assert "exit code 3" in ctr("task", "delete", "task").stderr
    assert ctr("container", "rm", "task").returncode == 0
