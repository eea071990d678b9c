// Witness is the first process of a guest that tells what it is made of, see
// lab/witness.
package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/lab/witness"
)

// control is where the host is: the second serial port.
const control = "/dev/ttyS1"

func init() { runtime.LockOSThread() } // a role's name is that of the first thread

func main() {
	witness.Role()
	if err := run(); err != nil {
		fmt.Println("witness:", err)
	}
	if os.Getpid() == 1 {
		// A first process that ends is a panic, with a page of text that hides
		// what was said above.
		time.Sleep(time.Second)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(1)
}

func run() error {
	state, err := witness.Setup()
	if err != nil {
		return err
	}
	port, err := openPort(control)
	if err != nil {
		return err
	}
	fmt.Printf("witness: up, missing %q\n", state.Missing)
	return witness.Serve(state, port)
}

// openPort opens a serial port that passes bytes as they are.
func openPort(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
