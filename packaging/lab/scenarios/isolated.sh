# shellcheck shell=sh
# The life of an isolated network: its router boots, VMs come, change and go, and the router is replaced.

r=r-412-VM
new_router() {
	router $r 169.254.88.17 'template=domP type=router eth0ip=10.1.1.1 eth0mask=255.255.255.0 eth1ip=169.254.88.17 eth1mask=255.255.0.0 eth2ip=203.0.113.24 eth2mask=255.255.255.0 gateway=203.0.113.1 domain=cs7cloud.internal cidrsize=24 dhcprange=10.1.1.1 disable_rp_filter=true dns1=192.0.2.53 dns2=198.51.100.53'
	plug $r eth0 02:00:0a:01:01:01 guests
	plug $r eth1 0e:00:a9:fe:58:11 control
	plug $r eth2 1e:00:cb:00:71:18 public
	with_packages $r
	boot $r
}
listens() { inside $r ss -Hlnp "$1" "sport = $2" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p' | sort -u; }
failed() { inside "$1" systemctl list-units --state failed --plain --no-legend | cut -d ' ' -f 1; }
errors() { inside $r journalctl --quiet --no-pager --output cat --priority err --unit 'vragent*'; }

say "A router boots"
new_router
promise "all its services start" "" "$(failed $r)"
works "its command line is taken in" within 10 inside $r sh -c 'ls /var/cache/cloud/processed/cmd_line.json.*.gz'
works "vragent says that all is well" inside $r vragent status
promise "and answers DHCP" vragent "$(listens -u 67)"
promise "metadata" vragent "$(listens -t 80)"
promise "and passwords" vragent "$(listens -t 8080)"
promise "names are dnsmasq's" dnsmasq "$(listens -u 53)"

say "VMs start"
# start NAME NUMBER: what the management server tells the router before a VM boots.
mac() { echo "02:01:00:cb:00:$1"; }
uuid() { echo "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d$1"; }
tell() {
	dhcp_entry "$1" "$(mac "$2")" "10.1.1.$2" | drop $r vm_dhcp_entry &&
		printf '#!/bin/sh\necho "%s says hello" >/root/ran\n' "$1" |
		vm_metadata "$1" "$(uuid "$2")" "10.1.1.$2" "$(cat "$dir/user.pub")" | drop $r vm_metadata &&
		vm_password "10.1.1.$2" "first&=%+q\$z$2" | drop $r vm_password
}
guest web-1 dhclient "$(mac 50)" guests
guest app-1 udhcpc "$(mac 51)" guests
guest log-1 dhcpcd "$(mac 52)" guests
guest db-1 networkd "$(mac 53)" guests
for vm in web-1=50 app-1=51 log-1=52 db-1=53; do
	works "the router takes ${vm%=*}" tell "${vm%=*}" "${vm#*=}"
done
boot web-1 app-1 log-1 db-1
for vm in web-1=50=dhclient app-1=51=udhcpc log-1=52=dhcpcd db-1=53=networkd; do
	name=${vm%%=*}
	client=${vm##*=}
	number=${vm%=*}
	number=${number#*=}
	promise "$name has its address by $client" "10.1.1.$number/24" "$(address_of "$name")"
	promise "  and cloud-init is done" done "$(cloud_init "$name")"
	promise "  it took the host name" "$name" "$(inside "$name" hostname)"
	promise "  and ran the user data" "$name says hello" "$(inside "$name" cat /root/ran)"
	promise "  its user gets in with the key" "$name" "$(with_key $r "10.1.1.$number" hostname)"
	promise "  and with the password" "$name" "$(with_password "first&=%+q\$z$number" $r "10.1.1.$number" hostname)"
	promise "  which the router has forgotten" saved_password "$(password_server "$name")"
done
promise "the router has a name for the metadata's server" "10.1.1.1" "$(inside web-1 getent hosts data-server | cut -d ' ' -f 1)"
promise "and for a VM" "10.1.1.53" "$(inside web-1 getent hosts db-1 | cut -d ' ' -f 1)"

say "A password is reset"
works "the router takes it" eval "vm_password 10.1.1.50 'second one' | drop $r vm_password"
reboot web-1
promise "the VM reboots, and cloud-init is done" done "$(cloud_init web-1)"
promise "its user gets in with the new password" web-1 "$(with_password 'second one' $r 10.1.1.50 hostname)"
promise "not with the old one" 255 "$(exit_status with_password "first&=%+q\$z50" $r 10.1.1.50 hostname)"
promise "which the router has forgotten" saved_password "$(password_server web-1)"

say "User data is changed"
printf '#cloud-boothook\n#!/bin/sh\necho changed >/root/hook\n' >"$lab/user-data"
works "the router takes it" eval "vm_metadata db-1 $(uuid 53) 10.1.1.53 null <$lab/user-data | drop $r vm_metadata"
promise "the VM reads it at once" "$(cat "$lab/user-data")" "$(fetch db-1 /latest/user-data)"
reboot db-1
promise "and cloud-init at the next boot" done "$(cloud_init db-1)"
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
promise "and cloud-init is done" done "$(cloud_init new-1)"
promise "it took its own host name" new-1 "$(inside new-1 hostname)"
promise "it reads its own id" "$(uuid 99)" "$(fetch new-1 /latest/instance-id)"
promise "and no user data of its predecessor" "" "$(fetch new-1 /latest/user-data)"
promise "no key" "" "$(fetch new-1 /latest/public-keys)"
promise "no password" saved_password "$(password_server new-1)"
promise "none of it was run" 1 "$(exit_status inside new-1 test -e /root/ran)"

say "The router is replaced by a new one, and told everything at once"
promise "the old one's log is without errors" "" "$(errors)"
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
promise "renews its lease" 0 "$(exit_status inside web-1 dhclient -1 -v eth0)"
promise "and reads its password" third51 "$(password_server app-1)"
reboot web-1
promise "reboots, and cloud-init is done" done "$(cloud_init web-1)"
promise "with the address" 10.1.1.50/24 "$(address_of web-1)"
promise "and the password of the aggregated file" web-1 "$(with_password third50 $r 10.1.1.50 hostname)"
promise "the log is without errors" "" "$(errors)"
promise "and no service has failed" "" "$(failed $r)"
