package scenario

import "testing"

func TestShowsXensOwn(t *testing.T) {
	dump := func(rip, cs string) string {
		return "(XEN) [  214.498230] d1v0 Triple fault - invoking HVM shutdown action 1\n" +
			"(XEN) [  214.499487] *** Dumping Dom1 vcpu#0 state: ***\n" +
			"(XEN) [  214.500152] CPU:    0\n" +
			"(XEN) [  214.500207] RIP:    " + cs + ":[<" + rip + ">]\n" +
			"(XEN) [  214.500281] RFLAGS: 0000000000000246   CONTEXT: hvm guest (d1v0)\n"
	}
	for name, c := range map[string]struct {
		log  string
		id   int
		want bool
	}{
		"Xen's own":              {dump("ffff82d0402044a5", "e008"), 1, true},
		"of another guest":       {dump("ffff82d0402044a5", "e008"), 2, false},
		"the guest's own":        {dump("ffffffff81c00080", "0010"), 1, false},
		"the guest's segment":    {dump("ffff82d0402044a5", "0010"), 1, false},
		"nothing":                {"", 1, false},
		"before the guest's own": {dump("ffffffff81c00080", "0010") + dump("ffff82d0402044a5", "e008"), 1, true},
	} {
		if got := showsXensOwn(c.log, c.id); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
