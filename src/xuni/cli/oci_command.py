"""`xuni oci`: what `xuni-oci` is, below `xuni`. That one comes without click, since its start is measured in milliseconds."""

from __future__ import annotations

import click

from xuni.cli.oci import main


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def oci(arguments: tuple[str, ...]) -> None:
    """Run OCI bundles, with runc's command line: `xuni oci --help`."""
    main(list(arguments))
