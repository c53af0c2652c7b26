#!/bin/sh
# What a guest of the tests does. As /sbin/init it comes after the image's own /init
# has run "overmount boot", and before that it is what udhcpc calls; as
# /etc/overmount/start it comes as soon as the image has brought the machine onto the
# network, and does the rest itself, with udev. There it is process 1. As /sbin/lab it
# is what systemd starts. The kernel's command line says where the host is,
# lab.server=URL, and what is to be done, lab.do=PHASE,PHASE...; the answers go to the
# host as lines of a word and a value.
#
# In busybox's shell the name of an applet is the applet: kmod's modprobe needs its
# path.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

report=/run/report
kver=$(uname -r)
modules=/lib/modules/$kver
firmware=/lib/firmware

param() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"; }
say() { echo "$*" >>$report; }
mark() { echo "lab: $*"; say "time $* $(cut -d ' ' -f 1 /proc/uptime)"; }
count() { find "$modules/kernel/drivers/net/ethernet" -name '*.ko' 2>/dev/null | wc -l; }

# try WORD COMMAND... says how a command ended, and its last words.
try() {
	word=$1
	shift
	"$@" >/run/try.log 2>&1
	say "$word $? $(tail -n 1 /run/try.log)"
}

# await N COMMAND... repeats a command for up to N seconds until it succeeds: for
# what the kernel does in its own time.
await() {
	n=$(($1 * 10))
	shift
	until "$@" >/dev/null 2>&1; do
		n=$((n - 1))
		if [ $n -le 0 ]; then return 1; fi
		sleep 0.1
	done
}

# post WORD FILE sends a file to the host.
post() { wget -q -O /dev/null --post-file "$2" "$(param lab.server)/$1"; }

finish() {
	if [ -d /run/udev ]; then say "udev has noted $(ls /run/udev/data 2>/dev/null | wc -l) devices"; fi
	dmesg | grep -i -E 'firmware|overmount|fuse|udev' | tail -n 40 | sed 's/^/dmesg /' >>$report
	sed 's/^/log /' /run/overmount/boot.log | tail -n 100 >>$report
	mark finished
	post report $report || cat $report
	sync
	if [ -d /run/systemd/system ]; then
		exec systemctl poweroff 2>/dev/null # it misses logind
	fi
	poweroff -f
}

# look takes down what is there before "overmount boot": what the kernel says of the
# devices that stage 1 has found.
look() {
	say "before $(count)"
	overmount plan --capture /run/before
}

# boot_with_udev is what the system does whose way up has udev.
boot_with_udev() {
	look
	event=$(param lab.event)
	udevd --daemon --children-max=64 --event-timeout="${event:-120}"
	try boot overmount boot
}

bound_phase() {
	for device in /sys/bus/pci/devices/*; do
		driver=none
		if [ -e "$device/driver" ]; then driver=$(basename "$(readlink "$device/driver")"); fi
		say "bound ${device##*/} $driver"
	done
	cut -d ' ' -f 1 /proc/modules | sed 's/^/loaded /' >>$report
}

# open_cards opens the network cards whose drivers want firmware for that.
open_cards() {
	for card in /sys/class/net/*; do
		case $(readlink "$card/device/driver") in
		*/e100) try e100-open ip link set "${card##*/}" up ;;
		esac
	done
}

# request asks the kernel for a firmware, and says what came.
request() {
	try "request:$1" sh -c "echo -n '$1' >/sys/devices/virtual/misc/test_firmware/trigger_request"
	say "content:$1 $(sha256sum </dev/test_firmware | cut -d ' ' -f 1)"
}

test_firmware() {
	try test_firmware /sbin/modprobe test_firmware
	request labtest/blob.bin
	request labtest/absent.bin
	request labtest/absent.bin
}

# gadget VENDOR PRODUCT makes a USB device appear.
gadget() {
	try dummy_hcd /sbin/modprobe -a dummy_hcd libcomposite usb_f_ss_lb
	mount -t configfs none /sys/kernel/config
	gadget=/sys/kernel/config/usb_gadget/lab
	mkdir $gadget
	echo "$1" >$gadget/idVendor
	echo "$2" >$gadget/idProduct
	echo 0x0001 >$gadget/bcdDevice
	mkdir $gadget/strings/0x409 $gadget/configs/c.1 $gadget/functions/Loopback.0
	ln -s $gadget/functions/Loopback.0 $gadget/configs/c.1
	await 5 test -e /sys/class/udc/dummy_udc.0
	echo dummy_udc.0 >$gadget/UDC
}

# plug_in makes a USB device appear whose driver wants firmware in its probe.
plug_in() {
	gadget 0x0cf3 0x3000
	try hotplug await 20 sh -c 'dmesg | grep -q ath3k'
}

# disks reports whether the disks have come up: the one behind a controller, and the
# one on USB, which takes a second longer than everything else.
disks() { [ "$(find /sys/block -name 'sd*' | wc -l)" = 2 ]; }

# booted_phase tells of the boot alone.
booted_phase() {
	try ready test -e /run/overmount/ready
	say "report $(overmount report --json)"
	mark booted
	post booted /run/overmount/report.json
	if [ -e /run/before ]; then post capture /run/before; fi
	say "after $(count)"
}

main_phase() {
	booted_phase
	try disks await 20 disks
	say "block $(ls /sys/block | tr '\n' ' ')"
	overmount plan --capture /run/capture
	post later /run/capture
	open_cards
	test_firmware
	plug_in
	await 10 sh -c 'dmesg | grep -q labtest/hda.fw'
	bound_phase
	for pid in $(pidof overmount); do say "ticks $(cut -d ' ' -f 14,15 "/proc/$pid/stat") $(sed -n 's/^VmHWM:[ \t]*//p' "/proc/$pid/status")"; done
	mark main
}

