"""The cache of compiled filters. What filters do is tested with live containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xuni.container import seccomp
from xuni.container.record import decode
from xuni.container.spec import Seccomp
from xuni.host.linux import libseccomp

try:
    libseccomp.Library()
except libseccomp.SeccompMissing as error:
    pytest.skip(str(error), allow_module_level=True)

NAMES = """accept accept4 access adjtimex alarm bind brk capget capset chdir chmod chown clone clone3 close close_range connect
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd eventfd2 execve execveat exit exit_group
faccessat fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fstat fstatfs
fsync ftruncate futex getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getpeername getpgid getpid getppid
getpriority getrandom getrlimit getrusage""".split()


def profile(action: str = "SCMP_ACT_ALLOW") -> Seccomp:
    rules = [{"names": NAMES, "action": action}]
    return decode(Seccomp, {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules})


def test_a_long_filter_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    program = seccomp.kept_filter(profile(), str(cache))
    assert program == seccomp.compile_filter(profile())
    assert [each.read_bytes() for each in cache.iterdir()] == [program] and cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(seccomp, "compile_filter", lambda *_, **__: pytest.fail("compiled again"))
    assert seccomp.kept_filter(profile(), str(cache)) == program


def test_another_profile_is_another_filter(tmp_path: Path) -> None:
    first = seccomp.kept_filter(profile(), str(tmp_path))
    assert seccomp.kept_filter(profile("SCMP_ACT_LOG"), str(tmp_path)) != first
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * (seccomp._LONGEST + 8)])
def test_a_damaged_file_is_not_taken(tmp_path: Path, content: bytes) -> None:
    program = seccomp.kept_filter(profile(), str(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert seccomp.kept_filter(profile(), str(tmp_path)) == program
    assert file.read_bytes() == program


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    program = seccomp.kept_filter(profile(), str(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\x06\0\0\0\0\0\xff\x7f")  # allows everything
    os.chown(file, 1, 1)
    assert seccomp.kept_filter(profile(), str(tmp_path)) == program


def test_the_cache_is_bounded_and_its_absence_is_fine(tmp_path: Path) -> None:
    for number in range(seccomp.KEPT + 3):
        (tmp_path / str(number)).write_bytes(b"")
    program = seccomp.kept_filter(profile(), str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert seccomp.kept_filter(profile(), str(tmp_path / "no/such")) == program
    assert seccomp.kept_filter(profile(), "") == program
