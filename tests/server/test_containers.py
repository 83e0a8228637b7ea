"""Containers of the everyday command, on every OCI runtime that is here. Takes root, control groups, and a guest's BusyBox."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xuni.container.cgroup import hierarchy
from xuni.guest import catalogue
from xuni.host.linux.kernel import Linux
from xuni.image import archive
from xuni.image.content import Store

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0 or not any(hierarchy.writable(f"{each.point}/xuni") for each in hierarchy.mounted()),
                       reason="this host has no root or no control groups that we may make groups in"),
]  # fmt: skip
RUNC = (pytest.mark.long, pytest.mark.skipif(not shutil.which("runc"), reason="this host has no runc"))
VERSION_1_ALONE = """
set -e; top=$(mktemp -d); mount -t tmpfs none $top; cd /sys/fs/cgroup
for each in */; do [ -e $each/tasks ] && mkdir $top/$each && mount --rbind $each $top/$each; done
mount --move $top /sys/fs/cgroup; rmdir $top; exec "$@"
"""
RUNTIMES = ["xuni", pytest.param("runc", marks=RUNC)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with an image of BusyBox."""
    data = tmp_path_factory.mktemp("data")
    program = catalogue.folder(catalogue.ensure("debian").name) / "busybox"
    tree = data / "busybox.tar"
    with tarfile.open(tree, "w") as made:
        for folder in ("bin", "etc", "tmp", "root", "dev", "proc", "sys"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            made.addfile(member)
        member = tarfile.TarInfo("bin/busybox")
        member.size, member.mode = program.stat().st_size, 0o755
        with open(program, "rb") as content:
            made.addfile(member, content)
        for name in ("sh", "sleep", "cat", "id", "echo", "true", "kill", "head", "tty", "wget", "httpd", "ls"):
            member = tarfile.TarInfo(f"bin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            made.addfile(member)
    with open(tree, "rb") as file:
        archive.from_tar(Store(data / "xuni"), file, "busybox", {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
    return data


Say = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def say(image: Path) -> Iterator[Say]:
    environment = {**os.environ, "XDG_DATA_HOME": str(image)}

    def run(*words: str, stdin: str | None = None, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*before, sys.executable, "-m", "xuni", *words]
        return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False,
                              **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}))  # type: ignore[call-overload,no-any-return]

    yield run
    for each in run("ps", "-aq", "--no-trunc").stdout.split():
        run("rm", "-f", each)
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(image) in line]
    with contextlib.suppress(FileNotFoundError):
        assert not [each for each in (image / "xuni/containers").iterdir() if each.name != ".lock"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_output_input_and_status(say: Say, runtime: str) -> None:
    done = say("run", "--rm", "-i", "--runtime", runtime, "--network", "none", "-e", "A=b", "busybox",
               "sh", "-c", "cat; echo $A $HOSTNAME; echo no >&2; exit 7", stdin="from here\n")  # fmt: skip
    assert done.returncode == 7 and done.stderr == "no\n"
    first, second = done.stdout.splitlines()
    assert first == "from here" and second.startswith("b ") and len(second) == 14


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_life(say: Say, runtime: str, tmp_path: Path) -> None:
    script = "echo out; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"
    made = say("run", "-d", "--runtime", runtime, "--name", "life", "--network", "none", "busybox", "sh", "-c", script)
    assert len(made.stdout.strip()) == 64, made.stderr
    assert say("run", "--rm", "--name", "life", "--network", "none", "busybox", "true").returncode == 125
    assert "Up" in say("ps").stdout
    done = say("exec", "-e", "X=y", "life", "sh", "-c", "echo $X; exit 5")
    assert (done.stdout, done.returncode) == ("y\n", 5)
    assert say("exec", "life", "nosuch").returncode == 127 and say("exec", "life", "/etc").returncode == 126
    done = say("exec", "-u", "7:8", "-w", "/tmp", "life", "sh", "-c", "id -u; id -G; pwd; exit 1")
    assert (done.stdout, done.returncode) == ("7\n8\n/tmp\n", 1)
    assert say("update", "-m", "64m", "--pids-limit", "9", "life").returncode == 0
    assert say("rename", "life", "lives").returncode == 0 and say("rename", "lives", "life").returncode == 0
    assert say("pause", "life").stdout == "life\n" and "(Paused)" in say("ps").stdout
    assert json.loads(say("inspect", "life").stdout)[0]["State"]["Status"] == "paused"
    assert say("unpause", "life").returncode == 0
    (tmp_path / "file").write_text("copied")
    assert say("cp", str(tmp_path / "file"), "life:/tmp/").returncode == 0
    assert say("exec", "life", "cat", "/tmp/file").stdout == "copied"
    (tmp_path / "mine/file").mkdir(parents=True)
    (tmp_path / "mine/file/kept").write_text("")
    (tmp_path / "mine/.wh.kept").write_text("just a name")
    refused = say("cp", "life:/tmp/file", str(tmp_path / "mine"))
    assert refused.returncode == 1 and "is a directory" in refused.stderr and (tmp_path / "mine/file/kept").exists()
    assert say("exec", "life", "sh", "-c", "echo > /tmp/kept").returncode == 0
    assert say("cp", str(tmp_path / "mine/.wh.kept"), "life:/tmp/").returncode == 0
    assert say("exec", "life", "cat", "/tmp/kept", "/tmp/.wh.kept").stdout == "\njust a name"
    assert say("cp", f"{tmp_path}/mine/.", "life:/tmp/new").returncode == 0  # which is not there yet
    assert say("cp", f"{tmp_path}/mine/.", "life:/tmp/new").returncode == 0
    assert say("exec", "life", "ls", "-A", "/tmp/new").stdout == ".wh.kept\nfile\n"
    (tmp_path / "there").mkdir()
    assert say("cp", "life:/tmp/new/.", str(tmp_path / "there")).returncode == 0
    assert sorted(each.name for each in (tmp_path / "there").iterdir()) == [".wh.kept", "file"]
    assert "sleep" in say("top", "life").stdout
    (usage,) = json.loads(say("stats", "--json", "life").stdout)
    assert usage["processes"] >= 1 and usage["cpu_percent"] < 150
    assert say("rm", "life").returncode == 1
    assert say("stop", "life").returncode == 0
    assert say("logs", "life").stdout == "out\nbye\n"
    assert json.loads(say("inspect", "life").stdout)[0]["State"]["ExitCode"] == 3
    assert say("cp", "life:/tmp/file", str(tmp_path / "back")).returncode == 0 and (tmp_path / "back").read_text() == "copied"
    assert json.loads(say("inspect", "life").stdout)[0]["Config"]["memory"] == 64 << 20  # noted by whoever attended it, too
    assert say("start", "life").returncode == 0 and say("exec", "life", "cat", "/tmp/file").stdout == "copied"
    assert say("kill", "life").returncode == 0 and say("wait", "life").stdout == "137\n"
    assert say("rm", "life").stdout == "life\n" and say("ps", "-aq").stdout == ""


def test_limits_are_in_force(say: Say) -> None:
    """Each by what happens: too much memory is death, the ninth process is refused."""
    hog = "a=x; while :; do a=$a$a$a$a; done"
    done = say("run", "--name", "hog", "--network", "none", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", hog)
    assert done.returncode == 137, done
    assert json.loads(say("inspect", "hog").stdout)[0]["State"]["OOMKilled"] is True
    bomb = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done 2>&1; wait"
    done = say("run", "--rm", "--network", "none", "--pids-limit", "5", "busybox", "sh", "-c", bomb)
    assert "can't fork" in done.stdout + done.stderr


def test_limits_of_ours(say: Say) -> None:
    """Nothing is asked for that we may not give; what a user asks for beyond it is refused, with the rule."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = say("run", "--rm", "--network", "none", "busybox", "sh", "-c", "ulimit -Hn")
    assert done.stdout.strip() in (str(hard), "unlimited"), done.stderr
    show = "ulimit -n; ulimit -Hn"
    done = say("run", "--rm", "--network", "none", "--ulimit", f"nofile=100:{hard - 1}", "busybox", "sh", "-c", show)
    assert done.stdout.split() == ["100", str(hard - 1)], done.stderr
    if hard == resource.RLIM_INFINITY or Linux().capget()[0] >> 24 & 1:
        pytest.skip("this caller may set limits as it likes (CAP_SYS_RESOURCE, or no limit)")
    done = say("run", "--rm", "--network", "none", "--ulimit", f"nofile={hard + 1}", "busybox", "true")
    assert done.returncode not in (0, 1) and "CAP_SYS_RESOURCE" in done.stderr and f"hard={hard + 1}" in done.stderr, done.stderr


def test_refusals(say: Say) -> None:
    for words, status, said in (
        (("nosuchimage",), 125, "there is no image nosuchimage:latest"),
        (("busybox", "nosuchprogram"), 127, "nosuchprogram"),
        (("busybox", "/etc"), 126, "/etc"),
        (("-v", "/nosuchplace:/x", "busybox", "true"), 125, "/nosuchplace is not there"),
        (("-u", "nobody-here", "busybox", "true"), 125, "no user 'nobody-here'"),
        (("--runtime", "nosuchruntime", "busybox", "true"), 125, "there is no such program"),
        (("--cpuset-cpus", "900", "busybox", "true"), 125, "cpuset"),
    ):
        done = say("run", "--rm", "--network", "none", *words)
        assert done.returncode == status and said in done.stderr, (words, done)
    assert say("ps", "-aq").stdout == ""


@pytest.mark.timeout(60)
def test_a_terminal(image: Path) -> None:
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "xuni", "run", "--rm", "-it", "--network", "none", "busybox", "sh"],
                               stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "XDG_DATA_HOME": str(image)},
                               start_new_session=True)  # fmt: skip
    os.close(slave)
    os.write(master, b"tty; exit 4\n")
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(master, 4096):
            seen += piece
    os.close(master)
    assert process.wait(30) == 4 and b"/dev/pts/0" in seen


def test_a_bridge_with_a_published_port(say: Say, tmp_path: Path) -> None:
    """In a network namespace of our own, so that the host's rules and interfaces are not touched."""
    for tool in ("ip", "nft", "nsenter", "unshare"):
        if not shutil.which(tool):
            pytest.skip(f"this host has no {tool}")
    with subprocess.Popen(["unshare", "-n", "sleep", "100"]) as holder:
        try:
            for _ in range(500):
                if os.readlink(f"/proc/{holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"):
                    break
                time.sleep(0.01)
            inside = ("nsenter", "-t", str(holder.pid), "-n")
            (tmp_path / "index.html").write_text("the page")
            done = say("run", "-d", "--name", "web", "-p", "8080:80", "-v", f"{tmp_path}:/www:ro", "busybox",
                       "httpd", "-f", "-h", "/www", before=inside)  # fmt: skip
            assert done.returncode == 0, done.stderr
            done = say("run", "--rm", "-p", "8080:80", "busybox", "true", before=inside)
            assert done.returncode == 125 and "has this port already" in done.stderr
            listen = "import socket, time; made = socket.create_server(('', 8081)); print('there', flush=True); time.sleep(60)"
            with subprocess.Popen([*inside, sys.executable, "-c", listen], stdout=subprocess.PIPE) as other:
                assert other.stdout and other.stdout.readline() == b"there\n"
                done = say("run", "--rm", "-p", "8081:80", "busybox", "true", before=inside)
                assert done.returncode == 125 and "another program of this host has this port" in done.stderr
                other.kill()
            address = json.loads(say("inspect", "web").stdout)[0]["NetworkSettings"]["IPAddress"]
            gateway = address.rpartition(".")[0] + ".1"
            for url in (f"http://{address}/", f"http://{gateway}:8080/"):
                done = say("run", "--rm", "busybox", "wget", "-q", "-O", "-", url, before=inside)
                assert done.stdout == "the page", done.stderr
            fetched = subprocess.run([*inside, sys.executable, "-c", "import urllib.request as u, sys\n"
                                      "print(u.urlopen('http://127.0.0.1:8080/', timeout=10).read().decode(), end='')"],
                                     capture_output=True, text=True, check=False)  # fmt: skip
            assert fetched.stdout == "the page", fetched.stderr
            done = say("run", "--rm", "--add-host", "db:10.0.0.5", "busybox", "sh", "-c",
                       "wget -q -O - http://web/; cat /etc/hosts /etc/resolv.conf", before=inside)  # fmt: skip
            assert done.stdout.startswith("the page") and "10.0.0.5\tdb\n" in done.stdout, done
            assert "nameserver 127.0.0.11\n" in done.stdout
            assert say("rm", "-f", "web", before=inside).returncode == 0
            assert "xuni0" not in subprocess.run([*inside, "ip", "link"], capture_output=True, text=True, check=True).stdout
            assert subprocess.run([*inside, "nft", "list", "tables"], capture_output=True, text=True, check=True).stdout == ""
        finally:
            holder.kill()


def test_restart_policies(say: Say) -> None:
    none = ("--network", "none")
    say("run", "-d", "--name", "fails", "--restart", "on-failure:2", *none, "busybox", "sh", "-c", "echo turn; exit 3")
    assert say("wait", "fails").stdout == "3\n" and say("logs", "fails").stdout == "turn\n" * 3
    assert json.loads(say("inspect", "fails").stdout)[0]["RestartCount"] == 2
    say("run", "-d", "--name", "again", "--restart", "always", *none, "busybox", "sh", "-c", "echo turn")
    deadline = time.monotonic() + 30
    while say("logs", "again").stdout.count("turn") < 3:
        assert time.monotonic() < deadline
    assert say("rm", "again").returncode == 1 and say("stop", "again").returncode == 0
    assert "Exited" in say("ps", "-a").stdout and say("rm", "again", "fails").returncode == 0
    refused = say("run", "--rm", "--restart", "always", *none, "busybox", "true")
    assert refused.returncode == 125 and "one of the two" in refused.stderr


def test_crun(say: Say) -> None:
    """It works, or it says why it does not: control groups of both versions are nothing for it."""
    if not shutil.which("crun"):
        pytest.skip("this host has no crun")
    words = ("run", "--rm", "--runtime", "crun", "--network", "none", "-m", "64m", "busybox", "sh", "-c", "echo out; exit 7")
    done, before = say(*words), ()
    if done.returncode == 125:
        assert "which `--runtime xuni` and runc work with" in done.stderr, done
        before = ("unshare", "-m", "--propagation", "private", "sh", "-c", VERSION_1_ALONE, "sh")
        done = say(*words, before=before)
    assert (done.returncode, done.stdout) == (7, "out\n"), done
    assert say("run", "-d", "--name", "theirs", *words[2:-3], "sleep", "100", before=before).returncode == 0
    assert say("exec", "theirs", "sh", "-c", "exit 9", before=before).returncode == 9
    assert say("exec", "theirs", "nosuch", before=before).returncode == 127
    assert say("stop", "-t", "0", "theirs", before=before).returncode == 0
    assert say("rm", "theirs", before=before).returncode == 0


def test_volumes(say: Say, image: Path) -> None:
    """A new one has what the image has; it outlives its containers, and goes when it is told to."""
    none = ("--network", "none")
    assert say("run", "--rm", *none, "-v", "kept:/bin", "busybox", "sh", "-c", "echo mine > /bin/mine").returncode == 0
    done = say("create", "--name", "reader", *none, "-v", "kept:/v:ro", "-v", "/nameless", "busybox",
               "sh", "-c", "cat /v/mine; ls /v/busybox; echo > /v/x; ls -d /nameless")  # fmt: skip
    assert done.returncode == 0 and "Created" in say("ps", "-a").stdout
    done = say("start", "-a", "reader")
    assert done.stdout == "mine\n/v/busybox\n/nameless\n" and "Read-only" in done.stderr
    refused = say("volume", "rm", "kept")
    assert refused.returncode == 1 and "in use by reader" in refused.stderr
    assert len(json.loads(say("volume", "ls", "--json").stdout)) == 2
    assert say("rm", "-v", "reader").returncode == 0 and say("volume", "ls", "-q").stdout == "kept\n"
    assert say("volume", "prune").stdout == "" and (image / "xuni/volumes/kept/_data/mine").read_text() == "mine\n"
    done = say("run", "--rm", *none, "--userns", "auto", "-v", "kept:/v", "busybox", "sh", "-c", "cat /v/mine; echo > /v/two")
    assert done.stdout == "mine\n" and (image / "xuni/volumes/kept/_data/two").stat().st_uid == 0, done
    assert say("volume", "rm", "kept").stdout == "kept\n" and say("volume", "ls", "-q").stdout == ""


def test_options(say: Say, tmp_path: Path) -> None:
    script = ("ulimit -n; cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj; id -G; ls /dev/zero2; "
              "cat /proc/self/status; cat /t/x /h")  # fmt: skip
    (tmp_path / "file").write_text("of the host\n")
    done = say("run", "--rm", "--network", "none", "--ulimit", "nofile=77", "--sysctl", "kernel.msgmax=4242",
               "--oom-score-adj", "321", "--group-add", "55", "--device", "/dev/zero:/dev/zero2",
               "--security-opt", "no-new-privileges", "--mount", f"type=bind,src={tmp_path}/file,dst=/h",
               "--tmpfs", "/t", "--cidfile", str(tmp_path / "id"),
               "busybox", "sh", "-c", script)  # fmt: skip
    assert done.stdout.startswith("77\n4242\n321\n") and " 55\n/dev/zero2\n" in done.stdout.replace("\n55", " 55"), done
    assert "NoNewPrivs:\t1" in done.stdout and done.stdout.endswith("of the host\n") and len((tmp_path / "id").read_text()) == 64
    say("run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "100")
    done = say("run", "--rm", "--network", "container:one", "--pid", "container:one", "--ipc", "container:one", "busybox",
               "sh", "-c", "kill -0 1 && echo $$")  # fmt: skip
    assert done.returncode == 0 and int(done.stdout) > 1
    assert say("rm", "-f", "one").returncode == 0


def test_attach_and_restart(say: Say) -> None:
    assert say("run", "-d", "-i", "--name", "held", "--network", "none", "busybox", "sh", "-c",
               "read word; echo got $word; cat; exit 4").returncode == 0  # fmt: skip
    done = say("attach", "held", stdin="this\nand that\n")
    assert (done.returncode, done.stdout) == (4, "got this\nand that\n")
    done = say("start", "-ai", "held", stdin="once more\n")
    assert (done.returncode, done.stdout) == (4, "got once more\n")
    assert say("restart", "held").stdout == "held\n" and "Up" in say("ps").stdout
    assert say("run", "--rm", "--network", "none", "busybox", "true").returncode == 0
    assert say("restart", "-t", "0", "held").returncode == 0 and say("rm", "-f", "held").returncode == 0
    assert say("attach", "held").returncode == 1


def test_a_monitor_that_was_killed(say: Say) -> None:
    """Its container goes on, and can be removed."""
    say("run", "-d", "--name", "orphan", "--network", "none", "busybox", "sleep", "100")
    found = json.loads(say("inspect", "orphan").stdout)[0]
    parent = int(Path(f"/proc/{found['State']['Pid']}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, 9)
    assert "Up" in say("ps").stdout
    assert say("rm", "-f", "orphan").returncode == 0
    assert not Path(f"/proc/{found['State']['Pid']}/root/bin").exists()
