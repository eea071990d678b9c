package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

// Where the control domain's image keeps what guests are made of.
const (
	GuestKernel   = "/guest/vmlinux"  // an ELF with a PVH entry
	GuestRamdisk  = "/guest/initrd"   // what guestCmdline makes of it, see [Guest.Run]
	GuestRelease  = "/guest/release"  // the kernel's uname -r
	guestSystem   = "/guest/system"   // the ramdisk of [GuestConfig.System]
	guestPrograms = "/guest/programs" // what comes behind the ramdisk, see [Scenario.GuestPrograms]
	TinyKernel    = "/guest/tiny"     // see [GuestConfig.Kernel]
	HVMDisk       = "/guest/hvm.img"  // what an HVM guest boots from, see lab/image/files/hvm.c
	guestCmdline  = "console=hvc0 nokaslr mitigations=off nopti nomodeset audit=0 apparmor=0 selinux=0 cryptomgr.notests loglevel=5 panic=-1"
	configDir     = "/etc/xen"       // where a guest's config file goes
	upMark        = "@@GUEST-UP "    // followed by uname -r
	bootLimit     = 4 * time.Minute  // emulated; seen: 8 s in Bochs, 20 s in QEMU, 55 s for HVM there
	commandLimit  = 60 * time.Second // for Guest.Run, emulated
	shutLimit     = 60 * time.Second // for Guest.Shutdown, emulated
)

// The kernels of [GuestConfig.Kernel].
const (
	KernelLinux = ""     // Debian's cloud kernel with a ramdisk that obeys [Guest.Run]
	KernelTiny  = "tiny" // see lab/image/files/tiny.c
)

// GuestConfig says what guest to start. The zero value is a PVH Linux with one
// processor and 160 MiB.
type GuestConfig struct {
	Name string // default "guest"; also names the config file /etc/xen/NAME.cfg
	// Kernel is KernelLinux or KernelTiny: a guest of 16 MiB that boots in no
	// time and sleeps. It can be saved, restored, migrated, shut down and
	// rebooted as any other; it knows no command but [Guest.Poke]. With
	// KernelArgs of one digit it ends when poked, with that reason: 0 poweroff,
	// 1 reboot, 2 suspend, 3 crash, 4 watchdog, 5 soft_reset. With KernelArgs "pair"
	// it is another guest, see lab/image/files/tiny.c.
	Kernel string
	// Type is xl's: "" for "pvh", or "hvm", which needs the system [Debian] with
	// its device model. An HVM guest starts the same kernel, without the first
	// half of a boot loader's work; it is to be started by [T.StartGuest].
	Type string
	// System says that the scenario's GuestSystem is its ramdisk: a PVH guest with a
	// whole Debian, which is up when systemd has reached multi-user.target. It takes no
	// commands, and more than the usual memory.
	System bool
	// Programs says that it has the scenario's GuestPrograms.
	Programs   bool
	Memory     int      // MiB
	VCPUs      int      // default 1
	Altp2m     string   // xl's altp2m; "" leaves the line out
	Lines      []string // further lines of the config, as they are: `introspection = "enforce"`
	KernelArgs []string // added to the kernel's command line
	CreateArgs []string // added to `xl create`, before the file: "-p"
	Env        []string // of that xl, which stays beside the guest: "NAME=value"
	// Text, when set, is the whole config file; Name must then repeat its name,
	// and Memory, VCPUs, Altp2m, Lines and KernelArgs are not looked at.
	Text string
}

func (c GuestConfig) name() string {
	if c.Name == "" {
		return "guest"
	}
	return c.Name
}

// Path returns where the config file is or will be written.
func (c GuestConfig) Path() string { return filepath.Join(configDir, c.name()+".cfg") }

