package specimen

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/machine"
	"github.com/xen-hvi/hvi/lab/witness"
)

// Variant says what is to be made.
type Variant struct {
	Kernel image.Kernel
	VCPUs  int // 0: 1
	Memory int // MiB; 0: 256
	// PTI has the kernel isolate its page tables, which the emulated processor,
	// an AMD one, doesn't need. LA57 gives it five-level paging.
	PTI, LA57 bool
	// Load are modules to load when the state is made, "NAME ARGUMENT...", of
	// those that are built for this kernel. The last may leave the guest in a
	// state in which it can't run on: it is stopped then, and reports no second
	// time.
	Load []string
}

func (v Variant) vcpus() int  { return max(v.VCPUs, 1) }
func (v Variant) memory() int { return max(v.Memory, defaultMemory) }

const defaultMemory = 256

// String names a variant: "6.1-cloud-4cpu-pti".
func (v Variant) String() string {
	name := v.Kernel.Name
	if n := v.vcpus(); n > 1 {
		name += "-" + strconv.Itoa(n) + "cpu"
	}
	if m := v.memory(); m != defaultMemory {
		name += "-" + strconv.Itoa(m) + "m"
	}
	if v.PTI {
		name += "-pti"
	}
	if v.LA57 {
		name += "-la57"
	}
	for _, l := range v.Load {
		name += "-" + strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, l)
	}
	return name
}

// Specimen is a guest's memory and what is known of it.
type Specimen struct {
	Variant Variant
	Dir     string
	Release string // uname -r
}

// Raw is a file of flat physical memory, as QEMU's pmemsave writes it.
func (s Specimen) Raw() string { return filepath.Join(s.Dir, "memory.raw") }

// Core is an ELF core file of the same, with registers, as QEMU's
// dump-guest-memory writes it.
func (s Specimen) Core() string { return filepath.Join(s.Dir, "memory.elf") }

// Description is a file that says where all this is, for the tests of
// engine/guest/linux.
func (s Specimen) Description() string { return filepath.Join(s.Dir, "specimen.json") }

// Before returns what the guest said before its memory was taken.
func (s Specimen) Before() (witness.Report, error) {
	return readReport(filepath.Join(s.Dir, "before.tar"))
}

// After returns what it said afterwards, nil where it could not run on.
func (s Specimen) After() (witness.Report, error) {
	return readReport(filepath.Join(s.Dir, "after.tar"))
}

// Log returns what the lab's modules said while they were loaded, one thing
// each.
func (s Specimen) Log() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(s.Dir, logFile))
	return strings.Split(string(text), "; "), err
}

const logFile = "modules.log"

func readReport(name string) (witness.Report, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return witness.Read(bufio.NewReaderSize(f, 1<<20))
}

// recipeVersion is part of a specimen's name in the cache. It changes when this
// package would make another from the same parts.
const recipeVersion = "3"

// How long a guest may take, in wall-clock time on a busy host.
const (
	bootLimit    = 5 * time.Minute
	commandLimit = 3 * time.Minute
	quietAfter   = 300 * time.Millisecond
)

// reportSize is that of a disk for a report. Those of Debian's kernels have 25 MB.
const reportSize = 64 << 20

// namePrefix begins the names of specimens in the cache.
const namePrefix = "specimen-"

// Maker makes specimens.
type Maker struct {
	Builder *image.Builder
	// Show, where set, receives what the guest's console says.
	Show func(line string)
	// LiME gives guests that are started what [Live.LiME] needs.
	LiME bool
	// Place, where set, is the one that machines are made in, one at a time.
	Place *machine.Place
}

// place takes a place for a machine.
func (m Maker) place(ctx context.Context) (release func(), err error) {
	wait := func() { m.show("waiting for another lab's machine to end") }
	if m.Place != nil {
		return func() {}, m.Place.Take(ctx, m.Builder.CacheDir, wait)
	}
	return machine.AcquireSlot(ctx, m.Builder.CacheDir, wait)
}

// keepUnused is how long specimens stay that no one asks for. Each change of the
// witness makes others, of a quarter of a gigabyte each.
const keepUnused = 3 * 24 * time.Hour

