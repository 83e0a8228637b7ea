"""Every capability of KVM (KVM_CAP_* of <linux/kvm.h>): its number, what it is to xuni, and whether this host has it.

`xuni doctor --kvm` prints this table, and docs/kvm.md has it for one host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# Number, name, and what xuni uses it for. "-": another architecture's.
_TABLE: Final = """
0 IRQCHIP interrupt controllers in the kernel: xuni.host.kvm
1 HLT
2 MMU_SHADOW_CACHE_CONTROL
3 USER_MEMORY guest memory
4 SET_TSS_ADDR pages that KVM on Intel needs
6 VAPIC xuni.host.kvm
7 EXT_CPUID CPUID of the guest
8 CLOCKSOURCE
9 NR_VCPUS
10 NR_MEMSLOTS
11 PIT
12 NOP_IO_DELAY
13 PV_MMU
14 MP_STATE
15 COALESCED_MMIO writes that wait: xuni.host.kvm
16 SYNC_MMU
18 IOMMU
21 DESTROY_MEMORY_REGION_WORKS
22 USER_NMI NMIs
23 SET_GUEST_DEBUG breakpoints and single steps
24 REINJECT_CONTROL timer in the kernel: xuni.host.kvm
25 IRQ_ROUTING interrupt routing: xuni.host.kvm
26 IRQ_INJECT_STATUS interrupt lines: xuni.host.kvm
29 ASSIGN_DEV_IRQ
30 JOIN_MEMORY_REGIONS_WORKS
31 MCE xuni.host.kvm
32 IRQFD interrupts from other threads: xuni.host.kvm
33 PIT2 timer in the kernel: xuni.host.kvm
34 SET_BOOT_CPU_ID xuni.host.kvm
35 PIT_STATE2 timer in the kernel: xuni.host.kvm
36 IOEVENTFD writes that signal a file: xuni.host.kvm
37 SET_IDENTITY_MAP_ADDR xuni.host.kvm
38 XEN_HVM
39 ADJUST_CLOCK paravirtual clock: xuni.host.kvm
40 INTERNAL_ERROR_DATA what KVM gave up on
41 VCPU_EVENTS state between engines
42 S390_PSW -
43 PPC_SEGSTATE -
44 HYPERV
45 HYPERV_VAPIC
46 HYPERV_SPIN
47 PCI_SEGMENT
48 PPC_PAIRED_SINGLES -
49 INTR_SHADOW
50 DEBUGREGS state between engines
51 X86_ROBUST_SINGLESTEP breakpoints and single steps
52 PPC_OSI -
53 PPC_UNSET_IRQ -
54 ENABLE_CAP
55 XSAVE state between engines
56 XCRS state between engines
57 PPC_GET_PVINFO -
58 PPC_IRQ_LEVEL -
59 ASYNC_PF
60 TSC_CONTROL a counter of 1 GHz on every host
61 GET_TSC_KHZ the guest's clock rate
62 PPC_BOOKE_SREGS -
63 SPAPR_TCE -
64 PPC_SMT -
65 PPC_RMA -
66 MAX_VCPUS how many processors a machine may have
67 PPC_HIOR -
68 PPC_PAPR -
69 SW_TLB -
70 ONE_REG
71 S390_GMAP -
72 TSC_DEADLINE_TIMER
73 S390_UCONTROL -
74 SYNC_REGS registers without a system call: xuni.host.kvm
75 PCI_2_3 -
76 KVMCLOCK_CTRL xuni.host.kvm
77 SIGNAL_MSI message-signalled interrupts: xuni.host.kvm
78 PPC_GET_SMMU_INFO -
79 S390_COW -
80 PPC_ALLOC_HTAB -
81 READONLY_MEM ROM
82 IRQFD_RESAMPLE interrupts from other threads: xuni.host.kvm
83 PPC_BOOKE_WATCHDOG -
84 PPC_HTAB_FD -
85 S390_CSS_SUPPORT -
86 PPC_EPR -
87 ARM_PSCI -
88 ARM_SET_DEVICE_ADDR -
89 DEVICE_CTRL xuni.host.kvm
90 IRQ_MPIC -
91 PPC_RTAS -
92 IRQ_XICS -
93 ARM_EL1_32BIT -
94 SPAPR_MULTITCE -
95 EXT_EMUL_CPUID xuni.host.kvm
96 HYPERV_TIME
97 IOAPIC_POLARITY_IGNORED
98 ENABLE_CAP_VM other capabilities are turned on
99 S390_IRQCHIP -
100 IOEVENTFD_NO_LENGTH
101 VM_ATTRIBUTES
102 ARM_PSCI_0_2 -
103 PPC_FIXUP_HCALL -
104 PPC_ENABLE_HCALL -
105 CHECK_EXTENSION_VM
106 S390_USER_SIGP -
107 S390_VECTOR_REGISTERS -
108 S390_MEM_OP -
109 S390_USER_STSI -
110 S390_SKEYS -
111 MIPS_FPU -
112 MIPS_MSA -
113 S390_INJECT_IRQ -
114 S390_IRQ_STATE -
115 PPC_HWRNG -
116 DISABLE_QUIRKS
117 X86_SMM xuni.host.kvm
118 MULTI_ADDRESS_SPACE -
119 GUEST_DEBUG_HW_BPS -
120 GUEST_DEBUG_HW_WPS -
121 SPLIT_IRQCHIP local APICs alone in the kernel: xuni.host.kvm
122 IOEVENTFD_ANY_LENGTH writes that signal a file: xuni.host.kvm
123 HYPERV_SYNIC
124 S390_RI -
125 SPAPR_TCE_64 -
126 ARM_PMU_V3 -
127 VCPU_ATTRIBUTES offset of the time-stamp counter: xuni.host.kvm
128 MAX_VCPU_ID
129 X2APIC_API
130 S390_USER_INSTR0 -
131 MSI_DEVID -
132 PPC_HTM -
133 SPAPR_RESIZE_HPT -
134 PPC_MMU_RADIX -
135 PPC_MMU_HASH_V3 -
136 IMMEDIATE_EXIT an instruction is finished without going on
137 MIPS_VZ -
138 MIPS_TE -
139 MIPS_64BIT -
140 S390_GS -
141 S390_AIS -
142 SPAPR_TCE_VFIO -
143 X86_DISABLE_EXITS
144 ARM_USER_IRQ -
145 S390_CMMA_MIGRATION -
146 PPC_FWNMI -
147 PPC_SMT_POSSIBLE -
148 HYPERV_SYNIC2
149 HYPERV_VP_INDEX
150 S390_AIS_MIGRATION -
151 PPC_GET_CPU_CHAR -
152 S390_BPB -
153 GET_MSR_FEATURES xuni doctor --kvm
154 HYPERV_EVENTFD
155 HYPERV_TLBFLUSH
156 S390_HPAGE_1M -
157 NESTED_STATE xuni.host.kvm
158 ARM_INJECT_SERROR_ESR -
159 MSR_PLATFORM_INFO
160 PPC_NESTED_HV -
161 HYPERV_SEND_IPI
162 COALESCED_PIO writes that wait: xuni.host.kvm
163 HYPERV_ENLIGHTENED_VMCS
164 EXCEPTION_PAYLOAD
165 ARM_VM_IPA_SIZE -
166 MANUAL_DIRTY_LOG_PROTECT
167 HYPERV_CPUID
168 MANUAL_DIRTY_LOG_PROTECT2 pages that were written to: xuni.host.kvm
169 PPC_IRQ_XIVE -
170 ARM_SVE -
171 ARM_PTRAUTH_ADDRESS -
172 ARM_PTRAUTH_GENERIC -
173 PMU_EVENT_FILTER
174 ARM_IRQ_LINE_LAYOUT_2 -
175 HYPERV_DIRECT_TLBFLUSH
176 PPC_GUEST_DEBUG_SSTEP -
177 ARM_NISV_TO_USER -
178 ARM_INJECT_EXT_DABT -
179 S390_VCPU_RESETS -
180 S390_PROTECTED -
181 PPC_SECURE_GUEST -
182 HALT_POLL
183 ASYNC_PF_INT
184 LAST_CPU
185 SMALLER_MAXPHYADDR
186 S390_DIAG318 -
187 STEAL_TIME
188 X86_USER_SPACE_MSR MSRs of the board's local APIC
189 X86_MSR_FILTER MSRs of the board's local APIC
190 ENFORCE_PV_FEATURE_CPUID
191 SYS_HYPERV_CPUID
192 DIRTY_LOG_RING pages that were written to: xuni.host.kvm
193 X86_BUS_LOCK_EXIT
194 PPC_DAWR1 -
195 SET_GUEST_DEBUG2
196 SGX_ATTRIBUTE
197 VM_COPY_ENC_CONTEXT_FROM
198 PTP_KVM -
199 HYPERV_ENFORCE_CPUID
200 SREGS2 state between engines
201 EXIT_HYPERCALL
202 PPC_RPT_INVALIDATE -
203 BINARY_STATS_FD statistics of the kernel
204 EXIT_ON_EMULATION_FAILURE user-mode instructions that KVM gives up on
205 ARM_MTE -
206 VM_MOVE_ENC_CONTEXT_FROM
207 VM_GPA_BITS -
208 XSAVE2 state of large components: xuni.host.kvm
209 SYS_ATTRIBUTES
210 PPC_AIL_MODE_3 -
211 S390_MEM_OP_EXTENSION -
212 PMU_CAPABILITY
213 DISABLE_QUIRKS2
214 VM_TSC_CONTROL
215 SYSTEM_EVENT_DATA
216 ARM_SYSTEM_SUSPEND -
217 S390_PROTECTED_DUMP -
218 X86_TRIPLE_FAULT_EVENT
219 X86_NOTIFY_VMEXIT
220 VM_DISABLE_NX_HUGE_PAGES
221 S390_ZPCI_OP -
222 S390_CPU_TOPOLOGY -
223 DIRTY_LOG_RING_ACQ_REL pages that were written to: xuni.host.kvm
224 S390_PROTECTED_ASYNC_DISABLE -
225 DIRTY_LOG_RING_WITH_BITMAP
226 PMU_EVENT_MASKED_EVENTS
227 COUNTER_OFFSET -
228 ARM_EAGER_SPLIT_CHUNK_SIZE -
229 ARM_SUPPORTED_BLOCK_SIZES -
230 ARM_SUPPORTED_REG_MASK_RANGES -
231 USER_MEMORY2
232 MEMORY_FAULT_INFO
233 MEMORY_ATTRIBUTES
234 GUEST_MEMFD
235 VM_TYPES
236 PRE_FAULT_MEMORY
237 X86_APIC_BUS_CYCLES_NS
238 X86_GUEST_MODE
239 ARM_WRITABLE_IMP_ID_REGS -
240 ARM_EL2 -
241 ARM_EL2_E2H0 -
242 RISCV_MP_STATE_RESET -
243 ARM_CACHEABLE_PFNMAP_SUPPORTED -
244 GUEST_MEMFD_FLAGS
"""


@dataclass(frozen=True, slots=True)
class Capability:
    """One row. `use` is empty where xuni does without."""

    number: int
    name: str
    use: str
    x86: bool


def _rows() -> tuple[Capability, ...]:
    rows = []
    for line in _TABLE.strip().splitlines():
        number, name, *use = line.split(" ", 2)
        elsewhere = use == ["-"]
        rows.append(Capability(int(number), name, "" if elsewhere or not use else use[0], not elsewhere))
    return tuple(rows)


CAPABILITIES: Final = _rows()


def table(values: Mapping[int, int]) -> str:
    """The rows for x86 as Markdown, with what a host says."""
    lines = ["| number | KVM_CAP_ | here | xuni uses it for |", "| ---: | --- | ---: | --- |"]
    for row in CAPABILITIES:
        if row.x86:
            here = values.get(row.number, 0)
            lines.append(f"| {row.number} | {row.name} | {here if here > 0 else '–'} | {row.use} |")
    return "\n".join(lines)


class Cap(IntEnum):
    """Those that the code names."""

    IRQCHIP = 0
    USER_MEMORY = 3
    NR_VCPUS = 9
    MP_STATE = 14
    COALESCED_MMIO = 15
    SET_GUEST_DEBUG = 23
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    SYNC_REGS = 74
    READONLY_MEM = 81
    SPLIT_IRQCHIP = 121
    VCPU_ATTRIBUTES = 127
    IMMEDIATE_EXIT = 136
    GET_MSR_FEATURES = 153
    NESTED_STATE = 157
    COALESCED_PIO = 162
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    DIRTY_LOG_RING = 192
    SREGS2 = 200
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
