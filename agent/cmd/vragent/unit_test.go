package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"vragent/agent/internal/api"
)

func TestReportsSpeakOfTwentyUnitsRejectedOnesFirst(t *testing.T) {
	var units []api.Unit
	for i := range 10000 {
		units = append(units, api.Unit{Unit: fmt.Sprintf("vms/vm-%04d", i), State: api.Pending, Reasons: []api.Fault{{What: "network guest-1 is not there"}}})
	}
	units = append(units, api.Unit{Unit: "vms/wrong", State: api.Rejected, Reasons: []api.Fault{{What: "no such key"}}})
	var b bytes.Buffer
	if err := writeUnits(&b, stdio{now: func() time.Time { return now }}, units); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), "\nrejected  vms/wrong\n") || !strings.HasSuffix(b.String(), "\nand 9,981 more: vragent status -o json\n") {
		t.Errorf("writeUnits() = %s", b.String())
	}
	if n := strings.Count(b.String(), "pending  vms/"); n != 19 {
		t.Errorf("%d pending units are spoken of, want 19", n)
	}
}