// Make returns a specimen from the cache, or makes it. Where it makes one, those
// that have not been asked for in three days are removed.
func (m Maker) Make(ctx context.Context, v Variant) (Specimen, error) {
	s := Specimen{Variant: v}
	w, err := m.Builder.Witness(ctx, v.Kernel)
	if err != nil {
		return s, err
	}
	q, err := m.Builder.QEMU(ctx)
	if err != nil {
		return s, err
	}
	s.Release = w.Release
	inputs := []string{recipeVersion, filepath.Base(w.Dir), filepath.Base(q.Tree), v.String()}
	s.Dir, err = m.Builder.Artifact(ctx, namePrefix+v.Kernel.Name, inputs, func(dir string) error {
		if _, err := m.Builder.Prune(ctx, namePrefix+"*", time.Now().Add(-keepUnused)); err != nil {
			return err
		}
		return m.take(ctx, dir, v, w, q)
	})
	return s, err
}

// take boots the guest and fills dir.
func (m Maker) take(ctx context.Context, dir string, v Variant, w image.Witness, q image.QEMU) error {
	release, err := m.place(ctx)
	if err != nil {
		return err
	}
	defer release()
	run, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	disks := []string{filepath.Join(run, "before"), filepath.Join(run, "after")}
	for _, d := range disks {
		if err := sparse(d, reportSize); err != nil {
			return err
		}
	}
	pc := v.pc(w, q)
	pc.Dir, pc.Disks = run, disks
	console, err := os.Create(filepath.Join(dir, "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	shown := io.MultiWriter(console, &lines{show: m.show})
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit+10*commandLimit, errors.New("the guest took too long"))
	defer cancel()
	guest, err := machine.Start(ctx, pc.Command(), machine.Output{Console: shown, Results: io.Discard})
	if err != nil {
		return err
	}
	defer guest.Kill()
	go func() { // a guest that is gone answers no more
		select {
		case <-guest.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	err = m.talk(ctx, dir, v, pc, disks)
	if err != nil {
		text, _ := os.ReadFile(console.Name()) // all there is to add
		return fmt.Errorf("specimen %v: %w\n%s\n%s", v, err, guest.Log(), text[max(0, len(text)-4000):])
	}
	return nil
}

// pc is the machine of a guest, but for its folder and its disks.
func (v Variant) pc(w image.Witness, q image.QEMU) machine.PC {
	args := "console=ttyS0 rdinit=/init panic=-1 loglevel=5 net.ifnames=0"
	if v.PTI {
		args += " pti=on"
	}
	cpu := "qemu64"
	if v.LA57 {
		cpu = "max"
	}
	return machine.PC{
		Tree: q.Tree, Program: q.Program,
		Kernel: w.Kernel, Args: args, Ramdisk: w.Ramdisk,
		CPU: cpu, VCPUs: v.vcpus(), Memory: v.memory(),
	}
}

// talk leads the guest through its life.
func (m Maker) talk(ctx context.Context, dir string, v Variant, pc machine.PC, disks []string) error {
	conn, err := machine.Dial(ctx, pc.Control())
	if err != nil {
		return err
	}
	defer conn.Close()
	monitor, err := machine.DialQMP(ctx, pc.Monitor())
	if err != nil {
		return err
	}
	defer monitor.Close()
	g := &control{conn: conn, in: bufio.NewReader(conn)}
	if _, err := g.answer(ctx, "boot", bootLimit); err != nil {
		return err
	}
	commands := []string{"settle", "report /dev/vda"}
	for _, l := range v.Load {
		commands = append(commands, "load "+l)
	}
	for _, c := range append(commands, "log") {
		said, err := g.do(ctx, c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, logFile), []byte(said), 0o644); err != nil { // the last one stays
			return err
		}
	}
	// The witness goes to sleep behind its answer.
	select {
	case <-time.After(quietAfter):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := m.capture(ctx, dir, monitor); err != nil {
		return err
	}
	keep := map[string]string{"before.tar": disks[0]}
	if len(v.Load) == 0 {
		if err := monitor.Execute(ctx, "cont", nil, nil); err != nil {
			return err
		}
		if _, err := g.do(ctx, "report /dev/vdb"); err != nil {
			return err
		}
		keep["after.tar"] = disks[1]
	}
	for name, from := range keep {
		if err := copySparse(filepath.Join(dir, name), from); err != nil {
			return err
		}
	}
	return describe(dir)
}

// capture stops the machine and takes its memory and its registers.
func (m Maker) capture(ctx context.Context, dir string, monitor *machine.QMP) error {
	if err := monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	registers, err := monitor.Human(ctx, "info registers -a")
	if err != nil {
		return err
	}
	var size struct {
		Base int64 `json:"base-memory"`
	}
	if err := monitor.Execute(ctx, "query-memory-size-summary", nil, &size); err != nil {
		return err
	}
	raw, core := filepath.Join(dir, "memory.raw"), filepath.Join(dir, "memory.elf")
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "registers.txt"), []byte(registers), 0o644),
		monitor.Execute(ctx, "pmemsave", map[string]any{"val": 0, "size": size.Base, "filename": raw}, nil),
		monitor.Execute(ctx, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + core}, nil))
	if err != nil {
		return err
	}
	return errors.Join(digHoles(raw), digHoles(core))
}