// String returns the config file's text.
func (c GuestConfig) String() string {
	if c.Text != "" {
		return c.Text
	}
	memory, vcpus, tiny := c.Memory, c.VCPUs, c.Kernel == KernelTiny
	if memory == 0 {
		memory = 160
		if tiny {
			memory = 16
		}
	}
	if vcpus == 0 {
		vcpus = 1
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("name = %q", c.name())
	if c.Type == TypeHVM {
		c.writeHVM(line)
	} else if line("type = \"pvh\""); tiny {
		line("kernel = %q", TinyKernel)
		line("extra = %q", strings.Join(c.KernelArgs, " "))
	} else {
		line("kernel = %q", GuestKernel)
		line("ramdisk = %q", c.ramdisk())
		line("extra = %q", strings.Join(append([]string{guestCmdline}, c.KernelArgs...), " "))
	}
	line("memory = %d", memory)
	line("vcpus = %d", vcpus)
	for _, l := range [...]string{`on_poweroff = "destroy"`, `on_reboot = "restart"`, `on_crash = "preserve"`} {
		key, _, _ := strings.Cut(l, " ")
		if !slices.ContainsFunc(c.Lines, func(own string) bool { return strings.HasPrefix(own, key) }) {
			line("%s", l)
		}
	}
	if c.Altp2m != "" {
		line("altp2m = %q", c.Altp2m)
	}
	for _, l := range c.Lines {
		line("%s", l)
	}
	return b.String()
}

func (c GuestConfig) ramdisk() string {
	if c.System {
		return guestSystem
	}
	if c.Programs {
		return filepath.Join(configDir, c.name()+".initrd")
	}
	return GuestRamdisk
}

// writeRamdisk puts the guest's programs behind the usual ramdisk: the kernel takes
// one archive after the other.
func (t *T) writeRamdisk(c GuestConfig) error {
	var all []byte
	for _, name := range []string{GuestRamdisk, guestPrograms} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		all = append(all, data...)
		all = append(all, make([]byte, -len(all)&3)...)
	}
	t.Cleanup(func() { os.Remove(c.ramdisk()) })
	return os.WriteFile(c.ramdisk(), all, 0o644)
}

// Guest is a running guest of the scenario's own. It is destroyed after Run if
// it is still there.
type Guest struct {
	Name   string
	ID     int    // domid
	UUID   string // canonical form
	Config string // path of its config file

	t       *T
	console *console
}

// WriteConfig writes a guest's config file without starting it and returns its
// path. The file is removed after Run.
func (t *T) WriteConfig(c GuestConfig) (string, error) {
	if c.Type == TypeHVM && c.Text == "" {
		if err := t.writeHVMFiles(c); err != nil {
			return "", err
		}
	}
	if c.Programs {
		if err := t.writeRamdisk(c); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(c.Path(), []byte(c.String()), 0o644); err != nil {
		return "", err
	}
	t.Cleanup(func() { os.Remove(c.Path()) })
	return c.Path(), nil
}

// StartGuest writes the config, runs `xl create` and opens the guest's
// console. It does not wait for the guest: see [Guest.WaitUp].
func (t *T) StartGuest(c GuestConfig) (*Guest, error) {
	path, err := t.WriteConfig(c)
	if err != nil {
		return nil, err
	}
	create := slices.Concat([]string{"xl", "create"}, c.CreateArgs, []string{path})
	if len(c.Env) > 0 {
		create = slices.Concat([]string{"env"}, c.Env, create)
	}
	if _, err := t.Exec(create[0], create[1:]...); err != nil {
		return nil, err
	}
	return t.OpenGuest(c.name())
}

// OpenGuest finds a domain that something else has started, such as
// `hvictl create` or a reboot, and opens its console.
func (t *T) OpenGuest(name string) (*Guest, error) {
	out, err := t.XL("domid", name)
	if err != nil {
		return nil, err
	}
	id, err := strconv.Atoi(strings.TrimSpace(out.Stdout))
	if err != nil {
		return nil, fmt.Errorf("xl domid %s: %w", name, err)
	}
	g := &Guest{Name: name, ID: id, Config: GuestConfig{Name: name}.Path(), t: t}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if exists(ctx, g.ID) {
			if _, err := run(ctx, "xl", "destroy", strconv.Itoa(g.ID)); err != nil {
				t.Logf("cleaning up: %v", err)
			}
		}
		g.console.close()
	})
	g.UUID, err = t.uuid(id)
	if err != nil {
		return nil, err
	}
	var tty string
	err = t.Eventually(30*time.Second, name+" has a console", func() (bool, error) {
		tty, _ = t.XenStore(fmt.Sprintf("/local/domain/%d/console/tty", id))
		return tty != "", nil
	})
	if err != nil {
		return nil, err
	}
	g.console, err = openConsole(tty, func(l string) {
		// The words of the guest's command loop are not for people.
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "@@") {
			t.Logf("[%s] %s", name, l)
		}
	})
	return g, err
}

func (t *T) uuid(id int) (string, error) {
	vm, err := t.XenStore(fmt.Sprintf("/local/domain/%d/vm", id))
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(vm, "/vm/"), nil
}

// Exists tells whether the domain is still there, in whatever state.
func (g *Guest) Exists() bool { return exists(g.t.ctx, g.ID) }

