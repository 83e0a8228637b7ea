"""`xuni cgroup`: control groups, explained."""

from __future__ import annotations

import click

from xuni.cli.failure import Refusal


@click.group()
def cgroup() -> None:
    """Explain the control groups that limit a process."""


@cgroup.command()
@click.argument("pid", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="A JSON array, numbers in bytes, CPUs and processes.")
def explain(pid: int, as_json: bool) -> None:
    """Show each limit in force for the process PID, and the group above it that sets it.

    \b
    Example:
      xuni cgroup explain $$
    """
    import json

    from xuni.container.cgroup.explain import NoGroup
    from xuni.container.cgroup.explain import explain as explained

    try:
        found = explained(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise Refusal(f"there is no process {pid} here; `ps` lists them") from None
    except NoGroup as error:
        raise Refusal(str(error)) from None
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found], indent=2))
        return
    rows = [("LIMIT", "EFFECTIVE", "IN USE THERE", "SET BY", "FILE")]
    for each in found:
        name = f"{each.limit} {each.of}".strip()
        rows.append((name, _shown(each.value, each.unit), "" if each.usage is None else _shown(each.usage, each.unit),
                     each.group or "-", each.file))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: float | int | str | None, unit: str) -> str:
    if value is None:
        return "none" if unit else "no"
    if isinstance(value, str):
        return value
    if unit in ("bytes", "bytes/s"):
        for factor, letter in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= factor:
                return f"{value / factor:.4g} {letter}{unit[5:]}"
        return f"{value} B{unit[5:]}"
    return f"{value:g}" + (f" {unit}" if unit in ("CPUs", "operations/s", "shares") else "")
