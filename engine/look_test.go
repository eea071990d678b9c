package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// unprotected is a guest that runs, for which nothing is declared.
func unprotected(t *testing.T, spec xentest.Spec) *world {
	t.Helper()
	w := newWorld(t, xentest.Config{}, spec)
	w.found = false
	w.run()
	w.engine.Gate(w.info, true)
	w.engine.Appeared(w.info, "web")
	return w
}

// run makes the guest's kernel one that has booted.
func (w *world) run() {
	w.setState(linuxtest.Running)
	w.copyMemory()
	for i, r := range w.guest.Regs {
		w.dom.SetRegisters(i, r)
	}
}

// kernel looks into the guest and returns its kernel.
func (w *world) kernel() *linux.Kernel {
	w.t.Helper()
	var k *linux.Kernel
	err := w.engine.Look(w.t.Context(), 7, func(r *linux.Reader) error {
		k = r.Kernel()
		running, err := k.Running()
		if err == nil && !running {
			err = errors.New("the guest's memory says that it boots")
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// TestLookChangesNothing: a guest that is looked into, protected or not, is not
// paused, nothing of Xen's state is changed, and nothing stays mapped.
func TestLookChangesNothing(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) *world{
		"unprotected": func(t *testing.T) *world { return unprotected(t, xentest.Spec{}) },
		"protected": func(t *testing.T) *world {
			w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
			w.appear()
			w.boot()
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := make(t)
			mapped, pauses := w.dom.MappedPages(), w.dom.Pauses()
			w.xen.Log()
			first := w.kernel()
			if first.Base != w.guest.Base || first.Banner != linuxtest.Banner {
				t.Errorf("found %q at %v", first.Banner, first.Base)
			}
			if second := w.kernel(); second.Symbols != first.Symbols {
				t.Error("the kernel was identified again")
			}
			if got := w.dom.MappedPages(); got != mapped {
				t.Errorf("%d pages are mapped afterwards, %d were before", got, mapped)
			}
			if got := w.dom.Pauses(); got != pauses {
				t.Errorf("%d pauses, %d before", got, pauses)
			}
			for _, call := range w.xen.Log() {
				if !strings.HasPrefix(call, "domctl(getdomaininfo)") && !strings.HasPrefix(call, "domctl(gethvmcontext_partial)") && !strings.HasPrefix(call, "map") {
					t.Errorf("looking called %s", call)
				}
			}
		})
	}
}

// TestLookFindsAnotherKernel: what was found before is not believed when the
// guest has started another kernel.
func TestLookFindsAnotherKernel(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	before := w.kernel()
	w.guest = linuxtest.New(linuxtest.Config{Base: 0xffff_ffff_9a00_0000})
	w.run()
	after := w.kernel()
	if after.Symbols == before.Symbols || after.Base != w.guest.Base {
		t.Errorf("after a kexec the kernel is at %v, it was at %v; want %v", after.Base, before.Base, w.guest.Base)
	}
	banner := strings.Replace(linuxtest.Banner, "#1", "#2", 1)
	w.guest = linuxtest.New(linuxtest.Config{Base: 0xffff_ffff_9a00_0000, Banner: banner})
	w.run()
	if k := w.kernel(); k.Banner != banner {
		t.Errorf("after another kexec the kernel is %q", k.Banner)
	}
}

// TestLookFollowsTheRegisters: the process whose page tables a vCPU used may have
// ended before they are followed. That is no other kernel.
func TestLookFollowsTheRegisters(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	asked := 0
	outdated := func(times int) {
		asked = 0
		w.registers = func(r x86.Registers) x86.Registers {
			if asked++; asked <= times {
				r.CR3 = 0x3000 // a page of zeros
			}
			return r
		}
	}
	outdated(1)
	first := w.kernel()
	if asked != 2 {
		t.Errorf("the registers were read %d times until the kernel was found", asked)
	}
	outdated(2)
	if again := w.kernel(); again.Symbols != first.Symbols || asked != 3 {
		t.Errorf("the kernel was identified again, or the registers were read %d times", asked)
	}
	outdated(100)
	var id *linux.IdentifyError
	if err := w.engine.Look(t.Context(), 7, func(*linux.Reader) error { return nil }); !errors.As(err, &id) || asked != 3 {
		t.Errorf("registers that lead nowhere, read %d times: %v", asked, err)
	}
}

func TestLookRefuses(t *testing.T) {
	nothing := func(*linux.Reader) error { return nil }
	t.Run("a PV guest", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{NoHAP: true})
		if err := w.engine.Look(t.Context(), 7, nothing); !errors.Is(err, engine.ErrPVGuest) {
			t.Error(err)
		}
	})
	t.Run("a guest that boots", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{})
		early := w.guest.Regs[0]
		early.LSTAR = 0
		w.dom.SetRegisters(0, early)
		if err := w.engine.Look(t.Context(), 7, nothing); !errors.Is(err, engine.ErrNoKernelYet) {
			t.Error(err)
		}
	})
	t.Run("a guest that has not begun", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{})
		w.dom.SetOnline(0, false)
		if err := w.engine.Look(t.Context(), 7, nothing); !errors.Is(err, engine.ErrNoKernelYet) {
			t.Error(err)
		}
	})
	t.Run("another system", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{})
		other := w.guest.Regs[0]
		other.LSTAR = 0xffff_f800_0000_1000
		w.dom.SetRegisters(0, other)
		var id *linux.IdentifyError
		if err := w.engine.Look(t.Context(), 7, nothing); !errors.As(err, &id) {
			t.Error(err)
		}
	})
	t.Run("no such domain", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{})
		if err := w.engine.Look(t.Context(), 8, nothing); !errors.Is(err, xen.ErrNoDomain) {
			t.Error(err)
		}
	})
	t.Run("wrong arguments", func(t *testing.T) {
		w := unprotected(t, xentest.Spec{})
		q, _ := inspect.Find(inspect.Maps)
		var wrong *inspect.ArgumentError
		if _, err := w.engine.Ask(t.Context(), 7, q, inspect.Args{}); !errors.As(err, &wrong) {
			t.Error(err)
		}
	})
}

