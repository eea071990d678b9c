package xen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/conn"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Release is the release of Xen that runs, as it reports itself.
type Release struct {
	Major, Minor int
	// Extra is what follows, such as ".5" or "-unstable".
	Extra string
}

// String returns the release as in "4.17.5".
func (r Release) String() string { return fmt.Sprintf("%d.%d%s", r.Major, r.Minor, r.Extra) }

// Host is an open hypervisor. It is safe for concurrent use.
type Host struct {
	c           *conn.Conn
	release     Release
	commandLine string
	closed      atomic.Bool
}

func init() {
	conn.Of = func(host any) *conn.Conn { return host.(*Host).c }
}

// Open opens the hypervisor this machine runs on. Besides I/O errors it fails
// with ErrNotXen, ErrNotRoot, ErrNotControl, or *abi.UnknownReleaseError.
func Open() (*Host, error) { return openAt("/") }

// openAt opens the devices below root.
func openAt(root string) (*Host, error) {
	p, err := hypercall.Open(root)
	if err != nil {
		return nil, openError(root, err)
	}
	h, err := OpenWith(p, hypercall.NewEvtchn(root))
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return h, nil
}

// openError says why the privileged command device did not open.
func openError(root string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w (%w)", ErrNotRoot, err)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		typ, e := fs.ReadFile(os.DirFS(root), "sys/hypervisor/type")
		if e == nil && strings.TrimSpace(string(typ)) == "xen" {
			return fmt.Errorf("%w, though this is Xen: load the kernel module xen-privcmd", err)
		}
		return fmt.Errorf("%w (%w)", ErrNotXen, err)
	}
	return err
}

// OpenWith opens a hypervisor reached through the given devices. It is for
// package xentest; everything else uses Open. It takes over c only if it
// succeeds.
func OpenWith(c hypercall.Caller, ev hypercall.EventBinder) (*Host, error) {
	h := &Host{c: &conn.Conn{Caller: c, Events: ev}}
	h.c.Fail = func(op string, dom uint16, err error, detail string) error {
		return opError(h.release, op, DomID(dom), err, detail)
	}

	v, err := c.Hypercall(abi.HypercallXenVersion, [5]uint64{abi.XenVerVersion})
	if err != nil {
		return nil, h.fail("xen_version(version)", NoDomain, err)
	}
	h.release = Release{Major: int(v >> 16), Minor: int(v & 0xffff)}
	if h.release.Extra, err = h.versionString("xen_version(extraversion)", abi.XenVerExtraVersion, 16); err != nil {
		return nil, err
	}
	if h.c.Layout, err = abi.For(h.release.Major, h.release.Minor); err != nil {
		return nil, err
	}
	if h.commandLine, err = h.versionString("xen_version(commandline)", abi.XenVerCommandLine, 1024); err != nil {
		return nil, err
	}
	// A domain control that is harmless tells both whether the interface is
	// the one its release number promises and whether we may use it.
	if _, err := h.Domain(0); err != nil {
		return nil, fmt.Errorf("control of Xen %s: %w", h.release, err)
	}
	return h, nil
}

// versionString asks for one of xen_version's strings, of at most size bytes.
func (h *Host) versionString(op string, cmd uint64, size int) (string, error) {
	b, err := h.c.Alloc(size)
	if err != nil {
		return "", h.fail(op, NoDomain, err)
	}
	defer b.Free()
	if _, err := h.c.Hypercall(abi.HypercallXenVersion, [5]uint64{cmd, b.Addr()}); err != nil {
		return "", h.fail(op, NoDomain, err)
	}
	s, _, _ := strings.Cut(string(b.Bytes()), "\x00")
	return s, nil
}

// Release returns the release of Xen.
func (h *Host) Release() Release { return h.release }

// Layout returns the binary interface of the release. It is read-only.
func (h *Host) Layout() *abi.Layout { return h.c.Layout }

// CommandLine returns the command line Xen was started with.
func (h *Host) CommandLine() string { return h.commandLine }

// Close releases the hypervisor. Mappings and event channels stay valid until
// they are closed themselves. It reports hypercall buffers that are in use,
// which is a fault of this package.
func (h *Host) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	return h.c.Close()
}

func (h *Host) fail(op string, dom DomID, err error) error {
	return opError(h.release, op, dom, err, "")
}
