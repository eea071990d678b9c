package x86

import (
	"encoding/json"
	"testing"
)

func TestAddressesTravelAsHexStrings(t *testing.T) {
	type all struct {
		V VirtAddr `json:"v"`
		P PhysAddr `json:"p"`
		G GFN      `json:"g"`
	}
	in := all{V: 0xffff_ffff_8100_0000, P: 0, G: 0x1_0000}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"v":"0xffffffff81000000","p":"0x0","g":"0x10000"}`
	if string(b) != want {
		t.Fatalf("marshalled %s, want %s", b, want)
	}
	var out all
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("read back %+v (%v), want %+v", out, err, in)
	}
}

func TestAddressTextIsStrict(t *testing.T) {
	for _, s := range []string{"", "0x", "12", "0X12", "0x12g", "0x-1", "0x+1", "0x1_0", " 0x1", "0x10000000000000000"} {
		var v VirtAddr
		if err := v.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q was read as %v, want an error", s, v)
		}
	}
}
