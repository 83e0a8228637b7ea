"""Who looks on and takes part from outside: the gdb stub and the QMP servers that a description asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xuni.cli.failure import Refusal
from xuni.cli.plan import End
from xuni.debug.address import Address, Kind, gdb_address, qmp_address

if TYPE_CHECKING:
    from xuni.cli.description import Description
    from xuni.debug.endpoint import Endpoint, Link, Session
    from xuni.machine.control import Controller


def addresses(what: Description) -> tuple[Address | None, list[Address]]:
    """Where the gdb stub and the QMP servers shall be. `Refusal` if that is no place for them, before anything is made."""
    try:
        gdb = gdb_address(what.gdb) if what.gdb else None
    except ValueError as error:
        raise Refusal(f"--gdb {error}; HOST may be left out: --gdb :1234") from error
    try:
        qmp = [qmp_address(text) for text in what.qmp]
    except ValueError as error:
        raise Refusal(f"--qmp {error}; --qmp unix:PATH,server=on,wait=off listens at a socket") from error
    taken = [address for address in (gdb, *qmp) if address is not None and address.kind is Kind.STDIO]
    if any(serial.end is End.STDOUT for serial in what.plan.serial):
        taken.append(Address(Kind.STDIO))
    if len(taken) > 1:
        raise Refusal("standard input and output can serve one: a serial line, the gdb stub or a QMP monitor; "
                      "send the others elsewhere, --serial null or --qmp unix:PATH,server=on,wait=off")
    if what.paused and gdb is None and not qmp:
        raise Refusal("a machine that begins paused needs --gdb or --qmp: nobody could start it")
    return gdb, qmp


@contextmanager
def serving(what: Description, controller: Controller) -> Iterator[None]:
    """Serve debuggers and monitors while the block runs. `Refusal` if an address cannot be had."""
    gdb, qmp = addresses(what)
    if gdb is None and not qmp:
        yield
        return
    opened: list[Endpoint] = []
    try:
        for address, make, name in _sessions(what, controller, gdb, qmp):
            opened.append(_open(address, make, name))
        for endpoint in opened:
            if endpoint.address.wait and not endpoint.connected.is_set():
                print(f"xuni: waiting for a client at {endpoint.address}", file=sys.stderr, flush=True)
                endpoint.connected.wait()
        yield
    finally:
        for endpoint in opened:
            endpoint.close()


def _sessions(
    what: Description, controller: Controller, gdb: Address | None, qmp: list[Address]
) -> Iterator[tuple[Address, Callable[[Link], Session], str]]:
    from xuni.debug.gdb import GdbSession
    from xuni.debug.qmp import QmpSession
    from xuni.debug.qmp_commands import Facts
    from xuni.debug.registers import describe

    links = [(f"serial{n}", serial.end.value) for n, serial in enumerate(what.plan.serial)]
    links += [(f"compat_monitor{n}", str(address)) for n, address in enumerate(qmp)]
    if gdb is not None:
        links.append(("gdb", str(gdb)))
        description = describe("lm" in what.cpu.features, "avx" in what.cpu.features)
        yield gdb, lambda link: GdbSession(link, controller, description), "gdb stub"
    # The engine that was taken, which `auto` does not say.
    kvm = "kvm" in type(controller.machine.vcpus[0]).__module__.split(".")
    facts = Facts(what.name or None, what.uuid, kvm, links=tuple(links))
    for address in qmp:
        yield address, lambda link: QmpSession(link, controller, facts), "QMP"


def _open(address: Address, make: Callable[[Link], Session], name: str) -> Endpoint:
    from xuni.debug.endpoint import Endpoint

    endpoint = Endpoint(address, make, name)
    try:
        endpoint.open()
    except OSError as error:
        raise Refusal(f"{name} at {address}: {error.strerror}; name another address") from error
    return endpoint
