"""`xuni doctor`: what this host offers and what xuni will use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xuni.host.offers import Finding, KvmKind

MARKS = {"good": " ", "limit": "~", "missing": "!"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def doctor(as_json: bool) -> None:
    """Say what this host offers and what xuni will use, and why.

    A line marked ~ is a limit that xuni works with; ! is something missing. Nothing is changed, no root is needed.

    \b
    Examples:
      xuni doctor
      xuni doctor --json | jq .use.engine
    """
    from xuni import __version__
    from xuni.host import cache, offers

    findings = list(offers.survey())
    engine, why = choice(offers.kvm_kind())
    use = {"engine": engine, "engine_why": why, "cache": str(cache.root())}
    if as_json:
        click.echo(json.dumps({"version": __version__, "use": use, "findings": list(map(_plain, findings))}, indent=2))
    else:
        _print(findings)
        click.echo(f"\nxuni {__version__} will use")
        click.echo(f"  engine  {engine}: {why}\n  cache   {use['cache']}")


def choice(kind: KvmKind) -> tuple[str, str]:
    """The engine that `--engine auto` takes, and the reason."""
    if kind.hardware:
        return "soft", f"this version has no KVM engine yet, though {kind.value} here would be real virtualization"
    return "soft", "xuni's own x86-64 engine; this host has no hardware virtualization to use"


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
