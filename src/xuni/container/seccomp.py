"""System call filters: compiled by the runtime with the host's libseccomp, loaded by init as late as its rights allow.

Where the default is to refuse, calls newer than any that the filter names get ENOSYS rather than the default: C libraries
take that for "not there, use the old one", and a program that would work on an older kernel goes on working.
"""

from __future__ import annotations

from xuni.container.spec import Seccomp
from xuni.container.step import Run, SpecError, Step
from xuni.host.linux import libseccomp
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ACTIONS: Final = {
    "SCMP_ACT_KILL": libseccomp.KILL_THREAD, "SCMP_ACT_KILL_THREAD": libseccomp.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": libseccomp.KILL_PROCESS, "SCMP_ACT_TRAP": libseccomp.TRAP, "SCMP_ACT_ERRNO": libseccomp.ERRNO,
    "SCMP_ACT_TRACE": libseccomp.TRACE, "SCMP_ACT_ALLOW": libseccomp.ALLOW, "SCMP_ACT_LOG": libseccomp.LOG,
    "SCMP_ACT_NOTIFY": libseccomp.NOTIFY,
}  # fmt: skip
# TSYNC is for the other threads of a process, which init has none of; together with a listener the kernel refuses it.
FLAGS: Final = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0x20}  # fmt: skip
# Without a word about flags: else the filter would switch on the mitigation of speculative store bypass, which is dear and
# which the specification does not ask for (runc does the same).
DEFAULT_FLAGS: Final = ("SECCOMP_FILTER_FLAG_SPEC_ALLOW",)
NEW_LISTENER: Final = 8
ARCHITECTURES: Final = (
    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_SH", "SCMP_ARCH_SHEB",
)  # fmt: skip
_EPERM: Final = 1
_ENOSYS: Final = 38


def check(seccomp: Seccomp) -> None:
    """Raises SpecError for what no filter can be."""
    for place, action, number in ((("linux.seccomp.defaultAction", seccomp.defaultAction, seccomp.defaultErrnoRet),)
                                  + tuple([(f"linux.seccomp.syscalls[{index}].action", each.action, each.errnoRet)
                                           for index, each in enumerate(seccomp.syscalls)])):  # fmt: skip
        if action not in ACTIONS:
            raise SpecError(f"{place}: {action!r} is none of {', '.join(ACTIONS)}")
        if number is not None and action not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
            raise SpecError(f"{place}: errnoRet goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE only, not with {action}")
    if seccomp.defaultAction == "SCMP_ACT_NOTIFY":
        raise SpecError("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action, since the runtime could "
                        "not even hand over the listener")  # fmt: skip
    notifies = False
    for index, rule in enumerate(seccomp.syscalls):
        if rule.action == "SCMP_ACT_NOTIFY":
            notifies = True
            if "write" in rule.names:
                raise SpecError(f"linux.seccomp.syscalls[{index}]: SCMP_ACT_NOTIFY cannot be used for the write syscall: init "
                                "announces the listener with it")  # fmt: skip
        for argument in rule.args:
            if argument.op not in libseccomp.OPERATORS:
                raise SpecError(f"linux.seccomp.syscalls[{index}].args: {argument.op!r} is none of "
                                f"{', '.join(libseccomp.OPERATORS)}")  # fmt: skip
            if argument.index > 5:
                raise SpecError(f"linux.seccomp.syscalls[{index}].args: index {argument.index}: a system call has six arguments")
    for flag in seccomp.flags or ():
        if flag not in FLAGS:
            raise SpecError(f"linux.seccomp.flags: seccomp flag {flag!r} is none of {', '.join(FLAGS)}")
    for architecture in seccomp.architectures:
        if architecture not in ARCHITECTURES:
            raise SpecError(f"linux.seccomp.architectures: {architecture!r} is not an architecture of libseccomp")
    if notifies and not seccomp.listenerPath:
        raise SpecError("linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY needs somebody to be notified")
    if seccomp.listenerMetadata and not seccomp.listenerPath:
        raise SpecError("linux.seccomp.listenerMetadata is not empty, but there is no listenerPath to send it to")


def _action(name: str, number: int | None) -> int:
    base = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return base | (_EPERM if number is None else number) & 0xFFFF
    return base


def compile_filter(seccomp: Seccomp, *, strict: bool = False) -> bytes:
    """The BPF program; with `strict`, unknown calls are a mistake. Raises SpecError, or OSError where libseccomp cannot."""
    check(seccomp)
    library = libseccomp.Library()
    default = _action(seccomp.defaultAction, seccomp.defaultErrnoRet)
    made = libseccomp.Filter(library, default)
    for architecture in seccomp.architectures:
        made.add_architecture(architecture.removeprefix("SCMP_ARCH_").lower())
    for rule in seccomp.syscalls:
        action = _action(rule.action, rule.errnoRet)
        if action == default:  # libseccomp takes a rule that changes nothing for a mistake
            continue
        arguments = [(each.index, libseccomp.OPERATORS[each.op], each.value, each.valueTwo) for each in rule.args]
        # Conditions on different arguments must all hold; two on the same one are alternatives (config-linux.md, "Seccomp").
        alternatives = [arguments]
        if len({index for index, *_ in arguments}) < len(arguments):
            alternatives = [[each] for each in arguments]
        for name in rule.names:
            for each in alternatives:
                if not made.add_rule(action, name, each):
                    if strict:
                        raise SpecError(f"linux.seccomp.syscalls: {name!r} is not a system call")
                    break  # a call of another architecture, or newer than the library
    program = made.program()
    if seccomp.defaultAction in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE") or default == libseccomp.ERRNO | _ENOSYS:
        return program
    return _newer_calls(library, seccomp) + program


