package witness

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// roleVariable tells a process of the witness' program what it is for.
const roleVariable = "WITNESS_ROLE"

// Role plays the role that this process was started for, for ever. It returns,
// at once, only in a process that has none: the witness itself. It is to be
// called from the process' first thread.
func Role() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	if err := play(role); err != nil {
		fmt.Fprintln(os.Stderr, "witness:", role+":", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		_ = unix.Pause() // until the end of a signal's handler
	}
}

func play(role string) error {
	if name, ok := strings.CutPrefix(role, "name:"); ok {
		return setName(name)
	}
	switch role {
	case "threads":
		return threads(5)
	case "maps":
		return mapAll()
	case "namespaces":
		if err := loopbackUp(); err != nil {
			return err
		}
		l, err := net.Listen("tcp4", "127.0.0.1:4720")
		kept = append(kept, l)
		return err
	case "hidden":
		return setName("hide-me")
	}
	return setName(role)
}

func setName(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return setNamePointer(p)
}

// threads starts threads with names of their own.
func threads(n int) error {
	var started sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		started.Add(1)
		go func() {
			runtime.LockOSThread() // for ever
			errs[i] = setName(fmt.Sprintf("thread/%d", i))
			started.Done()
			for {
				_ = unix.Pause()
			}
		}()
	}
	started.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return setName("threads")
}

// mapAll maps memory of each kind.
func mapAll() error {
	const size = 16 << 12
	file := func(at string) (*os.File, error) {
		f, err := os.Create(at)
		if err != nil {
			return nil, err
		}
		return f, f.Truncate(2 * size)
	}
	for _, m := range []struct {
		at          string
		offset      int64
		prot, flags int
		remove      bool
	}{
		{"/etc/mapped file", 0, unix.PROT_READ, unix.MAP_PRIVATE, false},
		{"/etc/mapped file", 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED, false},
		{"/etc/mapped file", size, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE, false},
		{"/run/removed\nfile", 0, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED, true},
	} {
		f, err := file(m.at)
		if err != nil {
			return err
		}
		b, err := unix.Mmap(int(f.Fd()), m.offset, size, m.prot, m.flags)
		if err != nil {
			return err
		}
		kept = append(kept, f, b)
		if m.remove {
			if err := os.Remove(m.at); err != nil {
				return err
			}
		}
	}
	fd, err := unix.MemfdCreate("odd memory", 0)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	for _, m := range []struct{ fd, prot, flags int }{
		{fd, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED},
		{-1, unix.PROT_NONE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS},
		{-1, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_ANONYMOUS},
		{-1, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS},
	} {
		b, err := unix.Mmap(m.fd, 0, size, m.prot, m.flags)
		if err != nil {
			return err
		}
		kept = append(kept, b)
	}
	return setName("maps")
}
