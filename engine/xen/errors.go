package xen

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Errors that callers tell apart by errors.Is.
var (
	// ErrNotXen says that this machine does not run on Xen.
	ErrNotXen = errors.New("not running on Xen")
	// ErrNotRoot says that the process may not open Xen's devices.
	ErrNotRoot = errors.New("not permitted to use Xen: root is needed")
	// ErrNotControl says that Xen takes no control operations from this domain.
	ErrNotControl = errors.New("this is not the control domain")
	// ErrNoDomain says that there is no such domain.
	ErrNoDomain = errors.New("no such domain")
	// ErrNoVCPU says that the domain has no such vCPU.
	ErrNoVCPU = errors.New("no such vCPU")
	// ErrVCPUOffline says that the vCPU exists but is not running code: its
	// guest has not started it, or has taken it offline.
	ErrVCPUOffline = errors.New("vCPU is not online")
	// ErrNoPage says that no memory lies behind a guest frame.
	ErrNoPage = errors.New("no page at this frame")
	// ErrRingTaken says that another listener holds a domain's monitor ring.
	ErrRingTaken = errors.New("another listener holds the monitor ring")
	// ErrNoRing says that a domain's monitor ring is not connected.
	ErrNoRing = errors.New("no monitor ring is connected")
	// ErrNotSupported says that Xen, the hardware or the kind of domain lacks
	// a feature. The error that matches it names the feature and its needs.
	ErrNotSupported = errors.New("not supported")
	// ErrClosed says that what the method was called on has been closed.
	ErrClosed = errors.New("closed")
)

// OpError is an operation that Xen, or the kernel on the way to it, refused.
type OpError struct {
	// Op names the call and what it was for, as in "vm_event_op(enable)".
	Op string
	// Domain is the domain the call was about, or NoDomain.
	Domain DomID
	// Errno is what came back.
	Errno syscall.Errno
	// Meaning says what the errno means for this call, in Xen's terms.
	Meaning string
	// Hint says what to do about it; it may be empty.
	Hint string
	// Detail holds the call's further operands, as in "gfn 0x1000".
	Detail string
	// Release is the release of Xen that answered.
	Release Release

	is error
}

// Error returns one line: the call, the domain, the meaning and the errno.
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Domain != NoDomain {
		fmt.Fprintf(&b, " on domain %d", e.Domain)
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, " (%s)", e.Detail)
	}
	b.WriteString(": ")
	if e.Meaning != "" {
		b.WriteString(e.Meaning)
	} else {
		b.WriteString(e.Errno.Error())
	}
	if name := errnoName(e.Errno); name != "" {
		fmt.Fprintf(&b, " (%s)", name)
	}
	return b.String()
}

// Unwrap returns the errno.
func (e *OpError) Unwrap() error { return e.Errno }

// Is reports whether the errno has the meaning of target for this call.
func (e *OpError) Is(target error) bool { return e.is != nil && errors.Is(e.is, target) }

// Format prints the error, with its whole evidence for %+v.
func (e *OpError) Format(f fmt.State, verb rune) {
	if verb != 'v' || !f.Flag('+') {
		_, _ = io.WriteString(f, e.Error())
		return
	}
	fmt.Fprintf(f, "%s\n  call:    %s\n", e.Error(), e.Op)
	if e.Domain != NoDomain {
		fmt.Fprintf(f, "  domain:  %d\n", e.Domain)
	}
	if e.Detail != "" {
		fmt.Fprintf(f, "  operand: %s\n", e.Detail)
	}
	fmt.Fprintf(f, "  errno:   %d %s (%s)\n", int(e.Errno), errnoName(e.Errno), e.Errno.Error())
	if e.Release != (Release{}) {
		fmt.Fprintf(f, "  Xen:     %s\n", e.Release)
	}
	if e.Hint != "" {
		fmt.Fprintf(f, "  hint:    %s\n", e.Hint)
	}
}

// errnoName returns the name that Xen's sources use.
func errnoName(errno syscall.Errno) string {
	if errno == unix.EOPNOTSUPP {
		return "EOPNOTSUPP" // Linux has two names for it
	}
	return unix.ErrnoName(errno)
}

