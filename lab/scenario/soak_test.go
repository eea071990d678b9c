package scenario

import "testing"

func TestField(t *testing.T) {
	const text = "# HELP go_goroutines Number\n# TYPE go_goroutines gauge\ngo_goroutines 17\nVmRSS:\t  1234 kB\nempty\n"
	for name, want := range map[string]int{"go_goroutines": 17, "VmRSS:": 1234, "absent": -1, "empty": -1, "#": -1} {
		got, err := field(text, name)
		if (err == nil) != (want >= 0) || err == nil && got != want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, want)
		}
	}
}

func TestUUIDOf(t *testing.T) {
	a, b := uuidOf("a"), uuidOf("b")
	if len(a) != 36 || a == b || a != uuidOf("a") || a[14] != '4' {
		t.Errorf("%s, %s", a, b)
	}
}
