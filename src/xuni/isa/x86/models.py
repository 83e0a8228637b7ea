"""Processors by name: which features they have, and as what they present themselves in CPUID.

The names are those that QEMU and libvirt use; a model has what the real processor of that name has, down to what is
implemented here. `parse` reads QEMU's `-cpu`: a model, then `+feature`, `-feature`, `feature=on`, `property=value`.

To add one: a line of `_MODELS`, and its test in tests/isa_system/test_models.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from xuni.isa.x86.cpuid import OURS, OURS_AMD, Identity, Topology, signature
from xuni.isa.x86.features import BY_NAME, DEFAULT, choose

PHYSICAL_BITS: Final = 40
MIN_PHYSICAL_BITS: Final = 36
MAX_PHYSICAL_BITS: Final = 52
AMD_LIKE: Final = (b"AuthenticAMD", b"HygonGenuine")
"""Vendors whose processors follow AMD where it differs from Intel (the feature `amd`)."""
HYPERCALLS: Final = frozenset({"hypercall", "kvm_nopiodelay", "kvm_pv_ipi"})
"""What `kvm=on` brings: KVM's signature, and the calls that are answered."""
VIRTUAL: Final = frozenset({"x2apic", "arat"})
"""What every model has besides with `kvm=on`, as real ones of its time had not: it costs a virtual processor nothing, and
its timer never stops.
"""
IMPLEMENTED: Final = DEFAULT | {"la57", "amd"} | HYPERCALLS
"""Every feature that works; the default processor leaves some out that cost speed or change what a guest does."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A virtual processor, the same for every engine."""

    name: str = "xuni"
    features: frozenset[str] = DEFAULT
    """Names of `features.BY_NAME`, closed under what they require (`features.choose`)."""
    physical_bits: int = PHYSICAL_BITS
    """Width of a guest-physical address, MAXPHYADDR: 36 to 52."""
    identity: Identity = OURS
    topology: Topology | None = None
    """How the machine's processors form cores and sockets; None: all are cores of one socket."""
    missing: frozenset[str] = frozenset()
    """What the real processor has besides, and nothing here implements."""


XUNI: Final = CpuModel()
"""The default: what makes guests fast."""
MAX: Final = CpuModel("max", choose(plus=IMPLEMENTED - HYPERCALLS - {"amd"}))

