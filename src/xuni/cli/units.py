"""Option values with a unit or a form of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from xuni.isa.x86 import models
from xuni.isa.x86.models import CpuModel

SIZE = re.compile(r"(\d{1,18})([kmgt]?)(i?b)?\Z", re.IGNORECASE | re.ASCII)
SHIFT = {"": 20, "k": 10, "m": 20, "g": 30, "t": 40}


class Size(click.ParamType[int]):
    """An amount of memory, in bytes: 512M, 2G, 1GiB. A bare number counts MiB, as in QEMU."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = SIZE.match(str(value).strip())
        if match is None or match[3] and not match[2]:
            self.fail(f"{value!r} is not a size; write 512M or 2G (a bare number counts MiB)", param, ctx)
        size = int(match[1]) << SHIFT[match[2].lower()]
        if size == 0:
            self.fail("a guest needs some memory; write 512M or 2G", param, ctx)
        return size


@dataclass(frozen=True, slots=True)
class Serial:
    """Where the first serial port ends: on our terminal, in a file, nowhere."""

    kind: str
    path: Path | None = None


class SerialType(click.ParamType[Serial]):
    """stdio, file:PATH or null."""

    name = "end"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Serial:
        if isinstance(value, Serial):
            return value
        kind, colon, path = str(value).partition(":")
        if kind in ("stdio", "null") and not colon:
            return Serial(kind)
        if kind == "file" and path:
            return Serial("file", Path(path))
        self.fail(f"{value!r} is no end of a serial line; write stdio, file:PATH or null", param, ctx)


class Seconds(click.ParamType[float]):
    """A positive number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0.0 < seconds < 1e9:
            self.fail(f"{value!r} is not a positive number of seconds", param, ctx)
        return seconds


class CpuType(click.ParamType[CpuModel]):
    """A processor: a model's name, +NAME and -NAME of CPU features, properties as phys-bits=N, with commas between."""

    name = "cpu"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> CpuModel:
        if isinstance(value, CpuModel):
            return value
        try:
            model, notes = models.parse(str(value))
        except ValueError as error:
            self.fail(f"{error}; write +la57, -pcid, phys-bits=40 or a model's name", param, ctx)
        for note in notes:
            click.echo(f"xuni: warning: --cpu {value}: {note}", err=True)
        return model
