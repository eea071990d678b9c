package archive

import (
	"os/exec"
	"testing"
)

// versionPairs are ordered as deb-version(7) and dpkg's own test suite have it.
var versionPairs = []struct {
	a, b string
	want int
}{
	{"0", "0", 0},
	{"", "", 0},
	{"0:0", "0", 0},
	{"0-0", "0", 0},
	{"0:0-0", "0", 0},
	{"1.0", "1.0-0", 0},
	{"1.0", "1.00", 0},
	{"1.0-01", "1.0-1", 0},
	{"000000000000000000000000000000000001.2", "1.2", 0},
	{"1.2", "1.10", -1},
	{"1.9", "1.10", -1},
	{"99999999999999999999999998", "99999999999999999999999999", -1},
	{"1:0", "0:99", 1},
	{"1:1.0", "2.0", 1},
	{"10:0", "9:1", 1},
	{"1.0~rc1", "1.0", -1},
	{"1.0~rc1-1", "1.0-1", -1},
	{"1.0~~", "1.0~", -1},
	{"1.0~~a", "1.0~~", 1},
	{"1.0~", "1.0", -1},
	{"1.0-1", "1.0-1~bpo12+1", 1},
	{"1.0-1+deb12u1", "1.0-1", 1},
	{"1.0-1+deb12u1", "1.0-1+deb12u10", -1},
	{"1.0-1+b1", "1.0-1.1", -1},
	{"1.0a", "1.0", 1},
	{"1.0a", "1.0+", -1},
	{"1.0a", "1.0b", -1},
	{"1.0Z", "1.0a", -1},
	{"1.0+", "1.0-1", 1},
	{"1.0.", "1.0", 1},
	{"1.0.", "1.0a", 1},
	{"a", "1", 1},
	{"1-1-1", "1-1-2", -1},
	{"1-1-1", "1-2", 1},
	{"4.17.5+72-g01140da4e8-1", "4.17.6~1", -1},
	{"4.14.6-1", "4.17.1+2-gb773c48e36-1", -1},
	{"6.1.170-3", "6.1.99-1", 1},
	{"2.36-9+deb12u10", "2.36-9+deb12u9", 1},
	{"1.2.3-1ubuntu1", "1.2.3-1", 1},
	{"1:2.3", "1:2.3", 0},
	{"2:1", "1:2", 1},
}

func TestCompareVersions(t *testing.T) {
	for _, c := range versionPairs {
		if got := sign(CompareVersions(c.a, c.b)); got != c.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := sign(CompareVersions(c.b, c.a)); got != -c.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", c.b, c.a, got, -c.want)
		}
	}
}

// TestCompareVersionsAsDpkg asks dpkg itself about every pair of the table's
// versions.
func TestCompareVersionsAsDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("no dpkg to compare with on this system")
	}
	for _, c := range versionPairs {
		if c.a == "" || !isDigit(c.a[0]) || !isDigit(c.b[0]) {
			continue // not versions to dpkg
		}
		op := map[int]string{-1: "lt", 0: "eq", 1: "gt"}[sign(CompareVersions(c.a, c.b))]
		if err := exec.Command("dpkg", "--compare-versions", c.a, op, c.b).Run(); err != nil {
			t.Errorf("dpkg says that %q %s %q does not hold", c.a, op, c.b)
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func FuzzCompareVersions(f *testing.F) {
	for _, c := range versionPairs {
		f.Add(c.a, c.b, "1.0~")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if CompareVersions(a, a) != 0 {
			t.Errorf("%q is not equal to itself", a)
		}
		ab, ba := sign(CompareVersions(a, b)), sign(CompareVersions(b, a))
		if ab != -ba {
			t.Errorf("%q against %q is %d, the other way round %d", a, b, ab, ba)
		}
		bc, ac := sign(CompareVersions(b, c)), sign(CompareVersions(a, c))
		if ab <= 0 && bc <= 0 && ac > 0 || ab >= 0 && bc >= 0 && ac < 0 {
			t.Errorf("not transitive: %q, %q, %q", a, b, c)
		}
		if ab == 0 && ac != bc {
			t.Errorf("%q and %q are equal, but compare with %q as %d and %d", a, b, c, ac, bc)
		}
	})
}
