package scenario

import (
	"fmt"
	"strings"
	"time"
)

// Bridge is the control domain's end of its guests' network, see [T.Bridge].
const (
	Bridge        = "xenbr0"
	BridgeAddress = "10.88.0.1"
)

// VifLine is a line of [GuestConfig.Lines]: one interface on the bridge. keys
// are added to it, such as "script=vif-bridge".
func VifLine(keys ...string) string {
	return fmt.Sprintf("vif = [ %q ]", strings.Join(append([]string{"bridge=" + Bridge}, keys...), ","))
}

// Bridge makes the bridge that guests with a [VifLine] are on, with the address
// BridgeAddress. It needs the system [Debian] and goes after Run.
func (t *T) Bridge() error {
	_, err := t.Sh("modprobe -a bridge xen-netback && ip link add " + Bridge + " type bridge && ip addr add " + BridgeAddress + "/24 dev " + Bridge + " && ip link set " + Bridge + " up")
	t.Cleanup(func() {
		if _, err := t.Exec("ip", "link", "del", Bridge); err != nil {
			t.Logf("cleaning up: %v", err)
		}
	})
	return err
}

// JoinNetwork gives a Linux guest's interface an address, 10.88.0.host, and
// waits until it reaches the control domain.
func (g *Guest) JoinNetwork(host int) error {
	_, err := g.Run(fmt.Sprintf("insmod /lib/xen-netfront.ko; ip addr add 10.88.0.%d/24 dev eth0 && ip link set eth0 up", host))
	if err != nil {
		return err
	}
	return g.t.Eventually(commandLimit, g.Name+" reaches the control domain", func() (bool, error) {
		out, err := g.Run("ping -c 1 -W 2 " + BridgeAddress + " >/dev/null 2>&1; echo $?")
		return out == "0", err
	})
}

func init() {
	Register(Scenario{
		Name:     "devices-intel",
		Brief:    "Guests with a device model and with a network interface come up on Intel VT-x, without hvid",
		Emulator: Bochs,
		System:   Debian,
		Bare:     true,
		Timeout:  15 * time.Minute,
		Run:      devices,
	})
	Register(Scenario{
		Name:     "devices-amd",
		Brief:    "Guests with a device model and with a network interface come up on AMD SVM, without hvid",
		Emulator: QEMU,
		System:   Debian,
		Bare:     true,
		Timeout:  15 * time.Minute,
		Run:      devices,
	})
}

// devices proves the guests that need more than Xen itself.
func devices(t *T) error {
	if err := t.Bridge(); err != nil {
		return err
	}
	g, err := t.StartGuest(GuestConfig{Name: "net", Lines: []string{VifLine()}})
	if err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	if err := t.Step("network", func() error { return g.JoinNetwork(2) }); err != nil {
		return err
	}
	t.Check(true, "a guest's interface reaches the control domain")
	if err := g.Shutdown(); err != nil {
		return err
	}

	start := func(c GuestConfig) error {
		err := t.Step(c.Name+"-create", func() (err error) { g, err = t.StartGuest(c); return err })
		if err != nil {
			return err
		}
		return t.Step(c.Name+"-up", func() error { _, err := g.WaitUp(); return err })
	}
	if err := start(GuestConfig{Name: "hvm-tiny", Type: TypeHVM, Kernel: KernelTiny}); err != nil {
		return err
	}
	out, err := t.Exec("pgrep", "-f", fmt.Sprintf("xen-domid %d", g.ID))
	t.Check(err == nil, "an HVM guest has a device model: %s", strings.TrimSpace(out.Stdout))
	n, err := g.Poke()
	if err != nil {
		return err
	}
	t.Check(n == 1, "the tiny HVM guest answers: %d", n)
	if err := t.Step("hvm-tiny-save-restore", func() (err error) { g, err = t.saveRestore(g); return err }); err != nil {
		return err
	}
	if n, err = g.Poke(); err != nil {
		return err
	}
	t.Check(n == 2, "the tiny HVM guest goes on after save and restore: %d", n)
	if err := g.Shutdown(); err != nil {
		return err
	}

	if err := start(GuestConfig{Name: "hvm-linux", Type: TypeHVM}); err != nil {
		return err
	}
	echo, err := g.Run("echo $((6 * 7))")
	if err != nil {
		return err
	}
	t.Check(echo == "42", "a Linux HVM guest computes: %q", echo)
	if _, err := g.Run("load on"); err != nil {
		return err
	}
	return g.Shutdown()
}
