#!/bin/sh
# What a guest of the tests does once its image has brought it onto the network. It
# is process 1. The kernel's command line says where the host is, lab.server=URL,
# and what is to be done, lab.do=PHASE,PHASE...; the answers go to the host as lines
# of a word and a value.
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

finish() {
	dmesg | grep -i -E 'firmware|overmount|fuse' | tail -n 40 | sed 's/^/dmesg /' >>$report
	sed 's/^/log /' /run/*.log 2>/dev/null | tail -n 60 >>$report
	mark finished
	wget -q -O /dev/null --post-file $report "$(param lab.server)/report" || cat $report
	sync
	poweroff -f
}

# ---------------------------------------------------------------------------
# What "overmount boot" does: both mounts, then udev's coldplug.

mount_both() {
	server=$(param lab.server)
	try mount-modules overmount mount -d -l /run/modules.log -c /run/cache/modules -m "$server/modules.fl" "$modules"
	try mount-firmware overmount mount -d -l /run/firmware.log -c /run/cache/firmware -m "$server/firmware.fl" $firmware
}

coldplug() {
	udevd --daemon --children-max=64 --event-timeout="${1:-120}"
	udevadm control --reload
	udevadm trigger --type=subsystems --action=add
	udevadm trigger --type=devices --action=add
	try settle udevadm settle --timeout="$2"
}
# ---------------------------------------------------------------------------

bound() {
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

# plug_in makes a USB device appear whose driver wants firmware in its probe.
plug_in() {
	try dummy_hcd /sbin/modprobe -a dummy_hcd libcomposite usb_f_ss_lb
	mount -t configfs none /sys/kernel/config
	gadget=/sys/kernel/config/usb_gadget/lab
	mkdir $gadget
	echo 0x0cf3 >$gadget/idVendor
	echo 0x3000 >$gadget/idProduct
	echo 0x0001 >$gadget/bcdDevice
	mkdir $gadget/strings/0x409 $gadget/configs/c.1 $gadget/functions/Loopback.0
	ln -s $gadget/functions/Loopback.0 $gadget/configs/c.1
	await 5 test -e /sys/class/udc/dummy_udc.0
	echo dummy_udc.0 >$gadget/UDC
	try hotplug await 20 sh -c 'dmesg | grep -q ath3k'
}

main_phase() {
	say "before $(count)"
	mount_both
	say "after $(count)"
	mark mounted
	coldplug "$(param lab.event)" 120
	mark settled
	open_cards
	test_firmware
	plug_in
	await 10 sh -c 'dmesg | grep -q labtest/hda.fw'
	bound
	for pid in $(pidof overmount); do say "ticks $(cut -d ' ' -f 14,15 "/proc/$pid/stat") $(sed -n 's/^VmHWM:[ \t]*//p' "/proc/$pid/status")"; done
	mark main
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

# switch_phase goes to a root of its own, as an initramfs does, and loads there what
# was not fetched before.
switch_phase() {
	root=/newroot
	mkdir -p $root
	mount -t tmpfs tmpfs $root
	for dir in bin sbin dev proc sys run lib/firmware "lib/modules/$kver"; do mkdir -p "$root/$dir"; done
	cp -a /bin/busybox $root/bin/
	chroot $root /bin/busybox --install -s /bin
	cp /etc/overmount/start $root/sbin/init
	for dir in "lib/modules/$kver" lib/firmware dev proc sys run; do mount --move "/$dir" "$root/$dir"; done
	exec switch_root $root /sbin/init switched
}

switched_phase() {
	try switched-module modprobe "$(param lab.late)"
	request labtest/late.bin
	mark switched
}

if [ "$1" = switched ]; then
	switched_phase
	finish
fi
mark online
for phase in $(param lab.do | tr , ' '); do
	case $phase in
	main) main_phase ;;
	spoiled | held | cut) load_phase "$phase" ;;
	switch) switch_phase ;;
	esac
done
finish
