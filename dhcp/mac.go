package dhcp

import (
	"errors"
	"fmt"
	"strings"
)

// MAC is an Ethernet address.
type MAC [6]byte

var broadcastMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads the address of one card in colon (02:00:4c:5f:00:01), hyphen (02-00-4c-5f-00-01) or
// dot form (0200.4c5f.0001). Group addresses and the zero address belong to no card and are refused.
func ParseMAC(text string) (MAC, error) {
	var digits string
	switch {
	case len(text) == 17 && strings.Count(text, ":") == 5:
		digits = joinGroups(text, ":", 2)
	case len(text) == 17 && strings.Count(text, "-") == 5:
		digits = joinGroups(text, "-", 2)
	case len(text) == 14 && strings.Count(text, ".") == 2:
		digits = joinGroups(text, ".", 4)
	}
	if digits == "" {
		return MAC{}, fmt.Errorf("%q is no MAC address: want six bytes such as 02:00:4c:5f:00:01", text)
	}
	var mac MAC
	for i := range mac {
		high, low := hexDigit(digits[2*i]), hexDigit(digits[2*i+1])
		if high < 0 || low < 0 {
			return MAC{}, fmt.Errorf("%q is no MAC address: want hexadecimal digits", text)
		}
		mac[i] = byte(high<<4 | low)
	}
	if err := mac.check(); err != nil {
		return MAC{}, fmt.Errorf("MAC address %s: %w", text, err)
	}
	return mac, nil
}

// joinGroups drops sep between groups of the given width; it returns "" where a group is not so wide.
func joinGroups(text, sep string, width int) string {
	groups := strings.Split(text, sep)
	for _, group := range groups {
		if len(group) != width {
			return ""
		}
	}
	return strings.Join(groups, "")
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func (m MAC) check() error {
	switch {
	case m == MAC{}:
		return errors.New("is zero")
	case m[0]&1 != 0:
		return errors.New("is a group address, no card has it")
	}
	return nil
}

// String returns the address in lower-case colon form.
func (m MAC) String() string {
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 17)
	for i, b := range m {
		if i > 0 {
			text = append(text, ':')
		}
		text = append(text, digits[b>>4], digits[b&15])
	}
	return string(text)
}

// MarshalText returns the address as String does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what ParseMAC reads.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = mac
	return nil
}
