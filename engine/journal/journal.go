package journal

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultDir is where hvid keeps its events.
const DefaultDir = "/var/lib/hvi/events"

// MaxLine is the greatest length of one record's JSON in bytes. A real one has
// about a thousandth of it.
const MaxLine = 1 << 20

const (
	currentName = "events.jsonl"
	lockName    = "events.lock"
	rotatedFmt  = "events-%08d.jsonl"

	// runIDLen is 8 digits of the Unix time in seconds and 4 of chance, so
	// that two starts within a second differ.
	runIDLen = 12

	defaultMaxBytes  = 16 << 20
	defaultKeep      = 8
	defaultSyncEvery = time.Second
	defaultQueue     = 1024
)

// Errors that Open, Append, Query and Subscribe can match with errors.Is.
var (
	// ErrBusy: another process has the log open.
	ErrBusy = errors.New("journal: the log is in use by another process")
	// ErrClosed: the journal or the subscription has been closed.
	ErrClosed = errors.New("journal: closed")
	// ErrTooLarge: a record's JSON exceeds MaxLine.
	ErrTooLarge = errors.New("journal: the record is too large")
	// ErrLimit: more records were asked for at once than Query returns.
	ErrLimit = errors.New("journal: the limit is out of range")
)

// Options says where and how a Journal keeps its records. The zero value of
// each field means its default.
type Options struct {
	// Dir is made, with mode 0750, where it is missing. Default: DefaultDir.
	Dir string
	// MaxBytes is the size at which a file is closed and a new one begun.
	// Default: 16 MiB.
	MaxBytes int64
	// Keep is the number of closed files that are kept. Default: 8.
	Keep int
	// SyncEvery is the longest time for which a record is in the page cache
	// only. Default: 1 s.
	SyncEvery time.Duration
	// Queue is the number of records that a subscription holds for a reader
	// that is behind. Default: 1024.
	Queue int
	// Logger is told of torn lines, failed writes and failed syncs. Default:
	// none.
	Logger *slog.Logger
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Stats counts what a Journal did since Open. A non-zero number of failures is
// worth a line in a health report.
type Stats struct {
	// Appended counts records that were given an ID.
	Appended uint64
	// WriteFailures counts those of them that are not in the log;
	// SyncFailures counts failed attempts to put written ones on disk.
	WriteFailures, SyncFailures uint64
	// LastFailure is the newest of these failures, nil if there was none.
	LastFailure error
	// TornBytes is the length of the unfinished last line that Open removed.
	TornBytes int64
	// Subscribers is the number of open subscriptions.
	Subscribers int
}

// Journal is the durable log of security events and the hub that passes them
// on. It is safe for concurrent use.
type Journal struct {
	opt  Options
	run  string
	lock *os.File

	// kick wakes the syncing goroutine, quit ends it, done says it has ended.
	kick chan struct{}
	quit chan struct{}
	done chan struct{}

	// syncMu is held during a sync, so that one that has returned means that
	// nothing taken by another is still on its way. Taken before mu.
	syncMu sync.Mutex

	mu      sync.Mutex
	closed  bool
	f       *os.File
	size    int64
	lastNum int // highest number of a closed file
	dirty   bool
	// retired files are complete but may not be on disk; the syncing
	// goroutine owns them once it has taken them from here.
	retired []*os.File
	seq     uint64
	stats   Stats
	subs    map[*Subscription]struct{}
}

// Open opens the log, makes it if it is missing, and repairs an unfinished last
// line. The caller must Close it. The error is ErrBusy if another process has
// the log open, else it wraps that of the operating system and names the file.
func Open(opt Options) (*Journal, error) {
	opt = withDefaults(opt)
	if err := os.MkdirAll(opt.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(opt.Dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s; is another hvid running?", ErrBusy, opt.Dir)
		}
		return nil, fmt.Errorf("journal: flock %s: %w", lock.Name(), err)
	}
	j := &Journal{
		opt:  opt,
		run:  newRunID(opt.Now()),
		lock: lock,
		kick: make(chan struct{}, 1),
		quit: make(chan struct{}),
		done: make(chan struct{}),
		subs: make(map[*Subscription]struct{}),
	}
	if err := j.openCurrent(); err != nil {
		lock.Close()
		return nil, err
	}
	go j.syncLoop()
	return j, nil
}

func withDefaults(o Options) Options {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.Keep <= 0 {
		o.Keep = defaultKeep
	}
	if o.SyncEvery <= 0 {
		o.SyncEvery = defaultSyncEvery
	}
	if o.Queue <= 0 {
		o.Queue = defaultQueue
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func newRunID(now time.Time) string {
	var b [runIDLen / 2]byte
	t := uint32(now.Unix())
	b[0], b[1], b[2], b[3] = byte(t>>24), byte(t>>16), byte(t>>8), byte(t)
	rand.Read(b[4:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// openCurrent opens the file to append to and cuts off an unfinished line.
func (j *Journal) openCurrent() error {
	nums, err := rotated(j.opt.Dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if len(nums) > 0 {
		j.lastNum = nums[len(nums)-1]
	}
	path := filepath.Join(j.opt.Dir, currentName)
	f, err := openAppend(path)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	size, torn, err := cutTornLine(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("journal: repair %s: %w", path, err)
	}
	if torn > 0 {
		j.opt.Logger.Warn("removed an unfinished line from the event log", "file", path, "bytes", torn)
	}
	j.f, j.size, j.stats.TornBytes = f, size, torn
	return nil
}

func openAppend(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, err
	}
	// Whatever the umask: the group's right to read is part of the interface.
	if err := f.Chmod(0o640); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// cutTornLine truncates f after its last newline. A last line that is whole but
// for the newline is finished instead: its record was complete.
func cutTornLine(f *os.File) (size, torn int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	size = fi.Size()
	tail, err := lastLine(f, size)
	if err != nil || len(tail) == 0 {
		return size, 0, err
	}
	if len(tail) <= MaxLine && json.Unmarshal(tail, new(Record)) == nil {
		n, err := f.Write([]byte{'\n'})
		return size + int64(n), 0, err
	}
	torn = int64(len(tail))
	if err := f.Truncate(size - torn); err != nil {
		return size, 0, err
	}
	return size - torn, torn, f.Sync()
}

// lastLine returns what follows the last newline of f, up to all of it: a torn
// line is at most one record, but damage can be longer.
func lastLine(f *os.File, size int64) ([]byte, error) {
	const step = 64 << 10
	var tail []byte
	for end := size; end > 0; {
		start := max(0, end-step)
		buf := make([]byte, end-start)
		if _, err := f.ReadAt(buf, start); err != nil {
			return nil, err
		}
		if i := bytes.LastIndexByte(buf, '\n'); i >= 0 {
			return append(buf[i+1:], tail...), nil
		}
		tail = append(buf, tail...)
		end = start
	}
	return tail, nil
}

// rotated returns the numbers of the closed files, ascending.
func rotated(dir string) ([]int, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var nums []int
	for _, e := range ents {
		s, ok := strings.CutPrefix(e.Name(), "events-")
		if !ok {
			continue
		}
		s, ok = strings.CutSuffix(s, ".jsonl")
		n, err := strconv.Atoi(s)
		if ok && err == nil && n > 0 && e.Name() == fmt.Sprintf(rotatedFmt, n) {
			nums = append(nums, n)
		}
	}
	slices.Sort(nums)
	return nums, nil
}

// Run returns the identity of this run, the part of every ID before the dash.
func (j *Journal) Run() string { return j.run }

// Stats returns what the journal did so far.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Subscribers = len(j.subs)
	return s
}

// Append gives r its schema number, its ID and, where it has none, its time,
// writes it to the log and passes it to the subscriptions. It returns the
// record as it was kept.
//
// On an error other than ErrClosed and ErrTooLarge the record has its ID and
// the subscriptions have it, but it is not in the log. Append takes a lock and
// writes to a file; it does not wait for the disk.
func (j *Journal) Append(r Record) (Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return r, ErrClosed
	}
	if r.Time.IsZero() {
		r.Time = j.opt.Now()
	}
	r.Time = r.Time.UTC().Round(0)
	r.Schema = Schema
	r.Severity = r.severity()
	r.ID = NewID(j.run, j.seq+1)
	line, err := marshal(r)
	if err != nil {
		return r, fmt.Errorf("journal: encode event of guard %q: %w", r.Guard, err)
	}
	line = append(line, '\n')
	if len(line) > MaxLine {
		return r, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(line), MaxLine)
	}
	j.seq++
	j.stats.Appended++
	err = j.write(line)
	if err != nil {
		j.stats.WriteFailures++
		j.stats.LastFailure = err
		j.opt.Logger.Error("event not written to the log", "id", string(r.ID), "err", err)
	}
	for s := range j.subs {
		s.push(&r)
	}
	return r, err
}

// write appends the line, in a new file if it doesn't fit. Either the whole
// line is in the file afterwards or none of it.
func (j *Journal) write(line []byte) error {
	if j.f == nil || (j.size > 0 && j.size+int64(len(line)) > j.opt.MaxBytes) {
		if err := j.rotate(); err != nil {
			return fmt.Errorf("journal: begin a new file: %w", err)
		}
	}
	n, err := j.f.Write(line)
	if err != nil {
		if n > 0 {
			if terr := j.f.Truncate(j.size); terr != nil {
				// A part of a line stays; the next line must not be joined to it.
				_, nerr := j.f.Write([]byte{'\n'})
				err = errors.Join(err, terr, nerr)
				if fi, serr := j.f.Stat(); serr == nil {
					j.size = fi.Size()
				}
			}
		}
		return fmt.Errorf("journal: %w", err)
	}
	j.size += int64(n)
	if !j.dirty {
		j.dirty = true
		j.wake()
	}
	return nil
}

func (j *Journal) wake() {
	select {
	case j.kick <- struct{}{}:
	default:
	}
}

// rotate closes the current file under its final name, opens a new one and
// removes the oldest. After an error j.f is nil or the file as it was, and the
// next write tries again.
func (j *Journal) rotate() error {
	cur := filepath.Join(j.opt.Dir, currentName)
	if j.f != nil {
		if err := os.Rename(cur, filepath.Join(j.opt.Dir, fmt.Sprintf(rotatedFmt, j.lastNum+1))); err != nil {
			return err
		}
		j.lastNum++
		j.retired = append(j.retired, j.f)
		j.f, j.size = nil, 0
		j.dirty = true
		j.wake()
	}
	f, err := openAppend(cur)
	if err != nil {
		return err
	}
	j.f, j.size = f, 0
	nums, err := rotated(j.opt.Dir)
	if err != nil {
		return nil // the file is there to write to; the next rotation removes
	}
	for len(nums) > j.opt.Keep {
		old := filepath.Join(j.opt.Dir, fmt.Sprintf(rotatedFmt, nums[0]))
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.opt.Logger.Warn("old event log not removed", "file", old, "err", err)
			break
		}
		nums = nums[1:]
	}
	return nil
}

// syncLoop puts written records on disk, at most SyncEvery after the first of
// them.
func (j *Journal) syncLoop() {
	defer close(j.done)
	for {
		select {
		case <-j.quit:
			return
		case <-j.kick:
		}
		t := time.NewTimer(j.opt.SyncEvery)
		select {
		case <-j.quit:
			t.Stop()
			return
		case <-t.C:
		}
		_ = j.flush() // counted and logged there; the next Append tries again
	}
}

// Sync returns when every record appended before is on disk.
func (j *Journal) Sync() error {
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return j.flush()
}

// flush syncs outside mu, so that Append does not wait for the disk.
func (j *Journal) flush() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	retired, cur := j.retired, j.f
	j.retired, j.dirty = nil, false
	j.mu.Unlock()

	var errs []error
	for _, f := range retired {
		errs = append(errs, f.Sync(), f.Close())
	}
	if cur != nil {
		// ErrClosed: a Close that came between has synced the file itself.
		if err := cur.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if len(retired) > 0 {
		errs = append(errs, syncDir(j.opt.Dir))
	}
	err := errors.Join(errs...)
	if err != nil {
		err = fmt.Errorf("journal: sync: %w", err)
		j.mu.Lock()
		j.stats.SyncFailures++
		j.stats.LastFailure = err
		j.mu.Unlock()
		j.opt.Logger.Error("events may not be on disk", "err", err)
	}
	return err
}

// syncDir makes renames and new names durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close puts every record on disk, ends the subscriptions and releases the
// log. Only the first call does anything.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	subs := j.subs
	j.subs = nil
	j.mu.Unlock()

	close(j.quit)
	<-j.done
	err := j.flush()
	j.syncMu.Lock()
	j.mu.Lock()
	if j.f != nil {
		err = errors.Join(err, j.f.Close())
		j.f = nil
	}
	j.mu.Unlock()
	j.syncMu.Unlock()
	for s := range subs {
		s.end()
	}
	return errors.Join(err, j.lock.Close())
}

var _ io.Closer = (*Journal)(nil)
