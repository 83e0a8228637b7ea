"""JSON out of a stream: any pieces, any garbage, bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xuni.debug import json_stream
from xuni.debug.json_stream import Broken, JsonReader


def read(*pieces: bytes) -> list[object]:
    reader = JsonReader()
    return [value for piece in pieces for value in reader.feed(piece)]


VALUES = st.dictionaries(
    st.text(max_size=8),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=12), lambda inner: st.lists(inner, max_size=3)),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=4), st.integers(1, 40), st.sampled_from([b"", b"\n", b"\r\n "]))
def test_what_was_sent_comes_out_in_whatever_pieces_it_came(values, size, between):
    stream = between.join(json.dumps(value, ensure_ascii=False).encode() for value in values)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert read(*pieces) == values


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.text("{}[]\"'\\ \n:,a1", max_size=40).map(str.encode), max_size=6))
def test_whatever_comes_a_fresh_start_is_possible(pieces):
    assert read(*pieces, b"\xff\n", b'{"execute": "stop"}')[-1] == {"execute": "stop"}


@pytest.mark.parametrize(("text", "why"), [
    (b"foo\n", "JSON parse error, invalid keyword 'foo'"),
    (b'{"execute" "a"}', "JSON parse error, missing : in object pair"),
    (b'{"execute": "a" "b"}', "JSON parse error, expected separator in dict"),
    (b"[1 2]", "JSON parse error, expected separator in list"),
    (b'{"execute": tru}', "JSON parse error, invalid keyword 'tru'"),
    (b'{"a": NaN}', "JSON parse error, invalid keyword 'NaN'"),
    (b"]\n", "JSON parse error, expecting value"),
    (b"{1: 2}", "JSON parse error, key is not a string in object"),
    (b"[" * 65, "JSON nesting depth limit exceeded"),
    (b'{"a": ' + b"9" * 5000 + b"}", "JSON parse error, expecting value"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_qemus_words(text, why):
    assert read(text) == [Broken(why)]


def test_strings_of_single_quotes_are_taken_as_qemu_takes_them():
    assert read(b"""{'execute': 'it\\'s "so"'}""") == [{"execute": 'it\'s "so"'}]


def test_a_value_without_end_is_dropped_before_it_fills_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_SIZE", 1000)
    reader = JsonReader()
    for opening in (b'{"a": "', b"[", b"x"):
        got = [value for _ in range(100) for value in reader.feed(opening + b"1, " * 20)]
        assert Broken("JSON token size limit exceeded") in got or Broken("JSON nesting depth limit exceeded") in got
        assert len(reader._buffer) <= 1100
        list(reader.feed(b"\xff"))


def test_an_unfinished_value_ends_at_the_byte_for_a_fresh_start():
    assert read(b'{"a": [1, "\xff{"b": 2}') == [Broken("JSON parse error, incomplete value"), {"b": 2}]
    assert read(b'{"a": [1, \xff{"b": 2}') == [Broken("JSON parse error, incomplete value"), {"b": 2}]
