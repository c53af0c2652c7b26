#!/bin/sh
# The first program of a machine that has only its initramfs: makes the kernel's
# file systems appear, loads the modules of stage 1 that the hardware asks for,
# gets an address, and hands over to /etc/overmount/start if the image has it.
# Otherwise it starts udevd, if the image has that, and "overmount boot", and hands
# over to the image's /sbin/init, whatever came of it.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

say() { echo "overmount-init: $*"; }

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
# The kernel may have done it.
[ -c /dev/null ] || mount -t devtmpfs -o nosuid devtmpfs /dev
mkdir -p /run /tmp
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run

kver=$(uname -r)
[ -e "/lib/modules/$kver/modules.dep" ] || say "the kernel is $kver, and this image has modules for $(ls /lib/modules)"

# Before any driver asks, and not below what will be mounted over.
if [ -d /lib/overmount/firmware ] && [ -e /sys/module/firmware_class/parameters/path ]; then
	printf %s /lib/overmount/firmware >/sys/module/firmware_class/parameters/path
fi

# Each pass loads what the devices that are there ask for; buses bring new ones.
coldplug() {
	find /sys/devices -name modalias -exec cat {} + 2>/dev/null | sort -u | xargs modprobe -a -b -q 2>/dev/null
}
stage1() {
	# shellcheck disable=SC2046 # a list of names
	modprobe -a $(cat /lib/overmount/always) || say "a module that is always needed could not be loaded"
	loaded=-1
	while [ "$loaded" != "$(wc -l </proc/modules)" ]; do
		loaded=$(wc -l </proc/modules)
		coldplug
	done
}

# cards prints the network interfaces that are hardware.
cards() {
	for i in /sys/class/net/*; do
		if [ -e "$i/device" ]; then echo "${i##*/}"; fi
	done
}

# online gets an address on any card, for a minute or so: switches and servers
# may be slower than we are.
online() {
	for try in 1 2 3 4 5 6; do
		for card in $(cards); do
			ip link set "$card" up
			udhcpc -i "$card" -n -q -t 5 -T 2 -s /usr/share/udhcpc/default.script && return
		done
		sleep 1
		stage1
	done
	say "no network card of this machine got an address, after $try tries: $(cards | tr '\n' ' ')"
	return 1
}

ip link set lo up
stage1
online

if [ -x /etc/overmount/start ]; then
	exec /etc/overmount/start
elif [ -e /etc/overmount/start ]; then
	say "/etc/overmount/start is not executable"
else
	if [ -x /sbin/udevd ]; then
		udevd --daemon --children-max=64 --event-timeout=120 || say "udevd does not start"
	fi
	overmount boot || say "overmount boot ended with $?: this machine has the drivers of its image, and no others"
	if [ -x /sbin/init ]; then
		# It starts its own, with its own rules. Two would handle all events twice.
		if [ -x /sbin/udevd ]; then udevadm control --exit; fi
		exec /sbin/init
	fi
fi
say "there is nothing more to start: here is a shell"
exec setsid cttyhack sh
