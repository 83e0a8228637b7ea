#!/usr/bin/env python3
"""Exits a second under KVM: a guest that does `out` in a loop, beside a C program that does nothing but KVM_RUN.

    bench/kvm_exits.py [--seconds 1] [--rounds 5]

Both run the same guest code on the same kernel, in turns; the table shows the median of the rounds. Ours is the whole
machine: the exit is decoded, goes through the loop and the port map to a device, under the bus lock. Needs /dev/kvm
and a C compiler. Exit status 1 if ours makes less than 70 % of the exits of the C program.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from xuni.engine.kvm.engine import KvmEngine
from xuni.host.kvm import KvmUnavailable
from xuni.isa.x86.cpustate import real_mode
from xuni.isa.x86.features import DEFAULT
from xuni.machine.pc import Pc
from xuni.memory.guest import GuestMemory

GOAL = 0.70
CODE_AT = 0x8000
PORT = 0x500
GUEST = bytes.fromhex("ba0005 ee ebfd")  # mov dx, 0x500; again: out dx, al; jmp again
C_PROGRAM = """
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

int main(void)
{
    static const unsigned char guest[] = GUEST;
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
    char *memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { 0, 0, 0, 1 << 20, (unsigned long)memory };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    memcpy(memory + 0x8000, guest, sizeof guest);
    struct kvm_sregs sregs;
    ioctl(cpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    ioctl(cpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = { .rip = 0x8000, .rflags = 2 };
    ioctl(cpu, KVM_SET_REGS, &regs);
    unsigned long exits = 0, sum = 0;
    double begun = now(), end = begun + SECONDS;
    do {
        for (int i = 0; i < 1000; i++, exits++) {
            if (ioctl(cpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_IO)
                return 1;
            sum += ((unsigned char *)run)[run->io.data_offset];
        }
    } while (now() < end);
    printf("%f\\n", exits / (now() - begun));
    return sum == 1;
}
"""


class Counter:
    """The device behind the port."""

    count = 0

    def read(self, offset: int) -> int:
        """Nothing to read."""
        return 0

    def write(self, offset: int, value: int) -> None:
        """One more."""
        self.count += 1


def ours(seconds: float) -> float:
    """Exits a second of the machine."""
    with GuestMemory(1 << 20) as memory:
        memory.write(CODE_AT, GUEST)
        machine = Pc(memory, KvmEngine(DEFAULT))
        counter = Counter()
        machine.bus.ports.attach(PORT, 1, counter)
        machine.vcpus[0].start(real_mode(0, CODE_AT))
        begun = machine.bus.timers.now()
        machine.run(seconds)
        return counter.count * 1e9 / (machine.bus.timers.now() - begun)


def compiled(directory: Path, seconds: float) -> Path:
    """The C program."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("kvm_exits: no C compiler (cc, gcc, clang) to make the program to compare with")
    source, program = directory / "exits.c", directory / "exits"
    source.write_text(C_PROGRAM)
    guest = "{" + ",".join(map(hex, GUEST)) + "}"
    subprocess.run([compiler, "-O2", f"-DGUEST={guest}", f"-DSECONDS={seconds}", "-o", program, source], check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    theirs, mine = [], []
    with tempfile.TemporaryDirectory() as directory:
        program = compiled(Path(directory), options.seconds)
        try:
            for _ in range(options.rounds):
                done = subprocess.run([program], capture_output=True, text=True, timeout=60 + options.seconds, check=True)
                theirs.append(float(done.stdout))
                mine.append(ours(options.seconds))
        except KvmUnavailable as error:
            sys.exit(f"kvm_exits: {error}")
    c, python = statistics.median(theirs), statistics.median(mine)
    print(f"{'':14}{'exits a second':>16}{'us an exit':>12}")
    print(f"{'C, KVM_RUN':14}{c:16,.0f}{1e6 / c:12.2f}")
    print(f"{'xuni, machine':14}{python:16,.0f}{1e6 / python:12.2f}")
    print(f"xuni makes {python / c:.0%} of them (goal: {GOAL:.0%})")
    return 0 if python >= GOAL * c else 1


if __name__ == "__main__":
    sys.exit(main())
