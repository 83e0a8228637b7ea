"""From the configuration to the steps: pure but for looking at what the host has, so it can be printed and compared.

A `Plan` is in the order of a container's life, which life.py tells. The same configuration on the same host gives the
same plan; nothing is opened or changed here. What the configuration may not say is a SpecError.
"""

from __future__ import annotations

from xuni.container import devices as dev
from xuni.container import mounts as mnt
from xuni.container import namespaces as ns
from xuni.container import process as proc
from xuni.container.record import Record, SpecError
from xuni.container.spec import Hooks
from xuni.container.step import Step
from xuni.host.linux import system as os
from xuni.host.linux.trampoline import available

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from xuni.container.spec import Hook, Linux, Process, Spec


class Host(Record):
    """What a plan depends on besides the configuration."""

    root: bool = True  # we are the host's root, or as good
    cgroups: bool = True  # control groups are wanted at all
    no_pivot: bool = False
    no_new_keyring: bool = False
    console_socket: str = ""
    create: bool = False  # the runtime will not stay to attend the terminal


class Plan(Record):
    """Who does what, in order."""

    prepare: tuple[Step, ...]  # the runtime, before init exists
    outside: tuple[Step, ...]  # between the two, if namespaces must be joined before init is made
    clone: tuple[str, ...]  # the namespaces that init is born into
    adopt: tuple[Step, ...]  # the runtime: id maps, limits of init itself
    enter: tuple[Step, ...]  # init: its control groups and namespaces
    limit: tuple[Step, ...]  # the runtime meanwhile: the limits of its groups, in force before anything of the image's runs
    build: tuple[Step, ...]  # init: the tree of files
    host_hooks: tuple[Step, ...]  # the runtime: network interfaces, prestart, createRuntime
    seal: tuple[Step, ...]  # init: createContainer, the new root, hidden paths
    become: tuple[Step, ...]  # init: who it is and what it may
    begin: tuple[Step, ...]  # init, after `start`: startContainer, seccomp, the process
    poststart: tuple[Step, ...]  # the runtime
    poststop: tuple[Step, ...]  # the runtime, once it is over


