# shellcheck shell=sh
# vragent comes to a router that serves guests in the old way, lives through a live patch, and goes.

r=r-412-VM
standins=$here/../cloudstack/standins
# reads NAME: all that the guest is told of itself, one thing a line.
reads() {
	for item in $(fetch "$1" /latest/meta-data/); do echo "$item=$(fetch "$1" "/latest/meta-data/$item")"; done
	fetch "$1" /latest/user-data
}
# reads_the_same NAME: what it read before is as it was; more may have come.
reads_the_same() { [ -z "$(reads "$1" | grep -Fxv -f - "$lab/$1/read")" ]; }
release() { inside $r tail -n 1 "/opt/cloud/bin/$1"; }
ours() { inside $r grep -q "vragent-cloudstack stands here" "/opt/cloud/bin/$1"; }

say "A router of the old kind, and its guests"
isolated_router $r
boot $r
guest web-1 dhclient "$(mac 50)" guests
guest app-1 networkd "$(mac 51)" guests
works "the router takes one" start $r web-1 50
works "and another" start $r app-1 51
boot web-1 app-1
promise "cloud-init is done" "done" "$(cloud_init web-1)"
promise "in both" "done" "$(cloud_init app-1)"
becomes "dnsmasq, Apache and a password server serve them" "dnsmasq apache2 passwd_server_i" serving $r
works "a password waits for one of them" eval "vm_password 10.1.1.51 'waits for app-1' | drop $r vm_password"
for vm in web-1 app-1; do reads $vm >"$lab/$vm/read"; done

say "The packages are installed"
# shellcheck disable=SC2086 # options
works "they are copied" scp -P 3922 $ssh_options "$dir"/debs/* "root@$(cat "$lab/$r/control"):/root/"
works "and installed" on $r 'dpkg -i /root/*.deb'
installed=$(mark $r) # until the second package took the router over, the old way was in the way
becomes "vragent serves the guests" "vragent vragent vragent" serving $r
promise "and dnsmasq their names" dnsmasq "$(listens $r -u 53)"
works "a guest renews its lease" renews web-1
promise "and keeps its address" 10.1.1.50/24 "$(address_of web-1)"
works "it reads what it read before" reads_the_same web-1
works "and so does the other" reads_the_same app-1
promise "the password waits still" "waits for app-1" "$(password_server app-1)"
promise "one that was taken does not" saved_password "$(password_server web-1)"
guest log-1 udhcpc "$(mac 52)" guests
works "the router takes a new VM" start $r log-1 52
boot log-1
promise "whose cloud-init is done" "done" "$(cloud_init log-1)"
promise "and which has its address" 10.1.1.52/24 "$(address_of log-1)"

say "Orders that are for the originals"
printf '{"rules":[],"type":"firewallrules"}\n' >"$lab/rules"
works "the router takes firewall rules" eval "drop $r firewall_rules <$lab/rules"
promise "the original has them" 1 "$(inside $r grep -c 'standin 1: update_config.py firewall_rules.json' /var/log/cloud.log)"
printf '{"ip_address":[{"public_ip":"203.0.113.25","source_nat":false,"add":true,"one_to_one_nat":true,"first_i_p":false,"gateway":"203.0.113.1","netmask":"255.255.255.0","vif_mac_address":"1e:00:cb:00:71:18","nic_dev_id":2,"new_nic":false,"nw_type":"Public"}],"type":"ips"}\n' >"$lab/ips"
works "and a public address" eval "drop $r ip_associations <$lab/ips"
promise "which it puts on its NIC" 1 "$(inside $r ip -4 -o address show dev eth2 | grep -c 203.0.113.25/24)"
becomes "vragent serves the guests" "vragent vragent vragent" serving $r
works "a guest renews its lease" renews web-1

say "A live patch"
mkdir "$lab/patch"
"$standins/install.sh" --patch 2 "$lab/patch"
tar -C "$lab/patch" -cf "$lab/patch.tar" opt
# shellcheck disable=SC2086 # options
works "it is copied" scp -P 3922 $ssh_options "$lab/patch.tar" "root@$(cat "$lab/$r/control"):/root/"
works "and unpacked" on $r 'tar -C / -xf /root/patch.tar'
works "update_config.py is ours again" within 20 ours update_config.py
works "and so is vr_cfg.sh" within 20 ours vr_cfg.sh
promise "the new release is the original now" "# release 2" "$(release update_config.py.cloudstack)"
promise "vragent's status says what happened" 2 "$(inside $r vragent status | tr -s ' \n' ' ' | grep -o 'was replaced [^)]*) and put back' | wc -l)"
works "the router takes firewall rules" eval "drop $r firewall_rules <$lab/rules"
promise "the new original has them" 1 "$(inside $r grep -c 'standin 2: update_config.py firewall_rules.json' /var/log/cloud.log)"
works "and a VM that is removed" eval "dhcp_entry log-1 $(mac 52) 10.1.1.52 true true | drop $r vm_dhcp_entry"
destroy log-1
guest db-1 dhclient "$(mac 53)" guests
works "and one that is new" start $r db-1 53
boot db-1
promise "whose cloud-init is done" "done" "$(cloud_init db-1)"
reads db-1 >"$lab/db-1/read"
promise "the log is without errors" "" "$(errors $r "$installed")"

say "The router reboots"
reboot $r
promise "all its services start" "" "$(failed $r)"
becomes "vragent serves the guests" "vragent vragent vragent" serving $r
works "a guest renews its lease" renews web-1
works "and reads what it read before" reads_the_same web-1
promise "the log is without errors" "" "$(errors $r "$installed")"

say "The package is removed"
works "dpkg removes it" on $r 'dpkg -r vragent-cloudstack'
works "the originals are back" on $r '! ls /opt/cloud/bin/*.cloudstack'
promise "in the release of the patch" "# release 2" "$(release update_config.py)"
becomes "dnsmasq, Apache and a password server serve the guests" "dnsmasq apache2 passwd_server_i" serving $r
for vm in web-1 db-1; do
	works "$vm renews its lease" renews $vm
	works "  and reads what it read before" reads_the_same $vm
done
promise "the password waits still" "waits for app-1" "$(password_server app-1)"
promise "the removed VM is unknown" 0 "$(inside $r grep -c "$(mac 52)" /etc/dhcphosts.txt)"
works "the router takes a password" eval "vm_password 10.1.1.50 'the old way' | drop $r vm_password"
reboot web-1
promise "the VM reboots, and cloud-init is done" "done" "$(cloud_init web-1)"
promise "its user gets in with it" web-1 "$(with_password 'the old way' $r 10.1.1.50 hostname)"
promise "no service has failed" "" "$(failed $r)"
