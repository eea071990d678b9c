package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is the argument of the process that a container consists of.
const inside = "inside"

// namespaces starts a container as its usual programs do: with namespaces of its own
// of every kind, and as another user outside than it is inside.
func namespaces() error {
	c := exec.Command("/proc/self/exe", inside)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential:  &syscall.Credential{},
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// live is what the container does.
func live() error {
	if pid := os.Getpid(); pid != 1 {
		return fmt.Errorf("its process is number %d", pid)
	}
	return errors.Join(
		unix.Sethostname([]byte("chore")),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		os.WriteFile("/tmp/file", []byte("chore"), 0o600),
		exec.Command("/bin/busybox", "true").Run(),
	)
}
