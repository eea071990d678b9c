package linux

import (
	"path/filepath"
	"strings"
)

// programFolders are where distributions install programs, and nobody but root
// may put one.
var programFolders = [...]string{
	"/bin", "/sbin", "/lib", "/lib64", "/libexec", "/opt", "/nix/store", "/gnu/store",
	"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/local", "/usr/share", "/run/current-system",
}

// sensitiveFolders are those in which a core file, whose contents its process
// chooses, would be taken for something to execute or to obey.
var sensitiveFolders = [...]string{"/bin", "/sbin", "/lib", "/lib64", "/etc", "/usr", "/root", "/boot", "/proc", "/sys", "/var/spool/cron"}

// helperProblem says what is wrong with a variable that names a program for the
// kernel to start; "" if nothing is. An empty one starts none.
func helperProblem(name, value string) string {
	if value == "" {
		return ""
	}
	if name == "core_pattern" {
		program, pipe := strings.CutPrefix(value, "|")
		if !pipe {
			if inFolder(value, sensitiveFolders[:]) {
				return "core files would be written where they are executed or obeyed"
			}
			return ""
		}
		value = program
	}
	program, _, _ := strings.Cut(strings.TrimLeft(value, " "), " ")
	if inFolder(program, programFolders[:]) {
		return ""
	}
	return "the kernel would start a program from a place where programs are not installed"
}

// inFolder says whether a path, with all its steps taken, leads into one of some
// folders.
func inFolder(p string, folders []string) bool {
	if !strings.HasPrefix(p, "/") {
		return false
	}
	p = filepath.Clean(p)
	for _, f := range folders {
		if strings.HasPrefix(p, f+"/") {
			return true
		}
	}
	return false
}
