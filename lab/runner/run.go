package runner

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/lab/boot"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/kernel"
	"github.com/xen-hvi/hvi/lab/machine"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

// Runner runs scenarios.
type Runner struct {
	Builder *image.Builder
	Out     string // folder for the results
	// Show receives live output: the console's lines with source "", the lab's
	// own with "lab", and a scenario's with its name. It may be called from
	// several goroutines.
	Show func(emulator scenario.Emulator, source, line string)
}

// Run runs scenarios, those that can share a machine in as few boots as is quick and those
// that need none in this process, up to two groups at a time and in the order of
// list, and returns the results in that order too. An error says why there are
// none; a failed scenario is a result.
func (r *Runner) Run(ctx context.Context, list []scenario.Scenario) ([]*Result, error) {
	start := time.Now()
	groups := group(list)
	built, err := r.prepare(ctx, list)
	if err != nil {
		return nil, err
	}
	images := time.Since(start)

	results := map[string]*Result{}
	var mu sync.Mutex
	var fails []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, machine.MaxMachines)
	for _, g := range groups {
		slots <- struct{}{} // here, so that groups begin in their order
		wg.Go(func() {
			defer func() { <-slots }()
			run := func() ([]*Result, error) { return r.boot(ctx, built, g, images) }
			if g[0].Emulator == scenario.Host {
				run = func() ([]*Result, error) { return r.host(ctx, g) }
			}
			rs, err := run()
			mu.Lock()
			defer mu.Unlock()
			fails = append(fails, err)
			for _, x := range rs {
				results[x.title] = x
			}
		})
	}
	wg.Wait()
	var out []*Result
	for _, s := range list {
		if x := results[s.Title()]; x != nil {
			out = append(out, x)
		}
	}
	return out, errors.Join(fails...)
}

// built is what the machines of a run are made of.
type built struct {
	images map[string]image.Images // by the release of Xen, as scenarios name it
	debian image.Debian
	guest  string // the archive with the guests' system
}

// on returns the builder for a release of Xen.
func (r *Runner) on(release string) *image.Builder {
	b := *r.Builder
	b.Xen = release
	return &b
}

// prepare builds the images, for each release of Xen that is asked for, and beside
// them the emulators and the system.
func (r *Runner) prepare(ctx context.Context, list []scenario.Scenario) (p built, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var fails []error
	build := func(f func() error) {
		wg.Go(func() {
			err := f()
			mu.Lock()
			defer mu.Unlock()
			fails = append(fails, err)
		})
	}
	p.images = map[string]image.Images{}
	seen := map[string]bool{}
	once := func(what string, f func() error) {
		if !seen[what] {
			seen[what] = true
			build(f)
		}
	}
	for _, s := range list {
		switch s.Emulator {
		case scenario.Host:
			continue
		case scenario.Bochs:
			once("bochs", func() error { _, err := r.Builder.Bochs(ctx); return err })
		case scenario.QEMU:
			once("qemu", func() error { _, err := r.Builder.QEMU(ctx); return err })
		}
		if s.System == scenario.Debian {
			once("debian "+s.Release, func() error {
				d, err := r.on(s.Release).Debian(ctx)
				mu.Lock()
				defer mu.Unlock()
				p.debian = d // there is one release for which it can be built
				return err
			})
		}
		if s.GuestSystem {
			once("guest system", func() error {
				archive, err := r.Builder.GuestSystem(ctx)
				mu.Lock()
				defer mu.Unlock()
				p.guest = archive
				return err
			})
		}
		once("xen "+s.Release, func() error {
			im, err := r.on(s.Release).Images(ctx)
			mu.Lock()
			defer mu.Unlock()
			p.images[s.Release] = im
			return err
		})
	}
	wg.Wait()
	return p, errors.Join(fails...)
}

// maxSharing is how many scenarios are run in one boot. More are dealt out to several,
// which cost half a minute each and can run side by side.
const maxSharing = 8

// group collects scenarios that can share a boot, each once, in their order.
func group(list []scenario.Scenario) [][]scenario.Scenario {
	var groups [][]scenario.Scenario
	for _, g := range alike(list) {
		boots := (len(g) + maxSharing - 1) / maxSharing
		dealt := make([][]scenario.Scenario, boots)
		for i, s := range g {
			dealt[i%boots] = append(dealt[i%boots], s)
		}
		groups = append(groups, dealt...)
	}
	return groups
}

