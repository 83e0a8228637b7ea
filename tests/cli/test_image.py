"""`xuni image`, by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xuni.cli.image import image


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def say(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(image, [str(each) for each in words], input=stdin)


def test_in_listed_out_and_gone(data: Path) -> None:
    (data / "tree").mkdir()
    (data / "tree/file").write_text("x")
    assert say("import", data / "tree", "mine:7").output == "mine:7\n"
    (listed,) = json.loads(say("ls", "--json").output)
    assert listed["name"] == "mine:7" and listed["id"] == json.loads(say("inspect", "mine:7").output)[0]["Id"]
    assert say("save", "-o", data / "out.tar", "mine:7").exit_code == 0
    assert say("save", "--format", "oci-dir", "-o", data / "layout", "mine:7").exit_code == 0
    assert say("verify").output.endswith(" 0 damaged\n")
    assert say("rm", "mine:7").output.startswith("mine:7 (")
    assert say("ls", "-q").output == ""
    assert say("load", stdin=(data / "out.tar").read_bytes()).output == "Loaded image: mine:7\n"
    assert say("import", data / "layout").output == "mine:7\n"


@pytest.mark.parametrize(("words", "said"), [
    (("import", "/nowhere"), "/nowhere: No such file"),
    (("rm", "nosuch"), "there is no image nosuch:latest here"),
    (("save", "nosuch", "-o", "/dev/null"), "there is no image"),
    (("build-rootfs", "plan9"), "there is no recipe 'plan9'; there are busybox, debian"),
])  # fmt: skip
def test_refusals(words: tuple[str, ...], said: str) -> None:
    done = say(*words)
    assert done.exit_code == 2 and said in done.output
