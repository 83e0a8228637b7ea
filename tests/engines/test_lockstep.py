"""One source, two engines: plain ints and compiled code agree on every guest after every instruction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.guests import BODY_EVENTS, KINDS, Kind, events, guests
from tests.engines.lockstep import Runner, differences, in_step, to_the_end
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import SoftVcpu
from xuni.exits import PortOut

NAMES = [kind.name for kind in KINDS]
LIMIT = 3000


@pytest.fixture
def plain(request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(PlainVcpu, guests()[request.param])
    yield runner
    runner.close()


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(SoftVcpu, guests()[request.param])
    yield runner
    runner.close()


@pytest.mark.parametrize(("plain", "compiled"), [(n, n) for n in NAMES], ids=NAMES, indirect=True)
def test_the_same_after_every_instruction(plain: Runner, compiled: Runner) -> None:
    assert list(in_step(plain, compiled, LIMIT)) == []
    assert isinstance(plain.exits[-1], PortOut), plain.exits[-1]


@pytest.mark.parametrize(
    ("engine", "name"), [*((SoftVcpu, n) for n in NAMES), (PlainVcpu, "real"), (PlainVcpu, "long")]
)
def test_the_same_end_at_full_speed(engine: type[PlainVcpu] | type[SoftVcpu], name: str) -> None:
    """Traces, links, the jump cache and fused pairs lead to where single steps lead."""
    stepped, free = Runner(SoftVcpu, guests()[name]), Runner(engine, guests()[name])
    while not stepped.done:
        stepped.run(1)
    to_the_end(free)
    assert free.exits == stepped.exits
    assert differences(free, stepped) == []
    stepped.close()
    free.close()


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_guest_sees_the_events_that_it_causes(kind: Kind) -> None:
    runner = Runner(SoftVcpu, guests()[kind.name])
    to_the_end(runner)
    assert events(kind, runner.image()) == f"{BODY_EVENTS} {kind.events}"
    runner.close()
