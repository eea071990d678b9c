package hooks

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

const (
	// vifPrefix begins the names under which the gates of vif scripts are
	// installed: hvi-vif-bridge becomes vif-bridge.
	vifPrefix = "hvi-vif-"
	ourPrefix = "hvi-"

	// scriptDir is where Xen's scripts are, on every distribution.
	scriptDir = "/etc/xen/scripts"

	// firstReserved is the first domain number that is no domain's (DOMID_FIRST_RESERVED).
	firstReserved = 0x7ff0
)

// besides is the real script of a gate: in the same directory, without the
// prefix.
func besides(called, base string) string {
	name := strings.TrimPrefix(base, ourPrefix)
	if strings.Contains(called, "/") {
		return filepath.Join(filepath.Dir(called), name)
	}
	return filepath.Join(scriptDir, name)
}

// script is the path of a script that was named.
func script(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return filepath.Join(scriptDir, name)
}

// vifGate holds the start of a domain where its network interface is brought up,
// and becomes the real script.
func (h Host) vifGate(ctx context.Context, real string, args []string) int {
	if len(args) == 0 {
		return h.usage("vif-gate: no action, such as online")
	}
	// The others clean up, or add the emulated half of an interface whose other
	// half was brought online before.
	if args[0] != "online" {
		return h.become(real, args)
	}
	path := h.env("XENBUS_PATH")
	dom, ok := vifDomain(path)
	if !ok {
		h.say("XENBUS_PATH is %s, and not the path of a vif such as backend/vif/1/0: libxl did not call this script", policy.Quote(path))
		return exitRefused
	}
	open, reason := h.gate(ctx, dom)
	if !open {
		text := "hvi: domain " + dom + " is not started: " + reason
		h.say("%s", strings.TrimPrefix(text, "hvi: "))
		// This is where libxl looks for a script's reason.
		h.storeWrite(path+"/hotplug-error", text)
		h.storeWrite(path+"/hotplug-status", "error")
		return exitRefused
	}
	code := h.become(real, args)
	h.storeWrite(path+"/hotplug-error", "hvi: the script "+policy.Quote(real)+" cannot be run")
	h.storeWrite(path+"/hotplug-status", "error")
	return code
}

// storeWrite writes into xenstore, if that takes no longer than it may. Without
// it the reason is in the toolstack's log only.
func (h Host) storeWrite(path, value string) {
	if h.StoreWrite == nil {
		return
	}
	// libxl names paths as seen from the control domain's own.
	if !strings.HasPrefix(path, "/") {
		path = "/local/domain/0/" + path
	}
	done := make(chan error, 1)
	go func() { done <- h.StoreWrite(path, value) }()
	late := time.NewTimer(storeTime)
	defer late.Stop()
	select {
	case err := <-done:
		if err != nil {
			h.say("xenstore does not take the reason: %s", oneLine(err.Error()))
		}
	case <-late.C:
		h.say("xenstore does not answer within %v", storeTime)
	}
}

// vifDomain takes the domain out of a vif's path in xenstore, backend/vif/7/0.
func vifDomain(path string) (string, bool) {
	_, tail, ok := strings.Cut("/"+path, "/backend/vif/")
	if !ok {
		return "", false
	}
	dom, dev, ok := strings.Cut(tail, "/")
	if _, err := strconv.ParseUint(dev, 10, 31); !ok || err != nil {
		return "", false
	}
	return domainID(dom)
}

// domainID checks a domain's number and writes it in the one way it is written.
func domainID(s string) (string, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n >= firstReserved {
		return "", false
	}
	return strconv.FormatUint(n, 10), true
}

// dmGate holds the start of a domain where its device model is, and becomes it.
func (h Host) dmGate(ctx context.Context, args []string) int {
	model, ok := h.deviceModel()
	if !ok {
		h.say("no QEMU for Xen was found; set HVI_DM to its path in the toolstack's environment")
		return exitRefused
	}
	id, given := domainOf(args)
	// Without a domain somebody only asks what this QEMU can do. A model that
	// attaches to a PV domain serves back ends to a guest that Xen cannot
	// introspect.
	if !given || slices.Contains(args, "-xen-attach") || slices.Contains(args, "--xen-attach") {
		return h.become(model, args)
	}
	dom, ok := domainID(id)
	if !ok {
		h.say("dm-gate: -xen-domid %s is no domain's number", policy.Quote(id))
		return exitUsage
	}
	// The back ends of dom0's own.
	if dom == "0" {
		return h.become(model, args)
	}
	if open, reason := h.gate(ctx, dom); !open {
		h.say("domain %s is not started: %s", dom, reason)
		return exitRefused
	}
	return h.become(model, args)
}

// domainOf finds the domain that a device model is for. given is also true for
// an option whose value is missing.
func domainOf(args []string) (id string, given bool) {
	for i, a := range args {
		if a == "-xen-domid" || a == "--xen-domid" {
			if i+1 == len(args) {
				return "", true
			}
			return args[i+1], true
		}
	}
	return "", false
}

// deviceModel finds the QEMU that libxl would have run.
func (h Host) deviceModel() (string, bool) {
	if own := h.env("HVI_DM"); own != "" {
		return own, true
	}
	var candidates []string
	// Of several releases' the one of the Xen that runs.
	if v := h.xenVersion(); v != "" {
		candidates = append(candidates, "/usr/lib/xen-"+v+"/bin/qemu-system-i386")
	}
	if others, err := filepath.Glob(h.Root + "/usr/lib/xen-*/bin/qemu-system-i386"); err == nil {
		slices.Reverse(others)
		for _, a := range others {
			candidates = append(candidates, strings.TrimPrefix(a, h.Root))
		}
	}
	candidates = append(candidates,
		"/usr/libexec/xen-qemu-system-i386", // Debian 12 and later
		"/usr/lib/xen/bin/qemu-system-i386", // Xen's own default, as built without a prefix
		"/usr/libexec/xen/bin/qemu-system-i386",
		"/usr/lib64/xen/bin/qemu-system-i386",
		"/usr/local/lib/xen/bin/qemu-system-i386",
		"/usr/bin/qemu-system-i386",
		"/usr/bin/qemu-system-x86_64",
	)
	for _, c := range candidates {
		if fi, err := os.Stat(h.Root + c); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return h.Root + c, true
		}
	}
	return "", false
}

// xenVersion is the running Xen's, such as 4.17, or empty.
func (h Host) xenVersion() string {
	var parts [2]string
	for i, name := range []string{"major", "minor"} {
		b, err := os.ReadFile(h.Root + "/sys/hypervisor/version/" + name)
		if err != nil {
			return ""
		}
		parts[i] = strings.TrimSpace(string(b))
		if _, err := strconv.ParseUint(parts[i], 10, 16); err != nil {
			return ""
		}
	}
	return parts[0] + "." + parts[1]
}
