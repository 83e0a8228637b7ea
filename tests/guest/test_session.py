from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.guest.session import MAX_LINE, Command, Control, Event, Exit, Input, Shell, frame

from .test_cpio import read

WORDS = st.binary(max_size=40).map(lambda word: word.replace(b"\0", b""))


def contents(archive: bytes) -> dict[str, bytes]:
    return {name: content for name, _, content, _ in read(archive)}


@given(st.lists(WORDS, max_size=4))
def test_arguments_of_any_bytes_reach_the_command(tmp_path_factory: pytest.TempPathFactory, words: list[bytes]) -> None:
    script = contents(Command((b"printf", b"%s\\n", *words)).archive())["xuni/command"]
    path = tmp_path_factory.getbasetemp() / "command"
    path.write_bytes(script)
    expected = b"".join(word + b"\n" for word in words) or b"\n"
    assert subprocess.run(["sh", path], stdout=subprocess.PIPE, check=True).stdout == expected


def test_the_settings_are_shell_variables(tmp_path: Path) -> None:
    settings = tmp_path / "session"
    settings.write_bytes(contents(Shell("xterm-256color; reboot", (80, 24)).archive())["xuni/session"])
    shown = subprocess.run(["sh", "-c", '. "$1"; echo "$task $TERM $columns $rows"', "-", settings], text=True,
                           stdout=subprocess.PIPE, check=True).stdout
    assert shown == "shell xterm-256color; reboot 80 24\n"


def test_an_empty_command_and_a_nul_byte_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Command(()).archive()
    with pytest.raises(ValueError, match="NUL"):
        Command((b"a\0b",)).archive()


def test_control_messages_in_any_pieces() -> None:
    text = b'{"event":"input"}\n{"event": "exit", "status": 7}\n'
    for size in (1, 5, len(text)):
        control, events = Control(), list[Event]()
        for at in range(0, len(text), size):
            events += control.receive(text[at : at + size])
        assert events == [Input(), Exit(7)]


@pytest.mark.parametrize("line", [
    b"", b"not json", b"[1]", b"7", b'{"event":"exit"}', b'{"event":"exit","status":256}',
    b'{"event":"exit","status":-1}', b'{"event":"exit","status":"7"}', b"[" * (MAX_LINE - 1),
    b'{"event":"input","x":"' + b"y" * MAX_LINE + b'"}', b"\xff\xfe",
])
def test_what_is_no_message_is_ignored(line: bytes) -> None:
    control = Control()
    assert list(control.receive(line + b"\n")) == []
    assert list(control.receive(b'{"event":"input"}\n')) == [Input()]


def test_an_endless_line_takes_no_memory() -> None:
    control = Control()
    for _ in range(100):
        assert list(control.receive(b"x" * 4096)) == []
    assert len(control._line) <= MAX_LINE + 1


def test_frames() -> None:
    assert frame(b"ab\n") == b"3\nab\n"
    assert frame(b"") == b"0\n"
