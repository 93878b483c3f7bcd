#!/usr/bin/python3
"""Stand-in: brings the router into line with its databags. Addresses are walked for every file; the
rest depends on its kind."""
import base64
import glob
import ipaddress
import json
import os
import sys
import urllib.parse
import urllib.request

import cs
import merge

WWW = "/var/www/html"


class Router:
    def __init__(self):
        self.config = merge.load("cmdline").get("config", {})
        self.tiers = {d: t[0] for d, t in merge.devices(merge.load("guestnetwork")) if t}
        self.ips = [(d, a) for d, addresses in merge.devices(merge.load("ips")) for a in addresses]

    def name(self):
        return self.config.get("name", "router")

    def guest(self):
        """The router's own live addresses in guest networks, as pairs of device and entry."""
        return [(d, a) for d, a in self.ips if a["add"] and a["nw_type"] == "guest"]

    def domain(self, device):
        tier = self.tiers.get(device)
        return (tier or self.config).get("domain_name" if tier else "domain") or "cloudnine.internal"

    def resolvers(self, device, ip):
        tier = self.tiers.get(device)
        own = [] if self.config.get("useextdns") == "true" else [ip]
        if tier:
            return own + [d for d in tier.get("dns", "").split(",") if d]
        return own + [self.config[k] for k in ("dns1", "dns2") if k in self.config]


def addresses(router):
    """Adds the addresses that are missing and removes those that no databag knows."""
    wanted = {}
    for device, a in router.ips:
        wanted.setdefault(device, set())
        if a["add"]:
            wanted[device].add("%s/%s" % (a["public_ip"], a["size"]))
    for device in sorted(wanted):
        shown = cs.run("ip", "-j", "-4", "address", "show", "dev", device)
        if shown.returncode:
            continue
        cs.run("ip", "link", "set", device, "up")
        there = {"%s/%s" % (i["local"], i["prefixlen"]) for link in json.loads(shown.stdout or "[]")
                 for i in link.get("addr_info", [])}
        for a in sorted(wanted[device] - there):
            cs.run("ip", "address", "add", a, "brd", "+", "dev", device)
        for a in sorted(there - wanted[device]):
            cs.log("remove %s from %s" % (a, device))
            cs.run("ip", "address", "del", a, "dev", device)
    changed = False
    for device, a in router.guest():
        ip = a["public_ip"]
        changed |= cs.write("/etc/apache2/sites-enabled/vhost-%s.conf" % ip,
                            "Listen %s:80\n<VirtualHost %s:80>\n\tDocumentRoot %s\n"
                            "\t<Directory %s>\n\t\tOptions -Indexes +FollowSymLinks\n\t\tAllowOverride All\n\t</Directory>\n"
                            "</VirtualHost>\n" % (ip, ip, WWW, WWW))
        cs.run("systemctl", "start", "cloud-password-server@%s" % ip)
    cs.run("systemctl", "restart" if changed else "start", "apache2")


def live_entries():
    bag = merge.load("dhcpentry")
    return [(ip, bag[ip]) for ip in sorted(bag) if ip != "id" and not bag[ip].get("remove")]