# name | vendor | family model stepping | brand | [base,] features more and (-) fewer. i: GenuineIntel, a: AuthenticAMD.
_MODELS: Final = """
486|i|4 8 0||fpu pse
pentium|i|5 4 3||486 apic cx8 de mce mmx msr tsc
qemu32|i|6 6 3|xuni virtual CPU|pentium cmov fxsr pae pat pge pni sep sse sse2
kvm32|i|15 6 1|xuni virtual CPU|qemu32 clflush mca mtrr pse36
pentium2|i|6 5 2||kvm32 -clflush -pni -sse -sse2
pentium3|i|6 7 3||pentium2 sse
athlon|a|6 2 3|AMD Athlon|pentium3 sse2 3dnow 3dnowext mmxext
coreduo|i|6 14 8|Genuine Intel(R) CPU           T2600  @ 2.16GHz|kvm32 nx ss -pse36
n270|i|6 28 2|Intel(R) Atom(TM) CPU N270   @ 1.60GHz|coreduo lahf_lm movbe ssse3
qemu64|a|15 107 1|xuni virtual CPU|kvm32 cx16 lahf_lm lm nx syscall
kvm64|i|15 6 1|xuni virtual CPU|qemu64 -lahf_lm
core2duo|i|6 15 11|Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz|qemu64 ss ssse3
Conroe|i|6 15 3|Intel Celeron_4x0 (Conroe/Merom Class Core 2)|qemu64 -cx16 ssse3
Penryn|i|6 23 3|Intel Core 2 Duo P9xxx (Penryn Class Core 2)|Conroe cx16 sse4_1
Nehalem|i|6 26 3|Intel Core i7 9xx (Nehalem Class Core i7)|Penryn popcnt sse4_2
Westmere|i|6 44 1|Westmere E56xx/L56xx/X56xx (Nehalem-C)|Nehalem aes arat pclmulqdq
SandyBridge|i|6 42 1|Intel Xeon E312xx (Sandy Bridge)|Westmere avx rdtscp tsc_deadline_timer x2apic xsave xsaveopt
IvyBridge|i|6 58 9|Intel Xeon E3-12xx v2 (Ivy Bridge)|SandyBridge erms f16c fsgsbase rdrand smep
Haswell|i|6 60 4|Intel Core Processor (Haswell)|IvyBridge avx2 bmi1 bmi2 fma hle invpcid lzcnt movbe pcid rtm
Broadwell|i|6 61 2|Intel Core Processor (Broadwell)|Haswell 3dnowprefetch adx rdseed smap
Skylake-Client|i|6 94 3|Intel Core Processor (Skylake)|Broadwell xgetbv1 xsavec
Skylake-Server|i|6 85 4|Intel Xeon Processor (Skylake)|Skylake-Client clflushopt clwb pdpe1gb pku
    avx512f avx512bw avx512cd avx512dq avx512vl
Cascadelake-Server|i|6 85 6|Intel Xeon Processor (Cascadelake)|Skylake-Server avx512vnni spec_ctrl ssbd
Cooperlake|i|6 85 10|Intel Xeon Processor (Cooperlake)|Cascadelake-Server arch_capabilities avx512_bf16 stibp
Icelake-Server|i|6 134 0|Intel Xeon Processor (Icelake)|Cascadelake-Server la57 umip avx512_vpopcntdq avx512bitalg avx512vbmi
    avx512vbmi2 gfni vaes vpclmulqdq wbnoinvd
KnightsMill|i|6 133 0|Intel Xeon Phi Processor (Knights Mill)|Broadwell pdpe1gb ss -hle -invpcid -pcid -rtm -smap
    avx512_4fmaps avx512_4vnniw avx512_vpopcntdq avx512cd avx512er avx512f avx512pf
Denverton|i|6 95 1|Intel Atom Processor (Denverton)|IvyBridge -avx -f16c 3dnowprefetch arch_capabilities clflushopt movbe
    pdpe1gb rdseed sha_ni smap xgetbv1 xsavec monitor mpx spec_ctrl ssbd
Snowridge|i|6 134 1|Intel Atom Processor (SnowRidge)|Denverton clwb movdir64b movdiri umip cldemote core_capability gfni
    split_lock_detect
phenom|a|16 2 3|AMD Phenom(tm) 9550 Quad-Core Processor|qemu64 lzcnt pdpe1gb popcnt rdtscp 3dnow 3dnowext fxsr_opt mmxext
    monitor npt sse4a svm
Opteron_G1|a|15 6 1|AMD Opteron 240 (Gen 1 Class Opteron)|kvm64 -cx16
Opteron_G2|a|15 6 1|AMD Opteron 22xx (Gen 2 Class Opteron)|qemu64 svm
Opteron_G3|a|16 2 3|AMD Opteron 23xx (Gen 3 Class Opteron)|Opteron_G2 lzcnt popcnt rdtscp misalignsse monitor sse4a
Opteron_G4|a|21 1 2|AMD Opteron 62xx class CPU|Westmere -arat 3dnowprefetch avx lzcnt pdpe1gb rdtscp xsave fma4 misalignsse npt
    nrip_save sse4a svm xop
Opteron_G5|a|21 2 0|AMD Opteron 63xx class CPU|Opteron_G4 f16c fma tbm
EPYC|a|23 1 2|AMD EPYC Processor|Skylake-Client -erms -hle -invpcid -pcid -rtm -tsc_deadline_timer -x2apic clflushopt pdpe1gb
    sha_ni cr8legacy fxsr_opt misalignsse mmxext monitor npt nrip_save osvw sse4a svm topoext
EPYC-Rome|a|23 49 0|AMD EPYC-Rome Processor|EPYC clwb rdpid umip xsaves amd_stibp clzero ibpb perfctr_core wbnoinvd xsaveerptr
EPYC-Milan|a|25 1 1|AMD EPYC-Milan Processor|EPYC-Rome erms fsrm invpcid pcid pku amd_ssbd ibrs svme_addr_chk
Dhyana|HygonGenuine|24 0 1|Hygon Dhyana Processor|EPYC -aes -pclmulqdq -sha_ni ibpb
"""
VENDORS: Final = {"i": "GenuineIntel", "a": "AuthenticAMD"}

