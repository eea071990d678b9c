package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// DefaultDir is where ledgers live: in /run, since neither they nor the state
// they describe survive a reboot of the host.
const DefaultDir = "/run/hvi/ledger"

// maxFileSize bounds what Load reads back. A domain's ledger has a few dozen
// lines; the bound keeps a damaged file from filling dom0's memory.
const maxFileSize = 16 << 20

// Mutator is the part of Xen that a ledger changes; *mutate.Mutator is the
// real one. Every method acts on one domain and returns an error that names
// the call.
type Mutator interface {
	Pause(xen.DomID) error
	// Paused changes nothing: it reports whether anybody holds a pause.
	Paused(xen.DomID) (bool, error)
	Unpause(xen.DomID) error
	PopulatePage(xen.DomID, x86.GFN) error
	ReleasePage(xen.DomID, x86.GFN) error
	VMEventEnable(xen.DomID) (port uint32, err error)
	VMEventDisable(xen.DomID) error
	Monitor(xen.DomID, mutate.MonitorOp) error
	DeferRegisterWrites(xen.DomID) error
	SetMemAccess(dom xen.DomID, access xen.Access, first x86.GFN, n uint64) error
	SingleStep(dom xen.DomID, vcpu int, on bool) error
	SetPagingPool(dom xen.DomID, bytes uint64) error
	SetHVMParam(dom xen.DomID, param uint32, value uint64) error
	AltP2MSetState(dom xen.DomID, on bool) error
	CreateView(dom xen.DomID) (view uint16, err error)
	SetViewAccess(dom xen.DomID, view uint16, access xen.Access, first x86.GFN, n uint64) error
	SwitchView(dom xen.DomID, view uint16) error
	Remap(dom xen.DomID, view uint16, gfn, to x86.GFN) error
	Unmap(dom xen.DomID, view uint16, gfn x86.GFN) error
	SetMaxPages(dom xen.DomID, pages uint64) error
	ReturnMaxPages(dom xen.DomID, set, was uint64) error
	InjectEvent(xen.DomID, mutate.Event) error
	ShutDown(dom xen.DomID, reason uint32) error
}

// FileName returns the name of a domain's ledger in its directory.
func FileName(dom xen.DomID, uuid xen.UUID) string { return fmt.Sprintf("%d-%s.jsonl", dom, uuid) }

// Ledger is the list of what hvi has changed of one domain.
type Ledger struct {
	domain xen.DomID
	uuid   xen.UUID
	xen    Mutator
	path   string
	file   file
	size   int64 // of the file, whole lines
	room   int64 // that the file has on its disk, from its beginning on
	seq    uint64
	open   []Entry // outstanding, oldest first
	// uncertain is the pause reference, by its number, of which a dead process
	// did not come to say whether it took or dropped it; 0 if there is none.
	uncertain uint64
}

// Open starts the ledger of a domain in dir, which is created if need be. It
// fails if one with outstanding entries is already there: recover that first.
func Open(dir string, dom xen.DomID, uuid xen.UUID, m Mutator) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l := &Ledger{domain: dom, uuid: uuid, xen: m, path: filepath.Join(dir, FileName(dom, uuid))}
	f, err := create(l.path)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("ledger: %s is left from an earlier run: it must be recovered before domain %d is touched again: %w", l.path, dom, err)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l.file = f
	id := uint16(dom)
	err = l.reserve()
	if err == nil {
		err = l.write(line{V: formatVersion, Domain: &id, UUID: uuid.String()})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(l.path))
	}
	return l, nil
}

// Load reads the ledgers a dead process left in dir. A file whose last line is
// torn is read up to there: the line's mutation had not been made yet. Files
// that cannot be read are reported in the error; the others are returned.
func Load(dir string, m Mutator) ([]*Ledger, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	var out []*Ledger
	var errs []error
	for _, name := range names {
		l, err := load(name, m)
		if errors.Is(err, errUnborn) {
			// Its writer died before it had changed anything.
			errs = append(errs, os.Remove(name))
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ledger %s: %w", name, err))
			continue
		}
		out = append(out, l)
	}
	return out, errors.Join(errs...)
}

