"""The KVM engine's probes, in a file of their own so that `--trace` knows them before the engine is loaded."""

from __future__ import annotations

from xuni.trace import Probe

kvm_fallback = Probe("kvm_fallback", "cpu", "rip", "instruction", "count")
"""KVM gave up on an instruction, and our own semantics execute it."""
kvm_stuck = Probe("kvm_stuck", "cpu", "rip", "instruction")
"""KVM_RUN makes no progress."""
kvm_differs = Probe("kvm_differs", "cpu", "rip", "instruction", "differences")
"""KVM and our own semantics do not agree on an instruction. Listening makes the engine go step by step and compare."""
