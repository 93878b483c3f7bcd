# shellcheck shell=sh
# Tiers of a VPC come and go on a router that runs, and a VM gets a second NIC.

r=r-7-VM
router $r 169.254.88.18 'template=domP type=vpcrouter vpccidr=10.40.0.0/16 domain=vpc-blue.internal eth0ip=169.254.88.18 eth0mask=255.255.0.0 disable_rp_filter=true dns1=192.0.2.53'
plug $r eth0 0e:00:a9:fe:58:12 control
with_packages $r

# tier NUMBER true|false: the order to plug or unplug 10.40.NUMBER.0/24 at the NIC of that number.
tier() {
	printf '{"add":%s,"mac_address":"02:01:00:db:00:0%s","device":"eth%s","router_guest_ip":"10.40.%s.1","router_guest_netmask":"255.255.255.0","router_guest_gateway":"10.40.%s.1","cidr":"24","dns":"192.0.2.53","domain_name":"vpc-blue.internal","type":"guestnetwork"}\n' \
		"$2" "$1" "$1" "$1" "$1" | drop $r guest_network
}
# nic NAME MAC ADDRESS DEFAULT: the orders for one NIC of a VM.
nic() {
	dhcp_entry "$1" "$2" "$3" "$4" | drop $r vm_dhcp_entry &&
		vm_metadata "$1" "7f9b6d0c-31b4-4f47-9c5a-6a2bb0d0a1f3" "$3" "$(cat "$dir/user.pub")" </dev/null | drop $r vm_metadata
}
default_route() { inside "$1" ip -4 route show default | awk '{print $3, $5}'; }

say "A VPC's router boots without a guest network"
boot $r
promise "all its services start" "" "$(failed $r)"
promise "nobody answers DHCP" "" "$(listens $r -u 67)"

say "Two tiers are plugged in"
plug $r eth2 02:01:00:db:00:02 guests
works "the router takes the first" tier 2 true
plug $r eth3 02:01:00:db:00:03 tier
works "and the second" tier 3 true
promise "it has their addresses" "10.40.2.1/24 10.40.3.1/24" "$(echo "$(address_of $r eth2) $(address_of $r eth3)")"
promise "and serves them" "10.40.2.1%eth2:80 10.40.3.1%eth3:80" "$(inside $r ss -Hlnt 'sport = 80' | awk '{print $4}' | sort | paste -sd ' ')"

say "VMs start in the first"
guest web-1 dhclient 02:01:00:cb:01:01 guests
guest web-2 networkd 02:01:00:cb:02:01 guests
works "the router takes one" nic web-1 02:01:00:cb:01:01 10.40.2.11 true
works "and another" nic web-2 02:01:00:cb:02:01 10.40.2.12 true
boot web-1 web-2
for vm in web-1=11 web-2=12; do
	promise "${vm%=*} has its address" "10.40.2.${vm#*=}/24" "$(address_of "${vm%=*}")"
	promise "  and cloud-init is done" "done" "$(cloud_init "${vm%=*}")"
	promise "  its default route is the tier's gateway" "10.40.2.1 eth0" "$(default_route "${vm%=*}")"
done

say "They get a second NIC, in the second tier"
resolvers() { inside web-1 cat /etc/resolv.conf; }
before=$(resolvers)
works "the router takes one" nic web-1 02:01:00:cb:01:02 10.40.3.11 false
works "and another" nic web-2 02:01:00:cb:02:02 10.40.3.12 false
plug web-1 eth1 02:01:00:cb:01:02 tier
plug web-2 eth1 02:01:00:cb:02:02 tier
works "dhclient sets it up" inside web-1 dhclient -1 -v eth1
printf '[Match]\nName=eth1\n[Network]\nDHCP=ipv4\n' | inside web-2 sh -c 'cat >/etc/systemd/network/eth1.network && networkctl reload'
works "networkd sets it up" within 20 eval '[ -n "$(address_of web-2 eth1)" ]'
for vm in web-1=11 web-2=12; do
	promise "${vm%=*} has the address" "10.40.3.${vm#*=}/24" "$(address_of "${vm%=*}" eth1)"
	promise "  and no default route more" "10.40.2.1 eth0" "$(default_route "${vm%=*}")"
	promise "  the first NIC is as it was" "10.40.2.${vm#*=}/24" "$(address_of "${vm%=*}" eth0)"
	promise "  and metadata is read there, too" "10.40.3.${vm#*=}" "$(inside "${vm%=*}" curl --silent --max-time 5 http://10.40.3.1/latest/local-ipv4)"
done
promise "resolvers stay those of the first" "$before" "$(resolvers)"

say "A tier is unplugged"
works "the router takes the removal of one NIC" eval "dhcp_entry web-1 02:01:00:cb:01:02 10.40.3.11 false true | drop $r vm_dhcp_entry"
works "and of the other" eval "dhcp_entry web-2 02:01:00:cb:02:02 10.40.3.12 false true | drop $r vm_dhcp_entry"
works "and of the tier" tier 3 false
promise "it serves the first tier alone" "10.40.2.1%eth2:80" "$(inside $r ss -Hlnt 'sport = 80' | awk '{print $4}' | sort | paste -sd ' ')"
works "whose guests notice nothing" renews web-1
promise "the log is without errors" "" "$(errors $r)"
promise "and no service has failed" "" "$(failed $r)"