// Reopen reads the ledger of one domain that was closed with changes outstanding.
func Reopen(dir string, dom xen.DomID, uuid xen.UUID, m Mutator) (*Ledger, error) {
	l, err := load(filepath.Join(dir, FileName(dom, uuid)), m)
	if err != nil {
		return nil, fmt.Errorf("ledger of domain %d: %w", dom, err)
	}
	return l, nil
}

func load(path string, m Mutator) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("larger than %d bytes", maxFileSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l, err := parse(data)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.xen, l.path, l.file = m, path, f
	// What was torn off is overwritten by nothing: cut it.
	l.size = int64(bytes.LastIndexByte(data, '\n') + 1)
	if l.size == int64(len(data)) {
		return l, nil // to truncate would give the room back that its writer has taken
	}
	if err := f.Truncate(l.size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// errUnborn is a file that ends before its first line does.
var errUnborn = errors.New("empty")

// parse rebuilds the list of outstanding entries.
func parse(data []byte) (*Ledger, error) {
	l := &Ledger{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 64<<10)
	first := true
	var last line
	for n := 1; sc.Scan(); n++ {
		var ln line
		if err := json.Unmarshal(sc.Bytes(), &ln); err != nil {
			if !sc.Scan() && !bytes.HasSuffix(data, []byte("\n")) {
				if first {
					return nil, errUnborn
				}
				break // torn by the death of the writer
			}
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch {
		case first:
			if ln.V < firstVersion || ln.V > formatVersion {
				return nil, fmt.Errorf("format version %d, want one from %d to %d", ln.V, firstVersion, formatVersion)
			}
			if ln.Domain == nil {
				return nil, errors.New("line 1: no domid")
			}
			u, err := xen.ParseUUID(ln.UUID)
			if err != nil {
				return nil, fmt.Errorf("line 1: %w", err)
			}
			l.domain, l.uuid, first = xen.DomID(*ln.Domain), u, false
		case ln.Entry == nil:
			return nil, fmt.Errorf("line %d: no entry", n)
		case ln.Phase == phaseIntent && ln.Entry.Op == OpMonitor && ln.Entry.Monitor == nil:
			return nil, fmt.Errorf("line %d: no monitor operation", n)
		case ln.Phase == phaseIntent && ln.Entry.Op == OpSteps && ln.Entry.Count > maxVCPUs:
			return nil, fmt.Errorf("line %d: single steps of %d vCPUs", n, ln.Entry.Count)
		case ln.Phase == phaseIntent:
			l.open = append(l.open, *ln.Entry)
			l.seq = max(l.seq, ln.Entry.Seq)
		case ln.Phase == phaseUndoing, ln.Phase == phaseSettled:
		case ln.Phase == phaseExplained:
			for i := range l.open {
				if l.open[i].Seq == ln.Entry.Seq {
					l.open[i].Why = ln.Entry.Why
				}
			}
		case ln.Phase == phaseUndone:
			seq := ln.Entry.Seq
			l.open = slices.DeleteFunc(l.open, func(e Entry) bool { return e.Seq == seq })
		default:
			return nil, fmt.Errorf("line %d: unknown phase %q", n, ln.Phase)
		}
		last = ln
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if first {
		return nil, errUnborn
	}
	// One thing is done after the other, so of each but the last it is known that
	// it was done.
	if e := last.Entry; e != nil && (last.Phase == phaseUndoing || last.Phase == phaseIntent && e.isPause()) {
		l.uncertain = e.Seq
	}
	return l, nil
}

// Domain returns the domain the ledger is about.
func (l *Ledger) Domain() xen.DomID { return l.domain }

// UUID returns the domain's UUID: a domid alone may have been reused.
func (l *Ledger) UUID() xen.UUID { return l.uuid }

// Outstanding returns what has been changed and not undone, oldest first.
func (l *Ledger) Outstanding() []Entry { return slices.Clone(l.open) }

// Has reports whether a mutation of that kind is outstanding.
func (l *Ledger) Has(op Op) bool {
	return slices.ContainsFunc(l.open, func(e Entry) bool { return e.Op == op })
}

// Pause takes one reference on the domain's pause count.
func (l *Ledger) Pause() error { return l.pause(Entry{Op: OpPause}) }

// Hold takes one reference on the domain's pause count that is to stay when hvid
// ends.
func (l *Ledger) Hold() error { return l.pause(Entry{Op: OpHold}) }

// FailClosed notes that the domain may not run when hvid fails, until
// Undo(OpFailClosed).
func (l *Ledger) FailClosed() error {
	if l.Has(OpFailClosed) {
		return nil
	}
	return l.do(Entry{Op: OpFailClosed}, func() error { return nil })
}

// Unpause drops the newest pause reference taken.
func (l *Ledger) Unpause() error { return l.undoNewest(OpPause) }

// PopulateRingPage puts a frame for the ring into the guest's memory.
func (l *Ledger) PopulateRingPage(gfn x86.GFN) error {
	return l.do(Entry{Op: OpRingPage, GFN: uint64(gfn), Count: 1},
		func() error { return l.xen.PopulatePage(l.domain, gfn) })
}

// AdoptRingPage notes that a page lies behind the ring's frame already, put
// there by the domain builder or the guest, so that ReleaseRingPage takes it
// away.
func (l *Ledger) AdoptRingPage(gfn x86.GFN) error {
	return l.do(Entry{Op: OpRingPage, GFN: uint64(gfn), Count: 1}, func() error { return nil })
}

// ReleaseRingPage takes the ring's frame out of the guest's memory, where the
// guest could write it. Xen and our mapping keep the page itself.
func (l *Ledger) ReleaseRingPage() error { return l.undoNewest(OpRingPage) }

// EnableRing connects the monitor ring and returns Xen's port of its event
// channel.
func (l *Ledger) EnableRing() (port uint32, err error) {
	err = l.do(Entry{Op: OpRing}, func() error {
		port, err = l.xen.VMEventEnable(l.domain)
		return err
	})
	return port, err
}

// Monitor asks Xen for one kind of event.
func (l *Ledger) Monitor(op MonitorOp) error {
	op.On = true
	return l.do(Entry{Op: OpMonitor, Monitor: &op}, func() error { return l.xen.Monitor(l.domain, op) })
}

// Unmonitor stops a kind of event asked for by Monitor with the same
// operation. It does nothing when none is outstanding.
func (l *Ledger) Unmonitor(op MonitorOp) error {
	op.On = true
	for i := len(l.open) - 1; i >= 0; i-- {
		if e := l.open[i]; e.Op == OpMonitor && *e.Monitor == op {
			return l.undo(e)
		}
	}
	return nil
}

// OweResume notes that vCPUs may wait for an answer nobody will give, until
// Undo(OpResume) is told that they have been resumed.
func (l *Ledger) OweResume() error {
	return l.do(Entry{Op: OpResume}, func() error { return nil })
}

// DeferRegisterWrites makes Xen hold monitored register writes back until they
// are answered, so that they can be denied.
func (l *Ledger) DeferRegisterWrites() error {
	return l.do(Entry{Op: OpDeferWrites}, func() error { return l.xen.DeferRegisterWrites(l.domain) })
}

// Restrict permits only access to count frames from first on.
func (l *Ledger) Restrict(access xen.Access, first x86.GFN, count uint64) error {
	return l.do(Entry{Op: OpAccess, GFN: uint64(first), Count: count, Access: access},
		func() error { return l.xen.SetMemAccess(l.domain, access, first, count) })
}

// ErrNotRestricted says that there is no restriction of certain frames.
var ErrNotRestricted = errors.New("ledger: no such restriction is outstanding")

func (l *Ledger) notRestricted(first x86.GFN, count uint64) error {
	return fmt.Errorf("%d frames from %v on of domain %d: %w", count, first, l.domain, ErrNotRestricted)
}

// Unrestrict undoes the newest [Ledger.Restrict] of just these frames.
func (l *Ledger) Unrestrict(first x86.GFN, count uint64) error {
	for i := len(l.open) - 1; i >= 0; i-- {
		if e := l.open[i]; e.Op == OpAccess && e.GFN == uint64(first) && e.Count == count {
			return l.undo(e)
		}
	}
	return l.notRestricted(first, count)
}

// Adjust permits other access to frames that a [Ledger.Restrict] has restricted, until
// the next Adjust. It has no entry of its own: to undo the restriction undoes it. It fails with
// ErrNotRestricted where there is none.
func (l *Ledger) Adjust(access xen.Access, first x86.GFN, count uint64) error {
	if !slices.ContainsFunc(l.open, func(e Entry) bool {
		return e.Op == OpAccess && uint64(first) >= e.GFN && uint64(first)+count <= e.GFN+e.Count
	}) {
		return l.notRestricted(first, count)
	}
	return l.xen.SetMemAccess(l.domain, access, first, count)
}

// GrowPagingPool gives a domain more memory for its page tables. was is the
// size from before, in bytes, to which it returns.
func (l *Ledger) GrowPagingPool(was, bytes uint64) error {
	return l.do(Entry{Op: OpPagingPool, Bytes: was}, func() error { return l.xen.SetPagingPool(l.domain, bytes) })
}

// maxVCPUs is more vCPUs than Xen gives any domain (HVM_MAX_VCPUS is 128 up to
// 4.22): a larger number is no number of vCPUs, and to go through it would take
// for ever.
const maxVCPUs = 4096

// EnableSteps lets answers ask for single steps on a domain's vCPUs, of which
// there is at least one.
func (l *Ledger) EnableSteps(vcpus int) error {
	if vcpus < 1 || vcpus > maxVCPUs {
		return fmt.Errorf("ledger: single steps for the %d vCPUs of domain %d: it has between 1 and %d", vcpus, l.domain, maxVCPUs)
	}
	return l.do(Entry{Op: OpSteps, Count: uint64(vcpus)}, func() error { return l.xen.Monitor(l.domain, singleStep) })
}

// StopSteps takes every vCPU out of a step that it may be in. Steps stay possible.
func (l *Ledger) StopSteps(vcpus int) error {
	var errs []error
	for v := range vcpus {
		errs = append(errs, l.xen.SingleStep(l.domain, v, false))
	}
	return errors.Join(errs...)
}

// singleStep is the event that ends a step.
var singleStep = MonitorOp{Event: abi.MonitorEventSingleStep, On: true}

// AllowViews has the control domain, and nobody else, use views of a domain
// whose toolstack did not say. Xen lets it be said once; it stays so as long as
// the domain is there.
func (l *Ledger) AllowViews() error {
	return l.do(Entry{Op: OpAllowViews}, func() error {
		return l.xen.SetHVMParam(l.domain, abi.HVMParamAltP2M, abi.AltP2MModeExternal)
	})
}

// EnableViews switches a domain's views on.
func (l *Ledger) EnableViews() error {
	return l.do(Entry{Op: OpViews}, func() error { return l.xen.AltP2MSetState(l.domain, true) })
}

// errNoViews is a programming error: what is done to views is undone with them.
var errNoViews = errors.New("ledger: the domain's views are not switched on")

// CreateView makes a view that permits everything. Like all that is done to a
// view it has no entry of its own: to switch the views off undoes it.
func (l *Ledger) CreateView() (view uint16, err error) {
	if !l.Has(OpViews) {
		return 0, errNoViews
	}
	return l.xen.CreateView(l.domain)
}

// RestrictView permits only access to count frames from first on, in one view.
func (l *Ledger) RestrictView(view uint16, access xen.Access, first x86.GFN, count uint64) error {
	if !l.Has(OpViews) {
		return errNoViews
	}
	return l.xen.SetViewAccess(l.domain, view, access, first, count)
}

// SwitchView puts all vCPUs into a view.
func (l *Ledger) SwitchView(view uint16) error {
	if !l.Has(OpViews) {
		return errNoViews
	}
	return l.xen.SwitchView(l.domain, view)
}

// Remap has a frame lead to the page behind another in one view.
func (l *Ledger) Remap(view uint16, gfn, to x86.GFN) error {
	if !l.Has(OpViews) {
		return errNoViews
	}
	return l.xen.Remap(l.domain, view, gfn, to)
}

// Unmap has a frame lead to its own page again in one view.
func (l *Ledger) Unmap(view uint16, gfn x86.GFN) error {
	if !l.Has(OpViews) {
		return errNoViews
	}
	return l.xen.Unmap(l.domain, view, gfn)
}

// RaiseMaxPages lets a domain have more pages than was, its limit so far.
func (l *Ledger) RaiseMaxPages(was, pages uint64) error {
	return l.do(Entry{Op: OpMaxPages, Bytes: was * x86.PageSize, Count: pages}, func() error { return l.xen.SetMaxPages(l.domain, pages) })
}

// PopulateShadow puts a page of ours, zeroed, into the guest's memory.
func (l *Ledger) PopulateShadow(gfn x86.GFN) error {
	return l.do(Entry{Op: OpShadow, GFN: uint64(gfn), Count: 1}, func() error { return l.xen.PopulatePage(l.domain, gfn) })
}

// ReturnBreakpoint has a vCPU that waits for an answer take the breakpoint
// exception that was reported. That leaves nothing behind that could be undone,
// so it may be called by whoever serves the ring.
func (l *Ledger) ReturnBreakpoint(vcpu uint32, insnLen uint8) error {
	const vector = 3
	return l.xen.InjectEvent(l.domain, mutate.Event{VCPU: int(vcpu), Vector: vector, Type: abi.DMOpEventSWExc, InsnLen: insnLen})
}

// ShutDown stops a domain for good, so that its toolstack does with it what its
// configuration says of a guest that has crashed. Nothing undoes that. If there are
// doubts whether it was done, it may be done again.
func (l *Ledger) ShutDown() error { return l.xen.ShutDown(l.domain, abi.ShutdownCrash) }

// Undo undoes every outstanding mutation of the given kinds, newest first. It
// does not stop at a failure; what failed stays outstanding and can be undone
// again.
func (l *Ledger) Undo(ops ...Op) error {
	var errs []error
	for _, e := range slices.Backward(slices.Clone(l.open)) {
		if slices.Contains(ops, e.Op) {
			errs = append(errs, l.undo(e))
		}
	}
	return errors.Join(errs...)
}

// Forget strikes every outstanding mutation without touching Xen: the domain
// is gone and its state with it.
func (l *Ledger) Forget() error {
	var errs []error
	for _, e := range slices.Backward(slices.Clone(l.open)) {
		errs = append(errs, l.strike(e))
	}
	return errors.Join(errs...)
}

// Close ends the ledger: the file is removed when nothing is outstanding, and
// kept for recovery otherwise.
func (l *Ledger) Close() error {
	err := l.file.Close()
	if len(l.open) > 0 {
		return errors.Join(err, fmt.Errorf("ledger: %d changes of domain %d are not undone; %s is kept for recovery", len(l.open), l.domain, l.path))
	}
	return errors.Join(err, os.Remove(l.path))
}

// Leave ends the ledger as it is: what is outstanding stays in Xen, and the file
// stays for whoever takes over or recovers.
func (l *Ledger) Leave() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("ledger %s: %w", l.path, err)
	}
	return nil
}

// do journals an entry, then makes the mutation. When Xen refuses it the entry
// is struck again: nothing has changed, but for a range of pages of which a part
// may be restricted, so that is lifted first.
func (l *Ledger) do(e Entry, mutate func() error) error {
	if err := l.reserve(); err != nil && !e.needsNoRoom() {
		return err
	}
	l.seq++
	e.Seq = l.seq
	if err := l.write(line{Phase: phaseIntent, Entry: &e}); err != nil {
		return err
	}
	l.open = append(l.open, e)
	if err := mutate(); err != nil {
		if e.Op == OpAccess {
			return errors.Join(err, l.undo(e))
		}
		return errors.Join(err, l.strike(e))
	}
	return nil
}

func (l *Ledger) undoNewest(op Op) error {
	for i := len(l.open) - 1; i >= 0; i-- {
		if l.open[i].Op == op {
			return l.undo(l.open[i])
		}
	}
	return fmt.Errorf("ledger: no %s of domain %d is outstanding", op, l.domain)
}

func (l *Ledger) undo(e Entry) error {
	var err error
	switch e.Op {
	case OpPause, OpHold, OpGuardPause:
		// An entry that can't be written must not keep a guest from running.
		_ = l.write(line{Phase: phaseUndoing, Entry: &Entry{Seq: e.Seq, Op: e.Op}})
		err = l.xen.Unpause(l.domain)
	case OpRingPage:
		err = l.xen.ReleasePage(l.domain, x86.GFN(e.GFN))
	case OpRing:
		err = l.xen.VMEventDisable(l.domain)
	case OpMonitor:
		err = l.xen.Monitor(l.domain, e.Monitor.Inverse())
	case OpViews:
		err = l.xen.AltP2MSetState(l.domain, false)
	case OpSteps:
		err = l.endSteps(int(e.Count))
	case OpPagingPool:
		err = l.xen.SetPagingPool(l.domain, e.Bytes)
	case OpMaxPages:
		err = l.xen.ReturnMaxPages(l.domain, e.Count, e.Bytes/x86.PageSize)
	case OpShadow:
		err = l.xen.ReleasePage(l.domain, x86.GFN(e.GFN))
	case OpDeferWrites, OpResume, OpAllowViews, OpFailClosed:
		// Goes with the ring; is done by whoever says so; stays, and changes
		// nothing by itself; is but a word.
	case OpAccess:
		err = l.xen.SetMemAccess(l.domain, xen.AccessRWX, x86.GFN(e.GFN), e.Count)
	default:
		err = fmt.Errorf("ledger: unknown operation %q", e.Op)
	}
	if err != nil && !neverWas(e.Op, err) {
		return err
	}
	return l.strike(e)
}

// endSteps takes every vCPU out of a step that it may be in: the processor's
// trap flag would stay set for ever once nobody is told of steps.
func (l *Ledger) endSteps(vcpus int) error {
	err := l.StopSteps(vcpus)
	if e := l.xen.Monitor(l.domain, singleStep.Inverse()); e != nil && !neverWas(OpMonitor, e) {
		err = errors.Join(err, e)
	}
	return err
}

// neverWas reports whether Xen refused an undo because there is nothing to
// undo: the process died between the intent and the mutation, or somebody else
// has undone it.
func neverWas(op Op, err error) bool {
	switch op {
	case OpMonitor:
		return errors.Is(err, syscall.EEXIST) || errors.Is(err, xen.ErrNoRing)
	case OpAccess:
		// Without a listener Xen lifts a restriction at the first violation.
		return errors.Is(err, xen.ErrNoRing)
	case OpPause, OpHold, OpGuardPause:
		return errors.Is(err, syscall.EINVAL) // nobody holds a pause
	case OpRing:
		return errors.Is(err, xen.ErrNoRing)
	case OpViews:
		return errors.Is(err, xen.ErrNotSupported) || errors.Is(err, syscall.EINVAL)
	case OpRingPage, OpShadow:
		return errors.Is(err, xen.ErrNoPage)
	}
	return false
}

func (l *Ledger) strike(e Entry) error {
	l.open = slices.DeleteFunc(l.open, func(o Entry) bool { return o.Seq == e.Seq })
	return l.write(line{Phase: phaseUndone, Entry: &Entry{Seq: e.Seq, Op: e.Op}})
}

// write appends one line and waits until it is durable.
func (l *Ledger) write(ln line) error {
	data, err := json.Marshal(ln)
	n := 0
	if err == nil {
		n, err = l.file.Write(append(data, '\n'))
	}
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		if n > 0 {
			// Half a line would spoil the next one.
			err = errors.Join(err, l.file.Truncate(l.size))
			l.room = l.size
		}
		return fmt.Errorf("ledger %s: %w", l.path, err)
	}
	l.size += int64(n)
	return nil
}
