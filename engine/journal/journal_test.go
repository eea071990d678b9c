package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
)

func open(t *testing.T, opt Options) *Journal {
	t.Helper()
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	j, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return j
}

// numbered returns a record whose VCPU is n, to tell it by.
func numbered(n int) Record {
	r := msrRecord()
	r.VCPU = n
	return r
}

func add(t *testing.T, j *Journal, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if _, err := j.Append(numbered(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func numbers(rs []Record) []int {
	ns := []int{}
	for _, r := range rs {
		ns = append(ns, r.VCPU)
	}
	return ns
}

func seq(from, to int) []int {
	s := []int{}
	for n := from; n <= to; n++ {
		s = append(s, n)
	}
	return s
}

func query(t *testing.T, j *Journal, f Filter, limit int) []int {
	t.Helper()
	rs, err := j.Query(t.Context(), f, limit)
	if err != nil {
		t.Fatal(err)
	}
	return numbers(rs)
}

// drain reads a subscription that does not follow to its end.
func drain(t *testing.T, s *Subscription) (ns []int, missed []Missed) {
	t.Helper()
	defer s.Close()
	for {
		it, err := s.Next(t.Context())
		switch {
		case err == io.EOF:
			return ns, missed
		case err != nil:
			t.Fatal(err)
		case it.Missed != nil:
			missed = append(missed, *it.Missed)
		default:
			ns = append(ns, it.Record.VCPU)
		}
	}
}

func TestAppendFillsAndKeeps(t *testing.T) {
	now := time.Date(2026, 5, 9, 9, 0, 0, 5, time.FixedZone("", 3600))
	dir := filepath.Join(t.TempDir(), "a", "events")
	j := open(t, Options{Dir: dir, Now: func() time.Time { return now }})
	in := msrRecord()
	in.ID, in.Schema, in.Time = "", 0, time.Time{}
	kept, err := j.Append(in)
	if err != nil {
		t.Fatal(err)
	}
	if kept.ID != NewID(j.Run(), 1) || kept.Schema != Schema || !kept.Time.Equal(now) || kept.Time.Location() != time.UTC {
		t.Errorf("kept as %+v", kept)
	}
	second, err := j.Append(in)
	if err != nil || second.ID != NewID(j.Run(), 2) {
		t.Errorf("second is %q (%v)", second.ID, err)
	}
	for name, mode := range map[string]os.FileMode{".": 0o750, currentName: 0o640} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s has mode %v (%v), want %v", name, fi.Mode(), err, mode)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, currentName))
	if err != nil || bytes.Count(b, []byte{'\n'}) != 2 || !bytes.Contains(b, []byte("->")) {
		t.Errorf("the file is %q (%v)", b, err)
	}
	if st := j.Stats(); st.Appended != 2 || st.WriteFailures != 0 || st.LastFailure != nil {
		t.Errorf("stats: %+v", st)
	}
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Options{Dir: dir})
	add(t, j, 1, 3)
	first := j.Run()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(numbered(9)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if err := j.Sync(); !errors.Is(err, ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	if _, err := j.Query(t.Context(), Filter{}, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("query after close: %v", err)
	}
	j = open(t, Options{Dir: dir})
	add(t, j, 4, 5)
	if j.Run() == first {
		t.Error("two runs have one identity")
	}
	if got := query(t, j, Filter{}, 0); !slices.Equal(got, seq(1, 5)) {
		t.Errorf("got %v", got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second open: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Dir: dir})
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("open in a file: %v", err)
	}
	dir := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(dir, currentName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("a symbolic link was followed")
	}
}

func TestTornLastLine(t *testing.T) {
	whole := func(n int) []byte {
		r := numbered(n)
		r.ID = NewID("0123456789ab", uint64(n))
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	long := bytes.Repeat([]byte("x"), 200<<10)
	line := append(whole(1), '\n')
	for _, tc := range []struct {
		name string
		file []byte
		torn int
		want []int
		bad  uint64
	}{
		{"none", line, 0, []int{1, 99}, 0},
		{"empty", nil, 0, []int{99}, 0},
		{"half", append(slices.Clone(line), whole(2)[:40]...), 40, []int{1, 99}, 0},
		{"one byte", append(slices.Clone(line), '{'), 1, []int{1, 99}, 0},
		{"without newline", append(slices.Clone(line), whole(2)...), 0, []int{1, 2, 99}, 0},
		{"only", whole(1)[:40], 40, []int{99}, 0},
		{"zeros", append(slices.Clone(line), make([]byte, 5000)...), 5000, []int{1, 99}, 0},
		{"long", append(slices.Clone(line), long...), len(long), []int{1, 99}, 0},
		{"damage within", slices.Concat(line, []byte("{\n\n"), whole(2), []byte("\n")), 0, []int{1, 2, 99}, 2},
		{"a huge line within", slices.Concat(line, bytes.Repeat(long, 8), []byte("\n"), whole(2), []byte("\n")), 0, []int{1, 2, 99}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, currentName), tc.file, 0o640); err != nil {
				t.Fatal(err)
			}
			j := open(t, Options{Dir: dir})
			if st := j.Stats(); st.TornBytes != int64(tc.torn) {
				t.Errorf("%d torn bytes, want %d", st.TornBytes, tc.torn)
			}
			add(t, j, 99, 99)
			for _, h := range []int{HistoryAll, 100} {
				s, err := j.Subscribe(SubscribeOptions{History: h})
				if err != nil {
					t.Fatal(err)
				}
				got, missed := drain(t, s)
				if !slices.Equal(got, tc.want) {
					t.Errorf("history %d: got %v, want %v", h, got, tc.want)
				}
				var bad uint64
				for _, m := range missed {
					bad += m.Count
				}
				if bad != tc.bad {
					t.Errorf("history %d: %d lines are said to be damaged, want %d", h, bad, tc.bad)
				}
			}
		})
	}
}

// TestEveryCutIsRecovered cuts the file at each byte, as a crash may.
func TestEveryCutIsRecovered(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Options{Dir: dir})
	add(t, j, 1, 2)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, currentName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	firstLen := bytes.IndexByte(whole, '\n') + 1
	for cut := range len(whole) {
		if err := os.WriteFile(path, whole[:cut], 0o640); err != nil {
			t.Fatal(err)
		}
		f, err := openAppend(path)
		if err != nil {
			t.Fatal(err)
		}
		size, _, err := cutTornLine(f)
		f.Close()
		// A record that lacks only its newline is finished.
		want := 0
		if cut >= firstLen-1 {
			want = firstLen
		}
		if cut == len(whole)-1 {
			want = len(whole)
		}
		left, rerr := os.ReadFile(path)
		if err != nil || rerr != nil || !bytes.Equal(left, whole[:want]) || size != int64(want) {
			t.Fatalf("cut at %d of %d: %d bytes are left, want %d (%v, %v)", cut, len(whole), len(left), want, err, rerr)
		}
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range ents {
		if e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	one, err := json.Marshal(numbered(1))
	if err != nil {
		t.Fatal(err)
	}
	// Three records fit into a file; the ID's length varies a little.
	opt := Options{Dir: dir, MaxBytes: int64(len(one))*3 + 64, Keep: 2}
	j := open(t, opt)
	add(t, j, 1, 7)
	if got, want := files(t, dir), []string{"events-00000001.jsonl", "events-00000002.jsonl", currentName}; !slices.Equal(got, want) {
		t.Fatalf("files %v, want %v", got, want)
	}
	if got := query(t, j, Filter{}, 0); !slices.Equal(got, seq(1, 7)) {
		t.Fatalf("got %v", got)
	}
	// The newest few come from two files, in order.
	if got := query(t, j, Filter{}, 3); !slices.Equal(got, seq(5, 7)) {
		t.Fatalf("newest 3: %v", got)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	// A stranger's files are neither read nor removed.
	for _, name := range []string{"events-1.jsonl", "events-x.jsonl", "events-00000001.jsonl.gz", "notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, opt)
	add(t, j, 8, 13)
	want := []string{"events-00000001.jsonl.gz", "events-00000003.jsonl", "events-00000004.jsonl", "events-1.jsonl", "events-x.jsonl", currentName, "notes"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Fatalf("files %v, want %v", got, want)
	}
	if got := query(t, j, Filter{}, 0); !slices.Equal(got, seq(7, 13)) {
		t.Fatalf("got %v", got)
	}
	// After a record that was rotated away, the stream says what is missing.
	s, err := j.Subscribe(SubscribeOptions{Filter: Filter{After: NewID(j.Run(), 1)}, History: HistoryAll})
	if err != nil {
		t.Fatal(err)
	}
	if got, missed := drain(t, s); !slices.Equal(got, seq(9, 13)) || len(missed) != 0 {
		t.Fatalf("after 1: %v, missed %v", got, missed)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(j.retired) != 0 {
		t.Error("closed files are still held after Sync")
	}
}

func TestAfter(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Options{Dir: dir, MaxBytes: 1, Keep: 4}) // a record a file
	old := j.Run()
	add(t, j, 1, 3)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, Options{Dir: dir, MaxBytes: 1, Keep: 4})
	add(t, j, 4, 6) // the log has 2, 3 of the old run and 4..6 of this one
	now := j.Run()
	for _, tc := range []struct {
		name   string
		after  ID
		limit  int
		want   []int
		missed []Missed
	}{
		{"this run", NewID(now, 2), HistoryAll, []int{6}, nil},
		{"newest", NewID(now, 3), HistoryAll, nil, nil},
		{"not yet there", NewID(now, 77), HistoryAll, nil, nil},
		{"old run", NewID(old, 2), HistoryAll, []int{3, 4, 5, 6}, nil},
		{"last of old run", NewID(old, 3), HistoryAll, []int{4, 5, 6}, nil},
		{"gone, next is there", NewID(old, 1), HistoryAll, []int{2, 3, 4, 5, 6}, nil},
		{"unknown run", NewID("0123456789ab", 1), HistoryAll, []int{2, 3, 4, 5, 6}, []Missed{{0, "the log no longer has event 0123456789ab-1"}}},
		{"newest of what follows", NewID(old, 2), 2, []int{5, 6}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := j.Subscribe(SubscribeOptions{Filter: Filter{After: tc.after}, History: tc.limit})
			if err != nil {
				t.Fatal(err)
			}
			got, missed := drain(t, s)
			if !slices.Equal(got, tc.want) || !slices.Equal(missed, tc.missed) {
				t.Errorf("got %v, missed %v; want %v, %v", got, missed, tc.want, tc.missed)
			}
		})
	}
	add(t, j, 7, 10) // 6..10 are left
	s, err := j.Subscribe(SubscribeOptions{Filter: Filter{After: NewID(now, 1)}, History: HistoryAll})
	if err != nil {
		t.Fatal(err)
	}
	got, missed := drain(t, s)
	if !slices.Equal(got, seq(6, 10)) || len(missed) != 1 || missed[0].Count != 1 {
		t.Errorf("after a gap: %v, missed %v", got, missed)
	}
	if _, err := j.Query(t.Context(), Filter{After: "nonsense"}, 0); err == nil {
		t.Error("a malformed ID was accepted")
	}
}

func TestFilter(t *testing.T) {
	j := open(t, Options{})
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 6 {
		r := numbered(i)
		r.Time = base.Add(time.Duration(i) * time.Second)
		r.Guard = []string{"kernel-text", "syscall-entry"}[i%2]
		r.Domain = Domain{UUID: fmt.Sprintf("00000000-0000-0000-0000-00000000000%d", i/3), Name: printable.Escape([]string{"web1", `a"b`}[i/3]), ID: uint16(7 + i/3)}
		if _, err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name  string
		f     Filter
		limit int
		want  []int
	}{
		{"all", Filter{}, 0, seq(0, 5)},
		{"newest", Filter{}, 2, []int{4, 5}},
		{"guard", Filter{Guard: "kernel-text"}, 0, []int{0, 2, 4}},
		{"guard, newest", Filter{Guard: "kernel-text"}, 2, []int{2, 4}},
		{"name", Filter{Domain: "web1"}, 0, []int{0, 1, 2}},
		{"raw name", Filter{Domain: `a"b`}, 0, []int{3, 4, 5}},
		{"shown name", Filter{Domain: `a\"b`}, 0, []int{3, 4, 5}},
		{"domid", Filter{Domain: "8"}, 0, []int{3, 4, 5}},
		{"uuid", Filter{Domain: "00000000-0000-0000-0000-000000000001"}, 0, []int{3, 4, 5}},
		{"since", Filter{Since: base.Add(4 * time.Second)}, 0, []int{4, 5}},
		{"since another zone", Filter{Since: base.Add(4 * time.Second).In(time.FixedZone("", -7200))}, 0, []int{4, 5}},
		{"both", Filter{Domain: "7", Guard: "syscall-entry", Since: base}, 0, []int{1}},
		{"none", Filter{Domain: "web"}, 0, []int{}},
	} {
		if got := query(t, j, tc.f, tc.limit); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
	for _, limit := range []int{-1, MaxQuery + 1} {
		if _, err := j.Query(t.Context(), Filter{}, limit); !errors.Is(err, ErrLimit) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.Query(ctx, Filter{}, 0); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestFollowJoinsHistoryWithoutGapOrRepeat(t *testing.T) {
	j := open(t, Options{MaxBytes: 4000, Keep: 50})
	add(t, j, 1, 20)
	var wg sync.WaitGroup
	subs := make([]*Subscription, 8)
	got := make([][]int, len(subs))
	// Each subscribes at some moment while another goroutine appends.
	start := make(chan struct{})
	for i := range subs {
		wg.Go(func() {
			<-start
			s, err := j.Subscribe(SubscribeOptions{History: HistoryAll, Follow: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for len(got[i]) < 60 {
				it, err := s.Next(t.Context())
				if err != nil || it.Record == nil {
					t.Errorf("subscription %d: %+v, %v", i, it, err)
					return
				}
				got[i] = append(got[i], it.Record.VCPU)
			}
		})
	}
	close(start)
	add(t, j, 21, 60)
	wg.Wait()
	for i := range got {
		if !slices.Equal(got[i], seq(1, 60)) {
			t.Errorf("subscription %d got %v", i, got[i])
		}
	}
	if n := j.Stats().Subscribers; n != 0 {
		t.Errorf("%d subscribers are left", n)
	}
}

func TestSlowReaderIsToldWhatItMissed(t *testing.T) {
	j := open(t, Options{Queue: 3})
	s, err := j.Subscribe(SubscribeOptions{Follow: true, Filter: Filter{Guard: "syscall-entry"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	next := func() string {
		t.Helper()
		it, err := s.Next(t.Context())
		switch {
		case err != nil:
			t.Fatal(err)
		case it.Missed != nil:
			return fmt.Sprintf("missed %d", it.Missed.Count)
		}
		return fmt.Sprint(it.Record.VCPU)
	}
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if got := next(); got != w {
				t.Fatalf("got %s, want %s of %v", got, w, want)
			}
		}
	}
	idle := func() {
		t.Helper()
		if it, ok, err := s.TryNext(t.Context()); ok || err != nil {
			t.Errorf("with nothing to read: %+v, %v", it, err)
		}
	}
	idle()
	add(t, j, 1, 8) // 1..3 are held, 4..8 not
	other := numbered(100)
	other.Guard = "kernel-text"
	if _, err := j.Append(other); err != nil { // not for this reader: not missed
		t.Fatal(err)
	}
	expect("1")
	add(t, j, 9, 9)
	expect("2", "3", "missed 5", "9")
	// The word comes even if nothing follows.
	add(t, j, 10, 14)
	expect("10", "11", "12", "missed 2")
	idle()
}

func TestCloseEndsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := Open(Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		a, err := j.Subscribe(SubscribeOptions{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := j.Subscribe(SubscribeOptions{Follow: true, History: HistoryAll})
		if err != nil {
			t.Fatal(err)
		}
		add(t, j, 1, 1)
		var aerr, berr error
		var wg sync.WaitGroup
		wg.Go(func() {
			for aerr == nil {
				_, aerr = a.Next(context.Background())
			}
		})
		wg.Go(func() {
			for berr == nil {
				_, berr = b.Next(context.Background())
			}
		})
		synctest.Wait()
		if aerr != nil || berr != nil {
			t.Fatalf("ended early: %v, %v", aerr, berr)
		}
		a.Close()
		a.Close()
		synctest.Wait()
		if !errors.Is(aerr, ErrClosed) {
			t.Errorf("a closed subscription gives %v", aerr)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if !errors.Is(berr, ErrClosed) {
			t.Errorf("a subscription of a closed journal gives %v", berr)
		}
		if err := j.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		b.Close()
	})
}

func TestNextHonoursItsContext(t *testing.T) {
	j := open(t, Options{})
	s, err := j.Subscribe(SubscribeOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestSyncIsBatched: a record is not synced at once, and not later than
// SyncEvery.
func TestSyncIsBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := Open(Options{Dir: t.TempDir(), SyncEvery: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		dirty := func() bool {
			j.mu.Lock()
			defer j.mu.Unlock()
			return j.dirty
		}
		for range 3 {
			add(t, j, 1, 1)
			time.Sleep(999 * time.Millisecond) // of the bubble's clock
			add(t, j, 2, 2)
			if !dirty() {
				t.Fatal("synced before its time")
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			// The file itself is being synced by the kernel, which the
			// bubble does not wait for: Sync waits for it.
			if err := j.Sync(); err != nil {
				t.Fatal(err)
			}
			if dirty() {
				t.Fatal("not synced in time")
			}
		}
	})
}

func TestTooLargeRecordIsRefusedWhole(t *testing.T) {
	j := open(t, Options{})
	r := numbered(1)
	r.Before = Bytes(make([]byte, MaxLine))
	if _, err := j.Append(r); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	add(t, j, 2, 2)
	rs, err := j.Query(t.Context(), Filter{}, 0)
	if err != nil || len(rs) != 1 || rs[0].ID != NewID(j.Run(), 1) {
		t.Fatalf("the log has %+v (%v)", rs, err)
	}
}

// TestFailedWriteIsReportedAndPassedOn: the disk fails, the followers still
// hear of the event, and the log goes on when the disk is well again.
func TestFailedWriteIsReportedAndPassedOn(t *testing.T) {
	j := open(t, Options{})
	s, err := j.Subscribe(SubscribeOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	add(t, j, 1, 1)
	good := j.f
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here: ", err)
	}
	defer full.Close()
	j.mu.Lock()
	j.f = full
	j.mu.Unlock()
	r, err := j.Append(numbered(2))
	if err == nil || r.ID != NewID(j.Run(), 2) {
		t.Fatalf("append to a full disk: %q, %v", r.ID, err)
	}
	if st := j.Stats(); st.WriteFailures != 1 || st.LastFailure == nil || st.Appended != 2 {
		t.Errorf("stats: %+v", st)
	}
	j.mu.Lock()
	j.f = good
	j.mu.Unlock()
	add(t, j, 3, 3)
	for _, want := range []int{1, 2, 3} {
		it, err := s.Next(t.Context())
		if err != nil || it.Record == nil || it.Record.VCPU != want {
			t.Fatalf("follower got %+v (%v), want %d", it, err, want)
		}
	}
	if got := query(t, j, Filter{}, 0); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("the log has %v", got)
	}
}

// TestConcurrentUse is for the race detector, and that no record is lost.
func TestConcurrentUse(t *testing.T) {
	j := open(t, Options{MaxBytes: 8000, Keep: 1000, SyncEvery: time.Millisecond})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range 50 {
				if _, err := j.Append(numbered(n)); err != nil {
					t.Error(err)
				}
				if n%10 == 0 {
					if err := j.Sync(); err != nil {
						t.Error(err)
					}
					if _, err := j.Query(t.Context(), Filter{}, 5); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	rs, err := j.Query(t.Context(), Filter{}, MaxQuery)
	if err != nil || len(rs) != 200 {
		t.Fatalf("%d records (%v), want 200", len(rs), err)
	}
	for i, r := range rs {
		if r.ID != NewID(j.Run(), uint64(i+1)) {
			t.Fatalf("record %d is %s", i, r.ID)
		}
	}
}

func FuzzOpen(f *testing.F) {
	b, err := json.Marshal(memoryRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(b, '\n'), "69fe2b1d7c3a-17")
	f.Add(b, "69fe2b1d7c3a-16")
	f.Add(b[:30], "")
	f.Add([]byte("{}\n{\"type\":\"event\",\"schema\":1,\"id\":\"69fe2b1d7c3a-9\",\"time\":\"x\"}\n\x00"), "69fe2b1d7c3a-1")
	f.Fuzz(func(t *testing.T, file []byte, after string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, currentName), file, 0o640); err != nil {
			t.Fatal(err)
		}
		j, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		kept, err := j.Append(memoryRecord())
		if err != nil {
			t.Fatal(err)
		}
		rs, err := j.Query(t.Context(), Filter{}, MaxQuery)
		if err != nil || len(rs) == 0 || rs[len(rs)-1].ID != kept.ID {
			t.Fatalf("what was appended is not the last of %d records (%v)", len(rs), err)
		}
		_, _, ok := ID(after).Split()
		if _, err := j.Query(t.Context(), Filter{After: ID(after), Since: time.Unix(1, 0)}, 3); (err == nil) != (ok || after == "") {
			t.Fatalf("after %q: %v", after, err)
		}
	})
}
