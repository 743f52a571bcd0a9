#!/bin/sh
# The first process of a machine: process 1 of its PID namespace, alone in new mount, network, UTS and IPC namespaces.
# Builds a root file system that looks like a real machine's (every component finds its default paths), enters it, and reaps.
# usage: machine.sh NAME FOLDER COMPONENTS BINARIES SHARED
set -eu
name=$1 folder=$2 components=$3 binaries=$4 shared=$5
hostname "$name"
mount --make-rprivate /

root=$folder/root
mkdir -p "$root"
mount --bind "$root" "$root"
cd "$root"
mkdir -p etc usr proc sys dev run tmp root mnt srv/shared opt/spillway/bin opt/spillway/build opt/spillway-standin \
  var/lib/kubelet var/lib/containerd var/log/pods var/log/containers var/tmp
for path in /bin /sbin /lib /lib32 /lib64 /libx32; do
  if [ -L $path ]; then ln -sfn "$(readlink $path)" ".$path"
  elif [ -d $path ]; then mkdir -p ".$path"; mount --rbind $path ".$path"; fi
done
ln -sfn /run var/run
mount --rbind /usr usr
# A copy, so that the machine has its own; what the host mounts over single files (resolv.conf, hosts) is copied as it reads.
[ -e etc/machine-id.made ] || {
  cp -a /etc/. etc/ 2>/dev/null || true
  rm -f etc/resolv.conf etc/hostname etc/hosts etc/machine-id
  : >etc/resolv.conf
  printf '%s\n' "$name" >etc/hostname
  printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" >etc/hosts
  tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
  mkdir -p etc/cni/net.d etc/spillway
  cp etc/machine-id etc/machine-id.made
}
mount --bind "$components" opt/spillway/bin
mount --bind "$binaries" opt/spillway/build
mount --bind "$shared" srv/shared
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t proc proc proc
# A new sysfs shows this network namespace's devices; the cgroup hierarchies are the host's.
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
# Its own, as a boot makes one: what is pinned there goes with the machine.
mount -t bpf -o mode=700 bpf sys/fs/bpf
# A private /dev: tests make device nodes here, never on the host.
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/tty c 5 0
mknod -m 644 dev/kmsg c 1 11
ln -s /proc/self/fd dev/fd; ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts; ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue

mkdir -p old
pivot_root . old
cd /
umount -l /old
rmdir /old 2>/dev/null || true
# Volumes and CNI's network namespaces propagate from the daemons to the containers, as under systemd.
mount --make-rshared /
ip link set lo up
printf 1 >/proc/sys/net/ipv4/ip_forward
# A pod that hairpins or arrives by another bridge port must not be dropped by a stricter default.
for setting in /proc/sys/net/ipv4/conf/*/rp_filter; do printf 0 >"$setting"; done
: >/run/machine-ready
# Process 1 reaps whatever loses its parent; the shell's wait does that.
trap 'exit 0' TERM
while :; do
  sleep 86400 &
  wait $! || true
done
