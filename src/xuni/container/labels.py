"""AppArmor profiles and SELinux labels, where the kernel has these modules: what the process becomes at its execve.

The kernel takes them through /proc/self/attr. That file is opened before pivot_root, on the host's /proc: an image that
puts something else in its place gets nothing (CVE-2019-16884).
"""

from __future__ import annotations

import os

from xuni.container.record import SpecError
from xuni.container.step import Run, Step

TYPE_CHECKING = False


def apparmor() -> bool:
    """Whether the kernel confines by AppArmor profiles."""
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def selinux() -> bool:
    return os.path.exists("/sys/fs/selinux/enforce")


class OpenLabel(Step):
    """Open what SetLabel writes to. Fails where the kernel has no such module: a label that does nothing protects nobody."""

    apparmor: str = ""
    selinux: str = ""

    def apply(self, run: Run) -> None:
        if self.apparmor and not apparmor():
            raise SpecError(f"process.apparmorProfile: {self.apparmor!r} was specified, but AppArmor is not "
                            f"enabled in this kernel")
        if self.selinux and not selinux():
            raise SpecError(f"process.selinuxLabel: {self.selinux!r} was specified, but SELinux is not enabled in this kernel")
        names = ("apparmor/exec", "exec") if self.apparmor else ("exec",)
        for name in names:
            path = f"/proc/self/attr/{name}"
            if os.path.exists(path):
                run.files["label"] = run.kernel.open(path, os.O_WRONLY)
                return


class SetLabel(Step):
    """The label of the process, from its execve on."""

    apparmor: str = ""
    selinux: str = ""

    def apply(self, run: Run) -> None:
        descriptor = run.files.pop("label")
        try:
            os.write(descriptor, (f"exec {self.apparmor}" if self.apparmor else self.selinux).encode())
        except FileNotFoundError:
            raise SpecError(f"process.apparmorProfile: no profile {self.apparmor!r} is loaded (aa-status lists them)") from None
        finally:
            os.close(descriptor)
