"""apt is played by shell scripts, so that its failures can be had at will."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xuni.host import apt

SHOW = """Package: {name}
Version: 1.2-3
Depends: {depends}
Size: 4
SHA256: 00

Package: {name}
Version: 1.0
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake tools, in front of the real ones; each logs how it was called."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    tool(folder, "dpkg-deb", "exit 1")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >>"$LOG"\n{script}\n')
    path.chmod(0o755)


def offers(folder: Path, **packages: str) -> None:
    """`apt-cache show` knows these packages; the value is what they depend on."""
    shown = {name.replace("_", "-"): depends for name, depends in packages.items()}
    cases = "".join(f"{name}) cat <<'E'\n{SHOW.format(name=name, depends=depends)}E\n;;\n"
                    for name, depends in shown.items())
    tool(folder, "apt-cache", f'for last; do :; done\ncase "$last" in\n{cases}*) exit 100;;\nesac')


DELIVERS = 'for last; do :; done\ncase " $* " in *" download "*) echo deb >"${last%%=*}_1.2-3_amd64.deb";; esac'


def test_a_meta_package_stands_for_the_real_one(tools: Path, tmp_path: Path) -> None:
    offers(tools, linux_image_cloud="linux-image-6.1 (= 1.2-3) | other, libc6", linux_image_6="", libc6="")
    cache_show = (tools / "apt-cache").read_text().replace("linux-image-6)", "linux-image-6.1)")
    (tools / "apt-cache").write_text(cache_show.replace("Package: linux-image-6\n", "Package: linux-image-6.1\n"))
    tool(tools, "apt-get", DELIVERS)
    package, deb = apt.obtain(["linux-image-cloud"], tmp_path, lambda name: name.startswith("linux-image-"))
    assert (package.name, package.version, package.size) == ("linux-image-6.1", "1.2-3", 4)
    assert deb.read_text() == "deb\n"


def test_the_first_name_that_there_is(tools: Path, tmp_path: Path) -> None:
    offers(tools, second="")
    tool(tools, "apt-get", DELIVERS)
    assert apt.obtain(["first", "second"], tmp_path)[0].name == "second"


def test_lists_of_our_own_are_read_when_the_systems_lack_the_package(tools: Path, tmp_path: Path) -> None:
    stanza = SHOW.format(name="new", depends="")
    tool(tools, "apt-cache", f"case \"$*\" in *Dir::State::Lists=*) cat <<'E'\n{stanza}E\n;; *) exit 100;; esac")
    tool(tools, "apt-get", DELIVERS)
    assert apt.obtain(["new"], tmp_path)[0].name == "new"
    log = (tmp_path / "log").read_text()
    assert log.count(" update\n") == 1
    apt.obtain(["new"], tmp_path)
    assert (tmp_path / "log").read_text().count(" update\n") == 1  # they are a minute old


def test_a_failed_download_is_tried_with_fresh_lists_and_reported(tools: Path, tmp_path: Path) -> None:
    offers(tools, gone="")
    tool(tools, "apt-get", 'case " $* " in *" download "*) echo "E: 404 Not Found" >&2; exit 100;; esac')
    with pytest.raises(apt.AptError, match=r"cannot download gone 1\.2-3: E: 404 Not Found"):
        apt.obtain(["gone"], tmp_path)
    assert (tmp_path / "log").read_text().count(" download ") == 2


def test_an_unknown_package_and_no_apt(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers(tools)
    tool(tools, "apt-get", "")
    with pytest.raises(apt.AptError, match="no package source of this host has a or b"):
        apt.obtain(["a", "b"], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(apt.AptError, match="no apt-get"):
        apt.obtain(["a"], tmp_path)


def test_no_network_names_the_sources(tools: Path, tmp_path: Path) -> None:
    offers(tools)
    tool(tools, "apt-get", 'echo "E: Temporary failure resolving" >&2; exit 100')
    with pytest.raises(apt.AptError, match=r"cannot read the package lists.*Temporary failure"):
        apt.obtain(["a"], tmp_path)


def test_a_broken_package_is_no_traceback(tmp_path: Path) -> None:
    deb = tmp_path / "broken.deb"
    deb.write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(apt.AptError, match=r"broken\.deb"), apt.files(deb) as members:
        list(members)
