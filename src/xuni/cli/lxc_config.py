"""`xuni lxc-config`: what becomes of the configuration of an LXC container."""

from __future__ import annotations

import click

from xuni.cli.failure import Refusal


@click.command("lxc-config")
@click.argument("file", type=click.Path())
@click.option("--bundle", metavar="DIRECTORY", help="Write the config.json there, for `xuni oci run`.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a setting.")
def lxc_config(file: str, bundle: str | None, as_json: bool) -> None:
    """Read an LXC configuration and say of each key whether it is honoured, translated or refused.

    FILE is in the format of lxc.container.conf(5); names of before LXC 2.1 and lxc.include are understood. "honoured" is what
    config.json can say as well, "translated" what something else there comes to, "refused" what would have no effect.

    \b
    Examples:
      xuni lxc-config /var/lib/lxc/web/config
      xuni lxc-config --bundle web web.conf && xuni oci run --bundle web web
    """
    import json

    from xuni.server.lxc.text import ConfigurationError, read
    from xuni.server.lxc.translation import translate, write_bundle

    try:
        found, config = translate(read(file))
        written = write_bundle(bundle, config, file) if bundle else ""
    except ConfigurationError as error:
        raise Refusal(_printable(str(error))) from None
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found], indent=2))
    else:
        rows = [("WHERE", "KEY", "STATUS", "WHAT BECOMES OF IT")]
        rows += [(_printable(each.line.place), each.line.written, each.status, _printable(each.about)) for each in found]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)]
            click.echo("  ".join(cells).rstrip())
    if written:
        click.echo(f"xuni: {written}", err=True)


def _printable(text: str) -> str:
    """What the file's author wrote does not reach the terminal as commands."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