def dhcp(router):
    hosts, options, leases, ranges = [], [], [], []
    names = ["127.0.0.1\tlocalhost", "127.0.1.1\t%s" % router.name(), "::1\tlocalhost ip6-localhost ip6-loopback"]
    for ip, e in live_entries():
        tag = ip.replace(".", "_")
        lease = str(e["lease_time"]) if e.get("lease_time") else "infinite"
        if e.get("default_entry", True):
            hosts.append("%s,%s,%s,%s" % (e["mac_address"], ip, e["host_name"], lease))
        else:
            hosts.append("%s,set:%s,%s,%s,%s" % (e["mac_address"], tag, ip, e["host_name"], lease))
            options += ["%s,%d" % (tag, n) for n in (3, 6, 15)]
        leases.append("0 %s %s %s *" % (e["mac_address"], ip, e["host_name"]))
        names.append("%s\t%s" % (ip, e["host_name"]))
    for n, (device, a) in enumerate(router.guest()):
        net = ipaddress.ip_network(a["network"])
        of = [e for ip, e in live_entries() if ipaddress.ip_address(ip) in net]
        names.append("%s\t%s data-server" % (a["public_ip"], router.name()))
        if not of:
            continue
        gateway = of[-1]["default_gateway"]
        if device in router.tiers:
            gateway = router.tiers[device]["router_guest_gateway"]
        tag = "interface-%s-%d" % (device, n)
        ranges += ["dhcp-range=set:%s,%s,static" % (tag, a["public_ip"]),
                   "dhcp-option=tag:%s,15,%s" % (tag, router.domain(device)),
                   "dhcp-option=tag:%s,6,%s" % (tag, ",".join(router.resolvers(device, a["public_ip"]))),
                   "dhcp-option=tag:%s,3,%s" % (tag, gateway),
                   "dhcp-option=tag:%s,1,%s" % (tag, a["netmask"])]
    ranges.append("listen-address=" + ",".join(["127.0.0.1"] + [a["public_ip"] for _, a in router.guest()]))
    text = lambda lines: "".join(l + "\n" for l in lines)
    cs.write("/etc/dhcphosts.txt", text(hosts))
    cs.write("/etc/dhcpopts.txt", text(options))
    cs.write("/etc/hosts", text(names))
    cs.write("/var/lib/misc/dnsmasq.leases", text(leases))
    changed = cs.write("/etc/dnsmasq.d/cloud.conf", text(ranges))
    cs.run("systemctl", "restart" if changed else "reload-or-restart", "dnsmasq")


def metadata():
    bag = merge.load("vmdata")
    rules = set()
    for ip in bag:
        if ip == "id":
            continue
        names = []
        for folder, name, content in (row[:3] for row in bag[ip]):
            if folder not in ("userdata", "metadata") or not name:
                continue
            path = os.path.join(WWW, folder, ip, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            cs.write(os.path.join(WWW, folder, ip, ".htaccess"), "Require ip %s\n" % ip)
            if content == "":
                if os.path.exists(path):
                    os.remove(path)
                continue
            data = (content or "").encode()
            if folder == "userdata":
                data = base64.b64decode(data + b"=" * (-len(data) % 4))
            else:
                names.append(name)
            with open(path, "wb") as f:
                f.write(data)
            rules.add("RewriteRule ^%s$ ../%s/%%{REMOTE_ADDR}/%s [L,NC,QSA]" % (name, folder, name))
        cs.write(os.path.join(WWW, "metadata", ip, "meta-data"), "\n".join(names))
    cs.write(os.path.join(WWW, "latest", ".htaccess"), "\n".join(
        ["Options +FollowSymLinks", "RewriteEngine On"] + sorted(rules) +
        ["RewriteRule ^meta-data/(.+)$ ../metadata/%{REMOTE_ADDR}/$1 [L,NC,QSA]",
         "RewriteRule ^meta-data/$ ../metadata/%{REMOTE_ADDR}/meta-data [L,NC,QSA]"]) + "\n")


def password(router):
    bag = merge.load("vmpassword")
    for ip in bag:
        if ip == "id":
            continue
        for _, a in router.guest():
            server = a["public_ip"]
            if ipaddress.ip_address(ip) not in ipaddress.ip_network(a["network"]):
                continue
            try:
                with open("/tmp/passwdsrvrtoken") as f:
                    token = f.read()
                form = urllib.parse.urlencode({"ip": ip, "password": bag[ip], "token": token}).encode()
                urllib.request.urlopen(urllib.request.Request(
                    "http://%s:8080/" % server, form, {"DomU_Request": "save_password"}), timeout=5)
            except OSError as e:
                cs.log("password of %s: %s" % (ip, e))


def main(argv):
    kind = os.path.basename(argv[1]).split(".json")[0]
    cs.log("configure.py " + kind)
    router = Router()
    addresses(router)
    if kind in ("cmd_line", "vm_dhcp_entry", "dhcp", "guest_network"):
        dhcp(router)
    if kind in ("cmd_line", "vm_metadata"):
        metadata()
    if kind in ("cmd_line", "vm_password"):
        password(router)


if __name__ == "__main__":
    main(sys.argv)
