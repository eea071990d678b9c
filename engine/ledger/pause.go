package ledger

import (
	"errors"
	"fmt"
	"syscall"
)

// maxPauses is how many pause references there can be on a domain
// (__domain_pause_by_systemcontroller in xen/common/domain.c, 4.11 to 4.22).
const maxPauses = 255

// isPause reports whether an entry is a reference on the domain's pause count.
func (e *Entry) isPause() bool {
	return e.Op == OpPause || e.Op == OpHold || e.Op == OpGuardPause
}

// GuardPause takes one reference on the domain's pause count that is to stay until an
// admin says otherwise. why is for people. It does nothing where there is one.
func (l *Ledger) GuardPause(why string) error {
	if l.Has(OpGuardPause) {
		return nil
	}
	return l.pause(Entry{Op: OpGuardPause, Why: why})
}

// Explain says better why the domain is paused by [Ledger.GuardPause], of which there
// need not be one.
func (l *Ledger) Explain(why string) error {
	for i := range l.open {
		if e := &l.open[i]; e.Op == OpGuardPause && e.Why != why {
			e.Why = why
			return l.write(line{Phase: phaseExplained, Entry: &Entry{Seq: e.Seq, Op: e.Op, Why: why}})
		}
	}
	return nil
}

// GuardPaused returns why the domain is paused by [Ledger.GuardPause]; false if it
// is not.
func (l *Ledger) GuardPaused() (why string, paused bool) {
	for _, e := range l.open {
		if e.Op == OpGuardPause {
			return e.Why, true
		}
	}
	return "", false
}

// pause takes a reference and notes whether it is the only one.
func (l *Ledger) pause(e Entry) error {
	if n, others := l.pauses(); n > 0 {
		e.Others = others
	} else {
		var err error
		if e.Others, err = l.xen.Paused(l.domain); err != nil {
			return err
		}
	}
	return l.do(e, func() error { return l.xen.Pause(l.domain) })
}

// pauses counts the outstanding references, and says whether somebody else held
// the domain before the first of them.
func (l *Ledger) pauses() (n int, others bool) {
	for i := range l.open {
		if e := &l.open[i]; e.isPause() {
			others = others || n == 0 && e.Others
			n++
		}
	}
	return n, others
}

// Settle makes certain the one pause reference that may not be: the process that
// wrote the ledger died between the entry and Xen's answer to it, and Xen tells
// nobody how many references there are, nor whose they are. One that is dropped
// and was never taken lets a domain run that its toolstack is still building; one
// that is taken and never dropped leaves it standing for ever. After Settle the
// reference is taken, and can be dropped as any other.
//
// If somebody else held the domain, too, the count is set: it is raised to its
// limit, which Xen does tell, and lowered to what it should be. That takes the
// toolstack for one holder, which still holds it.
//
// A ledger that was loaded is to be settled before anything else is done with it.
func (l *Ledger) Settle() error {
	if l.uncertain == 0 {
		return nil
	}
	e, ok := l.entry(l.uncertain)
	if !ok {
		l.uncertain = 0
		return nil
	}
	paused, err := l.xen.Paused(l.domain)
	if err != nil {
		return err
	}
	want, others := l.pauses()
	if others {
		want++
	}
	switch {
	case !paused:
		// There is none at all: it is taken anew.
		if err := l.strike(e); err != nil {
			return err
		}
		l.uncertain = 0
		return l.pause(Entry{Op: e.Op, Why: e.Why})
	case want > 1:
		err = l.setPauses(want)
	}
	if err == nil {
		err = l.write(line{Phase: phaseSettled, Entry: &Entry{Seq: e.Seq, Op: e.Op}})
	}
	if err == nil {
		l.uncertain = 0
	}
	return err
}

// setPauses sets the domain's pause count. It is paused before and afterwards, and
// all the time in between.
func (l *Ledger) setPauses(n int) error {
	var err error
	for range maxPauses + 1 {
		if err = l.xen.Pause(l.domain); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.EOVERFLOW) {
		return fmt.Errorf("ledger: count the pauses of domain %d: %w", l.domain, errors.Join(err, errNoLimit))
	}
	for range maxPauses - n {
		if err := l.xen.Unpause(l.domain); err != nil {
			return err
		}
	}
	return nil
}

var errNoLimit = errors.New("their number has not come to its limit")

func (l *Ledger) entry(seq uint64) (Entry, bool) {
	for _, e := range l.open {
		if e.Seq == seq {
			return e, true
		}
	}
	return Entry{}, false
}
