package api

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"vragent/agent/internal/api/bundle"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

// syncTime is how long a command that is no job waits for its change to be in force.
const syncTime = 60 * time.Second

// unitName returns the value of a parameter that names a network or VM, which becomes a file name.
func (c *call) unitName(param string) (string, error) {
	name := c.params.Get(param)
	c.resource = shorten(name)
	ok := len(name) >= 1 && len(name) <= 128 && name[0] != '.' && !strings.HasSuffix(name, "~")
	for _, end := range []string{".tmp", ".swp"} {
		ok = ok && !strings.HasSuffix(name, end)
	}
	if !ok || strings.ContainsFunc(name, notInName) {
		return "", &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to invalid value %q for parameter %s: want 1 to 128 of A-Za-z0-9._-, not starting with a dot nor ending in .tmp or .swp", strings.ToLower(c.cmd.name), shorten(name), param)}
	}
	return name, nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}

// known refuses a unit that is neither in the drop directory nor about to be put there.
func (c *call) known(param, unit string) error {
	ctx, cancel := context.WithTimeout(c.http.Context(), readTime)
	defer cancel()
	_, err := c.opts.Drop.Read(ctx, unit)
	switch {
	case errors.Is(err, ErrUnknown) && !c.opts.Jobs.Busy(unit):
		return c.cmd.unknown(param, c.params.Get(param))
	case errors.Is(err, ErrUnknown), errors.Is(err, context.DeadlineExceeded): // it is being written
		return nil
	}
	return err
}

func pushNetwork(c *call) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	return c.enqueue(networkUnit(name), "Network", name, push{Network: &networkPush{Definition: []byte(c.params.Get("definition"))}})
}

func removeNetwork(c *call) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	if err := c.known("id", networkUnit(name)); err != nil {
		return nil, err
	}
	return c.enqueue(networkUnit(name), "Network", name, push{Remove: true, Forced: c.bool("forced")})
}

func pushVM(c *call) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	p, err := c.vmPush()
	if err != nil {
		return nil, err
	}
	if len(p.NICs) == 0 {
		if err := c.known("id", vmUnit(name)); err != nil {
			var e *wire.Error
			if errors.As(err, &e) {
				err = &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("VM %s does not exist, and %s", name, errNoNIC)}
			}
			return nil, err
		}
	}
	return c.enqueue(vmUnit(name), "VirtualMachine", name, push{VM: &p})
}

// text returns a parameter that may be absent.
func (c *call) text(name string) *string {
	if v, ok := c.params.Lookup(name); ok {
		return &v
	}
	return nil
}

// vmPush reads the parameters of pushVirtualMachine and checks each by itself; whether they make a
// valid VM is judged with the files that they become.
func (c *call) vmPush() (vmPush, error) {
	p := vmPush{Hostname: c.text("hostname")}
	nics, err := c.params.Items("nics")
	if err != nil {
		return p, err
	}
	for _, item := range nics {
		n, err := c.nicPush(item)
		if err != nil {
			return p, err
		}
		p.NICs = append(p.NICs, n)
	}
	metadata, err := c.params.Items("metadata")
	if err != nil {
		return p, err
	}
	for _, item := range metadata {
		key, _ := item.Get("key")
		value, _ := item.Get("value")
		if err := c.metaKey(key); err != nil {
			return p, err
		}
		p.Metadata = append(p.Metadata, metaEntry{key, value})
	}
	if keys := c.text("publickeys"); keys != nil {
		p.Metadata = append(p.Metadata, metaEntry{"public-keys", *keys})
	}
	if p.UserData, err = c.data("userdata"); err != nil {
		return p, err
	}
	if p.VendorData, err = c.data("vendordata"); err != nil {
		return p, err
	}
	p.Password = c.text("password")
	return p, c.password(p.Password)
}

