"""The entry point of `xuni`."""

from __future__ import annotations

import click

from xuni import __version__


@click.group()
@click.version_option(__version__, prog_name="xuni")
def main() -> None:
    """Machines, containers, and the explanation of both."""
