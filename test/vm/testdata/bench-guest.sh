#!/bin/sh
# The /init of the guest whose boot is timed. It brings up the network, over a line
# that is as long as the kernel's command line says, bench.rtt=MILLISECONDS, has the
# rest done as bench.how=HOW says, and sends the host lines of a word and a value:
#
#	local-udev  everything is in the image; udev loads it
#	local-own   the same, by "overmount coldplug"
#	others      "overmount boot", which reads overmount.NAME=VALUE there
#
# bench.udev=1 starts udevd before that. In busybox's shell the name of an applet is
# the applet: kmod's modprobe needs its path.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

host=10.64.0.1
report=/run/bench-report

param() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"; }
say() { echo "$*" >>$report; }
mark() {
	read -r up _ </proc/uptime
	say "time:$1 $up"
	echo "bench: $1 $up"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /run /tmp
mount -t tmpfs -o mode=755 tmpfs /run
how=$(param bench.how)
rtt=$(param bench.rtt)

ip link set lo up
/sbin/modprobe -a virtio_pci virtio_net fuse af_packet sch_netem
until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done
ip addr add 10.64.0.2/24 dev eth0
ip link set eth0 up
until ping -c 1 -W 1 $host >/dev/null; do :; done
# One way takes all of it. The queue holds what a second sends.
if [ "$rtt" != 0 ]; then /sbin/tc qdisc add dev eth0 root netem delay "${rtt}ms" limit 100000; fi
say "ping $(ping -c 1 $host | sed -n 's/.*time=\([0-9.]*\) .*/\1/p')"
if [ "$(param bench.udev)" = 1 ]; then udevd --daemon --children-max=64 --event-timeout=120; fi
received=/sys/class/net/eth0/statistics/rx_bytes
sent=/sys/class/net/eth0/statistics/tx_bytes
read -r rx <$received
read -r tx <$sent

mark online
case $how in
local-udev)
	udevadm control --reload
	udevadm trigger --type=subsystems --action=add
	udevadm trigger --type=devices --action=add
	udevadm settle --timeout=120
	;;
local-own) overmount coldplug >/run/coldplug.out 2>&1 ;;
*) overmount boot 2>/run/boot.err ;;
esac
say "ended $?"
mark ended
# What the buses find later is loaded after that: it counts, too, for five seconds.
tries=500
modules=$(param bench.modules)
while [ "$(wc -l </proc/modules)" -lt "$modules" ] && [ $tries -gt 0 ]; do
	sleep 0.01
	tries=$((tries - 1))
done
mark bound

read -r rx2 <$received
read -r tx2 <$sent
say "received $((rx2 - rx))"
say "sent $((tx2 - tx))"
for device in /sys/bus/pci/devices/*; do
	driver=none
	if [ -e "$device/driver" ]; then driver=$(basename "$(readlink "$device/driver")"); fi
	say "bound ${device##*/} $driver"
done
cut -d ' ' -f 1 /proc/modules | sed 's/^/loaded /' >>$report
for pid in $(pidof overmount @overmount); do say "cpu $(cut -d ' ' -f 14,15 "/proc/$pid/stat") $(sed -n 's/^VmHWM:[ \t]*//p' "/proc/$pid/status")"; done
for log in /run/boot.err /run/coldplug.out /run/overmount/boot.log; do
	if [ -e $log ]; then sed "s/^/log /" $log | tail -n 80 >>$report; fi
done
if [ -e /run/overmount/report.json ]; then
	say "report $(overmount report --json | tr -d '\n')"
fi
for kind in modules firmware; do
	if [ -e /run/record/$kind.record ]; then wget -q -O /dev/null --post-file /run/record/$kind.record http://$host/record/$kind; fi
done
wget -q -O /dev/null --post-file $report http://$host/report || cat $report
poweroff -f