// alike sorts scenarios, each once, by the boot that they ask for.
func alike(list []scenario.Scenario) [][]scenario.Scenario {
	var groups [][]scenario.Scenario
	seen := map[string]bool{}
	at := map[string]int{}
	for _, s := range list {
		if seen[s.Title()] {
			continue
		}
		seen[s.Title()] = true
		i, ok := at[s.Boot()]
		if !ok {
			i = len(groups)
			at[s.Boot()] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], s)
	}
	return groups
}

// boot runs one group.
func (r *Runner) boot(ctx context.Context, built built, list []scenario.Scenario, images time.Duration) (_ []*Result, err error) {
	emulator, release := list[0].Emulator, list[0].Release
	im, debian := built.images[release], built.debian
	builder := r.on(release)
	show := func(source, line string) { r.Show(emulator, source, line) }
	start := time.Now()
	dir, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	if name := list[0].GuestKernel; name != "" {
		k, ok := image.FindKernel(name)
		if !ok {
			return nil, fmt.Errorf("scenario %s: no kernel is called %q", list[0].Name, name)
		}
		g, err := builder.Guest(ctx, k)
		if err != nil {
			return nil, err
		}
		im.Guest, im.GuestRelease = g.Archive, g.Release
	}
	var names, titles, guest []string
	bare := true
	for _, s := range list {
		names, titles = append(names, s.Name), append(titles, s.Title())
		guest = append(guest, s.GuestPrograms...)
		bare = bare && s.Bare
	}
	var p parts
	if list[0].System == scenario.Debian {
		p = parts{ramdisk: []string{debian.Boot}, system: debian.Disk, lab: filepath.Join(dir, "lab.ext4"), changes: debian.Changes}
		err = builder.RunDisk(ctx, im, p.lab, names, bare)
	} else {
		p = parts{ramdisk: []string{im.Base, im.Guest, filepath.Join(dir, "payload.cpio")}}
		err = builder.Payload(ctx, p.ramdisk[2], names, slices.Compact(guest), bare)
		if list[0].GuestSystem {
			p.ramdisk = append(p.ramdisk, built.guest)
		}
	}
	if err != nil {
		return nil, err
	}
	command, changes, err := r.command(ctx, im, dir, p, list[0])
	if err != nil {
		return nil, err
	}
	ready := time.Since(start)
	free, err := machine.AcquireSlot(ctx, r.Builder.CacheDir, func() { show("lab", "waiting for another lab's machine to end") })
	if err != nil {
		return nil, err
	}
	defer free()

	f := newFollower(list, show)
	in := make(chan input, 1024)
	stopped := make(chan struct{})
	send := func(i input) {
		select {
		case in <- i:
		case <-stopped:
		}
	}
	console := &lineWriter{line: func(l string) { send(input{line: l}) }}
	decoder := wire.NewDecoder(func(m wire.Message) { send(input{message: &m}) }, nil)
	show("lab", fmt.Sprintf("power on: %v", titles))
	powerOn := time.Now()
	m, err := machine.Start(ctx, command, machine.Output{Console: console, Results: decoder})
	if err != nil {
		return nil, err
	}
	f.follow(ctx, m, in, powerOn)
	close(stopped)
	m.Kill()
	f.finish(decoder.Lost(), time.Now())
	for i, x := range f.results {
		x.Seconds.Images, x.Seconds.Payload = seconds(images), seconds(ready)
		x.Changes = changes
		if err := x.write(r.Out, f.logOf(i)); err != nil {
			return f.results, err
		}
	}
	return f.results, nil
}

// parts are what the control domain of one boot is made of.
type parts struct {
	ramdisk     []string // cpio archives
	system, lab string   // disks, "" where the ramdisk is all
	changes     []string // what is not Debian's in them
}

