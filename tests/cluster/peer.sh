#!/bin/sh
# Starts a program as on a machine whose GPUs are stand-ins: where the programs of NVIDIA have their paths fixed (sysfs, procfs, /dev, the
# kubelet's folder) it finds the stand-ins, and nobody else does. To be run by `unshare --mount`; nothing of it outlives the program.
# usage: peer.sh BASE SIDE PROGRAM [ARGUMENT…]; BASE has sys, proc, driver and nodes (lines: path major minor), SIDE has plugins and cdi.
set -eu
base=$1 side=$2
shift 2
mount --make-rprivate /
mount --bind "$base/proc/driver" /proc/driver
mount --bind "$base/sys" /sys
mount -t tmpfs -o mode=755 tmpfs /dev
mkdir /dev/shm
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
while read -r path major minor; do mkdir -p "${path%/*}"; mknod -m 666 "$path" c "$major" "$minor"; done <"$base/nodes"
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /var/lib/kubelet/device-plugins /var/lib/kubelet/plugins_registry /var/lib/kubelet/pod-resources
mount --bind "$side/plugins" /var/lib/kubelet/device-plugins
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/run/cdi
mount --bind "$side/cdi" /var/run/cdi
cd /var/lib/kubelet/device-plugins
exec "$@"