func (c *call) nicPush(item wire.Item) (nicPush, error) {
	n := nicPush{Index: item.Index}
	invalid := func(field, value string) error {
		return c.cmd.invalid(fmt.Sprintf("nics[%d].%s", item.Index, field), value)
	}
	for _, f := range item.Fields {
		value := f.Value.(string)
		field := strings.ToLower(f.Name)
		switch field {
		case "network":
			if strings.ContainsFunc(value, notInName) {
				return n, invalid(field, value)
			}
			n.Network = &value
		case "macaddress":
			if _, err := net.ParseMAC(value); err != nil && value != "" {
				return n, invalid(field, value)
			}
			n.MAC = &value
		case "ipaddress":
			if a, err := netip.ParseAddr(value); (err != nil || !a.Is4()) && value != "" {
				return n, invalid(field, value)
			}
			n.IPv4 = &value
		case "default":
			value = strings.ToLower(value)
			if value != "" && value != "true" && value != "false" {
				return n, invalid(field, value)
			}
			n.Default = &value
		case "leasetime":
			n.LeaseTime = &value
		default:
			return n, invalid(field, value)
		}
	}
	return n, nil
}

// reserved are the names that metadata may not have, since they are paths beside it.
var reserved = []string{"meta-data", "user-data", "vendor-data", "api", "dynamic"}

func (c *call) metaKey(key string) error {
	if len(key) < 1 || len(key) > 128 || strings.ContainsFunc(key, notInName) || slices.Contains(reserved, strings.ToLower(key)) {
		return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to metadata name %q: want 1 to 128 of A-Za-z0-9._-, none of %s", strings.ToLower(c.cmd.name), shorten(key), strings.Join(reserved, ", "))}
	}
	return nil
}

// password refuses what is not one line.
func (c *call) password(p *string) error {
	if p != nil && strings.ContainsAny(*p, "\r\n") {
		return &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("Unable to execute API command %s due to parameter password: want one line", strings.ToLower(c.cmd.name))}
	}
	return nil
}

// data returns the bytes of a parameter in base64, nil where it is absent. The length that counts
// is the one after decoding.
func (c *call) data(name string) (*[]byte, error) {
	value, there := c.params.Lookup(name)
	if !there {
		return nil, nil
	}
	data, err := decodeData(value)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "User data is not base64 encoded.", Err: err}
	}
	most := c.limits.UserData
	if c.http.Method == http.MethodGet {
		most = c.limits.UserDataGet
	}
	if len(data) > most {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("User data has exceeded configurable max length: %d bytes after decoding are allowed by HTTP %s, %s has %d", most, c.http.Method, name, len(data))}
	}
	return &data, nil
}

// decodeData reads base64 of the standard or the URL alphabet, padded or not, broken into lines or
// not, and percent-encoded once more, as some clients do.
func decodeData(text string) ([]byte, error) {
	if strings.Contains(text, "%") {
		unescaped, err := url.PathUnescape(text)
		if err != nil {
			return nil, err
		}
		text = unescaped
	}
	text = strings.NewReplacer("\r", "", "\n", "", "-", "+", "_", "/").Replace(text)
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
}

func removeVM(c *call) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	if err := c.known("id", vmUnit(name)); err != nil {
		return nil, err
	}
	return c.enqueue(vmUnit(name), "VirtualMachine", name, push{Remove: true})
}

// details reads the parameters details[N].NAME=VALUE as metadata. CloudStack's own detail for
// public keys is the name that guests know them by.
func (c *call) details(list string) ([]metaEntry, error) {
	items, err := c.params.Items(list)
	if err != nil {
		return nil, err
	}
	var entries []metaEntry
	for _, item := range items {
		for _, f := range item.Fields {
			key := f.Name
			if strings.EqualFold(key, "SSH.PublicKey") {
				key = "public-keys"
			}
			if err := c.metaKey(key); err != nil {
				return nil, err
			}
			entries = append(entries, metaEntry{key, f.Value.(string)})
		}
	}
	return entries, nil
}

func updateVM(c *call) (wire.Object, error) {
	details, err := c.details("details")
	if err != nil {
		return nil, err
	}
	data, err := c.data("userdata")
	if err != nil {
		return nil, err
	}
	return c.change(vmPush{UserData: data, Metadata: details})
}

func resetUserData(c *call) (wire.Object, error) {
	details, err := c.details("userdatadetails")
	if err != nil {
		return nil, err
	}
	data, err := c.data("userdata")
	if err != nil {
		return nil, err
	}
	if data == nil {
		data = &[]byte{}
	}
	return c.change(vmPush{UserData: data, Metadata: details})
}