// command prepares the emulator that a scenario asks for and says in what it is
// not Debian's.
func (r *Runner) command(ctx context.Context, im image.Images, dir string, p parts, s scenario.Scenario) (c machine.Command, changes []string, err error) {
	changes = slices.Clone(p.changes)
	if im.P2MShrunk {
		changes = append(changes, "dom0's kernel prepares for 8 GiB of memory instead of 512")
	}
	intel := s.Emulator == scenario.Bochs
	dom0, args, memory := machine.Dom0Memory, machine.Dom0Args(), machine.BochsMemory
	switch {
	case s.System == scenario.Debian && intel:
		dom0, args, memory = machine.Dom0DebianMemory, machine.DebianArgs(machine.BochsSystem, machine.BochsLab), machine.BochsDebianMemory
	case s.GuestSystem:
		dom0 = machine.Dom0DebianMemory // half of it is for what the ramdisk brings
	case s.System == scenario.Debian:
		dom0, args = machine.Dom0DebianMemory, machine.DebianArgs(machine.QEMUSystem, machine.QEMULab)
	}
	memory = cmp.Or(s.Memory, memory)
	xen := machine.XenArgs(intel, dom0, s.Xen)
	switch s.Emulator {
	case scenario.Bochs:
		b, err := r.Builder.Bochs(ctx)
		if err != nil {
			return c, nil, err
		}
		if b.Preempts {
			changes = append(changes, "Bochs lets an interrupt end the turn of a guest that has interrupts disabled")
		}
		disk := filepath.Join(dir, "disk.img")
		spec := boot.Spec{Args: xen, ModuleArgs: args, MemoryBytes: int64(memory) << 20}
		if err := r.disk(ctx, disk, im, p.ramdisk, spec); err != nil {
			return c, nil, err
		}
		c, err = machine.Bochs{Tree: b.Tree, Program: b.Program, Memory: memory, Disk: disk, System: p.system, Lab: p.lab, Dir: dir}.Command()
		return c, changes, err
	case scenario.QEMU:
		q, err := r.Builder.QEMU(ctx)
		if err != nil {
			return c, nil, err
		}
		if q.SeesINT3 {
			changes = append(changes, "QEMU shows a guest's INT3 to the hypervisor")
		}
		if q.InjectsOnce {
			changes = append(changes, "QEMU injects an interrupt into a guest once")
		}
		initrd := filepath.Join(dir, "initrd")
		if err := concat(initrd, p.ramdisk); err != nil {
			return c, nil, err
		}
		return machine.QEMU{
			Tree: q.Tree, Program: q.Program, Dir: dir,
			Kernel: im.Xen, Args: xen,
			Module: im.Dom0Kernel, ModuleArgs: args, Ramdisk: initrd,
			Processors: s.Processors, System: p.system, Lab: p.lab,
		}.Command(), changes, nil
	}
	return c, nil, fmt.Errorf("no emulator is called %q", s.Emulator)
}

// disk writes the disk that Bochs boots from: what spec says, with the loader,
// Xen, and its modules.
func (r *Runner) disk(ctx context.Context, to string, im image.Images, ramdisk []string, spec boot.Spec) (err error) {
	if spec.Loader, err = r.Builder.Loader(ctx); err != nil {
		return err
	}
	data, err := os.ReadFile(im.Xen)
	if err != nil {
		return err
	}
	if spec.Kernel, err = kernel.Flatten(data); err != nil {
		return fmt.Errorf("%s: %w", im.Xen, err)
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			err = errors.Join(err, f.Close())
		}
	}()
	piece := func(name string) (boot.Piece, error) {
		f, err := os.Open(name)
		if err != nil {
			return boot.Piece{}, err
		}
		open = append(open, f)
		st, err := f.Stat()
		if err != nil {
			return boot.Piece{}, err
		}
		return boot.Piece{Name: name, Size: st.Size(), Data: f}, nil
	}
	if spec.Module, err = piece(im.Dom0Kernel); err != nil {
		return err
	}
	for _, name := range ramdisk {
		p, err := piece(name)
		if err != nil {
			return err
		}
		spec.Ramdisk = append(spec.Ramdisk, p)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	open = append(open, out)
	_, err = boot.Write(out, spec)
	return err
}

// concat writes files one behind the other. cpio archives may stand at any
// multiple of four bytes.
func concat(to string, from []string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for _, name := range from {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		n, err := io.Copy(out, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if _, err := out.Write(make([]byte, -n&3)); err != nil {
			return err
		}
	}
	return nil
}

// lineWriter hands text on by whole lines, without control sequences of a
// terminal.
type lineWriter struct {
	line func(string)
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.line(clean(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

// clean removes what a terminal would act on: the text comes from a machine
// that runs what is to be attacked.
func clean(line []byte) string {
	return string(slices.DeleteFunc(bytes.Clone(line), func(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }))
}
