"""Compares a target with the host's processor, encoding by encoding.

    python -m tests.hardware.sweep --target unicorn --count 50 --only '^IMUL' --mode LONG

A disagreement prints the case in one line, then what differs.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .case import Case, Mode, Outcome, Target, differences
from .forms import Form, declared_forms, undeclared, user_forms
from .generate import Generator, label
from .oracle import BATCH, HostCpu

OURS = {"host": ".oracle:HostCpu", "unicorn": ".second_opinion:UnicornCpu"}


@dataclass(frozen=True, slots=True)
class Disagreement:
    case: Case
    expected: Outcome
    actual: Outcome
    found: list[str]

    def __str__(self) -> str:
        return "\n    ".join([label(self.case), *self.found])


def compare(cases: Sequence[Case], host: Target, target: Target) -> Iterator[Disagreement]:
    """Run the cases on both and yield those whose outcomes differ."""
    for case, expected, actual in zip(cases, host.run(cases), target.run(cases), strict=True):
        if found := differences(case, expected, actual):
            yield Disagreement(case, expected, actual, found)


def sweep(
    target: Target, forms: Iterable[Form], modes: Iterable[Mode], count: int, seed: int = 0, faults: float = 0.03
) -> Iterator[Disagreement]:
    """`count` random instances of each form in each mode, in batches."""
    host, generator = HostCpu(), Generator(seed, faults=faults)
    batch: list[Case] = []
    for mode in modes:
        for form in forms:
            batch += generator.cases(form, mode, count)
            if len(batch) >= BATCH:
                yield from compare(batch, host, target)
                batch = []
    yield from compare(batch, host, target)


def find_target(name: str) -> Target:
    """The target of that name. Raises SystemExit for an unknown one."""
    module, _, attribute = OURS.get(name, name).partition(":")
    try:
        found = importlib.import_module(module, __package__)
        target: Target = getattr(found, attribute)()
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"unknown target {name!r} ({error}): host, unicorn, or module:class") from None
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare a target with the host's processor, encoding by encoding.")
    parser.add_argument("--target", default="host", help="host, unicorn, or the module:class of another")
    parser.add_argument("--declared", action="store_true", help="the project's encodings instead of iced-x86's")
    parser.add_argument("--privileged", action="store_true", help="the instructions that CPL 3 must refuse, instead")
    parser.add_argument("--undeclared", action="store_true", help="only list the instructions that the project lacks")
    parser.add_argument("--only", default="", help="regular expression that the encoding's name must match")
    parser.add_argument("--mode", action="append", choices=[mode.name for mode in Mode], help="default: all three")
    parser.add_argument("--count", type=int, default=20, help="cases per encoding and mode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=2, help="disagreements printed per encoding")
    options = parser.parse_args(arguments)
    if options.undeclared:
        print("\n".join(map(str, undeclared())))
        return 0
    known = declared_forms() if options.declared else user_forms(privileged=options.privileged)
    forms = [form for form in known if re.search(options.only, form.name)]
    modes = [Mode[name] for name in options.mode] if options.mode else list(Mode)
    shown: Counter[str] = Counter()
    for disagreement in sweep(find_target(options.target), forms, modes, options.count, options.seed):
        name = disagreement.case.name
        shown[name] += 1
        if shown[name] <= options.show:
            print(disagreement)
    cases = len(forms) * len(modes) * options.count
    print(f"{len(forms)} encodings, about {cases} cases: {shown.total()} disagreements in {len(shown)} encodings")
    for name, number in shown.most_common():
        print(f"{number:6} {name}")
    return 1 if shown else 0


if __name__ == "__main__":
    sys.exit(main())
