#!/bin/sh
# What udhcpc calls with what a DHCP server said.
case $1 in
deconfig)
	ip addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	ip addr replace "$ip/${mask:-24}" dev "$interface"
	metric=1
	for router in $router; do
		ip route replace default via "$router" dev "$interface" metric "$metric"
		metric=$((metric + 1))
	done
	{
		if [ -n "$domain" ]; then echo "search $domain"; fi
		for server in $dns; do echo "nameserver $server"; done
	} >/etc/resolv.conf
	;;
esac