def plan(spec: Spec, bundle: str, host: Host) -> Plan:
    """Raises SpecError."""
    from xuni.container.check import check

    linux = check(spec, host)
    process = spec.process
    kinds = {each.type: each.path for each in linux.namespaces}
    new = tuple([kind for kind in ns.KINDS if kind in kinds and not kinds[kind]])
    joined = tuple([kind for kind in ns.KINDS if kinds.get(kind)])
    if host.root:  # who may enter all of them; inside the user namespace only what it owns
        joined = (*[kind for kind in joined if kind != "user"], *[kind for kind in joined if kind == "user"])
    userns = "user" in kinds
    assert spec.root is not None
    root = spec.root.path if spec.root.path.startswith("/") else f"{bundle}/{spec.root.path}"

    # Joined before init is made: the PID namespace takes only children, a joined user namespace must own the new ones,
    # and out of a new user namespace nobody could join the host's.
    early = joined if "pid" in joined or "user" in joined or ("user" in new and joined) else ()
    born = tuple([kind for kind in new if kind in ("user", "pid")])
    unshared = tuple([kind for kind in new if kind not in ("user", "pid")])
    # Podman's --group-add keep-groups, by the name that crun gave it.
    keep_groups = (spec.annotations or {}).get("run.oci.keep_original_groups", "0") not in ("0", "")
    by_runtime = userns and host.root  # init will not be the one who may open what the host's root may

    opening: list[Step] = []
    filling: list[Step] = []
    _mounts(spec, linux, kinds, bundle, os.path.normpath(root), by_runtime, opening, filling)
    early_sources = opening if not by_runtime else []  # idmapped ones
    if by_runtime:
        opening.insert(0, mnt.OpenRoot(root))
    mounted = "mount" in kinds
    hooks = spec.hooks or Hooks()

    prepare: list[Step] = [ns.OpenNamespace(kind, kinds[kind]) for kind in joined]
    if linux.seccomp is not None:
        from xuni.container.seccomp import CompileSeccomp

        prepare.insert(0, CompileSeccomp(linux.seccomp))
    if host.console_socket:
        from xuni.container.terminal import ConnectConsole

        prepare.append(ConnectConsole(host.console_socket))

    adopt: list[Step] = []
    limit: list[Step] = []
    enter: list[Step] = []
    moves: list[Step] = []  # once init has its network namespace
    if "user" in new:
        adopt.append(ns.MapIds(linux.uidMappings, linux.gidMappings))
    if host.cgroups:
        from xuni.container.groups import EnterGroup, LimitGroup, MakeGroup

        prepare.append(MakeGroup(linux.cgroupsPath))
        if linux.resources is not None:
            limit.append(LimitGroup(linux.resources))
        enter.append(EnterGroup())
    nodes = _configured(linux)
    prepare += early_sources
    if by_runtime:
        prepare += opening
        if nodes and "user" in new:
            prepare.append(dev.MakeNodes(nodes, linux.uidMappings, linux.gidMappings))
    for name, device in (linux.netDevices or {}).items():
        from xuni.container.netdev import MoveInterface, check_name

        check_name(f"linux.netDevices.{name}", name)
        check_name(f"linux.netDevices.{name}.name", device.name or name)
        moves.append(MoveInterface(name, device.name or name))

    if process is not None:
        adopt += [proc.SetRlimit(each.type, each.soft, each.hard) for each in process.rlimits]
        if process.oomScoreAdj is not None:
            enter.append(proc.OomScore(process.oomScoreAdj))
    if not early:
        enter += [ns.Join(kind, kinds[kind]) for kind in joined]
    if userns:
        enter.append(ns.BecomeRoot(keep_groups, "user" in new or "time" in new))
    if unshared:
        enter.append(ns.Unshare(unshared))
    if "time" in new:
        offsets = tuple([(clock, each.secs, each.nanosecs) for clock, each in (linux.timeOffsets or {}).items()])
        enter.append(ns.TimeOffsets(offsets))
    if "network" in new:
        from xuni.container.loopback import Loopback

        enter.append(Loopback())
    if spec.hostname:
        enter.append(ns.Hostname(spec.hostname))
    if spec.domainname:
        enter.append(ns.Domainname(spec.domainname))
    enter += [ns.Sysctl(key, value) for key, value in (linux.sysctl or {}).items()]
    if not host.no_new_keyring:
        enter.append(proc.Keyring())
    if linux.memoryPolicy is not None:
        enter.append(proc.SetMemoryPolicy(linux.memoryPolicy))

    build: list[Step] = []
    if mounted:
        build.append(mnt.Propagation("rslave" if linux.rootfsPropagation != "private" else "rprivate"))
    if not by_runtime:
        build.append(mnt.OpenRoot(root))
    follows = linux.rootfsPropagation in ("slave", "shared", "rslave", "rshared")
    build.append(mnt.AttachRoot(root, mounted, "rslave" if follows else "rprivate"))
    build += filling
    if by_runtime and nodes and "user" in new:
        build.append(dev.TakeNodes(tuple([each.path for each in nodes])))
    build += _devices(spec, linux, userns)

    if process is not None:
        build.append(proc.MakeDirectory(process.cwd))
    label = process is not None and (process.apparmorProfile or process.selinuxLabel)
    if process is not None and label:
        from xuni.container.labels import OpenLabel

        build.append(OpenLabel(process.apparmorProfile, process.selinuxLabel))
    seal: list[Step] = list(_hooks("createContainer", hooks.createContainer))
    if spec.root.readonly:
        seal.append(mnt.ReadOnlyRoot())
    if linux.readonlyPaths:
        seal.append(mnt.ReadOnly(linux.readonlyPaths))
    if linux.maskedPaths:
        seal.append(mnt.Mask(linux.maskedPaths))
    seal.append(mnt.MoveRoot(mounted) if host.no_pivot or not mounted else mnt.PivotRoot())
    if process is not None and process.terminal:
        from xuni.container.terminal import OpenTerminal

        size = process.consoleSize
        seal.append(OpenTerminal(size.width if size else 0, size.height if size else 0, process.user.uid))
    else:
        seal.append(proc.NewSession())
    if any(each.destination.rstrip("/") == "/dev" and "ro" in each.options for each in spec.mounts):
        seal.append(mnt.LockMount("/dev"))
    if linux.rootfsPropagation:
        seal.append(mnt.RootPropagation(linux.rootfsPropagation))

    become: list[Step] = []
    begin: list[Step] = list(_hooks("startContainer", hooks.startContainer))
    if process is not None:
        become, begin = identity(process, linux, keep_groups, begin)
    return Plan(
        tuple(prepare), tuple([ns.Join(kind, kinds[kind]) for kind in early]), born, tuple(adopt), tuple(enter),
        tuple(limit), tuple(build),
        (*moves, *_hooks("prestart", hooks.prestart), *_hooks("createRuntime", hooks.createRuntime)),
        tuple(seal), tuple(become), tuple(begin),
        tuple(_hooks("poststart", hooks.poststart)), tuple(_hooks("poststop", hooks.poststop)),
    )  # fmt: skip


