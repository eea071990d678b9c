package scenario

import (
	"strings"
	"time"
)

func init() {
	Register(Scenario{
		Name:     "boot-intel",
		Brief:    "Xen, dom0 and a Linux guest come up on Intel VT-x; the guest answers on its console",
		Emulator: Bochs,
		Bare:     true,
		Timeout:  5 * time.Minute,
		Run:      boot,
	})
	Register(Scenario{
		Name:     "boot-amd",
		Brief:    "Xen, dom0 and a Linux guest come up on AMD SVM; the guest answers on its console",
		Emulator: QEMU,
		Bare:     true,
		Timeout:  5 * time.Minute,
		Run:      boot,
	})
}

// boot proves the lab itself: a guest lives, obeys, can be attacked when
// nothing guards it, and goes.
func boot(t *T) error {
	out, err := t.XL("info")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out.Stdout, "hap"), "Xen offers hardware-assisted paging")

	var g *Guest
	if err := t.Step("create", func() (err error) { g, err = t.StartGuest(GuestConfig{}); return err }); err != nil {
		return err
	}
	var release string
	if err := t.Step("guest-up", func() (err error) { release, err = g.WaitUp(); return err }); err != nil {
		return err
	}
	t.Fact("guest_release", release)

	echo, err := g.Run("echo $((6 * 7)); uname -r")
	if err != nil {
		return err
	}
	t.Check(echo == "42\n"+release, "the guest computes and names its kernel: %q", echo)
	_, err = g.Run("exit 3")
	t.Check(err != nil, "a failed command in the guest is seen as failed")

	if err := g.Load(true); err != nil {
		return err
	}
	for _, a := range []Attack{
		{Mode: "text"}, {Mode: "alias"}, {Mode: "rep"}, {Mode: "lstar"}, {Mode: "star"}, {Mode: "cstar"}, {Mode: "sysenter-eip"},
		{Mode: "wp"}, {Mode: "cr0-wp"}, {Mode: "efer-sce"},
		{Mode: "text", Symbol: "kernel_halt"},
	} {
		name := strings.TrimSuffix(a.Mode+"-"+a.Symbol, "-")
		var v Verdict
		if err := t.Step("attack-"+name, func() (err error) { v, err = g.Attack(a); return err }); err != nil {
			return err
		}
		t.Fact("attack."+name, v)
		t.Check(v.Written && v.After == v.Tried, "attack %s succeeds where nothing guards", name)
	}
	if err := g.Load(false); err != nil {
		return err
	}
	alive, err := g.Run("echo alive")
	if err != nil {
		return err
	}
	t.Check(alive == "alive", "the guest lives on after it was attacked")
	return t.Step("shutdown", g.Shutdown)
}
