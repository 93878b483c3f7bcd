# shellcheck shell=sh
# The life of an isolated network: its router boots, VMs come, change and go, and the router is replaced.

r=r-412-VM
new_router() {
	isolated_router $r
	with_packages $r
	boot $r
}

say "A router boots"
new_router
promise "all its services start" "" "$(failed $r)"
works "its command line is taken in" within 10 inside $r sh -c 'ls /var/cache/cloud/processed/cmd_line.json.*.gz'
works "vragent says that all is well" inside $r vragent status
becomes "and answers DHCP, metadata and passwords" "vragent vragent vragent" serving $r
promise "names are dnsmasq's" dnsmasq "$(listens $r -u 53)"

say "VMs start"
guest web-1 dhclient "$(mac 50)" guests
guest app-1 udhcpc "$(mac 51)" guests
guest log-1 dhcpcd "$(mac 52)" guests
guest db-1 networkd "$(mac 53)" guests
for vm in web-1=50 app-1=51 log-1=52 db-1=53; do
	works "the router takes ${vm%=*}" start $r "${vm%=*}" "${vm#*=}"
done
boot web-1 app-1 log-1 db-1
for vm in web-1=50=dhclient app-1=51=udhcpc log-1=52=dhcpcd db-1=53=networkd; do
	name=${vm%%=*}
	client=${vm##*=}
	number=${vm%=*}
	number=${number#*=}
	promise "$name has its address by $client" "10.1.1.$number/24" "$(address_of "$name")"
	promise "  and cloud-init is done" "done" "$(cloud_init "$name")"
	promise "  it took the host name" "$name" "$(inside "$name" hostname)"
	promise "  and ran the user data" "$name says hello" "$(inside "$name" cat /root/ran)"
	promise "  its user gets in with the key" "$name" "$(with_key $r "10.1.1.$number" hostname)"
	promise "  and with the password" "$name" "$(with_password "$first$number" $r "10.1.1.$number" hostname)"
	promise "  which the router has forgotten" saved_password "$(password_server "$name")"
done
promise "the router has a name for the metadata's server" "10.1.1.1" "$(inside web-1 getent hosts data-server | cut -d ' ' -f 1)"
promise "and for a VM" "10.1.1.53" "$(inside web-1 getent hosts db-1 | cut -d ' ' -f 1)"

say "A password is reset"
works "the router takes it" eval "vm_password 10.1.1.50 'second one' | drop $r vm_password"
reboot web-1
promise "the VM reboots, and cloud-init is done" "done" "$(cloud_init web-1)"
promise "its user gets in with the new password" web-1 "$(with_password 'second one' $r 10.1.1.50 hostname)"
promise "not with the old one" 255 "$(exit_status with_password "${first}50" $r 10.1.1.50 hostname)"
promise "which the router has forgotten" saved_password "$(password_server web-1)"

say "User data is changed"
printf '#cloud-boothook\n#!/bin/sh\necho changed >/root/hook\n' >"$lab/user-data"
works "the router takes it" eval "vm_metadata db-1 $(uuid 53) 10.1.1.53 null <$lab/user-data | drop $r vm_metadata"
promise "the VM reads it at once" "$(cat "$lab/user-data")" "$(fetch db-1 /latest/user-data)"
reboot db-1
promise "and cloud-init at the next boot" "done" "$(cloud_init db-1)"
promise "runs it" changed "$(inside db-1 cat /root/hook)"

say "A VM is destroyed, and another one gets its address"
works "a password waits for the old one" eval "vm_password 10.1.1.52 never-taken | drop $r vm_password"
destroy log-1
works "the router takes the removal" eval "dhcp_entry log-1 $(mac 52) 10.1.1.52 true true | drop $r vm_dhcp_entry"
promise "the router knows no such VM any more" 0 "$(inside $r vragent vms -o json | grep -c "$(mac 52)")"
works "the router takes the new one" eval "
	dhcp_entry new-1 $(mac 99) 10.1.1.52 | drop $r vm_dhcp_entry &&
		vm_metadata new-1 $(uuid 99) 10.1.1.52 null </dev/null | drop $r vm_metadata"
guest new-1 dhclient "$(mac 99)" guests
boot new-1
promise "it has the address" 10.1.1.52/24 "$(address_of new-1)"
promise "and cloud-init is done" "done" "$(cloud_init new-1)"
promise "it took its own host name" new-1 "$(inside new-1 hostname)"
promise "it reads its own id" "$(uuid 99)" "$(fetch new-1 /latest/instance-id)"
promise "and no user data of its predecessor" "" "$(fetch new-1 /latest/user-data)"
promise "no key" "" "$(fetch new-1 /latest/public-keys)"
promise "no password" saved_password "$(password_server new-1)"
promise "none of it was run" 1 "$(exit_status inside new-1 test -e /root/ran)"

say "The router is replaced by a new one, and told everything at once"
promise "the old one's log is without errors" "" "$(errors $r)"
destroy $r
new_router
for vm in web-1=50 app-1=51 db-1=53 new-1=99; do
	number=${vm#*=}
	ip=10.1.1.$number
	[ "$number" != 99 ] || ip=10.1.1.52
	dhcp_entry "${vm%=*}" "$(mac "$number")" $ip | order vm_dhcp_entry
	echo "after the restart" | vm_metadata "${vm%=*}" "$(uuid "$number")" $ip null | order vm_metadata
	vm_password $ip "third$number" | order vm_password
done
works "it takes the aggregated file in" aggregated $r
promise "a VM reads its data" "after the restart" "$(fetch app-1 /latest/user-data)"
works "another one renews its lease" renews web-1
promise "reads its password" third51 "$(password_server app-1)"
reboot web-1
promise "reboots, and cloud-init is done" "done" "$(cloud_init web-1)"
promise "with the address" 10.1.1.50/24 "$(address_of web-1)"
promise "and the password of the aggregated file" web-1 "$(with_password third50 $r 10.1.1.50 hostname)"
promise "the log is without errors" "" "$(errors $r)"
promise "and no service has failed" "" "$(failed $r)"
