package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
)

// A guard's action may be to kill: the violation is blocked, and the process that made
// it is ended, by a SIGKILL that is written into the guest's memory and that the guest's
// own kernel acts upon before any user code of the process runs again. No code is put
// into the guest.
//
// The ring goroutine holds the vCPU at the violation, so the task stands still on it, and
// hands over to the session's goroutine. That pauses the domain for a moment, so that
// nobody is at the signals of the process, writes, lets it go, and gives the answer.
//
// What is written has no entry in the ledger: it is nothing of Xen's, and there is
// nothing to undo. It is what the guest's kernel itself writes for kill -9; of a hvid
// that dies half-way, either the SIGKILL waits and is found at the next signal, or it
// doesn't. To write it again changes nothing.

const (
	// killTries and killPause bound how often, and how far apart, a process is tried
	// to be killed while another vCPU is at its signals.
	killTries = 20
	killPause = time.Millisecond
)

// kills delivers the violations for which a process is to be killed.
func (s *Session) kills() <-chan guard.Evidence {
	if s.set == nil {
		return nil
	}
	return s.set.Kills()
}

// kill ends the process that made a violation, has its vCPU go on, and records it.
func (s *Session) kill(e *guard.Evidence) {
	if !e.HasTask {
		e.Fate = &guard.Fate{Spared: "its task could not be read"}
	} else if e.Fate = s.fateOf(&e.Task); e.Fate == nil {
		e.Fate = s.endTask(e)
	}
	// First the record, as long as the task and its parents are there to be read.
	s.report(e)
	s.server.Release(e.VCPU, e.Refusal())
}

// killRest does so for all that wait.
func (s *Session) killRest() {
	for {
		select {
		case e := <-s.kills():
			s.kill(&e)
		default:
			return
		}
	}
}

// fateOf returns what is decided of a task.
func (s *Session) fateOf(t *linux.Task) *guard.Fate {
	for _, f := range s.fates {
		if f.Task.Is(t) {
			return f
		}
	}
	return nil
}

// endTask kills the process of a task that is held at its violation, and remembers what
// came of it, unless another attempt may end otherwise.
func (s *Session) endTask(e *guard.Evidence) *guard.Fate {
	f := &guard.Fate{Task: e.Task}
	var err error
	for try := range killTries {
		if try > 0 {
			<-time.After(killPause) // its vCPU is held: others go on
		}
		if err = s.sendKill(e); !errors.Is(err, linux.ErrSignalsLocked) {
			break
		}
	}
	var spared *linux.SparedError
	switch {
	case err == nil:
		f.Killed = true
		s.log.Warn("a process is killed for a violation", "guard", string(e.Guard), "pid", e.Task.PID, "tgid", e.Task.TGID)
	case errors.As(err, &spared):
		f.Spared = spared.Reason
	default:
		f.Spared = err.Error()
		s.log.Error("kill the process of a violation", "guard", string(e.Guard), "pid", e.Task.PID, "err", err)
		return f
	}
	if len(s.fates) == guard.MaxFates {
		s.fates = s.fates[1:]
	}
	s.fates = append(s.fates[:len(s.fates):len(s.fates)], f)
	s.set.UseFates(s.fates)
	return f
}

// sendKill writes the SIGKILL, with the domain paused.
func (s *Session) sendKill(e *guard.Evidence) error {
	if err := s.ledger.Pause(); err != nil {
		return err
	}
	changes, err := s.kernel.FatalSignal(&e.Regs, &e.Task)
	for _, c := range changes {
		if err == nil {
			err = s.setBits(c)
		}
	}
	return errors.Join(err, s.ledger.Unpause())
}

// setBits changes the guest's memory. Which page lies behind an address is for the
// guest to say, so pages that are guarded are left alone: an attacker might have us
// write there what he can't.
func (s *Session) setBits(c linux.SetBits) (err error) {
	as := s.kernel.AddressSpace()
	at, err := as.Translate(c.Addr)
	if err != nil {
		return &linux.SparedError{Reason: err.Error()}
	}
	gfn := at.Phys.GFN()
	if s.set.Watches(gfn) {
		return &linux.SparedError{Reason: fmt.Sprintf("its task_struct lies at %v, in memory that is guarded", at.Phys)}
	}
	page, err := s.hv.MapPage(s.info.ID, gfn)
	if err != nil {
		return fmt.Errorf("map the page at %v: %w", at.Phys, err)
	}
	defer func() { err = errors.Join(err, page.Close()) }()
	off := c.Addr & x86.PageMask
	word := page.Bytes()[off : off+8]
	binary.LittleEndian.PutUint64(word, binary.LittleEndian.Uint64(word)|c.Bits)
	return nil
}
