package metadata

import (
	"net/url"
	"strings"
	"time"
)

// view is what one guest is served at one moment. All values are derived when they are asked for.
type view struct {
	table   *Table
	guest   *Guest
	network *Network
}

// node is what a path leads to: a leaf, a directory, or both where the two shapes share a name.
type node struct {
	leaf bool
	text string  // of a leaf without a file
	file Content // of a leaf whose bytes are in a file
	kind string  // media type of the leaf; empty: text

	dir *directory
}

// directory is a place in the tree. Its listing is made of the same children that a path is
// looked up in, so the two cannot disagree.
type directory struct {
	children func() []child
	// find looks up a child without making all of them. nil: among the children.
	find func(name string) (node, bool)
}

// child is one name of a directory.
type child struct {
	name  string
	title string // what the listing says, where that is not the name
	node  node
}

func text(s string) node               { return node{leaf: true, text: s} }
func dir(children func() []child) node { return node{dir: &directory{children: children}} }
func (d *directory) lookup(name string) (node, bool) {
	if d.find != nil {
		return d.find(name)
	}
	for _, c := range d.children() {
		if c.name == name {
			return c.node, true
		}
	}
	return node{}, false
}

// listing is the directory's names, one a line. Directories among them end in a slash.
func (d *directory) listing() string {
	var b strings.Builder
	for _, c := range d.children() {
		switch {
		case c.title != "":
			b.WriteString(c.title)
		case c.node.leaf:
			b.WriteString(c.name)
		default:
			b.WriteString(c.name + "/")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// tree is the directory and all below it as JSON values. Of a file it tells size and entity tag.
func (d *directory) tree() map[string]any {
	object := make(map[string]any)
	for _, c := range d.children() {
		switch {
		case c.node.file != nil:
			object[c.name] = map[string]any{"size": c.node.file.Size(), "etag": c.node.file.ETag()}
		case c.node.leaf:
			object[c.name] = c.node.text
		default:
			object[c.name] = c.node.dir.tree()
		}
	}
	return object
}

// lookup finds what a request's path leads to. The path is as it stood in the request.
func (v view) lookup(path string) (node, bool) {
	at := v.root()
	rest := path
	for rest != "" {
		var name string
		if rest[0] != '/' {
			return node{}, false
		}
		rest = strings.TrimLeft(rest, "/")
		if rest == "" { // a slash at the end asks for a directory
			at.leaf = false
			break
		}
		if at.dir == nil {
			return node{}, false
		}
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, rest = rest[:i], rest[i:]
		} else {
			name, rest = rest, ""
		}
		name, err := url.PathUnescape(name)
		if err != nil {
			return node{}, false
		}
		var ok bool
		if at, ok = at.dir.lookup(name); !ok {
			return node{}, false
		}
	}
	return at, at.leaf || at.dir != nil
}

// versions are the ones that / lists. Any other date works like these.
var versions = []string{"1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23"}

// root is what / leads to: the versions, with the CloudStack shape under latest.
func (v view) root() node {
	return node{dir: &directory{
		children: func() []child {
			var children []child
			for _, version := range versions {
				children = append(children, child{name: version, title: version, node: v.ec2()})
			}
			return append(children, child{name: "latest", title: "latest", node: v.latest()})
		},
		find: func(name string) (node, bool) {
			switch {
			case name == "latest":
				return v.latest(), true
			case isVersion(name):
				return v.ec2(), true
			}
			return node{}, false
		},
	}}
}

func isVersion(name string) bool {
	if name == "1.0" {
		return true
	}
	_, err := time.Parse(time.DateOnly, name)
	return err == nil
}

// latest is the CloudStack shape: flat names under meta-data/ and beside it. What the EC2 shape
// has besides is found here too where no flat name stands in its way, and is not listed, because
// guest scripts take every line of the listing for a leaf.
func (v view) latest() node {
	children := func() []child {
		return append([]child{
			{name: "dynamic", node: v.dynamic()},
			{name: "meta-data", node: v.flat()},
		}, v.files()...)
	}
	return node{dir: &directory{
		children: children,
		find: func(name string) (node, bool) {
			switch lower := strings.ToLower(name); lower {
			case "meta-data":
				return v.flat(), true
			case "dynamic":
				return v.dynamic(), true
			case "user-data", "vendor-data":
				return v.file(lower)
			default:
				value, ok := v.value(name)
				return text(value), ok
			}
		},
	}}
}

// flat is meta-data/ of the CloudStack shape.
func (v view) flat() node {
	return node{dir: &directory{
		children: func() []child {
			var children []child
			for _, name := range v.names() {
				value, _ := v.value(name)
				children = append(children, child{name: name, node: text(value)})
			}
			return children
		},
		find: func(name string) (node, bool) {
			value, ok := v.value(name)
			at := text(value)
			at.leaf = ok
			for _, c := range v.ec2Directories() {
				if strings.EqualFold(c.name, name) {
					at.dir = c.node.dir
				}
			}
			return at, ok || at.dir != nil
		},
	}}
}

// files are the leaves that are served from files, as far as the guest has them.
func (v view) files() []child {
	var children []child
	for _, name := range []string{"user-data", "vendor-data"} {
		if n, ok := v.file(name); ok {
			children = append(children, child{name: name, node: n})
		}
	}
	return children
}

// file is user-data or vendor-data.
func (v view) file(name string) (node, bool) {
	content := v.guest.UserData
	if name == "vendor-data" {
		if content = v.guest.VendorData; content == nil {
			content = v.network.VendorData
		}
	}
	return node{leaf: true, file: content, kind: "application/octet-stream"}, content != nil
}
