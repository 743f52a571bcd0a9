#!/bin/sh
# Process 1 of the virtual machine, with the host's file system as its root: runs /run/vm/command, whose output goes to the second serial
# port, and leaves its exit status and the clusters' logs in /run/vm, the one folder that lasts.
. /run/vm/settings # modules= clusters=
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
hostname spillway-vm
ip link set lo up
mkdir -p /lib/modules "$clusters"
mount --bind "$modules" /lib/modules
# Without it a service's address doesn't lead to pods on the same node.
modprobe br_netfilter
# An overlay, which containerd makes, can't lie on the overlay that is our root.
mount -t tmpfs -o size=70%,mode=755 tmpfs "$clusters"
stty -F /dev/ttyS1 raw -echo

save_logs() {
  for log in "$clusters"/*/log; do
    [ -d "$log" ] || continue
    out=/run/vm/log/$(basename "$(dirname "$log")")
    mkdir -p "$out"
    cp -u "$log"/* "$out/"
  done
}
# While they grow, too: a machine that hangs is killed.
while sleep 30; do save_logs; done &
sh /run/vm/command </dev/null >/dev/ttyS1 2>&1
status=$?
save_logs
dmesg >/run/vm/log/kernel.log
# Written last: without it nothing is believed.
echo $status >/run/vm/status
sync
echo o >/proc/sysrq-trigger
sleep 60