func exists(ctx context.Context, id int) bool {
	_, err := run(ctx, "xl", "domname", strconv.Itoa(id))
	return err == nil
}

// Console returns what the guest has written to its console so far.
func (g *Guest) Console() string { return g.console.String() }

// WaitUp waits until the guest's first process takes commands and returns the
// guest's uname -r.
func (g *Guest) WaitUp() (string, error) { return g.waitUp(bootLimit) }

func (g *Guest) waitUp(limit time.Duration) (string, error) {
	var release string
	err := g.console.wait(g.t.ctx, limit, g.Name+" is up", func(text string) bool {
		_, rest, ok := strings.Cut(text, upMark)
		line, _, whole := strings.Cut(rest, "\n")
		release = strings.TrimSpace(line)
		return ok && whole
	})
	return release, err
}

// CommandError reports a command that failed inside the guest.
type CommandError struct {
	Guest, Command string
	Code           int
	Output         string
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("in %s: %s: exit status %d: %s", e.Guest, e.Command, e.Code, lastLines(e.Output, 3))
}

// Run runs one line of shell script in the guest, through its console, and
// returns what it wrote, both streams together, without line ends behind it.
// Of the guest's kernel only what it says at its end may be among it. A failed command is a [*CommandError] beside its output; a
// guest that does not answer in a minute is an error that wraps
// [context.DeadlineExceeded].
func (g *Guest) Run(command string) (string, error) { return g.runWithin(commandLimit, command) }

// runWithin is Run of a command that takes long.
func (g *Guest) runWithin(limit time.Duration, command string) (string, error) {
	if strings.ContainsAny(command, "\n\r") {
		return "", fmt.Errorf("in %s: a command is one line: %q", g.Name, command)
	}
	g.console.turn.Lock()
	defer g.console.turn.Unlock()
	g.console.serial++
	id := g.console.serial
	from := len(g.console.String())
	if _, err := fmt.Fprintf(g.console.tty, "%d %s\n", id, command); err != nil {
		return "", fmt.Errorf("console of %s: %w", g.Name, err)
	}
	var out string
	var code int
	err := g.console.wait(g.t.ctx, limit, g.Name+" has answered "+strconv.Quote(command), func(text string) bool {
		var ok bool
		out, code, ok = parseAnswer(text[from:], id)
		return ok
	})
	if err != nil {
		return "", err
	}
	if code != 0 {
		return out, &CommandError{Guest: g.Name, Command: command, Code: code, Output: out}
	}
	return out, nil
}

var answer = regexp.MustCompile(`@@RC (\d+) (\d+)\n`)

// parseAnswer finds the answer to command id: what stands between its
// "@@BEGIN id" and its "@@RC status id".
func parseAnswer(text string, id int) (out string, code int, ok bool) {
	text = strings.ReplaceAll(text, "\r", "")
	_, text, ok = strings.Cut(text, fmt.Sprintf("@@BEGIN %d\n", id))
	if !ok {
		return "", 0, false
	}
	for _, m := range answer.FindAllStringSubmatchIndex(text, -1) {
		if text[m[4]:m[5]] != strconv.Itoa(id) {
			continue
		}
		code, err := strconv.Atoi(text[m[2]:m[3]])
		return strings.TrimRight(text[:m[0]], "\n"), code, err == nil
	}
	return "", 0, false
}

// Save runs `xl save`, which ends the domain.
func (g *Guest) Save(file string, args ...string) error {
	_, err := g.t.XL(append(append([]string{"save"}, args...), strconv.Itoa(g.ID), file)...)
	return err
}

// RestoreGuest runs `xl restore args... file` and opens the console of the
// domain that it makes. What the guest said before it was saved is not in there.
func (t *T) RestoreGuest(name, file string, args ...string) (*Guest, error) {
	if _, err := t.XL(append(append([]string{"restore"}, args...), file)...); err != nil {
		return nil, err
	}
	return t.OpenGuest(name)
}

// Migrate moves the guest to this very machine, where another domain of the
// same name and UUID goes on, and returns that.
func (g *Guest) Migrate() (*Guest, error) {
	// Without a command to log in with, xl runs what stands for the host.
	if _, err := g.t.XL("migrate", "-s", "", strconv.Itoa(g.ID), "xl migrate-receive"); err != nil {
		return nil, err
	}
	return g.t.OpenGuest(g.Name)
}

