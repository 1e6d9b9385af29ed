#!/bin/busybox sh
# shellcheck shell=dash
# First user space of the lab: reach the root, then hand over to the agent.
# What runs here runs under emulation, so it is little: no service manager, no
# udev; the kernel's devtmpfs has every device there is.
export PATH=/bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

for module in /modules/*.ko; do
    [ -e "$module" ] || break # all is built in
    insmod "$module" || echo "lab: cannot load $module"
done

mount -t tmpfs -o mode=0755 rw /rw
mkdir /rw/upper /rw/work
mount -t squashfs -o ro /dev/vda /lower
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /root
if ! cd /root/usr; then
    echo "lab: cannot mount the root"
    poweroff -f
fi
cd ..
mount -o move /dev dev
mkdir -p dev/pts dev/shm project proc sys run tmp
mount -t devpts -o ptmxmode=0666 pts dev/pts
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t debugfs debug sys/kernel/debug
mount -t tracefs trace sys/kernel/tracing
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup sys/fs/cgroup
if [ -b dev/vdb ]; then # modules of a kernel that is not the image's own
    mkdir -p "lib/modules/$(uname -r)"
    mount -t squashfs -o ro dev/vdb "lib/modules/$(uname -r)"
fi
ln -s /proc/self/fd dev/fd
echo lab >proc/sys/kernel/hostname
ifconfig lo up
mkdir -p run/lab/bin
cp -r /agent run/lab/
printf '%s\n' '#!/bin/sh' 'exec python3 -m bridge.cli "$@"' >run/lab/bin/lunabridge
chmod 0755 run/lab/bin/lunabridge
start='import sys; sys.path.insert(0, "/run/lab/agent"); from guest.init import main; main()'
exec switch_root /root /usr/bin/python3 -ISE -c "$start"
