"""Records from JSON: what is accepted, and the place in every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.container import json
from xuni.container.record import SpecError, decode, encode
from xuni.container.spec import Mount, Spec


def test_a_record_is_frozen_comparable_and_printed_without_defaults() -> None:
    mount = Mount("/proc", "proc")
    assert mount == Mount(destination="/proc", type="proc") != Mount("/proc")
    assert repr(mount) == "Mount(destination='/proc', type='proc')"
    with pytest.raises(AttributeError):
        mount.type = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Mount("/a", colour="red")  # type: ignore[call-arg]


def test_unknown_properties_are_ignored_and_null_is_absence() -> None:
    spec = decode(Spec, {"ociVersion": "1.0.0", "hostname": None, "future": {"a": [1]}})
    assert spec == Spec("1.0.0")
    assert encode(spec) == {"ociVersion": "1.0.0"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "config: an object belongs here, not an array"),
        ({}, "ociVersion is missing"),
        ({"ociVersion": 1}, "ociVersion: a string belongs here, not an integer"),
        ({"ociVersion": "1.0.0", "process": {"cwd": "/", "args": ["a", 2]}},
         "process.args[1]: a string belongs here, not an integer"),
        ({"ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": -1}}},
         "process.user.uid: -1 is not within 0 … 4294967295"),
        ({"ociVersion": "1.0.0", "process": {"cwd": "/", "rlimits": [{"type": "RLIMIT_CPU", "soft": 1}]}},
         "rlimits[0].hard is missing"),
        ({"ociVersion": "1.0.0", "mounts": {"a": 1}}, "mounts: an array belongs here, not an object"),
        ({"ociVersion": "1.0.0", "hostname": "a\0b"}, "hostname: a string without NUL belongs here"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(config: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(Spec, config)
    assert said in str(caught.value)


def test_the_class_of_an_io_priority() -> None:
    priority = {"class": "IOPRIO_CLASS_BE", "priority": 4}
    spec = decode(Spec, {"ociVersion": "1.0.0", "process": {"cwd": "/", "ioPriority": priority}})
    assert spec.process and spec.process.ioPriority and spec.process.ioPriority.class_ == "IOPRIO_CLASS_BE"
    assert encode(spec)["process"]["ioPriority"] == priority


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1} x', b"\xff", b"[" * 100000, b'{"a": "\n"}'])
def test_what_is_not_json_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(SpecError, match=r"^config\.json: "):
        json.loads(text, "config.json")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=12)  # fmt: skip
CONFIGS = st.fixed_dictionaries({}, optional=dict.fromkeys(Spec.fields, JSON))


@given(CONFIGS)
def test_no_configuration_gets_past_its_types_or_raises_anything_else(config: dict[str, Any]) -> None:
    try:
        decode(Spec, config)
    except SpecError as error:
        assert str(error)


@given(JSON)
def test_json_comes_back(value: Any) -> None:
    assert json.loads(json.dumps(value), "x") == value
