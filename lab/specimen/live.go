package specimen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/xen-hvi/hvi/lab/machine"
	"github.com/xen-hvi/hvi/lab/witness"
)

// Live is a guest that runs, and whose memory can be read meanwhile. Close ends
// it. It belongs to one goroutine.
type Live struct {
	Variant Variant
	Release string // uname -r
	Boot    time.Duration

	run     string // the machine's folder
	release func() // gives its slot back
	guest   *machine.Machine
	monitor *machine.QMP
	control *control
	stop    context.CancelFunc

	// disks are those that no report was written to yet.
	disks []disk
	// perCPU is what each vCPU's GS base is while it runs the kernel, the same
	// from boot on, and processors what QEMU's monitor doesn't show.
	perCPU     []uint64
	processors []witness.Processor
	// lime is the disk for [Live.LiME].
	lime disk
}

// disk is a guest's name of one and the file that it is.
type disk struct{ name, file string }

// maxReports is how often a guest that runs can be asked for a report.
const maxReports = 3

// Start boots a guest that stays until it is closed, or ctx ends. Of v, Load must
// be empty: [Live.Load] does that.
func (m Maker) Start(ctx context.Context, v Variant) (*Live, error) {
	w, err := m.Builder.Witness(ctx, v.Kernel)
	if err != nil {
		return nil, err
	}
	q, err := m.Builder.QEMU(ctx)
	if err != nil {
		return nil, err
	}
	l := &Live{Variant: v, Release: w.Release}
	if l.release, err = m.place(ctx); err != nil {
		return nil, err
	}
	fail := func(err error) (*Live, error) {
		log := ""
		if l.guest != nil {
			log = "\n" + l.guest.Log()
		}
		l.Close()
		return nil, fmt.Errorf("specimen %v: %w%s", v, err, log)
	}
	if l.run, err = os.MkdirTemp("", "hvi-lab-"); err != nil {
		return fail(err)
	}
	pc := v.pc(w, q)
	pc.Dir, pc.Shared = l.run, true
	for i := range maxReports {
		d := disk{fmt.Sprintf("/dev/vd%c", 'a'+i), filepath.Join(l.run, fmt.Sprintf("report-%d", i))}
		if err := sparse(d.file, reportSize); err != nil {
			return fail(err)
		}
		pc.Disks, l.disks = append(pc.Disks, d.file), append(l.disks, d)
	}
	if m.LiME {
		if err := m.addLiME(ctx, l, &pc); err != nil {
			return fail(err)
		}
	}
	ctx, l.stop = context.WithCancel(ctx)
	begun := time.Now()
	if l.guest, err = machine.Start(ctx, pc.Command(), machine.Output{Console: &lines{show: m.show}, Results: io.Discard}); err != nil {
		return fail(err)
	}
	conn, err := machine.Dial(ctx, pc.Control())
	if err != nil {
		return fail(err)
	}
	l.control = &control{conn: conn, in: bufio.NewReader(conn)}
	if l.monitor, err = machine.DialQMP(ctx, pc.Monitor()); err != nil {
		return fail(err)
	}
	if _, err := l.control.answer(ctx, "boot", bootLimit); err != nil {
		return fail(err)
	}
	l.Boot = time.Since(begun)
	if _, err := l.control.do(ctx, "settle"); err != nil {
		return fail(err)
	}
	if err := l.findPerCPU(ctx); err != nil {
		return fail(err)
	}
	return l, nil
}

// Close ends the guest.
func (l *Live) Close() {
	if l.monitor != nil {
		_ = l.monitor.Close()
	}
	if l.control != nil {
		_ = l.control.conn.Close()
	}
	if l.guest != nil {
		l.guest.Kill()
	}
	if l.stop != nil {
		l.stop()
	}
	_ = os.RemoveAll(l.run)
	l.release()
}

// Memory returns a file that is the guest's memory, to be opened before Close.
func (l *Live) Memory() (string, error) { return l.guest.Memory() }

