package keeper

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// mclOnFault locks pages as they come to be used, and not the whole address space at
// once, most of which Go never uses (MCL_ONFAULT, asm-generic/mman.h; Linux 4.4).
const mclOnFault = 4

// lockMemory keeps this process's memory where it is: what it uses already, what it
// comes to use, and the whole of its program, which it may have to run when nothing
// can be read from a disk any more.
func lockMemory() error {
	err := syscall.Mlockall(syscall.MCL_CURRENT | syscall.MCL_FUTURE | mclOnFault)
	if err != nil {
		return fmt.Errorf("keeper: %w", os.NewSyscallError("mlockall", err))
	}
	program, err := os.Readlink(self)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer f.Close()
	found := false
	for in := bufio.NewScanner(f); in.Scan(); {
		// "start-end perms offset device inode    path"
		where, rest, _ := strings.Cut(in.Text(), " ")
		if !strings.HasSuffix(rest, " "+program) {
			continue
		}
		first, last, _ := strings.Cut(where, "-")
		start, err1 := strconv.ParseUint(first, 16, 64)
		end, err2 := strconv.ParseUint(last, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("keeper: /proc/self/maps: %w", err)
		}
		found = true
		if _, _, errno := syscall.Syscall(syscall.SYS_MLOCK, uintptr(start), uintptr(end-start), 0); errno != 0 {
			return fmt.Errorf("keeper: %w", os.NewSyscallError("mlock", errno))
		}
	}
	if !found {
		return fmt.Errorf("keeper: /proc/self/maps does not name %s", program)
	}
	return nil
}