# Flags of QEMU that name nothing here, beside those of the table above: real, but not implemented.
_ELSEWHERE: Final = """
ace2 ace2_en acpi amd_no_ssb amx_bf16 amx_int8 amx_tile arch_lbr avic avx_vnni avx512_fp16 avx512_vp2intersect avx512ifma
bus_lock_detect cid cmp_legacy dca decodeassists ds ds_cpl dtes64 est extapic flushbyasid full_width_write ia64 ibrs_all ibs
intel_pt intel_pt_lip kvm_asyncpf kvm_asyncpf_int kvm_asyncpf_vmexit kvm_hint_dedicated kvm_mmu kvm_msi_ext_dest_id
kvm_poll_control kvm_pv_enforce_cpuid kvm_pv_eoi kvm_pv_sched_yield kvm_pv_tlb_flush kvm_pv_unhalt kvm_steal_time kvmclock
kvmclock_stable_bit lbrv lwp md_clear mds_no nodeid_msr pause_filter pbe pcommit pdcm perfctr_nb pfthreshold phe phe_en pmm
pmm_en pn pschange_mc_no rdctl_no rsba serialize sgx sgx_debug sgx_exinfo sgx_kss sgx_mode64 sgx_provisionkey sgx_tokenkey
sgx1 sgx2 sgxlc skinit skip_l1dfl_vmentry smx ssb_no svm_lock taa_no tce tm tm2 tsc_scale tsx_ctrl tsx_ldtrk v_vmsave_vmload
vgif virt_ssbd vmcb_clean vmx waitpkg wdt xcrypt xcrypt_en xfd xstore xstore_en xtpr pmu
"""
_SYNONYMS: Final = {
    "tsc_deadline": "tsc_deadline_timer", "sse3": "pni", "abm": "lzcnt", "xd": "nx", "i64": "lm", "invtsc": "constant_tsc",
    "pclmuldq": "pclmulqdq", "ffxsr": "fxsr_opt", "avx512_bitalg": "avx512bitalg", "avx512_vbmi2": "avx512vbmi2",
}  # fmt: skip
_HARMLESS: Final = frozenset("migratable l3_cache legacy_cache host_cache_info cpuid_0xb fill_mtrr_mask tcg_cpuid".split())
"""Switches of QEMU that change nothing here, whatever they say."""


def _models() -> dict[str, CpuModel]:
    wanted: dict[str, frozenset[str]] = {}
    found = {"xuni": XUNI, "max": MAX, "host": replace(MAX, name="host")}
    for line in _MODELS.replace("\n    ", " ").strip().splitlines():
        name, vendor, numbers, brand, text = line.split("|")
        words = text.split()
        base = wanted.get(words[0], frozenset())
        more = {word for word in words if word[0] != "-" and word not in wanted}
        wanted[name] = base - {word[1:] for word in words} | more
        identity = Identity(VENDORS.get(vendor, vendor).encode(), signature(*map(int, numbers.split())), brand.encode())
        with_vendor = wanted[name] | {"hypervisor"} | ({"amd"} if identity.vendor in AMD_LIKE else set())
        have = choose(base=with_vendor & IMPLEMENTED)
        found[name] = CpuModel(name, have, PHYSICAL_BITS, identity, missing=wanted[name] - have)
    return found


