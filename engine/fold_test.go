package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

func newReporter(t *testing.T) (*engine.Reporter, *records) {
	t.Helper()
	g := linuxtest.New(linuxtest.Config{})
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	rec := &records{got: make(chan journal.Record, 10_000)}
	return engine.NewReporter(rec, k), rec
}

// rewrite is a rewrite of LSTAR to a value, at a time after an epoch.
func rewrite(value uint64, after time.Duration) guard.Evidence {
	return guard.Evidence{
		Time: int64(1_700_000_000*time.Second + after), Guard: policy.GuardSyscallEntry, Action: policy.ActionBlock,
		Reason: vmevent.ReasonMovToMSR, MSR: vmevent.MSRWrite{MSR: x86.MSRLSTAR, New: value},
	}
}

// TestRepetitionsFold repeats one violation within a second: the first is
// recorded at once, the others by one record that says how many it stands for.
func TestRepetitionsFold(t *testing.T) {
	r, rec := newReporter(t)
	for i := range 500 {
		r.Report(rewrite(1, time.Duration(i)*time.Millisecond))
	}
	if len(rec.all) != 1 || rec.all[0].Detail.Repeats != 0 {
		t.Fatalf("%d records before the window is over, want the first", len(rec.all))
	}
	r.Flush()
	r.Flush()
	if len(rec.all) != 2 || rec.all[1].Detail.Repeats != 498 || rec.all[1].Time.Sub(rec.all[0].Time) != 499*time.Millisecond {
		t.Fatalf("%d records, %+v", len(rec.all), rec.all[len(rec.all)-1])
	}
	// A second later the same is news again.
	r.Report(rewrite(1, 2*time.Second))
	if len(rec.all) != 3 || rec.all[2].Detail.Repeats != 0 {
		t.Errorf("%d records, want 3", len(rec.all))
	}
}

// TestOthersDoNotFold alternates two violations: each is recorded.
func TestOthersDoNotFold(t *testing.T) {
	r, rec := newReporter(t)
	for i := range 10 {
		r.Report(rewrite(uint64(i%2), time.Duration(i)*time.Millisecond))
	}
	r.Flush()
	if len(rec.all) != 10 || r.Unrecorded() != 0 {
		t.Errorf("%d records, %d unrecorded, of 10", len(rec.all), r.Unrecorded())
	}
}

// TestRecordsAreBounded varies a violation each time: a second has room for 100
// records, what is beyond is counted, and the next second has room again.
func TestRecordsAreBounded(t *testing.T) {
	r, rec := newReporter(t)
	for i := range 500 {
		r.Report(rewrite(uint64(i), time.Duration(i)*time.Millisecond))
	}
	if len(rec.all) != 100 || r.Unrecorded() != 400 {
		t.Errorf("%d records, %d unrecorded; want 100, 400", len(rec.all), r.Unrecorded())
	}
	// What has no record of its own is told by one that counts it.
	r.Summarize()
	r.Summarize()
	if last := rec.all[len(rec.all)-1]; len(rec.all) != 101 || last.Detail.Suppressed != 400 || last.Action != journal.Blocked || last.Guard != string(policy.GuardSyscallEntry) ||
		last.Target.Kind != journal.TargetSeveral || !strings.Contains(last.Summary(), "400 more violations") {
		t.Errorf("%d records, the last %+v", len(rec.all), rec.all[len(rec.all)-1])
	}
	// Pairs of the same make a record and a fold each: the bound holds all the same.
	pairs, rec2 := newReporter(t)
	for i := range 500 {
		pairs.Report(rewrite(uint64(i/2), time.Duration(i)*time.Millisecond))
	}
	pairs.Flush()
	if n := uint64(len(rec2.all)); n != 100 || n+pairs.Unrecorded() != 500 {
		t.Errorf("pairs: %d records, %d unrecorded; want 100, 400", n, pairs.Unrecorded())
	}
	pairs.Summarize()
	told := uint64(0)
	for _, r := range rec2.all {
		if told += r.Detail.Repeats + r.Detail.Suppressed; r.Detail.Suppressed == 0 {
			told++
		}
	}
	if told != 500 {
		t.Errorf("pairs: %d are told, want 500", told)
	}
	// Another guard has its own.
	other := rewrite(1, 500*time.Millisecond)
	other.Guard = policy.GuardControlRegisters
	pairs.Report(other)
	if last := rec2.all[len(rec2.all)-1]; last.Guard != string(policy.GuardControlRegisters) || last.Severity != journal.Medium || len(last.Attack) == 0 || last.Domain.Kernel == "" {
		t.Errorf("of another guard: %+v", last)
	}
	r.Report(rewrite(1000, 1100*time.Millisecond))
	if len(rec.all) != 102 {
		t.Errorf("%d records after the second was over, want 102", len(rec.all))
	}
}

// TestFlood: of a hundred thousand violations, sent faster than they are recorded,
// every one is told, by its own record or by one that counts it.
func TestFlood(t *testing.T) {
	const many = 100_000
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	send := func(from, to uint64) {
		t.Helper()
		for i := from; i < to; i++ {
			if w.writeMSR(x86.MSRLSTAR, w.guest.Regs[0].LSTAR, 0xffff_ffff_c000_0000+i)&abi.VMEventFlagDeny == 0 {
				t.Fatalf("violation %d is not blocked", i)
			}
		}
	}
	// While the first is being recorded, most of the others find no room.
	w.events.mu.Lock()
	send(0, many/2)
	w.events.mu.Unlock()
	go func() {
		for range w.events.got {
		}
	}()
	send(many/2, many)
	if err := w.engine.Detach(t.Context(), w.info.ID); err != nil {
		t.Fatal(err)
	}
	var told, records, suppressed uint64
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	for _, r := range w.events.all {
		if r.Guard != string(policy.GuardSyscallEntry) || r.Action != journal.Blocked {
			t.Fatalf("%+v", r)
		}
		if suppressed += r.Detail.Suppressed; r.Detail.Suppressed == 0 {
			records++
			told += 1 + r.Detail.Repeats
		}
	}
	if told+suppressed != many || suppressed < many/2-1000 {
		t.Errorf("%d have a record, %d are counted by another: %d of %d (%d records)", told, suppressed, told+suppressed, many, records)
	}
}
