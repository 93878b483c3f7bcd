package cloudstack

import (
	"encoding/base64"
	"errors"
	"fmt"
)

// userData decodes what the server sends as user data. Null is an empty file, an empty text is none.
func userData(content *text) ([]byte, error) {
	if content == nil {
		return []byte{}, nil
	}
	if *content == "" {
		return nil, nil
	}
	data, err := lenientBase64(string(*content))
	if err != nil {
		return nil, fmt.Errorf("user-data: %w", err)
	}
	return data, nil
}

// lenientBase64 decodes as the router always has: padding may be missing, bytes outside the alphabet
// count for nothing, and whatever stands behind a group that padding completes is not read. The
// result is not nil.
func lenientBase64(s string) ([]byte, error) {
	kept := make([]byte, 0, len(s))
	pads := 0 // since the last character of the alphabet
	for i := range len(s) {
		c := s[i]
		if c == '=' && len(kept)%4 >= 2 {
			if pads++; len(kept)%4+pads >= 4 {
				break
			}
		}
		if 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '+' || c == '/' {
			kept, pads = append(kept, c), 0
		}
	}
	if len(kept)%4 == 1 {
		return nil, errors.New("is no base64: one character is left over at its end")
	}
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(kept)))
	n, err := base64.RawStdEncoding.Decode(out, kept)
	return out[:n], err
}