// Exited is closed when the guest has ended.
func (l *Live) Exited() <-chan struct{} { return l.guest.Exited() }

// Run has a shell in the guest do something and returns what it printed, its
// lines joined by "; ".
func (l *Live) Run(ctx context.Context, command string) (string, error) {
	return l.control.do(ctx, "run "+command)
}

// Load loads a module of those that are built for this kernel, "NAME ARGUMENT...".
func (l *Live) Load(ctx context.Context, module string) error {
	_, err := l.control.do(ctx, "load "+module)
	return err
}

// Report has the guest write down what it is made of, three times at most.
func (l *Live) Report(ctx context.Context) (witness.Report, error) {
	if len(l.disks) == 0 {
		return nil, errors.New("the guest has no disk left for a report")
	}
	d := l.disks[0]
	l.disks = l.disks[1:]
	if _, err := l.control.do(ctx, "report "+d.name); err != nil {
		return nil, err
	}
	r, err := readReport(d.file)
	if err != nil {
		return nil, err
	}
	state, err := r.State()
	if err != nil {
		return nil, err
	}
	l.processors = state.Processors
	return r, nil
}

// findPerCPU asks for what only a core file tells: the GS base that a vCPU
// doesn't use at the moment.
func (l *Live) findPerCPU(ctx context.Context) (err error) {
	if err := l.monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.monitor.Execute(ctx, "cont", nil, nil)) }()
	core := filepath.Join(l.run, "registers.elf")
	args := map[string]any{"paging": false, "protocol": "file:" + core, "begin": 0, "length": 1 << 12}
	if err := l.monitor.Execute(ctx, "dump-guest-memory", args, nil); err != nil {
		return err
	}
	defer os.Remove(core)
	regs, err := l.shown(ctx)
	if err != nil {
		return err
	}
	other, err := kernelGSBases(core)
	if err != nil {
		return err
	}
	if len(other) != len(regs) {
		return fmt.Errorf("QEMU's monitor shows %d vCPUs and its core file %d", len(regs), len(other))
	}
	for i, r := range regs {
		// A vCPU that swaps them at this very moment may have it in either.
		area := max(r.GSBase, other[i])
		if area < kernelHalf {
			return fmt.Errorf("vCPU %d has the GS bases %#x and %#x, and neither is the kernel's", i, r.GSBase, other[i])
		}
		l.perCPU = append(l.perCPU, area)
	}
	return nil
}

// kernelHalf is where the kernel's addresses begin.
const kernelHalf = 1 << 63

// Registers returns the vCPUs' registers of this moment. The guest is not
// stopped: what one instruction changes may be seen half, as a processor that
// was interrupted never is.
func (l *Live) Registers(ctx context.Context) ([]Registers, error) {
	regs, err := l.shown(ctx)
	if err != nil {
		return nil, err
	}
	if len(regs) != len(l.perCPU) {
		return nil, fmt.Errorf("QEMU's monitor shows %d vCPUs of %d", len(regs), len(l.perCPU))
	}
	for i := range regs {
		regs[i].addOther(l.perCPU[i])
		if i < len(l.processors) {
			regs[i].add(l.processors[i])
		}
	}
	return regs, nil
}

// addOther fills in the GS base that SWAPGS would bring, of a vCPU whose kernel
// uses perCPU: that, where the vCPU doesn't use it now.
func (r *Registers) addOther(perCPU uint64) {
	if r.GSBase != perCPU {
		r.KernelGSBase = perCPU
	}
}

// shown are the registers that QEMU's monitor shows.
func (l *Live) shown(ctx context.Context) ([]Registers, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, monitorLimit, errors.New("QEMU's monitor doesn't answer"))
	defer cancel()
	text, err := l.monitor.Human(ctx, "info registers -a")
	if err != nil {
		return nil, err
	}
	return parseRegisters(text)
}

// monitorLimit bounds one question to the monitor, on a busy host.
const monitorLimit = time.Minute