MODELS: Final = _models()
KNOWN: Final = frozenset(_ELSEWHERE.split()).union(*(model.missing for model in MODELS.values())) | BY_NAME.keys()
"""Every flag that means something; those outside `IMPLEMENTED` cannot be had."""
_VARIANTS: Final = ("-v1", "-IBRS", "-IBPB", "-noTSX")
"""Endings of QEMU's that change only what is not implemented here."""


def model(name: str) -> CpuModel:
    """A model by its name. ValueError: there is none."""
    plain = name
    while plain not in MODELS:
        ending = next((ending for ending in _VARIANTS if plain.endswith(ending)), None)
        if ending is None:
            raise ValueError(f"there is no CPU model {name!r}; `-cpu help` lists them")
        plain = plain.removesuffix(ending)
    return replace(MODELS[plain], name=name)


@dataclass(slots=True)
class _Wishes:
    """What the words behind the model's name say, until all of them are read."""

    switches: dict[str, bool] = field(default_factory=dict)
    plus: list[str] = field(default_factory=list)
    minus: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)


def qemu_name(feature: str) -> str:
    """A feature by the name that QEMU gives it."""
    names = {"tsc_deadline_timer": "tsc-deadline", "constant_tsc": "invtsc", "lzcnt": "abm", "sse4_1": "sse4.1",
             "sse4_2": "sse4.2"}  # fmt: skip
    return names.get(feature, feature.replace("_", "-"))


def parse(text: str, default: str = "xuni", host_bits: int = PHYSICAL_BITS,
          vendor: bytes | None = None) -> tuple[CpuModel, list[str]]:  # fmt: skip
    """The processor that `-cpu` asks for, and what could not be had.

    A `default` model is assumed if the first word is none. `host_bits`: what host-phys-bits stands for. `vendor`: instead
    of the model's, where the text names none; the host's processor cannot be another vendor's. ValueError: a model, flag
    or property that does not exist, a value that cannot be, or with `enforce` anything that could not be had.
    """
    words = text.split(",")
    name = default if not words[0] or words[0][0] in "+-" or "=" in words[0] else words.pop(0)
    base, wishes = model(name), _read([word for word in words if word])
    if vendor is not None:
        base = replace(base, identity=replace(base.identity, vendor=vendor))
    switch = wishes.switches
    kvm = switch.pop("kvm", name != "xuni")
    check, enforce = switch.pop("check", True), switch.pop("enforce", False)
    bits = _physical_bits(wishes, base, host_bits if switch.pop("host_phys_bits", False) else None)
    identity = _identity(wishes, base.identity)
    if "amd" in wishes.plus and identity.vendor not in AMD_LIKE:
        identity = OURS_AMD if identity == OURS else replace(identity, vendor=OURS_AMD.vendor)
    if wishes.values:
        key = next(iter(wishes.values)).replace("_", "-")
        raise ValueError(f"{key}: this property of a CPU cannot be set here; leave it out")
    lost = set(base.missing) - set(wishes.minus) - {flag for flag, on in switch.items() if not on}
    wanted = set(base.features) | (VIRTUAL | HYPERCALLS if kvm else set())
    asked = {flag for flag, on in switch.items() if on} | set(wishes.plus)
    refused = {flag for flag, on in switch.items() if not on and flag not in wishes.plus} | set(wishes.minus)
    wanted = (wanted | asked) - refused
    wanted = wanted | {"amd"} if identity.vendor in AMD_LIKE else wanted - {"amd"}
    lost |= wanted - IMPLEMENTED
    have = choose(base=wanted & IMPLEMENTED)
    notes = _notes(lost, (wanted & IMPLEMENTED & asked) - have)
    if enforce and notes:
        raise ValueError(f"{notes[0]}; `enforce` does not let it go without")
    return CpuModel(name, have, bits, identity, missing=frozenset(lost)), notes if check else []


