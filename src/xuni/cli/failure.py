"""How the command line says no: one line on standard error that names the input, the rule and the way out."""

from __future__ import annotations

from typing import IO, Any

import click

BAD_INPUT = 2
ENGINE_FAILED = 122


class Refusal(click.ClickException):
    """What the user asked for cannot be: exit status 2."""

    exit_code = BAD_INPUT

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"xuni: {self.format_message()}", file=file, err=file is None)


class EngineError(Refusal):
    """There is no engine to run a guest."""

    exit_code = ENGINE_FAILED