// OpenNext waits for the domain that follows one which has rebooted, and opens
// its console.
func (t *T) OpenNext(g *Guest) (*Guest, error) {
	err := t.Eventually(bootLimit, g.Name+" is there again", func() (bool, error) {
		out, err := t.XL("domid", g.Name)
		return err == nil && strings.TrimSpace(out.Stdout) != strconv.Itoa(g.ID), nil
	})
	if err != nil {
		return nil, err
	}
	return t.OpenGuest(g.Name)
}

var poked = regexp.MustCompile(`@@POKED ([0-9a-f]{8})\r?\n`)

// Poke sends a tiny guest an NMI, waits for its answer and returns how often it
// was poked in its life: a restored one goes on counting. A tiny guest that ends
// when poked gives no answer: use [T.XL] with "trigger" and [Guest.WaitGone].
func (g *Guest) Poke() (int, error) {
	g.console.turn.Lock()
	defer g.console.turn.Unlock()
	from := len(g.console.String())
	if _, err := g.t.XL("trigger", strconv.Itoa(g.ID), "nmi"); err != nil {
		return 0, err
	}
	var count int64
	err := g.console.wait(g.t.ctx, commandLimit, g.Name+" has answered a poke", func(text string) bool {
		m := poked.FindStringSubmatch(text[from:])
		if m == nil {
			return false
		}
		var err error
		count, err = strconv.ParseInt(m[1], 16, 64)
		return err == nil
	})
	return int(count), err
}

// Shutdown runs `xl shutdown` and waits until the domain is gone.
func (g *Guest) Shutdown() error {
	if _, err := g.t.XL("shutdown", strconv.Itoa(g.ID)); err != nil {
		return err
	}
	return g.WaitGone(shutLimit)
}

// WaitGone waits until the domain is gone.
func (g *Guest) WaitGone(d time.Duration) error {
	return g.t.Eventually(d, g.Name+" is gone", func() (bool, error) { return !g.Exists(), g.t.ctx.Err() })
}

// Destroy runs `xl destroy`.
func (g *Guest) Destroy() error {
	_, err := g.t.XL("destroy", strconv.Itoa(g.ID))
	return err
}

// End has a Linux guest's kernel end it at once, with a reason as xl's on_* keys
// know them, and does not wait.
func (g *Guest) End(r xen.ShutdownReason) error {
	g.console.turn.Lock()
	defer g.console.turn.Unlock()
	g.console.serial++
	_, err := fmt.Fprintf(g.console.tty, "%d attack end %d\n", g.console.serial, r)
	return err
}

// Load switches the guest's background load on or off: processes that fork,
// execute and end without a pause.
func (g *Guest) Load(on bool) error {
	word := "off"
	if on {
		word = "on"
	}
	_, err := g.Run("load " + word)
	return err
}

// console is the host end of a guest's console.
type console struct {
	tty  io.ReadWriteCloser
	log  logBuffer
	turn sync.Mutex // one command at a time
	// serial numbers commands; under turn
	serial int

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each new text
	err     error         // why reading ended
}

func openConsole(path string, line func(string)) (*console, error) {
	// xenconsoled has set the terminal to raw mode.
	tty, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("guest console: %w", err)
	}
	return newConsole(tty, line), nil
}

func newConsole(tty io.ReadWriteCloser, line func(string)) *console {
	c := &console{tty: tty, changed: make(chan struct{})}
	c.log.line = line
	go c.read()
	return c
}