// NotSupportedError says that a feature is missing, and what it needs. It
// matches ErrNotSupported.
type NotSupportedError struct {
	// Feature is the feature's name, as in "mem_access".
	Feature string
	// Needs says what has to be there for it.
	Needs string
	// Err is what showed that it is missing, or nil.
	Err error
}

// Error names the feature and its needs.
func (e *NotSupportedError) Error() string {
	return fmt.Sprintf("%s is not supported: it needs %s", e.Feature, e.Needs)
}

// Unwrap returns ErrNotSupported and the evidence.
func (e *NotSupportedError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrNotSupported}
	}
	return []error{ErrNotSupported, e.Err}
}

// MapError lists the frames of a MapForeign that could not be mapped.
type MapError struct {
	Domain DomID
	// Frames are the frames that failed, Errnos why, in the same order.
	Frames []x86.GFN
	Errnos []syscall.Errno
	// Asked is the number of frames asked for.
	Asked int
}

// Error names the first frame that failed and counts the others.
func (e *MapError) Error() string {
	s := fmt.Sprintf("map gfn %v of domain %d: %s", e.Frames[0], e.Domain, mapMeaning(e.Errnos[0]))
	if n := len(e.Frames) - 1; n > 0 {
		s += fmt.Sprintf("; %d more of %d frames failed", n, e.Asked)
	}
	return s
}

// Unwrap returns the first frame's errno.
func (e *MapError) Unwrap() error { return e.Errnos[0] }

// Is matches ErrNoPage where Xen found no memory behind the first frame, and
// ErrNoDomain where it found no domain.
func (e *MapError) Is(target error) bool {
	switch e.Errnos[0] {
	case unix.EINVAL, unix.ENOENT:
		return target == ErrNoPage
	case unix.ESRCH:
		return target == ErrNoDomain
	}
	return false
}

func mapMeaning(errno syscall.Errno) string {
	switch errno {
	case unix.EINVAL:
		return "no page at this frame (EINVAL)"
	case unix.ENOENT:
		return "the page is paged out and did not come back (ENOENT)"
	case unix.ESRCH:
		return "no such domain (ESRCH)"
	case unix.EPERM:
		return "the page may not be mapped by this domain (EPERM)"
	case unix.ENOMEM:
		return "out of memory (ENOMEM)"
	}
	return fmt.Sprintf("%s (%s)", errno.Error(), errnoName(errno))
}

// meaning is what an errno says for one call.
type meaning struct {
	text, hint string
	is         error
}

const (
	needVTx      = "mem_access works only for HVM and PVH domains on Intel VT-x with HAP"
	hintRecover  = "stop the other introspection tool; if it has died, run: hvictl recover"
	hintReread   = "the domain changed meanwhile; look at it again with: xl list"
	hintNotDom0  = "run hvid in dom0"
	hintAltp2m   = "add altp2m=1 to Xen's command line and restart (Intel VT-x only)"
	hintAltp2mVM = `add altp2m="external" to the domain's configuration and start it again`
	hintMonitor  = "attach the monitor ring first"
)

