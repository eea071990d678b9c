package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Dumps is where the memory of a domain is written when a guard pauses it, and how much
// room that may take. Nothing that is there is removed to make room: the first dump of
// an intrusion is worth more than the latest.
type Dumps struct {
	// Dir is made where it is not there. Nothing else is in it.
	Dir string
	// MaxCount and MaxBytes bound the dumps in Dir. MinFree is what must be left of
	// the file system afterwards, in bytes.
	MaxCount          int
	MaxBytes, MinFree int64
}

// DumpState is how far a memory dump has come.
type DumpState string

// The states of a memory dump.
const (
	// DumpWaiting: another domain's is written first.
	DumpWaiting DumpState = "waiting"
	DumpWriting DumpState = "writing"
	// DumpWritten: it is whole, and on disk.
	DumpWritten DumpState = "written"
	// DumpFailed: there is none, and Reason says why.
	DumpFailed DumpState = "failed"
)

// DumpStatus is the memory dump of a domain that a guard has paused.
type DumpStatus struct {
	State DumpState
	// File is where it is, once it is whole.
	File string
	// Memory is how much of the domain's memory was read, of Total, in bytes, Stored
	// what of it takes room in the file.
	Memory, Stored, Total uint64
	Began                 time.Time
	Reason                string
}

const (
	dumpSuffix    = ".lime"
	partialSuffix = ".partial"
	// dumpSlack is what a dump may have more than the domain has pages: frames of its
	// devices, and pages that its memory leads to twice. A guest can't make a dump
	// larger than the room that was found for it.
	dumpSlack = 64 << 20
)

// Reasons for which there is no dump.
var (
	errDumpAbandoned = errors.New("the domain was let run, or let go of, before it was whole")
	errDumpTooLarge  = errors.New("the domain has more memory than Xen says")
	errOnDemand      = errors.New("the domain's memory is populated on demand: to read it would use it up")
)

// NoRoomError says that there is no room for a memory dump.
type NoRoomError struct{ Dir, Reason string }

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("no room in %s: %s; move dumps away, or allow more ([dumps] in hvid.toml)", e.Dir, e.Reason)
}

// dumper writes memory dumps, one at a time.
type dumper struct {
	Dumps
	turn chan struct{} // capacity one
}

func newDumper(d *Dumps) *dumper {
	if d == nil {
		return nil
	}
	return &dumper{Dumps: *d, turn: make(chan struct{}, 1)}
}

// dumpNiceness is that of the thread that writes a dump. hvid's own would keep dom0's
// programs, hvictl among them, waiting for as long as that takes.
const dumpNiceness = 10

// dumping is a session's dump under way.
type dumping struct {
	stop context.CancelCauseFunc
	done chan struct{}
}

// startDump begins to write the memory of the domain, which a guard has paused, and
// returns where it will be; nothing where none is wanted.
func (s *Session) startDump() string {
	if s.dumper == nil {
		return ""
	}
	s.stopDump()
	began := time.Now()
	file := filepath.Join(s.dumper.Dir, s.info.UUID.String()+"-"+began.UTC().Format("20060102T150405Z")+dumpSuffix)
	ctx, stop := context.WithCancelCause(context.Background())
	under := &dumping{stop: stop, done: make(chan struct{})}
	s.dump = under
	show := func(d DumpStatus) {
		d.Began = began
		s.update(func(st *Status) { st.Dump = &d })
	}
	show(DumpStatus{State: DumpWaiting})
	go func() {
		defer close(under.done)
		defer stop(nil)
		// Never unlocked: the thread, whose priority nobody wants, ends with it.
		runtime.LockOSThread()
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), dumpNiceness) // else it is as hvid's
		last, err := s.dumper.dump(ctx, stop, s.hv, s.info, file, show)
		if err != nil {
			show(DumpStatus{State: DumpFailed, Memory: last.Memory, Stored: last.Stored, Total: last.Total, Reason: err.Error()})
			s.log.Error("no memory dump of a domain that a guard has paused", "err", err)
			return
		}
		last.State, last.File = DumpWritten, file
		show(last)
		s.log.Warn("the memory of a domain that a guard has paused is dumped", "file", file, "bytes", last.Memory)
	}()
	return file
}

// stopDump ends a dump under way, of which nothing stays.
func (s *Session) stopDump() {
	if s.dump == nil {
		return
	}
	s.dump.stop(errDumpAbandoned)
	<-s.dump.done
	s.dump = nil
}

// dump writes the memory of a domain that stands still. What it returns is how far it
// has come; the file is there if it is whole.
func (d *dumper) dump(ctx context.Context, stop context.CancelCauseFunc, hv Hypervisor, info xen.DomainInfo, file string, show func(DumpStatus)) (st DumpStatus, err error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return st, context.Cause(ctx)
	}
	if info, err = hv.Domain(info.ID); err != nil {
		return st, err
	}
	st = DumpStatus{State: DumpWriting, Total: info.Pages * x86.PageSize}
	show(st)
	end, err := hv.MaxGFN(info.ID)
	if err != nil {
		return st, err
	}
	if n, err := hv.OnDemand(info.ID); err != nil || n > 0 {
		return st, errors.Join(err, errOnDemand)
	}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return st, err
	}
	if err := d.makeRoom(st.Total); err != nil {
		return st, err
	}
	f, err := os.OpenFile(file+partialSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return st, err
	}
	mem := hv.OpenMemory(info.ID)
	from := dump.Source{
		Memory: mem, End: end + 1,
		Absent: func(err error) bool { return errors.Is(err, xen.ErrNoPage) },
		Any:    func(first x86.GFN, n int) (bool, error) { return hv.AnyPage(info.ID, first, n) },
	}
	w, err := dump.WriteLiME(ctx, f, from, func(w dump.Written) {
		st.Memory, st.Stored = w.Memory, w.Stored
		show(st)
		if w.Stored > st.Total+dumpSlack {
			stop(errDumpTooLarge)
		}
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	st.Memory, st.Stored = w.Memory, w.Stored
	err = errors.Join(err, mem.Close())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return st, errors.Join(err, os.Remove(f.Name()))
	}
	return st, syncDir(d.Dir)
}

// makeRoom removes what is left of dumps that were not finished, and returns an error
// if there is no room for one of as many bytes.
func (d *dumper) makeRoom(need uint64) error {
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return err
	}
	count, used := 0, int64(0)
	for _, e := range entries {
		path := filepath.Join(d.Dir, e.Name())
		if strings.HasSuffix(path, dumpSuffix+partialSuffix) {
			// Of a hvid that died: nobody else writes now.
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		count++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			used += st.Blocks * 512
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.Dir, &st); err != nil {
		return fmt.Errorf("ask for the room in %s: %w", d.Dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	full := func(format string, a ...any) error {
		return &NoRoomError{Dir: d.Dir, Reason: fmt.Sprintf(format, a...)}
	}
	switch want := int64(need); {
	case count >= d.MaxCount:
		return full("there are %d dumps, and %d are allowed", count, d.MaxCount)
	case used+want > d.MaxBytes:
		return full("there are dumps of %d bytes and another may take %d, and %d are allowed", used, want, d.MaxBytes)
	case st.Blocks > 0 && free-want < d.MinFree: // one of memory (ramfs) doesn't tell
		return full("of %d bytes free it may take %d, and %d must be left", free, want, d.MinFree)
	}
	return nil
}

// syncDir has the names in a directory on disk.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