func (m Maker) show(line string) {
	if m.Show != nil {
		m.Show(line)
	}
}

// control speaks to the witness.
type control struct {
	conn net.Conn
	in   *bufio.Reader
}

// do has the witness do something, waits until it has, and returns what it has
// to say.
func (c *control) do(ctx context.Context, command string) (string, error) {
	return c.doWithin(ctx, commandLimit, command)
}

// doWithin is do with a limit of its own.
func (c *control) doWithin(ctx context.Context, limit time.Duration, command string) (string, error) {
	if _, err := io.WriteString(c.conn, command+"\n"); err != nil {
		return "", fmt.Errorf("witness: %s: %w", command, err)
	}
	return c.answer(ctx, command, limit)
}

func (c *control) answer(ctx context.Context, to string, limit time.Duration) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Now()) })
	defer stop()
	if err := c.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	line, err := c.in.ReadString('\n')
	line = strings.TrimSpace(line)
	text, ok := strings.CutPrefix(line, "ok")
	switch {
	case err != nil:
		return "", fmt.Errorf("witness: %s: no answer: %w", to, err)
	case !ok:
		return "", fmt.Errorf("witness: %s: %s", to, line)
	}
	return strings.TrimSpace(text), nil
}

// lines passes text on by whole lines.
type lines struct {
	show func(string)
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.show(strings.TrimRight(string(line), "\r"))
		l.rest = rest
	}
}

// description is what the tests of engine/guest/linux read.
type description struct {
	Regs     []Registers `json:"regs"`
	Image    string      `json:"image"`
	Kallsyms string      `json:"kallsyms"`
	BTF      string      `json:"btf"`
	Version  string      `json:"version"`
	Running  bool        `json:"running"`
	PID      int         `json:"pid"`
}

// describe writes a specimen's description.
func describe(dir string) error {
	s := Specimen{Dir: dir}
	report, err := s.Before()
	if err != nil {
		return err
	}
	state, err := report.State()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "registers.txt"))
	if err != nil {
		return err
	}
	regs, err := parseRegisters(string(text))
	if err != nil {
		return err
	}
	bases, err := kernelGSBases(s.Core())
	if err != nil {
		return err
	}
	if len(regs) != len(bases) {
		return fmt.Errorf("QEMU's monitor shows %d vCPUs and its core file %d", len(regs), len(bases))
	}
	for i := range regs {
		regs[i].KernelGSBase = bases[i]
		if i < len(state.Processors) {
			regs[i].add(state.Processors[i])
		}
	}
	d := description{
		Regs: regs, Image: filepath.Base(s.Raw()), Kallsyms: "kallsyms.gz", BTF: "btf.gz",
		Version: report.Text("proc/version"), Running: true, PID: state.Roles["yes"],
	}
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		writeGzip(filepath.Join(dir, d.Kallsyms), report["proc/kallsyms"]),
		writeGzip(filepath.Join(dir, d.BTF), report["sys/kernel/btf/vmlinux"]),
		os.WriteFile(s.Description(), append(out, '\n'), 0o644))
}
