package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Emulator names a machine to boot.
type Emulator string

// The emulators and what each stands for.
const (
	Bochs Emulator = "bochs" // Intel: VT-x, EPT, altp2m; one processor
	QEMU  Emulator = "qemu"  // AMD: SVM, NPT; two processors
	// Host is none: the scenario runs on the host, outside of any machine, and
	// starts by itself what it needs. It isn't in this package's registry, which
	// is linked into what runs in the control domain; see lab/outside.
	Host Emulator = "host"
)

// System names what runs in the control domain.
type System string

// The systems.
const (
	// Initramfs is busybox, the toolstack and its daemons: the quickest to boot.
	Initramfs System = ""
	// Debian is Debian 12 with systemd, dpkg and apt, Xen's units as Debian has
	// them, libvirtd with its Xen driver, and a device model.
	Debian System = "debian"
)

// DefaultTimeout bounds a scenario that names no bound of its own.
const DefaultTimeout = 10 * time.Minute

// Scenario is one thing to run on a real Xen.
type Scenario struct {
	// Name is what `lab run` takes: letters, digits, '-'.
	Name string
	// Brief says in one line what the scenario shows.
	Brief string
	// Emulator says which machine it needs.
	Emulator Emulator
	// System says what the control domain runs. Only scenarios with the same
	// system share a boot.
	System System
	// Xen holds additional options for the hypervisor's command line. Only
	// scenarios with the same options share a boot.
	Xen []string
	// Release is the release of Xen that it runs on, as [Find] was asked for it: one
	// of lab/image's, "" for the default. It isn't given at registration: a scenario
	// says what it needs of Xen by what it checks. Only scenarios with the same
	// release share a boot.
	Release string
	// Processors is how many the machine has, 0 for as many as it usually has;
	// Bochs' has one whatever is asked for. Only scenarios with the same number
	// share a boot.
	Processors int
	// Memory is the machine's in MiB, 0 for as much as it usually has; it is heeded for
	// Bochs. Only scenarios with the same share a boot.
	Memory int
	// GuestKernel names the kernel of the guests it starts, one of lab/image's;
	// "" is Debian 12's for the cloud. Only scenarios with the same share a boot.
	GuestKernel string
	// GuestPrograms are commands of this module that its guests have in /bin, if
	// they are asked to (see [GuestConfig.Programs]); not with the system Debian.
	GuestPrograms []string
	// GuestSystem says that it has a whole Debian for its guests, see
	// [GuestConfig.System]; not with the system Debian, nor with a GuestKernel. Only
	// scenarios that agree in it share a boot.
	GuestSystem bool
	// Bare says that the scenario needs none of the programs under test, so that
	// it can run where they do not build.
	Bare bool
	// Timeout bounds Run, cleaning up included: as wall-clock time on the host,
	// where the machine is killed, and as emulated time inside, where T.Context
	// ends. Zero means DefaultTimeout.
	Timeout time.Duration
	// Run does it. An error, a failed check or a panic fails the scenario.
	Run func(*T) error
}

// Limit returns the scenario's time bound.
func (s Scenario) Limit() time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	return DefaultTimeout
}

// Boot is what two scenarios must agree in to share one boot.
func (s Scenario) Boot() string {
	return fmt.Sprint(s.Emulator, " ", s.System, " ", s.Release, " ", s.Processors, " ", s.Memory, " ", s.GuestKernel, " ", s.GuestSystem, " ", strings.Join(s.Xen, " "))
}

// Title is the name that [Find] finds it by with its release: "views@4.20", or
// "views" on the default one.
func (s Scenario) Title() string {
	if s.Release == "" {
		return s.Name
	}
	return s.Name + "@" + s.Release
}

var registry = map[string]Scenario{}

// Register adds a scenario. It is for init functions and panics on a scenario
// that is incomplete or whose name is taken.
func Register(s Scenario) {
	switch {
	case !validName(s.Name):
		panic(fmt.Sprintf("scenario: %q is not a name", s.Name))
	case s.Brief == "" || s.Run == nil:
		panic(fmt.Sprintf("scenario %s: Brief or Run is missing", s.Name))
	case s.Emulator != Bochs && s.Emulator != QEMU:
		panic(fmt.Sprintf("scenario %s: no emulator %q", s.Name, s.Emulator))
	case s.System != Initramfs && s.System != Debian:
		panic(fmt.Sprintf("scenario %s: no system %q", s.Name, s.System))
	}
	if _, taken := registry[s.Name]; taken {
		panic(fmt.Sprintf("scenario: two are called %s", s.Name))
	}
	registry[s.Name] = s
}

func validName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return s != ""
}

// All returns every scenario, sorted by name.
func All() []Scenario {
	all := make([]Scenario, 0, len(registry))
	for _, s := range registry {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Scenario) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// UnknownError reports a name that no scenario has.
type UnknownError struct {
	Name string
	Near []string // names that contain it, if any
}

func (e *UnknownError) Error() string {
	msg := fmt.Sprintf("no scenario is called %q", e.Name)
	if len(e.Near) > 0 {
		return msg + "; did you mean " + strings.Join(e.Near, ", ") + "?"
	}
	return msg + "; `lab list` shows them"
}

// Find returns those of the given names out of all, in the names' order. A name
// may say which release of Xen to run on, as in "views@4.20". The error is an
// [*UnknownError].
func Find(all []Scenario, names ...string) ([]Scenario, error) {
	var found []Scenario
	for _, n := range names {
		n, release, _ := strings.Cut(n, "@")
		i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == n })
		if i < 0 {
			e := &UnknownError{Name: n}
			for _, s := range all {
				if n != "" && strings.Contains(s.Name, n) {
					e.Near = append(e.Near, s.Name)
				}
			}
			return nil, e
		}
		s := all[i]
		s.Release = release
		found = append(found, s)
	}
	return found, nil
}
