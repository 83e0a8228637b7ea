#!/usr/bin/sh
# The first process of a xuni guest. The host adds /xuni/session (what to do) and /xuni/command (what to run) to the
# initramfs; without them this is a shell on the console. See xuni/guest/session.py for the words said on $control.
export PATH=/usr/bin HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 TERM=linux
console=/dev/console data=/dev/ttyS1 errors=/dev/ttyS2 control=/dev/ttyS3
task=shell stdin=none rows= columns=

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
hostname xuni
ip link set lo up
for module in /usr/lib/modules/load/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
[ -r /xuni/session ] && . /xuni/session
cd /root

# The host answers each {"event":"input"} with a line that says how many bytes follow, then those; 0 is the end.
feed() {
    while echo '{"event":"input"}' >$control && read -r size <&4 && [ "$size" -gt 0 ]; do
        dd bs="$size" count=1 iflag=fullblock <&4 2>/dev/null || break
    done
}

run_command() {
    for port in $data $errors $control; do
        stty -F $port raw -echo
    done
    if [ $stdin = stream ]; then
        mkfifo /xuni/stdin
        feed 4<$data >/xuni/stdin &
    else
        ln -s /dev/null /xuni/stdin
    fi
    sh /xuni/command </xuni/stdin >$data 2>$errors
    status=$?
    stty -F $data raw -echo  # waits until everything has been sent, also by processes that still run
    stty -F $errors raw -echo
}

run_shell() {
    [ -n "$rows" ] && stty -F $console rows "$rows" columns "$columns"
    setsid cttyhack sh -l <$console >$console 2>&1
    status=$?
}

case $task in
command) run_command ;;
*) run_shell ;;
esac
[ -r /xuni/session ] && echo "{\"event\":\"exit\",\"status\":$status}" >$control
poweroff -f
# Without ACPI the kernel stays here.
while :; do sleep 3600; done