// meanings holds, by call and errno, what Xen means. A call is looked up by
// its whole name, then by what stands before the parenthesis, then under "".
// Read from xen/common/{domctl,domain,vm_event,monitor,mem_access,memory}.c
// and xen/arch/x86/{domctl.c,hvm/{hvm,save,dm}.c,mm/{mem_access,altp2m}.c},
// 4.11 to 4.22.
var meanings = map[string]map[syscall.Errno]meaning{
	"": {
		unix.EPERM:      {"Xen does not permit this domain to control others", hintNotDom0, ErrNotControl},
		unix.ESRCH:      {"no such domain", hintReread, ErrNoDomain},
		unix.EFAULT:     {"Xen could not access hvi's buffer", "if this repeats, report it with the version of dom0's kernel", nil},
		unix.ENOSYS:     {"this Xen does not have the call", "this Xen was built without it", ErrNotSupported},
		unix.EOPNOTSUPP: {"not supported by this Xen for this domain", "", ErrNotSupported},
		unix.ENOMEM:     {"Xen is out of memory", "", nil},
	},
	"domctl": {
		unix.EACCES:    {"Xen refuses this version of its interface", "Xen reports a release whose interface differs; is it a development build?", nil},
		unix.EINVAL:    {"the domain is not in a state for this", hintReread, nil},
		unix.EOVERFLOW: {"too many are held on this domain", "", nil},
	},
	"sysctl": {
		unix.EACCES: {"Xen refuses this version of its interface", "Xen reports a release whose interface differs; is it a development build?", nil},
	},
	"domctl(pausedomain)": {
		unix.EINVAL:    {"a domain cannot pause itself", "", nil},
		unix.EOVERFLOW: {"255 pauses are held on this domain", "some tool takes pauses and does not release them", nil},
	},
	"domctl(unpausedomain)": {
		unix.EINVAL: {"the domain is not paused", "", nil},
	},
	"domctl(gethvmcontext_partial)": {
		unix.EINVAL:  {"the domain has no HVM state: it is PV, or is dying", "", nil},
		unix.ENOENT:  {"no such vCPU", "", ErrNoVCPU},
		unix.ENODATA: {"the vCPU is not online", "", ErrVCPUOffline},
		unix.ENOBUFS: {"the record is longer than known", "", nil},
	},
	"domctl(getpageframeinfo3)": {
		unix.EINVAL: {"the domain is dying", hintReread, nil},
		unix.E2BIG:  {"more than 1,024 frames at a time", "", nil},
	},
	"vm_event_op": {
		unix.EINVAL: {"the domain has no vCPU yet, has no ring, or is this domain itself", "", nil},
		unix.EACCES: {"Xen refuses this version of its interface", "Xen reports a release whose interface differs; is it a development build?", nil},
		unix.ENOSYS: {"this Xen was built without vm_event", "use a Xen built with CONFIG_VM_EVENT (before 4.21 CONFIG_MEM_ACCESS)", ErrNotSupported},
	},
	"vm_event_op(enable)": {
		unix.EBUSY:      {"another listener holds the monitor ring of this domain", hintRecover, ErrRingTaken},
		unix.EOPNOTSUPP: {"the domain has no frame for a monitor ring: it is PV, or its builder set none", "", ErrNotSupported},
		unix.EINVAL:     {"the domain has no vCPU yet, its ring frame holds no page, or it is this domain itself", "attach after the toolstack has built the domain", nil},
		unix.ENOENT:     {"the ring frame is paged out", "", nil},
		unix.ENOSPC:     {"the domain has no free event channel", "", nil},
	},
	"vm_event_op(disable)": {
		unix.EBUSY:  {"vCPUs wait for room in the ring", "answer what is pending, then try again", nil},
		unix.EINVAL: {"no monitor ring is connected", "", ErrNoRing},
	},
	"vm_event_op(get_version)": {
		unix.ESRCH:  {"this Xen cannot tell the version of vm_event", "", ErrNotSupported},
		unix.EINVAL: {"this Xen cannot tell the version of vm_event", "", ErrNotSupported},
	},
	"monitor_op": {
		unix.EEXIST:     {"the event is in the state asked for already", "", nil},
		unix.EOPNOTSUPP: {"this kind of event is not supported on this machine or for this domain", "", ErrNotSupported},
		unix.EINVAL:     {"an operand is out of range", "", nil},
		unix.ENXIO:      {"no monitor ring is connected", hintMonitor, ErrNoRing},
		unix.EPERM:      {"a domain cannot monitor itself", "", nil},
		unix.EACCES:     {"Xen refuses this version of its interface", "Xen reports a release whose interface differs; is it a development build?", nil},
		unix.ENOSYS:     {"this Xen was built without vm_event", "use a Xen built with CONFIG_VM_EVENT (before 4.21 CONFIG_MEM_ACCESS)", ErrNotSupported},
	},
	"mem_access": {
		unix.ENODEV: {"no monitor ring is connected", hintMonitor, ErrNoRing},
		unix.EINVAL: {needVTx + "; also, the frame may be above the guest's highest, or the domain dying", "", nil},
		unix.ENOMEM: {"the domain's paging pool is exhausted", "raise shadow_memory= in the domain's configuration", nil},
		unix.EPERM:  {"a domain cannot restrict its own memory", "", nil},
		unix.ENOSYS: {"this Xen was built without mem_access", "use a Xen built with CONFIG_VM_EVENT (before 4.21 CONFIG_MEM_ACCESS)", ErrNotSupported},
		unix.ERANGE: {"the page has an access hvi does not know", "", nil},
	},
	"memory_op": {
		unix.EPERM: {"Xen does not permit this domain to control others", hintNotDom0, ErrNotControl},
	},
	"memory_op(populate_physmap)": {
		unix.ENOMEM: {"no page could be added: the domain is at its limit, dying or gone, or Xen is out of memory", "raise maxmem= of the domain, or free host memory", nil},
	},
	"memory_op(decrease_reservation)": {
		unix.ENOENT: {"the page could not be taken back: there is none, or the domain is gone", "", ErrNoPage},
	},
	"debug_op": {
		unix.EOPNOTSUPP: {"single-stepping needs Intel's monitor trap flag", "", ErrNotSupported},
		unix.EINVAL:     {"no such vCPU, or the domain is PV", "", nil},
	},
	"hvm_op(set_param altp2m)": {
		unix.EEXIST: {"the altp2m mode is set already; from 4.19 on only the toolstack sets it", hintAltp2mVM, nil},
		unix.EINVAL: {"the domain is PV, or uses nested virtualization", "", nil},
	},
	"hvm_op": {
		unix.EINVAL: {"the domain is PV, or the parameter is not known", "", nil},
		unix.EEXIST: {"the parameter can be set only once", "", nil},
	},
	"altp2m(create_p2m)": {
		unix.EINVAL: {"Xen can make no more views of this domain, or altp2m is not enabled for it", hintAltp2mVM, nil},
	},
	"altp2m": {
		unix.EOPNOTSUPP: {"altp2m is off: Xen runs without it, or it is not active for this domain", hintAltp2m, ErrNotSupported},
		unix.EINVAL:     {"altp2m is not enabled for this domain, there is no such view, or the domain uses nested virtualization", hintAltp2mVM, nil},
		unix.EPERM:      {"the domain's altp2m mode does not let another domain use it", hintAltp2mVM, nil},
		unix.EBUSY:      {"a vCPU is in this view", "switch the domain to view 0 first", nil},
		unix.ENOMEM:     {"the domain's paging pool is exhausted", "raise shadow_memory= in the domain's configuration", nil},
	},
	"dm_op(inject_event)": {
		unix.EBUSY:  {"an event is pending on this vCPU already", "", nil},
		unix.EINVAL: {"no such vCPU, or the domain is PV", "", nil},
	},
	"map": {
		unix.EINVAL: {"dom0's kernel cannot map foreign pages this way", "Linux 3.8 or later is needed", nil},
		unix.ENOMEM: {"dom0 has no room for the mapping", "", nil},
		unix.ENXIO:  {"no such domain", hintReread, ErrNoDomain},
	},
	"evtchn(bind_interdomain)": {
		unix.EINVAL: {"the domain has no such unbound port", "", nil},
		unix.ENOENT: {"/dev/xen/evtchn is missing", "load the kernel module xen-evtchn", nil},
		unix.ENOSPC: {"no event channel is free", "", nil},
	},
}

// lookup returns what errno means for op.
func lookup(op string, errno syscall.Errno) meaning {
	family, _, _ := strings.Cut(op, "(")
	for _, key := range []string{op, family, ""} {
		if m, ok := meanings[key][errno]; ok {
			return m
		}
	}
	return meaning{}
}

// opError turns what a call returned into what its caller sees.
func opError(rel Release, op string, dom DomID, err error, detail string) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		if dom == NoDomain {
			return fmt.Errorf("%s: %w", op, err)
		}
		return fmt.Errorf("%s on domain %d: %w", op, dom, err)
	}
	m := lookup(op, errno)
	return &OpError{
		Op: op, Domain: dom, Errno: errno, Detail: detail,
		Meaning: m.text, Hint: m.hint, Release: rel, is: m.is,
	}
}
