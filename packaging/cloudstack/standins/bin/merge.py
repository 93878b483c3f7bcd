"""Stand-in: databags, and what each kind of dropped file makes of them."""
import gzip
import ipaddress
import json
import os
import uuid

CACHE = "/var/cache/cloud"
BAGS = "/etc/cloudstack"


def load(key):
    try:
        with open(os.path.join(BAGS, key + ".json")) as f:
            return json.load(f)
    except (OSError, ValueError):
        return {"id": key}


def save(key, bag):
    bag["id"] = key
    os.makedirs(BAGS, exist_ok=True)
    with open(os.path.join(BAGS, key + ".json"), "w") as f:  # not atomic, as the original is not
        json.dump(bag, f, sort_keys=True, indent=2)


def devices(bag):
    """The devices of the bag ips, with their lists of addresses."""
    return sorted((d, a) for d, a in bag.items() if d != "id")


def put_address(ip, netmask, device, kind, add=True, **more):
    bag = load("ips")
    for name, addresses in devices(bag):
        bag[name] = [a for a in addresses if a["public_ip"] != ip]
    net = ipaddress.ip_interface("%s/%s" % (ip, netmask)).network
    entry = dict(public_ip=ip, netmask=netmask, device=device, nic_dev_id=device[3:], nw_type=kind, add=add,
                 size=str(net.prefixlen), network=str(net), cidr="%s/%d" % (ip, net.prefixlen),
                 broadcast=str(net.broadcast_address), source_nat=False, one_to_one_nat=False, gateway=None)
    entry.update(more)
    kept = [] if kind == "control" else bag.get(device, [])
    bag[device] = [entry] + kept if entry["source_nat"] else kept + [entry]
    save("ips", bag)


def cmdline(data):
    config = data["cmd_line"]
    config["redundant_router"] = "true" if "redundant_router" in config else "false"
    save("cmdline", {"config": config})
    kinds = {"router": ("guest", "control", "public"), "dhcpsrvr": ("guest", "control"), "vpcrouter": ("control",)}
    for n, kind in enumerate(kinds.get(config["type"], ())):
        nic = "eth%d" % n
        if nic + "ip" in config:
            put_address(config[nic + "ip"], config[nic + "mask"], nic, kind, gateway=config.get("gateway"),
                        source_nat=kind == "public")


def guestnetwork(data):
    bag = load("guestnetwork")
    device = data["device"]
    bag.setdefault(device, [])
    if data["add"]:
        bag[device].append(data)
    else:
        bag[device] = bag[device][1:]
        if not bag[device]:
            del bag[device]
    save("guestnetwork", bag)
    put_address(data["router_guest_ip"], data["router_guest_netmask"], device, "guest", data["add"],
                gateway=data["router_guest_gateway"])


def ips(data):
    for a in data["ip_address"]:
        put_address(a["public_ip"], a["netmask"], "eth%s" % a["nic_dev_id"], a.get("nw_type", "public").lower(), a["add"],
                    gateway=a.get("gateway"), source_nat=a.get("source_nat", False))


def ipaliases(data):
    guests = [d for d, addresses in devices(load("ips")) for a in addresses if a["nw_type"] == "guest"]
    assert guests, "no guest device"
    for a in data["aliases"]:
        put_address(a["ip_address"], a["netmask"], guests[0], "guest", not a["revoke"])


def dhcpentry(data):
    bag = load("dhcpentry")
    if data.get("remove"):
        for ip, old in list(bag.items()):
            if ip != "id" and old["mac_address"] == data["mac_address"]:
                del bag[ip]
                break
    bag[data["ipv4_address"]] = data
    save("dhcpentry", bag)


def vmdata(data):
    bag = load("vmdata")
    bag[data["vm_ip_address"]] = data["vm_metadata"]
    save("vmdata", bag)


def vmpassword(data):
    save("vmpassword", {data["ip_address"]: data["password"]})


def take(name, keep):
    """Archives a dropped file and merges it."""
    path = os.path.join(CACHE, name)
    with open(path) as f:
        data = json.load(f)
    if keep:
        processed = os.path.join(CACHE, "processed")
        os.makedirs(processed, exist_ok=True)
        if name.count(".") == 1:
            name += "." + str(uuid.uuid4())
        with open(path, "rb") as f, gzip.open(os.path.join(processed, name + ".gz"), "wb") as z:
            z.write(f.read())
    os.remove(path)
    merge = globals().get(data.get("type"))
    if data.get("type") in KINDS:
        merge(data)


KINDS = ("cmdline", "guestnetwork", "ips", "ipaliases", "dhcpentry", "vmdata", "vmpassword")
