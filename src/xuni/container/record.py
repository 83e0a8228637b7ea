"""Frozen records that cost nothing to start: a container's start has milliseconds, `dataclasses` takes ten of them.

`class Mount(Record): destination: str; options: tuple[str, ...] = ()` has a constructor, equality, a repr and the names
and annotations of its fields in `Mount.fields`; `decode` makes one from JSON by these annotations and says where the
JSON is wrong. What the type checker sees is a frozen dataclass.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        return lambda cls: cls


MISSING = object()
# Names that annotations may use beside bool and str: the specification's integers with their bounds.
i32 = int
u32 = int
i64 = int
u64 = int
_BOUNDS = {"i32": (-(1 << 31), (1 << 31) - 1), "u32": (0, (1 << 32) - 1),
           "i64": (-(1 << 63), (1 << 63) - 1), "u64": (0, (1 << 64) - 1)}


class SpecError(ValueError):
    """What was given is not what the specification asks for; the text begins with the place, `process.args[2]: …`."""


class _Fields:
    """`SomeRecord.fields`: the names of its fields, inherited ones first, to their annotations and defaults (or MISSING)."""

    def __get__(self, instance: object, cls: type) -> dict[str, tuple[str, object]]:
        # Read when first asked for: a program has a hundred kinds of records, and makes some of a few.
        return _fields.get(cls) or _read_fields(cls)


_fields: dict[type, dict[str, tuple[str, object]]] = {}


def _read_fields(cls: type) -> dict[str, tuple[str, object]]:
    found = _fields[cls] = {}
    for each in reversed(cls.__mro__[:-1]):
        for name, annotation in each.__annotations__.items():
            found[name] = annotation, getattr(cls, name, MISSING)
    return found


@dataclass_transform(frozen_default=True)
class Record:
    """Base of the frozen records. A default stays the class's attribute, so that a record holds only what it was given."""

    if TYPE_CHECKING:
        fields: ClassVar[dict[str, tuple[str, object]]]
    else:
        fields = _Fields()

    def __init__(self, *values: object, **named: object) -> None:
        fields = self.fields
        own = self.__dict__
        own.update(zip(fields, values, strict=False))
        if len(values) > len(fields) or not fields.keys() >= named.keys() or own.keys() & named.keys():
            raise TypeError(f"{type(self).__name__}: too many values: {', '.join(named)}")
        own.update(named)
        if len(own) < len(fields):
            for name, (_, default) in fields.items():
                if default is MISSING and name not in own:
                    raise TypeError(f"{type(self).__name__}: {name} is missing")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.fields)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.fields)))

    def __repr__(self) -> str:
        """Fields that differ from their default, so that a plan reads well."""
        given = [f"{name}={self.shown(name)}" for name, (_, default) in self.fields.items() if getattr(self, name) != default]
        return f"{type(self).__name__}({', '.join(given)})"

    def shown(self, name: str) -> str:
        """A field for people to read."""
        return repr(getattr(self, name))


if TYPE_CHECKING:
    Decoder = Callable[[object, str], Any]

_decoders: dict[tuple[str, str], Any] = {}


def decode(cls: type[R], value: object, place: str = "") -> R:
    """`value`, as JSON gave it, as a `cls`. Unknown properties are ignored, as the specification says; null is absence."""
    if type(value) is not dict:
        raise SpecError(f"{place or 'config'}: an object belongs here, not {_name(value)}")
    made = object.__new__(cls)
    own = made.__dict__
    module = cls.__module__
    for name, (annotation, default) in cls.fields.items():
        given = value.get(name if name[-1] != "_" else name[:-1])  # `class_` is "class"
        if given is None:
            if default is MISSING:
                raise SpecError(f"{_at(place, name)} is missing")
            continue
        decoder = _decoders.get((module, annotation)) or _decoder(module, annotation)
        own[name] = decoder(given, _at(place, name))
    return made


def encode(value: object) -> Any:
    """The record as JSON types, fields at their defaults left out."""
    if isinstance(value, Record):
        return {name.rstrip("_"): encode(getattr(value, name)) for name, (_, default) in value.fields.items()
                if getattr(value, name) != default}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def _decoder(module: str, annotation: str) -> Decoder:
    made = _decoders[module, annotation] = _new_decoder(module, annotation)
    return made


def _new_decoder(module: str, annotation: str) -> Decoder:
    if annotation.endswith(" | None"):
        return _decoder(module, annotation[:-7])
    if annotation.startswith("tuple[") and annotation.endswith(", ...]"):
        item = _decoder(module, annotation[6:-6])

        def sequence(value: object, place: str) -> tuple[object, ...]:
            if type(value) is not list:
                raise SpecError(f"{place}: an array belongs here, not {_name(value)}")
            return tuple([item(each, f"{place}[{index}]") for index, each in enumerate(value)])

        if item is _string:  # the long lists of a configuration are names

            def strings(value: object, place: str) -> tuple[object, ...]:
                if type(value) is list and all([type(each) is str for each in value]):  # noqa: C419 - half the time
                    together = "".join(value)
                    if together.isascii() and "\0" not in together:
                        return tuple(value)
                return sequence(value, place)

            return strings
        return sequence
    if annotation.startswith("dict[str, "):
        entry = _decoder(module, annotation[10:-1])

        def mapping(value: object, place: str) -> dict[str, object]:
            if type(value) is not dict:
                raise SpecError(f"{place}: an object belongs here, not {_name(value)}")
            return {_string(key, f"{place}: a name in it"): entry(each, f"{place}.{key}") for key, each in value.items()}

        return mapping
    if annotation == "str":
        return _string
    if annotation == "bool":
        return _boolean
    if annotation in _BOUNDS:
        low, high = _BOUNDS[annotation]

        def integer(value: object, place: str) -> int:
            if type(value) is float and value.is_integer():
                value = int(value)
            if type(value) is not int:
                raise SpecError(f"{place}: an integer belongs here, not {_name(value)}")
            if not low <= value <= high:
                raise SpecError(f"{place}: {value} is not within {low} … {high}")
            return value

        return integer
    import sys

    cls = getattr(sys.modules[module], annotation)
    assert issubclass(cls, Record), annotation
    return lambda value, place: decode(cls, value, place)


def _string(value: object, place: str) -> str:
    """What the kernel can be given: no NUL, and none of UTF-16's halves of a character, which JSON can write (\\ud800)."""
    if type(value) is not str:
        raise SpecError(f"{place}: a string belongs here, not {_name(value)}")
    if "\0" in value:
        raise SpecError(f"{place}: a string without NUL belongs here")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SpecError(f"{place}: {value!r} has half of a surrogate pair in it, which is no character") from None
    return value


def _boolean(value: object, place: str) -> bool:
    if type(value) is not bool:
        raise SpecError(f"{place}: true or false belongs here, not {_name(value)}")
    return value


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _name(value: object) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "an integer",
            float: "a fraction", type(None): "null"}[type(value)]
