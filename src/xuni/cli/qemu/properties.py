"""QEMU's way to write several things in one argument: `first,key=value,switch`; a comma in a value is doubled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from xuni.cli.failure import Refusal

SWITCH: Final = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
SIZE: Final = re.compile(r"(\d{1,18})([bkmgtpe]?)", re.IGNORECASE | re.ASCII)
SHIFT: Final = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


class Properties:
    """The properties of one option; each is taken once, and `done` refuses what nobody took.

    `option` is for messages. `first` is the key of a leading word without one (`type` of `-machine pc,accel=tcg`).
    """

    def __init__(self, option: str, text: str, first: str = "") -> None:
        self.option = option
        self.text = text
        self._values: dict[str, str] = {}
        for number, word in enumerate(_split(text)):
            key, equals, value = word.partition("=")
            if not equals and number == 0 and first:
                key, value = first, word
            elif not equals:  # a switch: `name` is name=on, `noname` is name=off
                value = "on"
                if key.startswith("no") and len(key) > 2 and key not in ("node", "nodelay"):
                    key, value = key[2:], "off"
            self._values[key.replace("_", "-")] = value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text_of(self, key: str, default: str | None = None) -> str:
        """A value as it stands. `Refusal` if it is not given and has no default."""
        value = self._values.pop(key, default)
        if value is None:
            raise self.refusal(f"{key}= is missing")
        return value

    def number(self, key: str, default: int, least: int = 0, most: int = 1 << 63) -> int:
        """A number, in decimal or, with 0x, hexadecimal."""
        text = self._values.pop(key, None)
        if text is None:
            return default
        try:
            value = int(text, 0)
        except ValueError:
            raise self.refusal(f"{key}={text} is no number") from None
        if not least <= value <= most:
            raise self.refusal(f"{key}={text}: between {least} and {most} are possible")
        return value

    def switch(self, key: str, default: bool = False) -> bool:
        """on or off."""
        text = self._values.pop(key, None)
        if text is None:
            return default
        if text not in SWITCH:
            raise self.refusal(f"{key}={text}: on or off")
        return SWITCH[text]

    def left(self) -> Iterator[tuple[str, str]]:
        """Take the rest, one at a time."""
        while self._values:
            key = next(iter(self._values))
            yield key, self._values.pop(key)

    def done(self) -> None:
        """Refuse what was not taken."""
        for key, value in self._values.items():
            raise self.refusal(f"{key}={value} is not supported; leave it out")

    def refusal(self, why: str) -> Refusal:
        """An error that names the option."""
        return Refusal(f"{self.option} {self.text}: {why}")


def _split(text: str) -> list[str]:
    """At commas, but not at doubled ones."""
    words = [""]
    position = 0
    while position < len(text):
        if text.startswith(",,", position):
            words[-1] += ","
            position += 1
        elif text[position] == ",":
            words.append("")
        else:
            words[-1] += text[position]
        position += 1
    return [word for word in words if word]


def size(text: str, unit: str = "b") -> int | None:
    """Bytes: a number with k, M, G ...; without a letter in `unit`s. None if it is no size."""
    found = SIZE.fullmatch(text)
    return int(found[1]) << SHIFT[(found[2] or unit).lower()] if found else None
