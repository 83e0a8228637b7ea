"""When a container that has ended starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from xuni.server import ContainerError, again


@pytest.mark.parametrize(("text", "found"), [("no", ("", 0)), ("always", ("always", 0)), ("on-failure:3", ("on-failure", 3))])
def test_policies(text: str, found: tuple[str, int]) -> None:
    assert again.policy(text) == found


@pytest.mark.parametrize("text", ["", "sometimes", "always:3", "on-failure:x"])
def test_no_policies(text: str) -> None:
    with pytest.raises(ContainerError, match="--restart"):
        again.policy(text)


def test_when_it_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "FIRST", 0.001)
    wish = again.Again("on-failure", 2, tmp_path / "stopping")
    assert not wish.wanted(0, 1) and wish.wanted(1, 1) and wish.wait() and wish.wanted(1, 1) and wish.wait()
    assert not wish.wanted(1, 1)
    wish = again.Again("always", 0, tmp_path / "stopping")
    assert wish.wanted(0, 1)
    (tmp_path / "stopping").touch()
    assert not wish.wait() and not wish.wanted(0, 1)