def _read(words: Iterable[str]) -> _Wishes:
    wishes = _Wishes()
    for word in words:
        key, equals, value = word.lstrip("+-").partition("=")
        key = key.lower().replace("-", "_").replace(".", "_")
        key = _SYNONYMS.get(key, key)
        flag = key in KNOWN or key.startswith("vmx_")
        if word[0] in "+-":
            if equals or not flag:
                raise ValueError(f"unknown CPU feature {word[1:]!r}; `-cpu help` lists them")
            (wishes.plus if word[0] == "+" else wishes.minus).append(key)
        elif flag or key in ("kvm", "check", "enforce", "host_phys_bits", "hv_passthrough") or key in _HARMLESS:
            if value not in ("on", "off", "true", "false", "yes", "no", "") or equals and not value:
                raise ValueError(f"{word}: a switch is on or off")
            if key != "hv_passthrough" and key not in _HARMLESS:  # there are no Hyper-V interfaces to pass through
                wishes.switches[key] = value in ("on", "true", "yes", "")
        elif key in _PROPERTIES or key.startswith(("hv_", "x_")):
            wishes.values[key] = value
        else:
            raise ValueError(f"unknown CPU feature or property {word!r}; `-cpu help` lists them")
    return wishes


_PROPERTIES: Final = frozenset("""
    vendor family model stepping model_id phys_bits host_phys_bits_limit level level_func7 xlevel xlevel2 min_level min_xlevel
    min_xlevel2 tsc_frequency ucode_rev lbr_fmt apic_id node_id socket_id die_id core_id thread_id memory
""".split())  # fmt: skip


def _number(wishes: _Wishes, key: str, default: int) -> int:
    text = wishes.values.pop(key, None)
    if text is None:
        return default
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{key.replace('_', '-')}={text}: not a number") from None


def _physical_bits(wishes: _Wishes, base: CpuModel, host: int | None) -> int:
    bits = _number(wishes, "phys_bits", 0)
    limit = _number(wishes, "host_phys_bits_limit", 0)
    if host is not None:
        bits = min(host, limit or host)
    bits = bits or base.physical_bits  # 0 is QEMU's word for "as usual"
    if not MIN_PHYSICAL_BITS <= bits <= MAX_PHYSICAL_BITS:
        raise ValueError(f"phys-bits={bits}: a physical address has {MIN_PHYSICAL_BITS} to {MAX_PHYSICAL_BITS} bits")
    return bits


def _identity(wishes: _Wishes, base: Identity) -> Identity:
    vendor = wishes.values.pop("vendor", base.vendor.decode())
    if len(vendor) != 12 or not vendor.isascii():
        raise ValueError(f"vendor={vendor}: a vendor has 12 ASCII characters, as GenuineIntel")
    raw = base.signature
    family = (raw >> 8 & 0xF) + ((raw >> 20 & 0xFF) if raw >> 8 & 0xF == 0xF else 0)
    number = (raw >> 4 & 0xF) | (raw >> 16 & 0xF) << 4
    numbers = _number(wishes, "family", family), _number(wishes, "model", number), _number(wishes, "stepping", raw & 0xF)
    brand = wishes.values.pop("model_id", base.brand.decode())
    if len(brand) > 47 or not brand.isascii():
        raise ValueError(f"model-id={brand}: a processor's name has up to 47 ASCII characters")
    return Identity(vendor.encode(), signature(*numbers), brand.encode())


def _notes(lost: Iterable[str], lacking: Iterable[str]) -> list[str]:
    notes = []
    if lost := sorted(lost):
        notes.append(f"this processor does not have {' '.join(map(qemu_name, lost))}")
    for name in sorted(lacking):
        notes.append(f"{name} needs {' '.join(BY_NAME[name].requires)}, and is left out with it")
    return notes
