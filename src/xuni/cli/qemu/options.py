"""Which options QEMU has, which of them take a value, and what becomes of each here.

To add one that does something: its line in `_TABLE` begins with "+", its `case` is in `assemble.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xuni.cli.failure import Refusal


class Fate(Enum):
    """What becomes of an option; the value is how its line in the table begins."""

    DONE = "+"
    """It does what it does in QEMU."""
    HARMLESS = "."
    """It would change nothing that a guest or a script could tell."""
    NOTED = "~"
    """Ignored, and that is said."""
    REFUSED = "!"
    """An error: the machine would not be what was asked for."""


# Fate, name (a * behind it: takes a value), and for `~` and `!` why.
_TABLE: Final = """
+ h|+ help|+ version|+ machine*|+ M*|+ cpu*|+ accel*|+ enable-kvm|+ smp*|+ m*|+ kernel*|+ initrd*|+ append*|+ device*
+ nodefaults|+ no-reboot|+ no-shutdown|+ nographic|+ display*|+ vnc*|+ vga*|+ serial*|+ parallel*|+ monitor*|+ mon*
+ chardev*|+ qmp*|+ qmp-pretty*|+ gdb*|+ s|+ S|+ name*|+ uuid*|+ fw_cfg*|+ global*|+ rtc*|+ d*|+ D*|+ trace*|+ pidfile*
+ action*|+ no-acpi|+ net*|+ nic*|+ object*|+ audiodev*|+ boot*|+ sandbox*|+ overcommit*
. no-user-config|. nouserconfig|. no-hpet|. snapshot|. msg*|. L*|. no-fd-bootchk|. win2k-hack|. async-teardown|. compat*
. enable-sync-profile|. only-migratable
~ k* the keyboard is the terminal's
~ echr* the key is Ctrl-A
~ mem-prealloc memory is taken as the guest touches it
~ watchdog-action* there is no watchdog
~ singlestep it would only make the engine slower
~ full-screen there is no screen
~ seed* the guest's entropy is the host's
! daemonize run it in the background with the shell's &, and give it -pidfile and -serial file:PATH
! debugcon* there is no debug console yet|! bios* there is no firmware yet; boot a kernel with -kernel FILE
! numa* this machine has one node
! add-fd* files are opened by name
! set* name the property where its device is
! mem-path* guest memory is anonymous
! audio-help there is no sound
! audio* there is no sound
! soundhw* there is no sound
! fda* there are no disks yet|! fdb* there are no disks yet|! hda* there are no disks yet|! hdb* there are no disks yet
! hdc* there are no disks yet|! hdd* there are no disks yet|! cdrom* there are no disks yet|! blockdev* there are no disks yet
! drive* there are no disks yet|! sd* there are no disks yet|! mtdblock* there are no disks yet|! pflash* there is no flash memory
! fsdev* there are no shared folders|! virtfs* there are no shared folders|! iscsi* there are no disks yet
! usb there is no USB|! usbdevice* there is no USB
! spice* there is no screen|! portrait there is no screen|! rotate* there is no screen|! curses there is no screen
! acpitable* the ACPI tables are the board's|! smbios* there are no SMBIOS tables|! netdev* there is no network yet
! tpmdev* there is no TPM|! dtb* PCs have no device tree|! option-rom* there is no firmware that would run it
! xen-domid* there is no Xen|! xen-attach there is no Xen|! xen-domid-restrict there is no Xen
! loadvm* there are no snapshots yet|! incoming* there is no migration|! icount* instructions are not counted
! chroot* start it there|! runas* start it as that user|! readconfig* write the options on the command line
! writeconfig* there is no such file format|! plugin* there are no plugins|! preconfig the machine begins complete
! dump-vmstate* there is no such format|! dfilter* events have no address range|! prom-env* this is a PC
! g* there is no screen|! old-param this is a PC|! semihosting this is a PC|! semihosting-config* this is a PC
! no-kvm-irqchip use -machine kernel-irqchip=off|! watchdog* there is no watchdog
! tb-size* the engine sizes its caches itself
"""


@dataclass(frozen=True, slots=True)
class Option:
    """One line of the table."""

    name: str
    fate: Fate
    takes_value: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """One option of a command line."""

    option: Option
    value: str = ""

    def __str__(self) -> str:
        return f"-{self.option.name} {self.value}".rstrip()


def _options() -> dict[str, Option]:
    found = {}
    for entry in _TABLE.replace("\n", "|").split("|"):
        if entry:
            fate, name, *why = entry.split()
            plain = name.rstrip("*")
            found[plain] = Option(plain, Fate(fate), name != plain, " ".join(why))
    return found


OPTIONS: Final = _options()


def read(arguments: Sequence[str]) -> tuple[list[Given], list[str]]:
    """The options of a command line that do something, and notes on those that do not.

    `Refusal`: an option that does not exist, lacks its value, or cannot be had.
    """
    given, notes = [], []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            raise Refusal(f"{word}: a disk image, and there are no disks yet; boot a kernel with -kernel FILE")
        name = word[2:] if word.startswith("--") else word[1:]
        option = OPTIONS.get(name)
        if option is None:
            raise Refusal(f"{word}: invalid option; -help lists what there is")
        value = ""
        if option.takes_value:
            following = next(words, None)
            if following is None:
                raise Refusal(f"{word}: requires an argument")
            value = following
        one = Given(option, value)
        match option.fate:
            case Fate.DONE: given.append(one)
            case Fate.NOTED: notes.append(f"{one}: ignored, {option.why}")
            case Fate.REFUSED: raise Refusal(f"{one}: not supported, {option.why}")
            case Fate.HARMLESS: pass
    return given, notes
