package libvirt

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// daemons are the programs that serve Xen's domains.
var daemons = map[string]bool{"libvirtd": true, "virtxend": true}

// Running reports whether a daemon of libvirt's runs that may serve Xen. It
// matters because to connect to a socket that systemd holds is to start the
// daemon behind it, and distributions' libvirtd.service conflicts with
// xendomains.service: starting it shuts down guests that are xl's.
//
// proc is where procfs is mounted. Only programs of root's count, since anybody
// may call a program libvirtd.
func Running(proc string) bool { return running(proc, 0) }

func running(proc string, uid uint32) bool {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 31); err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join(proc, e.Name(), "exe"))
		if err != nil || !daemons[filepath.Base(exe)] {
			continue
		}
		info, err := os.Stat(filepath.Join(proc, e.Name()))
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == uid {
			return true
		}
	}
	return false
}
