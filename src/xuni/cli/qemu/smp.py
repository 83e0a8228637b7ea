"""`-smp`: how many processors there are, and which of them share a core or a socket."""

from __future__ import annotations

from math import prod
from typing import Final

from xuni.cli.qemu.properties import Properties
from xuni.isa.x86.cpuid import Topology

MAX_CPUS: Final = 255
LEVELS: Final = ("sockets", "dies", "clusters", "cores", "threads")


def processors(properties: Properties, notes: list[str]) -> tuple[int, Topology]:
    """Their number and topology. Where levels are left out, cores are preferred over sockets, over threads."""
    given = {level: properties.number(level, 0, least=1) for level in LEVELS if level in properties}
    for level in ("dies", "clusters"):
        if given.get(level, 1) != 1:
            raise properties.refusal(f"{level}={given[level]}: a socket of this machine has one of them")
    cpus = properties.number("cpus", 0, least=1) if "cpus" in properties else 0
    most = properties.number("maxcpus", 0, least=1) if "maxcpus" in properties else 0
    properties.done()
    total = most or cpus
    known = prod(given.values())
    if not total:
        total = known
    for level in ("cores", "sockets", "threads"):  # the first that is left out takes what the others leave
        if level not in given:
            given[level] = max(total // known, 1)
            known *= given[level]
    cpus = cpus or total
    if known != total:
        product = " * ".join(f"{level} ({given[level]})" for level in ("sockets", "cores", "threads"))
        raise properties.refusal(f"{product} must be equal to maxcpus ({total})")
    if cpus > total:
        raise properties.refusal(f"{cpus} processors, and maxcpus={total} is less")
    if cpus > MAX_CPUS:
        raise properties.refusal(f"Invalid SMP CPUs {cpus}. The max CPUs supported by machine 'pc' is {MAX_CPUS}")
    if total > cpus:
        notes.append(f"-smp {properties.text}: processors cannot be added later, there are {cpus}")
    topology = Topology(given["threads"], given["cores"])
    uneven = topology.threads & topology.threads - 1 or given["sockets"] > 1 and topology.cores & topology.cores - 1
    if uneven and (topology.cores > 1 or given["sockets"] > 1):
        raise properties.refusal("APIC ids follow each other, so cores of a socket and threads of a core are 1, 2, 4, 8 ...")
    return cpus, topology
