from __future__ import annotations

import pytest

from xuni.trace import Event, Probe, known, listen

event = Probe("test_event", "port", "size")
other = Probe("test_other")


def test_a_probe_is_off_until_someone_listens() -> None:
    heard: list[Event] = []
    assert not event.on
    event(1, 2)
    with listen(["test_e*"], heard.append) as names:
        assert names == ["test_event"] and event.on and not other.on
        event(0x3F8, 1)
    event(3, 4)
    assert not event.on
    assert [str(item) for item in heard] == ["test_event port=1016 size=1"]


def test_several_may_listen_and_patterns_may_overlap() -> None:
    first: list[Event] = []
    second: list[Event] = []
    with listen(["test_*", "test_other"], first.append), listen(["test_other"], second.append):
        other()
    assert len(first) == len(second) == 1
    assert first[0].nanoseconds <= second[0].nanoseconds + 10**9


def test_a_pattern_that_matches_nothing_names_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no probe matches 'nosuch\*'; there are .*test_event"):
        with listen(["test_*", "nosuch*"], print):
            pass
    assert not event.on


def test_names_are_known_once() -> None:
    assert {"test_event", "test_other"} <= set(known())
    with pytest.raises(AssertionError, match="two probes named test_event"):
        Probe("test_event")
