package linux

import "testing"

func TestHelperProblem(t *testing.T) {
	for _, tt := range []struct {
		name, value string
		right       bool
	}{
		{"modprobe_path", "/sbin/modprobe", true},
		{"modprobe_path", "/usr/sbin/modprobe", true},
		{"modprobe_path", "", true},
		{"modprobe_path", "/nix/store/abc-kmod/bin/modprobe", true},
		{"modprobe_path", "/tmp/x", false},
		{"modprobe_path", "/dev/shm/x", false},
		{"modprobe_path", "modprobe", false},
		{"modprobe_path", "/sbin/../tmp/x", false},
		{"modprobe_path", "/sbin", false},
		{"modprobe_path", "/sbinx/modprobe", false},
		{"modprobe_path", "/home/u/modprobe", false},
		{"poweroff_cmd", "/sbin/poweroff -f", true},
		{"poweroff_cmd", "/bin/sh -c /tmp/x", true}, // its program is an installed one
		{"uevent_helper", "/proc/self/exe", false},
		{"core_pattern", "core", true},
		{"core_pattern", "/var/crash/core.%p", true},
		{"core_pattern", "/tmp/core.%e", true},
		{"core_pattern", "/etc/cron.d/core", false},
		{"core_pattern", "/var/../etc/profile.d/core", false},
		{"core_pattern", "|/usr/lib/systemd/systemd-coredump %P %u", true},
		{"core_pattern", "|/usr/share/apport/apport -p%p", true},
		{"core_pattern", "| /usr/libexec/abrt-hook-ccpp %s", true},
		{"core_pattern", "|/proc/%P/fd/666 %P", false},
		{"core_pattern", "|../tmp/x", false},
		{"core_pattern", "|", false},
	} {
		if why := helperProblem(tt.name, tt.value); (why == "") != tt.right {
			t.Errorf("%s = %q: %q", tt.name, tt.value, why)
		}
	}
}
