"""The feature table and the instructions agree: nothing is announced that does not exist, nothing exists unannounced."""

from __future__ import annotations

import importlib
import pkgutil

import xuni.isa.x86
from xuni.isa.x86.features import BY_NAME, DEFAULT
from xuni.isa.x86.instruction import DEFINITIONS

# What these bring is registers, control bits, paging or speed; or an opcode that means something without them too.
WITHOUT_OPCODES = frozenset("""
    3dnowprefetch apic arat arch_capabilities constant_tsc cx8 de erms fsrm hypervisor lahf_lm lm lzcnt mca mce mtrr nx pae pat
    pcid pdpe1gb pge pks pse pse36 smep ss tsc_adjust tsc_deadline_timer umip vme x2apic xgetbv1
""".split())


def features_with_opcodes() -> set[str]:
    for module in pkgutil.iter_modules(xuni.isa.x86.__path__):
        importlib.import_module(f"xuni.isa.x86.{module.name}")
    return {d.feature for d in DEFINITIONS}


def test_instructions_name_features_that_exist() -> None:
    assert features_with_opcodes() <= BY_NAME.keys()


def test_what_is_announced_can_be_executed() -> None:
    assert DEFAULT - features_with_opcodes() - WITHOUT_OPCODES == set()


def test_requirements_hold_by_default() -> None:
    for name in DEFAULT:
        assert set(BY_NAME[name].requires) <= DEFAULT, name