# handed_phase is what the image's /init has left.
handed_phase() { say "handed $$ $(ps | grep -c '[u]devd')"; }

# alone_phase comes after a boot without a server, which the host brings back then.
alone_phase() {
	say "alone $(overmount report --json)"
	say "alone-after $(count)"
	mark alone
	try company await 90 sh -c '! grep -q pending /run/overmount/report.json'
}

# late_driver says which driver has the device of late_phase.
late_driver() {
	for alias in $(grep -l v0A5Cp2033 /sys/bus/usb/devices/*:*/modalias); do
		basename "$(readlink "${alias%/modalias}/driver" || echo none)"
	done
}

# late_phase comes after a boot to which the host has given modules and no firmware. The
# device's driver wants two files for its probe, and takes any.
late_phase() {
	gadget 0x0a5c 0x2033
	try late-probe await 30 sh -c 'dmesg | grep -q "failed to load BCM2033-MD.hex"'
	say "late-before $(late_driver)"
	mark late
}

# company_phase is when the host gives the firmware.
company_phase() {
	mark company
	try company await 90 sh -c '! grep -q pending /run/overmount/report.json'
	say "late-after $(late_driver)"
	say "report $(overmount report --json)"
}

# load_phase loads a module that no device asks for, whose bytes the host spoils or
# holds back.
load_phase() {
	module=$(param "lab.$1")
	from=$(cut -d . -f 1 /proc/uptime)
	try "$1" /sbin/modprobe "$module"
	say "seconds:$1 $(($(cut -d . -f 1 /proc/uptime) - from))"
	mark "$1"
}

# switch_phase goes to a root of its own, as an initramfs does, with what is mounted by
# then; the phases of lab.after are there.
switch_phase() {
	root=/newroot
	mkdir -p $root
	mount -t tmpfs tmpfs $root
	for dir in bin sbin dev proc sys run lib/firmware "lib/modules/$kver"; do mkdir -p "$root/$dir"; done
	cp -a /bin/busybox $root/bin/
	chroot $root /bin/busybox --install -s /bin
	cp /sbin/init $root/sbin/init
	cp "$(command -v overmount)" $root/bin/
	for dir in $(cut -d ' ' -f 5 /proc/self/mountinfo | grep -x -F -e "/lib/modules/$kver" -e /lib/firmware -e /dev -e /proc -e /sys -e /run); do
		mount --move "$dir" "$root$dir"
	done
	exec switch_root $root /sbin/init switched
}

# switched_phase loads what was not fetched before.
switched_phase() {
	try switched-module modprobe "$(param lab.late)"
	request labtest/late.bin
	request labtest/stage1.bin
	mark switched
}

# mounted counts our mounts.
mounted() { grep -c ' - fuse.overmount ' /proc/self/mountinfo; }

# state says what the unit is, how many mounts there are, and whether all is ready.
state() {
	say "state:$1 $(systemctl show -P ActiveState overmount.service) $(mounted) $(test -e /run/overmount/ready && echo ready)"
}

# units says in which order systemd did what, in microseconds: when it began with a
# unit, and when that was active.
units() {
	for unit in systemd-udev-trigger systemd-networkd-wait-online overmount lab-needs; do
		say "unit:$unit $(systemctl show -P InactiveExitTimestampMonotonic $unit.service) $(systemctl show -P ActiveEnterTimestampMonotonic $unit.service)"
	done
	say "unit:multi-user $(systemctl show -P ActiveEnterTimestampMonotonic multi-user.target)"
	say "failed $(systemctl list-units --failed --no-legend --plain | tr '\n' ';')"
}

# restarted reports whether the unit is active, with another process than that.
restarted() {
	case $(systemctl show -P MainPID overmount.service) in
	0 | "$1") return 1 ;;
	esac
	systemctl is-active overmount.service
}

# killed_phase kills the program, which systemd starts again.
killed_phase() {
	pid=$(systemctl show -P MainPID overmount.service)
	kill -9 "$pid"
	try restarted await 60 restarted "$pid"
	state killed
	try killed-module /sbin/modprobe "$(param lab.late)"
	mark killed
}

# stopped_phase stops the unit, and starts it again.
stopped_phase() {
	from=$(cut -d . -f 1 /proc/uptime)
	try stop systemctl stop overmount.service
	say "seconds:stop $(($(cut -d . -f 1 /proc/uptime) - from))"
	state stopped
	say "result:stopped $(systemctl show -P Result overmount.service)"
	try stopped-udev udevadm trigger --action=add --settle
	say "udevd $(systemctl show -P NRestarts systemd-udevd.service) $(systemctl show -P ActiveState systemd-udevd.service)"
	mark stopped
	try start systemctl start overmount.service
	state started
}

phases=$(param lab.do)
case $0 in
*/default.script)
	if [ "$1" = bound ]; then look; fi
	if [ -n "$(param lab.deaf)" ]; then rm -f /usr/lib/udev/rules.d/80-drivers.rules /lib/udev/rules.d/80-drivers.rules; fi
	exec sh /usr/share/udhcpc/plain.script "$@"
	;;
/etc/overmount/start)
	mark online
	boot_with_udev
	;;
/sbin/lab)
	state "$1"
	if [ "$1" != multi-user ]; then exit; fi
	units
	;;
/sbin/init)
	if [ "$1" = switched ]; then
		phases=$(param lab.after)
	else
		mark online
	fi
	;;
esac
for phase in $(echo "$phases" | tr , ' '); do
	case $phase in
	spoiled | held | cut) load_phase "$phase" ;;
	*) "${phase}_phase" ;;
	esac
done
finish
