"""/dev/kvm as objects: `Kvm` makes a `Vm`, which makes `Vcpu`s; each request of the kernel is one line of `ioctls.py` and
one typed method. Spec: Documentation/virt/kvm/api.rst of Linux.
"""

from xuni.host.kvm.system import Kvm, KvmUnavailable
from xuni.host.kvm.vcpu import SyncClass, Vcpu
from xuni.host.kvm.vm import MemoryFlag, Vm

__all__ = ["Kvm", "KvmUnavailable", "MemoryFlag", "SyncClass", "Vcpu", "Vm"]