func (c *console) read() {
	buf := make([]byte, 4096)
	for {
		n, err := c.tty.Read(buf)
		if n > 0 {
			_, _ = c.log.Write(buf[:n])
		}
		c.mu.Lock()
		c.err = err
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// String returns all text so far.
func (c *console) String() string { return c.log.String() }

// wait waits until cond holds for the console's text.
func (c *console) wait(ctx context.Context, d time.Duration, what string, cond func(text string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		c.mu.Lock()
		changed, ended := c.changed, c.err
		c.mu.Unlock()
		text := c.String()
		if cond(text) {
			return nil
		}
		if ended != nil {
			return fmt.Errorf("the console ended before %s: %w; its last lines: %s", what, ended, lastLines(text, 4))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waited %v until %s: %w; the console's last lines: %s", d, what, ctx.Err(), lastLines(text, 4))
		}
	}
}

func (c *console) close() {
	if c != nil {
		_ = c.tty.Close()
	}
}

// ErrNoVerdict reports an attack that did not say how it ended.
var ErrNoVerdict = errors.New("the attack module gave no verdict")

// Attack says what the attack module in the guest does, see
// testdata/attack/pwn.c.
type Attack struct {
	// Mode is one of
	//
	//	text      make a page table entry writable, store through the kernel's text mapping
	//	keep      the same, and leave it so
	//	exchange  put another page in the place, with one byte changed, and leave it so
	//	elsewhere write to the page behind Symbol's, of a module, while the page table
	//	          leads elsewhere, and leave it so; once more, and it is as it was
	//	alias     the same as text through the direct mapping of the same frame
	//	rep       the same as text with rep movsb, 4 bytes
	//	called    the same as text with a store of the kernel's kstrtobool
	//	wp        the same as text by clearing CR0.WP, if that can be done
	//	lstar, star, cstar, sysenter-eip
	//	          write the system call entry's MSR
	//	cr0-wp, cr4-smep, cr4-smap, cr4-umip, efer-sce, efer-nxe
	//	          clear the bit; the guest's processor must have it
	//	vmfunc    execute VMFUNC
	Mode string
	// Symbol is the function whose first byte is the target, in the modes
	// that write code. It must be in the guest's /proc/kallsyms, where to find
	// it takes the guest up to six emulated seconds, or be an address, 0x….
	// "" takes one that nobody calls meanwhile.
	Symbol string
	// Times is how often a register is written, unless a write lands before;
	// 0 is once.
	Times int
}

// kernelSymbols are the symbols of the guest's kernel as it says them, in the form of
// /proc/kallsyms, without those of modules. To go through that takes the guest six
// emulated seconds, so withKernelSymbols makes a copy once.
const kernelSymbols = "/tmp/kallsyms"

// withKernelSymbols is a command that needs that file.
func withKernelSymbols(command string) string {
	return `[ -s ` + kernelSymbols + ` ] || grep -v '\[' /proc/kallsyms >` + kernelSymbols + `; ` + command
}

// linesOf is a command that writes the lines of these symbols. A regular expression of
// as many names takes seconds, too.
func linesOf(symbols ...string) string {
	return withKernelSymbols(`awk 'BEGIN { split("` + strings.Join(symbols, " ") + `", a, " "); for (i in a) want[a[i]] } $3 in want' ` + kernelSymbols)
}

// addresses looks up symbols of the guest's kernel. Of several with one name the first
// counts.
func (g *Guest) addresses(symbols ...string) (map[string]string, error) {
	out, err := g.Run(linesOf(symbols...))
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && found[f[2]] == "" {
			found[f[2]] = "0x" + f[0]
		}
	}
	for _, s := range symbols {
		if found[s] == "" {
			return nil, fmt.Errorf("the guest's kernel has no symbol %s: %s", s, lastLines(out, 4))
		}
	}
	return found, nil
}

// Verdict is how an attack ended, as the attacker saw it.
type Verdict struct {
	Mode    string
	Address uint64 // what was to be overwritten, or the register's number
	Before  uint64 // the value or the bytes before
	Tried   uint64 // what the attack wrote
	After   uint64 // what it read back before restoring
	Written bool   // After is not Before: the attack has succeeded
}

var verdict = regexp.MustCompile(`hvi-pwn: mode=(\S+) address=0x([0-9a-f]+) before=0x([0-9a-f]+) tried=0x([0-9a-f]+) after=0x([0-9a-f]+) (BLOCKED|WRITTEN)`)

// Attack loads the attack module in the guest, which attacks once and puts back
// what it changed, and unloads it. The error is [ErrNoVerdict] when the guest
// answers without one.
func (g *Guest) Attack(a Attack) (Verdict, error) {
	target := a.Symbol
	if a.Times > 0 {
		target = fmt.Sprintf("times=%d", a.Times)
	}
	out, err := g.Run(strings.TrimSpace("attack " + a.Mode + " " + target))
	if err != nil {
		return Verdict{}, err
	}
	return parseVerdict(out)
}

func parseVerdict(out string) (Verdict, error) {
	m := verdict.FindStringSubmatch(out)
	if m == nil {
		return Verdict{}, fmt.Errorf("%w: %s", ErrNoVerdict, lastLines(out, 4))
	}
	v := Verdict{Mode: m[1], Written: m[6] == "WRITTEN"}
	for i, p := range []*uint64{&v.Address, &v.Before, &v.Tried, &v.After} {
		n, err := strconv.ParseUint(m[i+2], 16, 64)
		if err != nil {
			return Verdict{}, fmt.Errorf("%w: %w", ErrNoVerdict, err)
		}
		*p = n
	}
	return v, nil
}