// TestCheckLooksAgain: what is suspicious in a guest that runs counts only if it
// is still so after a while, with its registers read anew.
func TestCheckLooksAgain(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	w.kernel()
	odd := func(between func()) (found []string) {
		bent := w.guest.Regs[0]
		bent.LSTAR++
		w.dom.SetRegisters(0, bent)
		err := w.engine.Look(t.Context(), 7, func(r *linux.Reader) error {
			between()
			v, err := r.Check()
			for _, f := range v.Findings {
				if f.Check == "entry-points" {
					found = append(found, string(f.Object))
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := odd(func() { w.dom.SetRegisters(0, w.guest.Regs[0]) }); len(found) != 0 {
		t.Errorf("an entry point that was elsewhere for a moment: %q", found)
	}
	if found := odd(func() {}); len(found) != 1 {
		t.Errorf("an entry point that stays elsewhere: %q", found)
	}
}

// readOn reads until that fails, which it must.
func readOn(r *linux.Reader) error {
	for {
		if _, err := r.Kernel().SystemState(); err != nil {
			return nil // a reader may take it for a hole and go on
		}
	}
}

// TestLookEndsWithTheDomain: a reading doesn't keep a domain that is destroyed.
func TestLookEndsWithTheDomain(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	err := w.engine.Look(t.Context(), 7, func(r *linux.Reader) error {
		w.dom.Kill()
		w.engine.Gone(w.info)
		return readOn(r)
	})
	if !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("looking at a domain that goes: %v", err)
	}
	if !w.dom.Reap() {
		t.Errorf("the domain stays a zombie: %d pages are mapped", w.dom.MappedPages())
	}
}

func TestLookEndsWithItsContext(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	ctx, cancel := context.WithCancel(t.Context())
	err := w.engine.Look(ctx, 7, func(r *linux.Reader) error {
		cancel()
		return readOn(r)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("looking without a context: %v", err)
	}
	if n := w.dom.MappedPages(); n != 0 {
		t.Errorf("%d pages are mapped", n)
	}
}

// TestLooksAreBounded: who comes when too many are looked into waits.
func TestLooksAreBounded(t *testing.T) {
	w := unprotected(t, xentest.Spec{})
	const most = 4
	in, out, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	for range most {
		go func() {
			ended <- w.engine.Look(t.Context(), 7, func(*linux.Reader) error {
				in <- struct{}{}
				<-out
				return nil
			})
		}()
	}
	for range most {
		<-in
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.engine.Look(ctx, 7, func(*linux.Reader) error { return nil }); !errors.Is(err, engine.ErrManyReaders) {
		t.Errorf("one too many: %v", err)
	}
	close(out)
	for range most {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	w.kernel()
}

// TestSampledAtOnce has Xen be asked once for all guests how long they have run, and not
// at all if none is protected.
func TestSampledAtOnce(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	asked := 0
	list := func() ([]xen.DomainInfo, error) {
		asked++
		return w.host.Domains()
	}
	w.engine.SampleForTest(list)
	if asked != 0 {
		t.Errorf("asked %d times with no guest", asked)
	}
	w.appearRunning()
	w.engine.SampleForTest(list)
	if asked != 1 {
		t.Errorf("asked %d times for one guest", asked)
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.engine.SampleForTest(list)
	if asked != 1 {
		t.Errorf("asked %d times after it was let go of", asked)
	}
}