def identity(process: Process, linux: Linux, keep_groups: bool = False,
             hooks: list[Step] | None = None) -> tuple[list[Step], list[Step]]:  # fmt: skip
    """Who the process is and what it may: steps before `start`, and those right before the process, with startContainer
    `hooks`, which are under the same filter, among them. Exec's too."""
    become: list[Step] = [proc.ResetAffinity()]
    if linux.personality is not None:
        become.append(proc.SetPersonality(proc.persona(linux.personality)))
    if process.scheduler is not None:
        become.append(proc.SetScheduler(process.scheduler))
    if process.ioPriority is not None:
        become.append(proc.SetIoPriority(process.ioPriority.class_, process.ioPriority.priority))
    if process.apparmorProfile or process.selinuxLabel:
        from xuni.container.labels import SetLabel

        become.append(SetLabel(process.apparmorProfile, process.selinuxLabel))
    if not process.terminal:
        become.append(proc.OwnStreams(process.user.uid, process.user.gid))
    environment = proc.environment(process)
    become.append(proc.Environment(environment))
    if not any(each.startswith("HOME=") and each != "HOME=" for each in environment):
        become.append(proc.FindHome(process.user.uid))
    seccomp: list[Step] = []
    keep = 0
    if linux.seccomp is not None:
        from xuni.container.seccomp import DEFAULT_FLAGS, LoadSeccomp

        flags = DEFAULT_FLAGS if linux.seccomp.flags is None else linux.seccomp.flags
        seccomp.append(LoadSeccomp(flags, bool(linux.seccomp.listenerPath)))
    if process.noNewPrivileges:
        become.append(proc.NoNewPrivileges())
    elif linux.seccomp is not None:
        keep = proc.mask(("CAP_SYS_ADMIN",))  # which the filter takes
    caps = process.capabilities
    if caps is not None:
        become.append(proc.BoundCapabilities(proc.mask(caps.bounding)))
    user = process.user
    become.append(proc.ChangeDirectory(process.cwd, early=True))
    become.append(proc.BecomeUser(user.uid, user.gid, user.additionalGids, user.umask, keep_groups))
    if caps is not None:
        become.append(proc.SetCapabilities(proc.mask(caps.permitted), proc.mask(caps.effective), proc.mask(caps.inheritable),
                                           proc.mask(caps.ambient), keep))  # fmt: skip
    become.append(proc.ChangeDirectory(process.cwd))
    become.append(proc.FindProgram(process.args))
    begin: list[Step] = [proc.RestoreSignals()]
    # A filter with a listener goes on while the runtime that knows the listener is there.
    before = become if linux.seccomp is not None and linux.seccomp.listenerPath else begin
    if available() and _may_execveat(linux):
        # In a user namespace too: who made it without privilege, or maps the host's root, may own our program.
        before.append(proc.PrepareTrampoline())
    else:
        from xuni.container.ourselves import RefuseOurselves

        become.append(RefuseOurselves())
    before += seccomp
    if keep and caps is not None:
        begin.append(proc.FinishCapabilities())
    begin += hooks or ()
    begin.append(proc.Execute(process.args))
    return become, begin


def _may_execveat(linux: Linux) -> bool:
    """Whether the filter lets the trampoline be executed."""
    seccomp = linux.seccomp
    if seccomp is None:
        return True
    for rule in seccomp.syscalls:
        if "execveat" in rule.names:
            return rule.action in _ALLOWING
    return seccomp.defaultAction in _ALLOWING


_ALLOWING: Final = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")


