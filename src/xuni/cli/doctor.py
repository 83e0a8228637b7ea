"""`xuni doctor`: what this host offers and what xuni will use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xuni.host.offers import Finding

MARKS = {"good": " ", "limit": "~", "missing": "!"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option("--kvm", is_flag=True, help="Every capability of KVM: whether this host has it, what xuni uses it for.")
def doctor(as_json: bool, kvm: bool) -> None:
    """Say what this host offers and what xuni will use, and why.

    A line marked ~ is a limit that xuni works with; ! is something missing. Nothing is changed, no root is needed.

    \b
    Examples:
      xuni doctor
      xuni doctor --kvm
      xuni doctor --json | jq .use.engine
    """
    from xuni import __version__
    from xuni.cli import engines
    from xuni.host import cache, offers

    if kvm:
        _print_kvm(as_json)
        return

    findings = list(offers.survey())
    engine, why = engines.decide()
    use = {"engine": engine, "engine_why": why, "cache": str(cache.root())}
    if as_json:
        click.echo(json.dumps({"version": __version__, "use": use, "findings": list(map(_plain, findings))}, indent=2))
    else:
        _print(findings)
        click.echo(f"\nxuni {__version__} will use")
        click.echo(f"  engine  {engine}: {why}\n  cache   {use['cache']}")


def _plain(finding: Finding) -> dict[str, str]:
    return {"topic": finding.topic, "name": finding.name, "value": finding.value, "verdict": finding.verdict.value,
            "means": finding.means}


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            click.echo(topic)
        means = f"  ({finding.means})" if finding.means else ""
        click.echo(f"{MARKS[finding.verdict.value]} {finding.name:{width}}  {finding.value}{means}")


def _print_kvm(as_json: bool) -> None:
    """The table of docs/kvm.md, with what this host says."""
    from xuni.cli.failure import Refusal
    from xuni.host.kvm import Kvm, KvmUnavailable
    from xuni.host.kvm.capabilities import CAPABILITIES

    try:
        with Kvm() as kvm, kvm.create_vm() as vm:
            values = {row.number: max(kvm.check(row.number), vm.check(row.number)) for row in CAPABILITIES if row.x86}
    except (KvmUnavailable, OSError) as error:
        raise Refusal(f"doctor --kvm: {error}") from error
    rows = [row for row in CAPABILITIES if row.x86]
    if as_json:
        click.echo(json.dumps([{"number": row.number, "name": f"KVM_CAP_{row.name}", "value": values[row.number],
                                "use": row.use} for row in rows], indent=2))
        return
    click.echo(f"{'':4} {'KVM_CAP_':34} {'HERE':>9}  XUNI USES IT FOR")
    for row in rows:
        here = "-" if values[row.number] <= 0 else str(values[row.number])
        click.echo(f"{row.number:4} {row.name:34} {here:>9}  {row.use}".rstrip())