KEPT: Final = 32  # compiled filters in the cache; an engine uses one or two
_LONGEST: Final = 4096 * 8  # BPF_MAXINSNS of struct sock_filter
_FEW: Final = 64  # names that are compiled faster than a file is read


def kept_filter(seccomp: Seccomp, directory: str, *, strict: bool = False) -> bytes:
    """As compile_filter, from a cache in `directory`: the profile of an engine takes libseccomp 30 ms. Whoever may write there
    may write our state as well."""
    if sum([len(each.names) for each in seccomp.syscalls]) < _FEW or not directory:
        return compile_filter(seccomp, strict=strict)
    from xuni import __version__
    from xuni.container import json
    from xuni.container.record import encode

    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib loads OpenSSL; 3.12 has no such module
    except ImportError:
        from hashlib import sha256
    from_what = (__version__, os.uname().machine, libseccomp.Library().version(), strict, encode(seccomp))
    path = f"{directory}/{sha256(json.dumps(from_what)).hexdigest()}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                program = os.read(descriptor, _LONGEST + 1)
                if program and len(program) % 8 == 0 and len(program) <= _LONGEST:
                    return program
        finally:
            os.close(descriptor)
    except OSError:
        pass
    program = compile_filter(seccomp, strict=strict)
    _keep(directory, path, program)
    return program


def _keep(directory: str, path: str, program: bytes) -> None:
    """Whole or not at all; without a place to write to, the next start compiles again."""
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        names = os.listdir(directory)
        if len(names) >= KEPT:
            for name in names:
                os.unlink(f"{directory}/{name}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(descriptor, program)
        os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        pass


# struct seccomp_data: where the number and the architecture are. AUDIT_ARCH_* of what can run on one kernel.
_NUMBER, _ARCHITECTURE = 0, 4
_AUDIT: Final = {"x86_64": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
_X32_BIT: Final = 0x40000000


def _newer_calls(library: libseccomp.Library, seccomp: Seccomp) -> bytes:
    """A prologue: ENOSYS for numbers beyond the largest that the filter names, for each architecture."""
    code: list[bytes] = []
    native = os.uname().machine
    named = {each.removeprefix("SCMP_ARCH_").lower() for each in seccomp.architectures} | {native}
    for name, audit in _AUDIT.items():
        if name not in named:
            continue
        token = library.arch_resolve_name(name.encode())
        largest = -1
        for rule in seccomp.syscalls:
            for call in rule.names:
                largest = max(largest, library.resolve(token, call.encode()))
        if largest < 0:
            continue
        # ld arch; jne next; ld nr; [x32: jset → past]; jgt largest → ENOSYS
        x32 = [_bpf(0x45, _X32_BIT, 2, 0)] if name == "x86_64" else []  # those have numbers of their own
        code += [_bpf(0x20, _ARCHITECTURE), _bpf(0x15, audit, 0, 3 + len(x32)), _bpf(0x20, _NUMBER), *x32,
                 _bpf(0x25, largest, 0, 1), _bpf(0x06, libseccomp.ERRNO | _ENOSYS)]  # fmt: skip
    return b"".join(code)


def _bpf(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter."""
    return code.to_bytes(2, "little") + bytes((if_true, if_false)) + value.to_bytes(4, "little")


class CompileSeccomp(Step):
    """Compile the filter, and connect to its listener, with the host's files at hand."""

    seccomp: Seccomp

    def apply(self, run: Run) -> None:
        strict = (run.spec.annotations or {}).get("run.oci.seccomp_fail_unknown_syscall") == "1"
        run.filter = kept_filter(self.seccomp, run.cache, strict=strict)
        if self.seccomp.listenerPath:
            from xuni.container.terminal import connect

            place = "linux.seccomp.listenerPath: failed to connect with seccomp agent: "
            run.listener = connect(self.seccomp.listenerPath, place)

    def __repr__(self) -> str:
        return f"CompileSeccomp({self.seccomp.defaultAction}, {len(self.seccomp.syscalls)} rules)"


class LoadSeccomp(Step):
    """Put the filter on; with a listener, hand its descriptor to the runtime."""

    flags: tuple[str, ...] = ()
    listens: bool = False

    def apply(self, run: Run) -> None:
        bits = NEW_LISTENER if self.listens else 0
        for flag in self.flags:
            bits |= FLAGS[flag]
        if run.debug:
            run.say("debug", f"seccomp filter flags: {bits}")
        result = run.kernel.seccomp(1, bits, run.filter)  # SECCOMP_SET_MODE_FILTER
        if self.listens:
            assert run.talk is not None
            run.talk.hand_over("seccomp", result)
            os.close(result)


def send_listener(run: Run, listener: int, pid: int) -> None:
    """The runtime's part: the container process state, and the descriptor with it (config-linux.md, "listenerPath")."""
    from xuni.container import json
    from xuni.container.terminal import send_descriptor

    seccomp = run.spec.linux.seccomp if run.spec.linux else None
    assert seccomp is not None
    said = {"ociVersion": "0.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": seccomp.listenerMetadata,
            "state": json.loads(run.state, "state")}  # fmt: skip
    send_descriptor(run.listener, json.dumps(said), listener)
    os.close(run.listener)
    run.listener = -1
