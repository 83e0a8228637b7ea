"""QEMU's command line: what the options come to, and how it ends. The processor is scripted, see scripted.py."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from xuni.boot import Format, Module
from xuni.cli.failure import Refusal
from xuni.cli.plan import End, SerialEnd
from xuni.cli.qemu.assemble import Request, assemble
from xuni.cli.qemu.options import OPTIONS, Fate, read
from xuni.devices.iommu.unit import IommuConfig
from xuni.devices.pci.edu import EduConfig
from xuni.devices.test_ports import DebugExitConfig, TestDeviceConfig
from xuni.isa.x86.cpuid import Topology
from xuni.machine.pc import PcConfig

from .conftest import SCRIPTED, Xuni

HEADER = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """A file that begins as a multiboot kernel does."""
    path = tmp_path / "test.flat"
    path.write_bytes(HEADER)
    return str(path)


@pytest.fixture
def linux(tmp_path: Path) -> str:
    path = tmp_path / "bzImage"
    path.write_bytes(bytes(0x202) + b"HdrS" + b"\x0f\x02" + bytes(1000))
    data = bytearray(path.read_bytes())
    data[0x1FE:0x200] = b"\x55\xaa"
    path.write_bytes(data)
    return str(path)


def understand(*arguments: str) -> Request:
    return assemble(*read(arguments))


def refused(*arguments: str) -> str:
    with pytest.raises(Refusal) as error:
        understand(*arguments)
    return str(error.value.format_message())


# -- options -----------------------------------------------------------------------------------------------------------
def test_every_refused_and_every_noted_option_says_why() -> None:
    for option in OPTIONS.values():
        assert bool(option.why) == (option.fate in (Fate.REFUSED, Fate.NOTED)), option.name


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.fate is Fate.REFUSED])
def test_what_cannot_be_had_is_refused_by_name(name: str) -> None:
    option = OPTIONS[name]
    arguments = [f"-{name}", "value"] if option.takes_value else [f"--{name}"]
    assert refused(*arguments).startswith(f"-{name} value: not supported" if option.takes_value else f"-{name}: not supported")


def test_what_is_no_option() -> None:
    assert refused("-foo") == "-foo: invalid option; -help lists what there is"
    assert refused("-m") == "-m: requires an argument"
    assert refused("disk.img").startswith("disk.img: a disk image, and there are no disks yet")
    assert "give a kernel with -kernel FILE" in refused("-m", "64")


def test_harmless_options_are_ignored_and_others_noted(kernel: str) -> None:
    quiet = understand("-kernel", kernel, "-no-user-config", "-no-hpet", "-msg", "timestamp=on", "-L", "/x", "-nodefaults",
                       "-vga", "none", "-vnc", "none", "-net", "none", "-nic", "none", "-monitor", "none", "-parallel", "null",
                       "-machine", "pc,smm=off,usb=off,vmport=off,dump-guest-core=off,kernel_irqchip=split",
                       "-global", "kvm-pit.lost_tick_policy=discard", "-accel", "tcg,thread=multi", "-sandbox", "off",
                       "-overcommit", "mem-lock=off", "-compat", "deprecated-input=reject")
    assert quiet.notes == []
    noted = understand("-kernel", kernel, "-k", "de", "-boot", "order=c", "-sandbox", "on", "-overcommit", "cpu-pm=on",
                       "-object", "rng-random,id=r,filename=/dev/urandom", "-global", "floppy.x=1", "-machine", "q35",
                       "-m", "64,slots=2,maxmem=1G", "-smp", "1,maxcpus=2", "-d", "guest_errors", "-rtc", "driftfix=slew")
    assert len(noted.notes) == 12
    assert noted.notes[0] == "-k de: ignored, the keyboard is the terminal's"


# -- the machine -------------------------------------------------------------------------------------------------------
def test_a_machine_by_default(kernel: str) -> None:
    machine = understand("-kernel", kernel).machine
    assert (machine.memory, machine.cpus, machine.cpu.name, machine.engine) == (128 << 20, 1, "qemu64", "soft")
    assert machine.reboot and not machine.paused and machine.gdb is None and machine.qmp == ()
    assert machine.plan.serial == (SerialEnd(End.NOWHERE),)
    assert machine.plan.format is Format.MULTIBOOT
    assert machine.board.debug_exit is None and machine.board.test_device is None
    assert "amd" in machine.cpu.features and "hypercall" in machine.cpu.features


def test_everything_that_kvm_unit_tests_say(kernel: str, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    environment.write_text("A=B\n")
    request = understand(
        "--no-reboot", "-nodefaults", "-global", "kvm-pit.lost_tick_policy=discard", "-device", "pc-testdev",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-display", "none", "-serial", "stdio", "-machine", "accel=tcg",
        "-kernel", kernel, "-smp", "2", "-append", "one two", "-machine", "pit=off",
        "-cpu", "IvyBridge,phys-bits=36,host-phys-bits=off,-rdrand", "-m", "4g", "-initrd", str(environment),
    )  # fmt: skip
    machine, board = request.machine, request.machine.board
    assert (machine.memory, machine.cpus, machine.reboot, machine.engine) == (4 << 30, 2, False, "soft")
    assert board.debug_exit == DebugExitConfig(0xF4, 4) and board.test_device == TestDeviceConfig() and board.pit is None
    assert machine.cpu.physical_bits == 36 and "rdrand" not in machine.cpu.features
    assert machine.plan.append == "one two" and machine.plan.initrd == (Module(environment),)
    assert machine.plan.serial == (SerialEnd(End.STDOUT),)
    assert request.notes == ["-cpu IvyBridge,phys-bits=36,host-phys-bits=off,-rdrand: this processor does not have avx f16c"]


def test_engines(kernel: str) -> None:
    def engine(*arguments: str) -> str:
        return understand("-kernel", kernel, *arguments).machine.engine

    assert engine("-accel", "kvm", "-accel", "tcg") == engine("-machine", "accel=kvm:tcg") == "kvm:soft"
    assert engine("-enable-kvm") == engine("-M", "pc,accel=kvm") == "kvm"
    assert engine("-accel", "soft") == "soft"
    assert "there is no accelerator hvf" in refused("-kernel", kernel, "-accel", "hvf")
    assert understand("-kernel", kernel, "-machine", "accel=hvf:tcg").notes
    assert "speed=9: no such property" in refused("-kernel", kernel, "-accel", "tcg,speed=9")


@pytest.mark.parametrize(("text", "size"), [("64", 64 << 20), ("size=1G", 1 << 30), ("2048k", 2 << 20), ("4g", 4 << 30)])
def test_memory(kernel: str, text: str, size: int) -> None:
    assert understand("-kernel", kernel, "-m", text).machine.memory == size


@pytest.mark.parametrize(("text", "cpus", "topology"), [
    ("4", 4, Topology(1, 4)), ("cpus=4,sockets=2", 4, Topology(1, 2)), ("4,cores=2,threads=2", 4, Topology(2, 2)),
    ("4,threads=2", 4, Topology(2, 2)), ("sockets=2,cores=2", 4, Topology(1, 2)), ("3", 3, Topology(1, 3)),
    ("4,sockets=4,cores=1,threads=1", 4, Topology(1, 1)), ("6,sockets=1,cores=3,threads=2", 6, Topology(2, 3)),
    ("2,maxcpus=4", 2, Topology(1, 4)), ("4,sockets=1,dies=1,cores=4", 4, Topology(1, 4)),
])
def test_processors(kernel: str, text: str, cpus: int, topology: Topology) -> None:
    machine = understand("-kernel", kernel, "-smp", text).machine
    assert (machine.cpus, machine.cpu.topology) == (cpus, topology)


@pytest.mark.parametrize(("text", "message"), [
    ("0", "cpus=0: between 1 and"), ("x", "cpus=x is no number"), ("300", "Invalid SMP CPUs 300"),
    ("4,sockets=3", "must be equal to maxcpus (4)"), ("4,maxcpus=2", "4 processors, and maxcpus=2 is less"),
    ("4,dies=2", "dies=2: a socket of this machine has one"), ("6,sockets=2,cores=3", "APIC ids follow each other"),
    ("4,nodes=2", "nodes=2 is not supported"),
])
def test_impossible_processors(kernel: str, text: str, message: str) -> None:
    assert message in refused("-kernel", kernel, "-smp", text)


def test_kernels(kernel: str, linux: str, tmp_path: Path) -> None:
    module = tmp_path / "a,b"
    module.write_bytes(b"x")
    missing = str(tmp_path / "missing")
    assert refused("-kernel", missing) == f"could not open kernel file '{missing}': No such file or directory"
    module.with_name("text").write_bytes(b"hello")
    assert f"error loading kernel: {tmp_path}/text: not a kernel that boots here" in refused("-kernel", f"{tmp_path}/text")
    plan = understand("-kernel", linux, "-initrd", "/some,where").machine.plan
    assert plan.format is Format.AUTO and plan.initrd == (Path("/some,where"),)
    plan = understand("-kernel", kernel, "-initrd", f"{tmp_path}/a,,b one two, /c d").machine.plan
    assert plan.initrd == (Module(module, "one two"), Module(Path("/c"), "d"))


# -- devices -----------------------------------------------------------------------------------------------------------
def test_the_debug_exit_port(kernel: str) -> None:
    def port(*arguments: str) -> DebugExitConfig | None:
        return understand("-kernel", kernel, *arguments).machine.board.debug_exit

    assert port("-device", "isa-debug-exit") == DebugExitConfig(0x501, 2)
    assert port("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04,id=exit") == DebugExitConfig(0xF4, 4)
    assert port("-global", "isa-debug-exit.iobase=0xf4", "-device", "isa-debug-exit") == DebugExitConfig(0xF4, 2)
    preset = ("-global", "driver=isa-debug-exit,property=iosize,value=8")
    assert port(*preset, "-device", "isa-debug-exit,iobase=1") == DebugExitConfig(1, 8)


def test_the_remapping_unit_and_the_educational_device(kernel: str) -> None:
    def board(*arguments: str) -> PcConfig:
        return understand("-kernel", kernel, *arguments).machine.board

    plain = board()
    assert plain.iommu is None and plain.edu is None
    both = board("-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,eim=off", "-device", "edu")
    assert both.iommu == IommuConfig() and both.edu == EduConfig()
    other = board("-device", "intel-iommu,intremap=off,aw-bits=48,caching-mode=no", "-device", "edu,dma_mask=0xffff")
    assert other.iommu == IommuConfig(address_width=48, interrupt_remapping=False) and other.edu == EduConfig(dma_bits=16)
    presets = ("-global", "intel-iommu.aw-bits=48", "-global", "edu.dma_mask=0xff")
    preset = board(*presets, "-device", "intel-iommu", "-device", "edu")
    assert preset.iommu == IommuConfig(address_width=48) and preset.edu == EduConfig(dma_bits=8)


@pytest.mark.parametrize(("device", "message"), [
    ("virtio-net-pci", "'virtio-net-pci' is not a device of this machine"),
    ("isa-debug-exit,iobase=65536", "iobase=65536: between 0 and 65535"),
    ("isa-debug-exit,iobase=0xffff", "its ports end beyond 0xffff"),
    ("isa-debug-exit,iosize=9", "iosize=9: between 1 and 8"),
    ("isa-debug-exit,iobase", "iobase=on is no number"),
    ("isa-debug-exit,speed=1", "speed=1 is not supported"),
    ("pc-testdev,iobase=1", "iobase=1 is not supported"),
    ("intel-iommu,eim=on", "eim=on is not supported; eim=off is"),
    ("intel-iommu,intremap=maybe", "intremap=maybe: on, off or auto"),
    ("intel-iommu,aw-bits=57", "aw-bits=57: 39 or 48"),
    ("edu,dma_mask=0xf0", "dma_mask=0xf0: ones from bit 0 on"),
    ("", "driver= is missing"),
])
def test_devices_that_cannot_be(kernel: str, device: str, message: str) -> None:
    assert message in refused("-kernel", kernel, "-device", device)


def test_a_device_twice(kernel: str) -> None:
    assert "there is one already" in refused("-kernel", kernel, "-device", "pc-testdev", "-device", "pc-testdev")


def test_serial_lines(kernel: str) -> None:
    def ends(*arguments: str) -> list[tuple[int, SerialEnd]]:
        machine = understand("-kernel", kernel, *arguments).machine
        return list(zip((uart.base for uart in machine.board.serial), machine.plan.serial, strict=True))

    assert ends("-nodefaults") == []
    assert ends("-nographic") == ends("-serial", "mon:stdio") == ends("-serial", "stdio") == [(0x3F8, SerialEnd(End.STDOUT))]
    assert ends("-nographic", "-serial", "null") == [(0x3F8, SerialEnd(End.NOWHERE))]
    assert ends("-serial", "none", "-serial", "file:/tmp/a,,b") == [(0x2F8, SerialEnd(End.FILE, Path("/tmp/a,b")))]
    assert ends("-chardev", "stdio,id=c0,signal=off", "-serial", "chardev:c0") == [(0x3F8, SerialEnd(End.STDOUT))]
    both = ends("-chardev", "file,id=f,path=x,append=on", "-serial", "chardev:f", "-serial", "vc")
    assert both == [(0x3F8, SerialEnd(End.FILE, Path("x"), True)), (0x2F8, SerialEnd(End.NOWHERE))]


@pytest.mark.parametrize(("arguments", "message"), [
    (["-serial", "stdio", "-serial", "mon:stdio"], "one line alone can have standard output"),
    (["-serial", "pty"], "-serial pty: pty is not supported; take stdio, file:PATH, null or none"),
    (["-serial", "tcp:localhost:1"], "tcp is not supported"),
    (["-serial", "chardev:x"], "there is no -chardev with id=x"),
    (["-serial", "file:"], "'file:' is not a valid character device"),
    (["-serial", "nonsense"], "'nonsense' is not a valid character device"),
    (["-chardev", "socket,id=s,path=/x", "-serial", "chardev:s"], "cannot end in a socket"),
    (["-chardev", "null"], "id= is missing"),
    (["-chardev", "pty,id=p"], "pty is not supported"),
    (["-chardev", "stdio,id=p,logfile=x"], "logfile= is not supported"),
    (["-serial", "null"] * 5, "there are 4 serial ports"),
    (["-monitor", "stdio"], "-monitor stdio: not supported"),
    (["-display", "gtk"], "there is no screen; take -display none"),
    (["-vga", "std"], "there is no screen"),
    (["-machine", "vmport=on"], "vmport=on is not supported; leave it out"),
    (["-machine", "color=red"], "color=red is not supported: no such property"),
    (["-machine", "microvm"], "there is no machine microvm"),
    (["-cpu", "i386"], "-cpu i386: there is no CPU model 'i386'"),
    (["-cpu", "max,+fly"], "unknown CPU feature 'fly'"),
    (["-m", "0"], "'0' is no size"),
    (["-m", "1.5G"], "'1.5G' is no size"),
    (["-uuid", "x"], "-uuid x: no UUID"),
    (["-rtc", "base=yesterday"], "base=yesterday: utc, localtime, or a date"),
    (["-rtc", "clock=vm"], "clock=vm is not supported"),
    (["-d", "in_asm"], "'in_asm' is not supported"),
    (["-fw_cfg", "name=opt/x,file=/dev/null/x"], "/dev/null/x: Not a directory"),
    (["-fw_cfg", "name=opt/x"], "file= is missing"),
    (["-fw_cfg", "name=" + "x" * 56 + ",string=y"], "1 to 55 ASCII characters"),
    (["-object", "secret,id=s"], "secret: this object is not supported"),
    (["-action", "reboot=explode"], "reboot=explode is not supported"),
    (["-global", "nonsense"], "write DRIVER.PROPERTY=VALUE"),
    (["-mon", "chardev=m,mode=control"], "there is no -chardev socket with this id"),
    (["-mon", "chardev=m"], "mode=control is one for programs"),
])
def test_what_cannot_be(kernel: str, arguments: list[str], message: str) -> None:
    assert message in refused("-kernel", kernel, *arguments)


# -- looking on, and the rest ------------------------------------------------------------------------------------------
def test_debuggers_and_monitors(kernel: str) -> None:
    machine = understand("-kernel", kernel, "-s", "-S", "-qmp", "unix:/q,server=on,wait=off", "-name", "box,process=p",
                         "-uuid", "550e8400-e29b-41d4-a716-446655440000").machine
    assert (machine.gdb, machine.paused, machine.qmp, machine.name) == ("tcp::1234", True, ("unix:/q,server=on,wait=off",), "box")
    assert machine.uuid == UUID("550e8400-e29b-41d4-a716-446655440000")
    assert machine.board.fw_cfg and machine.board.fw_cfg.uuid == machine.uuid.bytes
    assert understand("-kernel", kernel, "-gdb", "unix:/g,server=on").machine.gdb == "unix:/g,server=on"
    socket = ("-chardev", "socket,id=mon,path=/m,server=on,wait=off", "-mon", "chardev=mon,mode=control")
    assert understand("-kernel", kernel, *socket).machine.qmp == ("unix:/m,server=on,wait=off",)
    tcp = ("-mon", "chardev=mon,mode=control", "-chardev", "socket,id=mon,host=::1,port=9,server=on")
    assert understand("-kernel", kernel, *tcp).machine.qmp == ("tcp:::1:9,server=on",)


def test_what_a_reset_and_a_power_off_do(kernel: str) -> None:
    assert not understand("-kernel", kernel, "-action", "reboot=shutdown").machine.reboot
    assert not understand("-kernel", kernel).machine.linger
    assert understand("-kernel", kernel, "-no-shutdown").machine.linger
    assert understand("-kernel", kernel, "-action", "shutdown=pause").machine.linger


def test_firmware_configuration(kernel: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0\1")
    request = understand("-kernel", kernel, "-fw_cfg", f"name=opt/a,file={tmp_path}/data", "-fw_cfg", "etc/b,string=x,,y")
    assert request.machine.board.fw_cfg and request.machine.board.fw_cfg.files == (("opt/a", b"\0\1"), ("etc/b", b"x,y"))
    assert request.notes == ["-fw_cfg name=etc/b: names of one's own begin with opt/"]


def test_the_clock(kernel: str) -> None:
    def now(base: str) -> datetime:
        return understand("-kernel", kernel, "-rtc", f"base={base}").machine.wall_clock()

    assert abs(now("utc") - datetime.now(UTC)) < timedelta(minutes=1)
    assert abs(now("localtime") - datetime.now()) < timedelta(minutes=1)
    assert abs(now("2006-06-17T16:01:21") - datetime(2006, 6, 17, 16, 1, 21, tzinfo=UTC)) < timedelta(minutes=1)


# -- from outside ------------------------------------------------------------------------------------------------------
QUIET = ("-display", "none", "-serial", "stdio")


@pytest.mark.parametrize(("guest", "arguments", "status", "output", "message"), [
    ("debug_exit", ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"], 0x21, b"", ""),
    ("panic", ["-no-reboot"], 0, b"all is well\r\n\x1b[31mKernel panic\x1b[m\r\n", ""),
    ("triple", ["-no-reboot"], 0, b"", "triple fault: #PF at 0x1234, then #DF"),
    ("broken", [], 122, b"", "the engine failed: no handler for 0f 0b"),
])
def test_how_it_ends(scripted: Xuni, kernel: str, guest: str, arguments: list[str], status: int, output: bytes,
                     message: str) -> None:  # fmt: skip
    done = scripted(guest, "qemu", "-kernel", kernel, *QUIET, *arguments, stdin=None)
    assert (done.returncode, done.stdout) == (status, output)
    assert done.stderr.decode() == (f"xuni-qemu-system-x86_64: {message}\n" if message else "")


def test_standard_input_is_the_serial_lines(scripted: Xuni, kernel: str) -> None:
    done = scripted("echo", "qemu", "-kernel", kernel, "-nographic", stdin=b"aq")
    assert (done.returncode, done.stdout) == (0, b"ready\r\n<97>")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_it_ends_qemu(environment: Mapping[str, str], kernel: str, tmp_path: Path,
                                          number: signal.Signals) -> None:  # fmt: skip
    pidfile = tmp_path / "pid"
    command = [sys.executable, str(SCRIPTED), "forever", "qemu", "-kernel", kernel, *QUIET, "-pidfile", str(pidfile)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"running\n"
        assert pidfile.read_text() == f"{process.pid}\n"
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr.read().decode() == f"xuni-qemu-system-x86_64: terminating on signal {int(number)}\n"
    assert not pidfile.exists()


def test_no_shutdown_waits_for_its_user(environment: Mapping[str, str], kernel: str) -> None:
    command = [sys.executable, str(SCRIPTED), "hello", "qemu", "-kernel", kernel, *QUIET, "-no-shutdown"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"booting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(30) == 0


def test_events_go_to_a_file(scripted: Xuni, kernel: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = scripted("hello", "qemu", "-kernel", kernel, *QUIET, "-d", "trace:vcpu_exit", "-D", str(log), stdin=None)
    assert done.returncode == 0 and b"vcpu_exit" not in done.stderr
    assert "vcpu_exit cpu=0 exit=PortOut(port=1016" in log.read_text()


@pytest.mark.parametrize(("arguments", "pattern"), [
    (["-version"], r"QEMU emulator version \d+\.\d+\.\d+ "),
    (["--help"], r"QEMU emulator version (?s:.*)Example:(?s:.*)-drive"),
    (["-h"], r"QEMU emulator version "),
    (["-cpu", "help"], r"(?s)Available CPUs:\n.*x86 qemu64 .*Recognized CPUID flags:.* la57 "),
    (["-machine", "help"], r"Supported machines are:\npc "),
    (["-accel", "help"], r"Accelerators supported in QEMU binary:\ntcg\nkvm"),
    (["-device", "?"], r'(?s).*name "pc-testdev", bus ISA'),
    (["-device", "isa-debug-exit,help"], r"isa-debug-exit options:\n  iobase=<uint32>"),
    (["-chardev", "help"], r"Available chardev backend types:"),
    (["-d", "help"], r"trace:PATTERN .*vcpu_exit"),
])
def test_lists(xuni: Xuni, arguments: list[str], pattern: str) -> None:
    done = xuni("qemu", *arguments)
    assert done.returncode == 0 and not done.stderr
    assert re.match(pattern, done.stdout.decode())


def test_bad_input_is_one_line_and_status_2(xuni: Xuni) -> None:
    done = xuni("qemu", "-drive", "file=x")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"xuni-qemu-system-x86_64: -drive file=x: not supported, there are no disks yet\n"


def test_the_program_of_its_own(environment: Mapping[str, str]) -> None:
    code = "import sys; sys.argv[1:] = ['-foo']; from xuni.cli.qemu.command import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2 and b"-foo: invalid option" in done.stderr


def test_lists_need_neither_engine_nor_machine() -> None:
    code = ("import sys; from xuni.cli.qemu.command import run; run(['-device', 'help']); run(['-nonsense'])\n"
            "print(*sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert not {"xuni.engine.soft.vcpu", "llvmlite", "xuni.cli.launch"} & set(done.stdout.split())
