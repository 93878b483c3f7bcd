package metadata

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ec2 is what a dated version leads to: the same content in EC2's shape.
func (v view) ec2() node {
	return dir(func() []child {
		return append([]child{
			{name: "dynamic", node: v.dynamic()},
			{name: "meta-data", node: v.ec2MetaData()},
		}, v.files()...)
	})
}

// ec2MetaData is meta-data/ in EC2's shape: the flat names, EC2's own names for some of them, and
// EC2's directories, which hide flat names that are called like them.
func (v view) ec2MetaData() node {
	return dir(func() []child {
		children := v.ec2Directories()
		add := func(name, value string) {
			if !slices.ContainsFunc(children, func(c child) bool { return c.name == name }) {
				children = append(children, child{name: name, node: text(value)})
			}
		}
		for _, name := range v.names() {
			if name == "public-keys" { // without keys EC2 has no such name
				continue
			}
			value, _ := v.value(name)
			add(name, value)
		}
		hostname, _ := v.value("local-hostname")
		offering, _ := v.value("service-offering")
		add("hostname", hostname)
		add("instance-type", offering)
		if mac := v.guest.MAC; len(mac) > 0 {
			add("mac", mac.String())
		}
		slices.SortFunc(children, func(a, b child) int { return strings.Compare(a.name, b.name) })
		return children
	})
}

// ec2Directories are the directories below EC2's meta-data/.
func (v view) ec2Directories() []child {
	zone, _ := v.value("availability-zone")
	children := []child{
		{name: "network", node: dir(func() []child {
			return []child{{name: "interfaces", node: dir(func() []child {
				return []child{{name: "macs", node: dir(v.macs)}}
			})}}
		})},
		{name: "placement", node: dir(func() []child {
			return []child{
				{name: "availability-zone", node: text(zone)},
				{name: "region", node: text(v.region())},
			}
		})},
	}
	if keys := v.keys(); len(keys) > 0 {
		children = append(children, child{name: "public-keys", node: dir(func() []child { return keys })})
	}
	return children
}

// region is the guest's region if it has one by name, else its zone: a CloudStack zone stands alone.
func (v view) region() string {
	if region, ok := v.value("region"); ok {
		return region
	}
	zone, _ := v.value("availability-zone")
	return zone
}

// keys are the lines of public-keys, in EC2's way: numbered directories, which the listing gives
// a name each, here the key's comment where it can serve as one.
func (v view) keys() []child {
	value, _ := v.value("public-keys")
	var keys []child
	used := make(map[string]bool)
	for line := range strings.Lines(value) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		number := strconv.Itoa(len(keys))
		title := "key-" + number
		if fields := strings.Fields(line); len(fields) == 3 && isTitle(fields[2]) && !used[fields[2]] {
			title = fields[2]
		}
		used[title] = true
		keys = append(keys, child{
			name:  number,
			title: number + "=" + title,
			node:  dir(func() []child { return []child{{name: "openssh-key", node: text(line)}} }),
		})
	}
	return keys
}

func isTitle(s string) bool {
	return len(s) <= 64 && !strings.HasPrefix(s, "key-") && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789@._-") == ""
}

// macs are the VM's NICs by their MAC.
func (v view) macs() []child {
	var macs []child
	for number, nic := range v.guest.NICs {
		if len(nic.MAC) == 0 {
			continue
		}
		mac := nic.MAC.String()
		macs = append(macs, child{name: mac, node: dir(func() []child {
			children := []child{
				{name: "device-number", node: text(strconv.Itoa(number))},
				{name: "local-ipv4s", node: text(nic.IP.String())},
				{name: "mac", node: text(mac)},
			}
			network := v.table.network(nic.Network)
			if network == nil {
				return children
			}
			if nic.Default && network.PublicIPv4.IsValid() {
				children = append(children, child{name: "public-ipv4s", node: text(network.PublicIPv4.String())})
			}
			return append(children, child{name: "subnet-ipv4-cidr-block", node: text(network.Subnet.Masked().String())})
		})})
	}
	return macs
}

// dynamic is dynamic/ in both shapes.
func (v view) dynamic() node {
	return dir(func() []child {
		return []child{{name: "instance-identity", node: dir(func() []child {
			return []child{{name: "document", node: node{leaf: true, text: v.identity(), kind: "application/json"}}}
		})}}
	})
}

// identity is the instance identity document. It is not signed: a guest gets it from its own
// router, and nobody else has a key to check it with.
func (v view) identity() string {
	value := func(name string) string {
		s, _ := v.value(name)
		return s
	}
	document, err := json.MarshalIndent(map[string]any{
		"accountId":        value("account-id"),
		"architecture":     value("architecture"),
		"availabilityZone": value("availability-zone"),
		"imageId":          value("image-id"),
		"instanceId":       value("instance-id"),
		"instanceType":     value("service-offering"),
		"privateIp":        v.guest.IP.String(),
		"region":           v.region(),
		"version":          "2017-09-30",
	}, "", "  ")
	if err != nil { // strings always marshal
		panic(err)
	}
	return string(document)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
