package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// A ledger's disk may be full, and nothing may hang on that but new changes: what has
// been made must still be undone, with a line for each. So the file takes its room on the
// disk in advance. A change is refused before it is made if there is no room left for its
// line, and for those of undoing it and all that is outstanding.

const (
	// roomStep is how much is taken at a time. A ledger of a guest without modules that
	// come and go stays below it for good.
	roomStep = 16 << 10
	// lineRoom is more than a line takes, unless it says why a guard paused the domain.
	lineRoom = 256
	// linesBesides is how many lines withdrawing, or recovering, writes besides two for
	// each change that is outstanding: pauses and a ring of its own, and a reason.
	linesBesides = 24
)

// file is where a ledger is written; *os.File is the real one.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
	Fd() uintptr
}

// create makes a ledger's file; tests replace it.
var create = func(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
}

// keepSize is FALLOC_FL_KEEP_SIZE (linux/falloc.h): the file's length stays what it is.
const keepSize = 1

// allocate takes room on the disk; tests replace it.
var allocate = func(f file, off, n int64) error {
	for {
		if err := syscall.Fallocate(int(f.Fd()), keepSize, off, n); err != syscall.EINTR {
			return err
		}
	}
}

// reserve sees to it that there is room for one more change and for undoing everything.
func (l *Ledger) reserve() error {
	want := l.size + lineRoom*int64(2*len(l.open)+3+linesBesides)
	if want <= l.room {
		return nil
	}
	n := max(roomStep, want-l.room)
	err := allocate(l.file, l.room, n)
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP):
		// A file system that can't: then a full disk is noticed when it is written to.
	case err != nil:
		return fmt.Errorf("ledger %s: no room for it on its disk: %w", l.path, err)
	}
	l.room += n
	return nil
}

// needsNoRoom says that an entry is made on the way to undo others, for which the room
// is there.
func (e *Entry) needsNoRoom() bool {
	switch e.Op {
	case OpPause, OpHold, OpResume, OpRing, OpRingPage, OpGuardPause:
		return true
	}
	return false
}