// change carries a change of a VM out before it answers: as a job, so that it takes its turn, and
// is as durable as the others.
func (c *call) change(p vmPush) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	if err := c.known("id", vmUnit(name)); err != nil {
		return nil, err
	}
	j, err := c.add(vmUnit(name), "VirtualMachine", name, push{VM: &p, Sync: true})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.http.Context(), syncTime)
	defer cancel()
	j, err = c.opts.Jobs.Wait(ctx, j.ID)
	switch {
	case err == nil && j.State == job.Done:
		var result wire.Object
		return result, json.Unmarshal(j.Result, &result)
	case err == nil:
		return nil, &wire.Error{Code: j.Code, Text: j.Text}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, &wire.Error{Code: wire.CodeUnavailable, Text: fmt.Sprintf("VM %s is not changed yet: %s. Job %s goes on", name, j.Note, j.ID)}
	}
	return nil, err
}

func getUserData(c *call) (wire.Object, error) {
	name, err := c.unitName("virtualmachineid")
	if err != nil {
		return nil, err
	}
	files, err := c.opts.Drop.Read(c.http.Context(), vmUnit(name), fileVM, fileUser)
	if _, exists := files[fileVM]; errors.Is(err, ErrUnknown) || err == nil && !exists {
		return nil, c.cmd.unknown("virtualmachineid", name)
	}
	if err != nil {
		return nil, err
	}
	return wire.Object{{Name: "virtualmachineuserdata", Value: wire.Object{
		{Name: "virtualmachineid", Value: name},
		{Name: "userdata", Value: base64.StdEncoding.EncodeToString(files[fileUser])},
	}}}, nil
}

func resetPassword(c *call) (wire.Object, error) {
	name, err := c.unitName("id")
	if err != nil {
		return nil, err
	}
	if err := c.known("id", vmUnit(name)); err != nil {
		return nil, err
	}
	password := c.params.Get("password")
	if err := c.password(&password); err != nil {
		return nil, err
	}
	if password == "" {
		password = makePassword()
	}
	return c.enqueue(vmUnit(name), "VirtualMachine", name, push{VM: &vmPush{Password: &password}, Reveal: true})
}

// makePassword makes a password of 14 characters that nobody confuses with each other: 80 bits.
func makePassword() string {
	const alphabet = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
	b := make([]byte, 14)
	for i := range b {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			panic(err) // crypto/rand never fails
		}
		b[i] = alphabet[n.Int64()]
	}
	return string(b)
}

// pushBundle takes the body in before it makes a job of it. The body is what the signed sha256
// says it is, or nothing happens.
func pushBundle(c *call) (wire.Object, error) {
	if c.http.Method != http.MethodPost {
		return nil, &wire.Error{Code: wire.CodeMethod, Text: "Please use HTTP POST with the bundle as its body"}
	}
	sum := strings.ToLower(c.params.Get("sha256"))
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != 32 {
		return nil, c.cmd.invalid("sha256", sum)
	}
	if c.params.Get("expires") == "" && c.params.Get("apikey") != "" {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Unable to execute API command pushbundle due to missing parameter expires"}
	}
	var b bundlePush
	switch mode := strings.ToLower(c.params.Get("mode")); mode {
	case "", "merge":
	case "replace":
		b.Replace = true
	default:
		return nil, c.cmd.invalid("mode", mode)
	}
	if most := c.limits.Bundle; c.http.ContentLength > most {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: fmt.Sprintf("The bundle has %d bytes, and %d are allowed", c.http.ContentLength, most)}
	}
	spool := c.spool()
	name, got, err := spool.receive(&patientBody{r: c.http.Body, control: http.NewResponseController(c.w)}, sum)
	var refused *bundle.Refused
	if errors.As(err, &refused) {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: refused.Error(), Err: err}
	}
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "The bundle could not be taken in: " + err.Error(), Err: err}
	}
	c.resource = fmt.Sprintf("%d units", got.Units)
	answer, err := c.enqueue("", "Bundle", name, push{Bundle: &b})
	if err != nil {
		err = errors.Join(err, spool.remove(name))
	}
	return answer, err
}

// patientBody reads a body for as long as it keeps coming.
type patientBody struct {
	r       io.Reader
	control *http.ResponseController
}

func (b *patientBody) Read(p []byte) (int, error) {
	// Only real connections have deadlines; a test's recorder has none.
	_ = b.control.SetReadDeadline(time.Now().Add(bodyTime))
	n, err := b.r.Read(p)
	if err != nil {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
