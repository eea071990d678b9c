package machine

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// openMaster makes a terminal and returns the end that an emulator has.
func openMaster(t *testing.T) *os.File {
	t.Helper()
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/ptmx")
	locked := 0
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&locked))); errno != 0 {
		t.Fatal(errno)
	}
	return f
}

// TestDrainTerminal writes more to a terminal than the kernel keeps for a reader.
func TestDrainTerminal(t *testing.T) {
	if name := terminalOf(os.Getpid()); name != "" {
		t.Skip("this process has a terminal already: ", name)
	}
	f := openMaster(t)
	if name := terminalOf(os.Getpid()); !strings.HasPrefix(name, "/dev/pts/") {
		t.Fatalf("the terminal is %q", name)
	}
	done, drained := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(drained)
		drainTerminal(os.Getpid(), done)
	}()
	text := []byte(strings.Repeat("\x1b[8;1H\x1b[?12l\x1b[?25h", 100) + "\r")
	for n := 0; n < 1<<20; n += len(text) {
		if _, err := f.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	<-drained
	if name := terminalOf(os.Getpid()); name != "" {
		t.Errorf("it is closed, and seen: %s", name)
	}
}