def _mounts(spec: Spec, linux: Linux, kinds: dict[str, str], bundle: str, root: str, by_runtime: bool, opening: list[Step],
            filling: list[Step]) -> None:  # fmt: skip
    userns = "user" in kinds
    below = root + "/" if root != "/" else "//"
    for index, mount in enumerate(spec.mounts):
        options = mnt.sort_options(mount.options, f"mounts[{index}]", mnt.IMPLIED_IN_USERNS if userns else mnt.IMPLIED)
        if options.copy_up:
            import xuni.container.copying  # noqa: F401 - init may not be able to read it
        target = "/" + mount.destination.removeprefix(below).lstrip("/")  # a path of the host's in the root means the same
        if options.bind or mount.type == "bind":
            from xuni.container.binds import Bind, KeepIdMap, OpenInside, OpenSource

            source = mount.source if mount.source.startswith("/") else f"{bundle}/{mount.source}"
            idmap, maps, path = options.idmap, (mount.uidMappings, mount.gidMappings), ""
            if "=" in idmap:
                from xuni.container.idmap import given

                if maps[0]:
                    raise SpecError(f"mounts[{index}]: uidMappings and {idmap} contradict each other")
                idmap, maps = given(idmap, linux, f"mounts[{index}]")
            elif maps[0]:
                idmap = idmap or "idmap"
            elif idmap:  # the container's own
                maps, path = (linux.uidMappings, linux.gidMappings), kinds.get("user", "")
                if not path and not maps[0]:
                    raise SpecError(f"mounts[{index}]: {idmap} without uidMappings needs a user namespace to take them from")
            # Making an id map takes /proc with the host's process numbers, which is not what init sees.
            uid, gid = maps if idmap and not path else ((), ())
            if source.startswith(below) and ".." not in source.split("/") and not options.copy_link:
                if idmap:
                    opening.append(KeepIdMap(index, uid, gid, path))
                filling.append(OpenInside(index, source.removeprefix(root), options, idmap, by_runtime))
            else:
                (opening if by_runtime or idmap else filling).append(OpenSource(index, source, options, idmap, uid, gid, path))
            filling.append(Bind(index, target, options, source))
        elif mount.type == "cgroup" or mount.type == "cgroup2":
            filling.append(mnt.CgroupView(target, options, "cgroup" in kinds))
        else:
            if target.rstrip("/") == "/dev" and options.set & 1:  # read-only once everything is in it (LockMount)
                options = mnt.sort_options(tuple([each for each in mount.options if each != "ro"]))
            # A user namespace without a network or PID namespace of its own may not mount these; what it sees is the same.
            fallback = ("/sys" if mount.type == "sysfs" and userns and kinds.get("network") != "" else
                        "/proc" if mount.type == "proc" and userns and kinds.get("pid") != "" else "")  # fmt: skip
            filling.append(mnt.Filesystem(target, mount.type, options, mount.source or mount.type, fallback))


def _devices(spec: Spec, linux: Linux, userns: bool) -> Iterator[Step]:
    """Default nodes, unless /dev is somebody else's directory; the configured ones; links."""
    foreign = any(each.destination.rstrip("/") == "/dev" and {"bind", "rbind"} & set(each.options) for each in spec.mounts)
    named = {os.path.normpath(each.path) for each in linux.devices}
    if not foreign:
        yield dev.OrdinaryDirectory("/dev")
        for path, major, minor in dev.DEFAULT:
            if path not in named:
                yield dev.Node(path, "c", major, minor, bind=userns)
    for node in _configured(linux):
        yield dev.Node(node.path, node.kind, node.major, node.minor, node.mode, node.uid, node.gid, userns)
    if not foreign:
        for path, to in dev.LINKS:
            yield dev.Link(path, to)
        if any(each.destination.rstrip("/") == "/dev/pts" for each in spec.mounts):
            yield dev.Link("/dev/ptmx", "pts/ptmx", replace=True)


def _configured(linux: Linux) -> tuple[dev.Node, ...]:
    return tuple([dev.Node(each.path.rstrip("/"), each.type, each.major, each.minor,
                           0o666 if each.fileMode is None else each.fileMode & 0o7777, each.uid or 0, each.gid or 0)
                  for each in linux.devices])  # fmt: skip


def _hooks(point: str, hooks: tuple[Hook, ...]) -> Iterator[Step]:
    if not hooks:
        return
    from xuni.container.hooks import RunHook

    for index, each in enumerate(hooks):
        yield RunHook(point, index, each.path, each.args, each.env, each.timeout)


__all__ = ["Host", "Plan", "identity", "plan"]
