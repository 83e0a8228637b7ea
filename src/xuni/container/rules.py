"""Why the kernel says no: the rule behind an errno, where one is known.

`explain` gives the text of a failed step: its record, the call with its arguments, the error, and the rule.
To add one: a line in RULES.
"""

from __future__ import annotations

import errno as e

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FULL: Final = "there may be no more processes: linux.resources.pids.limit (pids.max), that of a group above, or RLIMIT_NPROC " \
    "is reached"
# Step, call ("" for any), errno: the rule.
RULES: Final = (
    ("Filesystem(.*kind='proc'", "fsmount", e.EPERM,
     "a user namespace may mount proc only if nothing of the outer /proc is hidden by other mounts, and only "
     "with a PID namespace "
     "of its own (mount_namespaces(7)); give the container a PID namespace, or bind /proc"),
    ("Filesystem(.*kind='sysfs'", "", e.EPERM,
     "sysfs shows the network namespace, so only its owner may mount it: a user namespace needs a network namespace of its own; "
     "or bind /sys"),
    ("Filesystem(.*kind='cgroup", "", e.EPERM,
     "control groups can be mounted in a user namespace only together with a cgroup namespace that it owns"),
    ("Filesystem", "fsconfig", e.EINVAL, "the file system does not know this option, or its value is out of range "
     "(a gid= that the user namespace does not map is one, too)"),
    ("Filesystem", "fsopen", e.ENODEV, "this kernel has no such file system, built in or as a loaded module"),
    ("", "mount_setattr", e.EPERM,
     "attributes that came from a more privileged mount namespace are locked, and may be added to but not "
     "removed; an id map takes "
     "the rights over the file system itself"),
    ("", "mount_setattr", e.EINVAL,
     "the file system does not support id maps (FS_ALLOW_IDMAP), is mapped already, or the attributes contradict each other"),
    ("", "openat2", e.ELOOP, "a symbolic link stands where none may, or leads in circles"),
    ("", "openat2", e.EXDEV, "the path leads out of the container's root"),
    ("", "move_mount", e.ELOOP, "a mount cannot be placed below itself"),
    ("", "move_mount", e.ENOTDIR, "a directory can only be mounted over a directory, and a file over a file"),
    ("OpenSource", "open_tree", e.ENOENT, "the source of the bind mount does not exist on the host"),
    ("OpenSource", "open_tree", e.EINVAL,
     "an unbindable mount cannot be bound, nor one mount of a locked tree without all that is below it: use rbind"),
    ("OpenRoot", "open_tree", e.ENOENT, "root.path does not exist; it is relative to the bundle"),
    ("Unshare", "unshare", e.EPERM, "namespaces take CAP_SYS_ADMIN; without it, add a user namespace to linux.namespaces"),
    ("Unshare", "unshare", e.ENOSPC, "a limit of /proc/sys/user/max_*_namespaces is reached"),
    ("Unshare", "unshare", e.EINVAL, "this kernel was built without one of these namespaces"),
    ("", "clone3", e.EPERM, "namespaces take CAP_SYS_ADMIN; without it, add a user namespace to linux.namespaces. A process in a "
     "chroot cannot make user namespaces"),
    ("", "clone3", e.EAGAIN, FULL),
    ("RunHook", "", e.EAGAIN, FULL),
    ("", "clone3", e.EBUSY,
     "in cgroup v2 a group that hands controllers to groups below it may hold no process itself ('no internal processes'), and "
     "linux.cgroupsPath names such a group"),
    ("", "clone3", e.ENOSPC, "a limit of /proc/sys/user/max_*_namespaces is reached"),
    ("", "clone3", e.EINVAL, "this kernel was built without one of these namespaces"),
    ("Join", "setns", e.EPERM, "joining a namespace takes CAP_SYS_ADMIN in the user namespace that owns it"),
    ("Join", "setns", e.EINVAL, "the file is not a namespace of this kind, or it is the user namespace we are already in"),
    ("MapIds", "write", e.EPERM,
     "ids outside your own can be mapped with CAP_SETUID and CAP_SETGID in the parent user namespace only; "
     "ranges may not overlap, "
     "and a map is written once"),
    ("MapIds", "write", e.EINVAL, "a map has at most 340 lines, sizes are at least 1, and ranges may not overlap"),
    ("SetRlimit", "prlimit64", e.EPERM,
     "a hard limit can be raised only with CAP_SYS_RESOURCE, which we lack; ask for at most the limit we have"),
    ("OomScore", "write", e.EACCES,
     "oom_score_adj can be lowered below the value it was given before only with CAP_SYS_RESOURCE"),
    ("SetCapabilities", "capset", e.EPERM,
     "permitted capabilities can only be dropped, never gained: the runtime itself does not have all of these; an ambient one "
     "must be permitted and inheritable"),
    ("SetCapabilities", "prctl", e.EPERM, "an ambient capability must be permitted and inheritable as well (capabilities(7))"),
    ("BecomeUser", "setresuid", e.EINVAL, "the user namespace does not map this uid; linux.uidMappings must cover it"),
    ("BecomeUser", "setresgid", e.EINVAL, "the user namespace does not map this gid; linux.gidMappings must cover it"),
    ("BecomeUser", "setgroups", e.EINVAL, "the user namespace does not map one of the gids; linux.gidMappings must cover it"),
    ("BecomeUser", "setgroups", e.EPERM,
     "in a user namespace made without privilege setgroups is denied, so additionalGids must be empty (user_namespaces(7))"),
    ("LoadSeccomp", "seccomp", e.EACCES,
     "without noNewPrivileges a filter takes CAP_SYS_ADMIN in the user namespace of the process"),
    ("LoadSeccomp", "seccomp", e.EINVAL, "this kernel does not know one of the flags or actions, or the program is too long"),
    ("LoadSeccomp", "seccomp", e.EBUSY, "one filter of the process has a notify listener already"),
    ("SetScheduler(.*SCHED_DEADLINE", "sched_setattr", e.EPERM,
     "a deadline task must be free to run on every processor: process scheduler can't be used together with AllowedCPUs "
     "(linux.resources.cpu.cpus); and it takes CAP_SYS_NICE"),
    ("SetScheduler", "sched_setattr", e.EPERM,
     "a nice value below the present one takes CAP_SYS_NICE in the host's user namespace, or RLIMIT_NICE"),
    ("SetScheduler", "sched_setattr", e.EBUSY, "the deadline bandwidth of these processors is spoken for"),
    *[("RunHook(point='startContainer'", "pidfd_open", number,
       "startContainer hooks are under the container's seccomp filter, and this one forbids what watching over a hook takes")
      for number in (e.EPERM, e.ENOSYS)],
    ("Sysctl", "openat", e.ENOENT, "this kernel has no such parameter"),
    ("Sysctl", "openat", e.EROFS, "/proc/sys is read-only where the runtime runs: it is in a container itself"),
    ("Sysctl", "openat", e.EACCES, "this parameter belongs to the host's user namespace"),
    ("Sysctl", "write", e.EINVAL, "the value is out of the parameter's range"),
    ("PivotRoot", "pivot_root", e.EINVAL,
     "the root is on the initramfs, which cannot be unmounted, or its parent mount is shared; --no-pivot does without"),
    ("LimitGroup", "write", e.EINVAL,
     "the value is out of this limit's range, or contradicts another one or that of a group above (quota and period of the CPU "
     "are at least 1000 µs)"),
    ("LimitGroup", "write", e.ERANGE, "this machine has not so many processors or memory nodes"),
    ("LimitGroup", "write", e.EACCES, "the group above does not have all of these processors or memory nodes"),
    ("LimitGroup", "write", e.ENODEV, "no block device of this machine has this number"),
    ("JoinGroup", "", e.EBUSY,
     "in cgroup v2 a group that hands controllers to its children may hold no process itself ('no internal processes')"),
    ("JoinGroup", "", e.ENOSPC, "a cpuset group without cpus or mems accepts no process"),
    ("JoinGroup", "", e.EAGAIN, "pids.max of a group above is reached"),
    ("Execute", "execve", e.ENOEXEC, "the file is neither an ELF program for this machine nor a script that begins with #!"),
    ("Execute", "execve", e.ENOENT, "the program is there, but its interpreter (#! or PT_INTERP) is not in the image"),
    ("Execute", "execve", e.EACCES, "the file lacks execute permission for this user, or is on a mount with noexec"),
    ("Node", "mknodat", e.EPERM, "device nodes take CAP_MKNOD in the host's user namespace"),
    ("AttachRoot", "move_mount", e.EINVAL, "the target is in another mount namespace"),
    ("Hostname", "sethostname", e.EPERM, "the UTS namespace belongs to another user namespace"),
    ("Hostname", "sethostname", e.EINVAL, "a host name has at most 64 bytes"),
)  # fmt: skip


LONGEST: Final = 600  # characters of a step: one may have a thousand paths


def explain(step: str, said: str, call: str, number: int) -> str:
    """One paragraph: what we did, what the kernel answered, and why."""
    if not number:
        return said
    rule = find(step, call, number)
    if len(step) > LONGEST:
        step = step[:LONGEST] + " …"
    return f"{step.partition('(')[0]}: {said}" + (f"; {rule}" if rule else "") + f" [step {step}]"


def find(step: str, call: str, number: int) -> str:
    for pattern, named, errno, rule in RULES:
        if errno != number or named and named != call:
            continue
        name, _, inner = pattern.partition("(.*")
        if step.startswith(name) and inner in step:
            return rule
    return ""
