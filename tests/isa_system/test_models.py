"""CPU models: what `-cpu` means, and that the table is what it says it is."""

from __future__ import annotations

import pytest

from xuni.isa.x86.cpuid import OURS, OURS_AMD
from xuni.isa.x86.features import BY_NAME, DEFAULT
from xuni.isa.x86.instruction import DEFINITIONS
from xuni.isa.x86.models import HYPERCALLS, IMPLEMENTED, KNOWN, MAX, MODELS, XUNI, model, parse

from .test_features import WITHOUT_OPCODES, features_with_opcodes


def test_what_is_implemented_beyond_the_default() -> None:
    assert features_with_opcodes() and DEFINITIONS
    assert DEFAULT <= IMPLEMENTED <= BY_NAME.keys()
    switches = {"la57", "amd", "kvm_nopiodelay", "kvm_pv_ipi"}  # no opcodes of their own
    assert IMPLEMENTED - features_with_opcodes() - WITHOUT_OPCODES == switches


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_sound(name: str) -> None:
    found = MODELS[name]
    assert found.features <= IMPLEMENTED and not found.missing & found.features
    assert found.missing <= KNOWN
    assert all(set(BY_NAME[feature].requires) <= found.features for feature in found.features)
    assert len(found.identity.vendor) == 12 and len(found.identity.brand) <= 47
    assert ("amd" in found.features) == (found.identity.vendor in (b"AuthenticAMD", b"HygonGenuine"))


@pytest.mark.parametrize(("name", "signature", "has", "lacks"), [
    ("qemu64", 0x60FB1, "lm nx cx16 syscall pni amd", "ssse3 popcnt x2apic xsave rdtscp"),
    ("Opteron_G1", 0xF61, "lm syscall amd", "cx16 lahf_lm"),
    ("Nehalem", 0x106A3, "sse4_2 popcnt", "aes pcid"),
    ("IvyBridge", 0x306A9, "xsave smep fsgsbase rdrand tsc_deadline_timer", "bmi2 pcid smap"),
    ("Haswell", 0x306C4, "bmi2 pcid invpcid movbe lzcnt", "smap adx"),
    ("Skylake-Server", 0x50654, "smap pku clwb xsavec pdpe1gb", "umip xsaves"),
    ("EPYC", 0x800F12, "sha_ni clflushopt amd", "pcid x2apic erms"),
    ("pentium", 0x543, "fpu tsc cx8 mmx", "cmov sep lm pae"),
])
def test_models_are_what_their_names_say(name: str, signature: int, has: str, lacks: str) -> None:
    found = model(name)
    assert found.identity.signature == signature
    assert set(has.split()) <= found.features
    assert not set(lacks.split()) & found.features


def test_variants_of_a_name() -> None:
    assert model("Haswell-noTSX-IBRS").features == model("Haswell").features == model("Haswell-v1").features
    for name in ("", "haswell", "Haswell-v9", "-v1", "Haswell-"):
        with pytest.raises(ValueError, match="there is no CPU model"):
            model(name)


def test_features_on_and_off() -> None:
    def features(text: str) -> frozenset[str]:
        return parse(text)[0].features

    assert "tsc_deadline_timer" in features("qemu64,+tsc-deadline") and "x2apic" not in features("qemu64,-x2apic")
    assert {"sse4_1", "ssse3"} <= features("qemu64,sse4.1=on,ssse3")
    assert "sse2" in features("qemu64,sse2=off,sse2=on"), "the last one counts"
    assert "popcnt" not in features("Nehalem,+popcnt,-popcnt"), "less wins over more"
    assert "sse4_2" not in features("Nehalem,-sse3"), "what needs it goes with it"
    assert features("qemu64,+LAHF-LM") == features("qemu64")
    assert features("qemu64,migratable=no,l3-cache=on,hv_passthrough") == features("qemu64")


def test_a_kvm_machine_unless_it_must_not_be() -> None:
    assert {"x2apic", *HYPERCALLS} <= parse("qemu64")[0].features
    assert not HYPERCALLS & parse("qemu64,kvm=off")[0].features
    assert "hypervisor" not in parse("max,-hypervisor")[0].features
    assert parse("", "xuni") == (XUNI, [])
    assert parse("max")[0].features == MAX.features | HYPERCALLS


def test_identity_and_address_bits() -> None:
    amd = parse("max,vendor=AuthenticAMD,family=0x17,model=1,stepping=2,model-id=A processor")[0]
    assert amd.identity.signature == 0x800F12 and amd.identity.brand == b"A processor" and "amd" in amd.features
    assert parse("+amd")[0].identity == OURS_AMD and parse("Nehalem,+amd")[0].identity.vendor == b"AuthenticAMD"
    assert parse("qemu64", vendor=b"GenuineIntel")[0].identity.vendor == b"GenuineIntel"
    assert parse("max,vendor=AuthenticAMD", vendor=b"GenuineIntel")[0].identity.vendor == b"AuthenticAMD"
    intel = parse("qemu64,vendor=GenuineIntel")[0]
    assert "amd" not in intel.features and intel.identity.signature == 0x60FB1
    assert parse("Nehalem,model=94")[0].identity.signature == 0x506E3
    assert parse("max,phys-bits=36")[0].physical_bits == 36
    assert parse("max,phys-bits=36,host-phys-bits", host_bits=46)[0].physical_bits == 46
    assert parse("max,host-phys-bits=on,host-phys-bits-limit=42", host_bits=46)[0].physical_bits == 42
    assert parse("IvyBridge,phys-bits=36,host-phys-bits=off", host_bits=46)[0].physical_bits == 36
    assert parse("max")[0].identity == OURS


@pytest.mark.parametrize(("text", "notes"), [
    ("max,+vmx,-vmx-mbec", ["this processor does not have vmx"]),
    ("Opteron_G2", ["this processor does not have svm"]),
    ("Opteron_G2,-svm", []),
    ("qemu64,-pcid,+invpcid", ["invpcid needs pcid, and is left out with it"]),
    ("Opteron_G2,check=off", []),
])
def test_what_cannot_be_had_is_said(text: str, notes: list[str]) -> None:
    assert parse(text)[1] == notes


@pytest.mark.parametrize(("text", "message"), [
    ("i386", "there is no CPU model 'i386'; `-cpu help` lists them"),
    ("max,+x87", "unknown CPU feature 'x87'"),
    ("max,+la57=on", "unknown CPU feature 'la57=on'"),
    ("max,speed=9", "unknown CPU feature or property 'speed=9'"),
    ("max,la57=maybe", "la57=maybe: a switch is on or off"),
    ("max,phys-bits=53", "phys-bits=53: a physical address has 36 to 52 bits"),
    ("max,phys-bits=many", "phys-bits=many: not a number"),
    ("max,vendor=Intel", "vendor=Intel: a vendor has 12 ASCII characters"),
    ("max,stepping=16", "stepping=16: between 0 and 15 are possible"),
    ("max,level=3", "level: this property of a CPU cannot be set here; leave it out"),
    ("max,hv-relaxed", "hv-relaxed: this property"),
    ("max,model-id=" + "x" * 48, "a processor's name has up to 47"),
    ("Opteron_G2,enforce", "this processor does not have svm; `enforce`"),
    ("max,+", "unknown CPU feature ''"),
])
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert str(refused.value).startswith(message) or message in str(refused.value)
