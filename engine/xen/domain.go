package xen

import (
	"encoding/hex"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// DomID is a domain's number. Xen uses a number again only after all others
// have been used once, but it does use it again.
type DomID uint16

// NoDomain is the number no domain has (DOMID_INVALID).
const NoDomain DomID = abi.DomIDInvalid

// UUID is a domain's identity, which survives restarts and migration.
type UUID [16]byte

// String returns the UUID in its canonical form of 36 characters.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// ParseUUID parses the canonical form; letters may be in either case.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return UUID{}, fmt.Errorf("%q is not a UUID", s)
	}
	if _, err := hex.Decode(u[:], []byte(s[0:8]+s[9:13]+s[14:18]+s[19:23]+s[24:36])); err != nil {
		return UUID{}, fmt.Errorf("%q is not a UUID", s)
	}
	return u, nil
}

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) error {
	v, err := ParseUUID(string(text))
	if err != nil {
		return err
	}
	*u = v
	return nil
}

// DomainType is the kind of virtual machine a domain is.
type DomainType uint8

// Kinds of domain. Introspection works for HVM and PVH.
const (
	// PV is paravirtualized: it shares Xen's page tables.
	PV DomainType = iota
	// HVM has emulated devices.
	HVM
	// PVH runs on hardware virtualization without emulated devices.
	PVH
)

// String returns "PV", "HVM" or "PVH".
func (t DomainType) String() string {
	switch t {
	case PV:
		return "PV"
	case HVM:
		return "HVM"
	case PVH:
		return "PVH"
	}
	return fmt.Sprintf("DomainType(%d)", uint8(t))
}

// MarshalText implements encoding.TextMarshaler.
func (t DomainType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// ShutdownReason says why a domain shut down.
type ShutdownReason uint8

// String returns Xen's name of the reason.
func (r ShutdownReason) String() string {
	switch r {
	case abi.ShutdownPoweroff:
		return "poweroff"
	case abi.ShutdownReboot:
		return "reboot"
	case abi.ShutdownSuspend:
		return "suspend"
	case abi.ShutdownCrash:
		return "crash"
	case abi.ShutdownWatchdog:
		return "watchdog"
	case abi.ShutdownSoftReset:
		return "soft_reset"
	}
	return fmt.Sprintf("ShutdownReason(%d)", uint8(r))
}

// MarshalText implements encoding.TextMarshaler.
func (r ShutdownReason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// DomainInfo is what Xen says of a domain.
type DomainInfo struct {
	ID   DomID
	UUID UUID
	Type DomainType
	// HAP says whether guest memory is translated by hardware.
	HAP bool
	// Paused says whether a toolstack or hvi holds a pause; pauses for
	// events do not count.
	Paused bool
	// Dying says that the domain is destroyed and only references to its
	// pages keep it: a zombie.
	Dying bool
	// Shutdown says that the guest has stopped, for ShutdownReason.
	Shutdown       bool
	ShutdownReason ShutdownReason
	// VCPUs is the number of vCPUs, OnlineVCPUs how many of them run. A domain
	// that its toolstack is only just building has none.
	VCPUs, OnlineVCPUs int
	// Pages is the number of 4 KiB pages the domain has, MaxPages its limit.
	Pages, MaxPages uint64
	// CPUTime is the processor time used by all vCPUs together.
	CPUTime time.Duration
}

// decodeDomainInfo reads one getdomaininfo structure at off.
func decodeDomainInfo(l *abi.Layout, b *hypercall.Buffer, off int) DomainInfo {
	f := &l.GetDomainInfo
	flags := b.U32(off + f.Flags)
	d := DomainInfo{
		ID:       DomID(b.U16(off + f.Domain)),
		HAP:      flags&abi.DomInfHAP != 0,
		Paused:   flags&abi.DomInfPaused != 0,
		Dying:    flags&abi.DomInfDying != 0,
		Shutdown: flags&abi.DomInfShutdown != 0,
		// Xen says -1 where there is none (XEN_INVALID_MAX_VCPU_ID).
		VCPUs:       int(b.U32(off+f.MaxVCPUID) + 1),
		OnlineVCPUs: int(b.U32(off + f.NrOnlineVCPUs)),
		Pages:       b.U64(off + f.TotPages),
		MaxPages:    b.U64(off + f.MaxPages),
		CPUTime:     time.Duration(b.U64(off + f.CPUTime)),
	}
	copy(d.UUID[:], b.Bytes()[off+f.Handle:])
	if d.Shutdown {
		d.ShutdownReason = ShutdownReason(flags >> abi.DomInfShutdownShift & abi.DomInfShutdownMask)
	}
	if flags&abi.DomInfHVMGuest != 0 {
		// Xen calls both HVM. Only one of them has the interrupt
		// controllers of a PC.
		d.Type = PVH
		if b.U32(off+f.ArchEmulationFlags)&abi.X86EmuPIC != 0 {
			d.Type = HVM
		}
	}
	return d
}

// Domain returns what Xen says of a domain, or an error that matches
// ErrNoDomain.
func (h *Host) Domain(id DomID) (DomainInfo, error) {
	const op = "domctl(getdomaininfo)"
	if h.closed.Load() {
		return DomainInfo{}, ErrClosed
	}
	if id >= abi.DomIDFirstReserved {
		return DomainInfo{}, h.fail(op, id, unix.ESRCH)
	}
	b, err := h.c.NewDomctl(abi.DomctlGetDomainInfo, uint16(id))
	if err != nil {
		return DomainInfo{}, h.fail(op, id, err)
	}
	defer b.Free()
	if err := h.c.Domctl(b); err != nil {
		return DomainInfo{}, h.fail(op, id, err)
	}
	d := decodeDomainInfo(h.c.Layout, b, h.c.Layout.Domctl.U)
	if d.ID != id {
		// Xen before 4.18 answers with the next domain there is.
		return DomainInfo{}, h.fail(op, id, unix.ESRCH)
	}
	return d, nil
}

// Domains returns all domains in order of their numbers, dom0 included. The
// list is not a snapshot: domains come and go while it is made.
func (h *Host) Domains() ([]DomainInfo, error) {
	const op = "sysctl(getdomaininfolist)"
	if h.closed.Load() {
		return nil, ErrClosed
	}
	l := h.c.Layout
	stride := l.GetDomainInfo.Size
	list, err := h.c.Alloc(hypercall.MaxBuffer)
	if err != nil {
		return nil, h.fail(op, NoDomain, err)
	}
	defer list.Free()
	b, err := h.c.NewSysctl(abi.SysctlGetDomainInfoList)
	if err != nil {
		return nil, h.fail(op, NoDomain, err)
	}
	defer b.Free()

	room := hypercall.MaxBuffer / stride
	u := l.Sysctl.U
	var out []DomainInfo
	for first := 0; first < abi.DomIDFirstReserved; {
		b.PutU16(u+l.GetDomainInfoList.FirstDomain, uint16(first))
		b.PutU32(u+l.GetDomainInfoList.MaxDomains, uint32(room))
		b.PutU64(u+l.GetDomainInfoList.Buffer, list.Addr())
		b.PutU32(u+l.GetDomainInfoList.NumDomains, 0)
		if err := h.c.Sysctl(b); err != nil {
			return nil, h.fail(op, NoDomain, err)
		}
		n := min(int(b.U32(u+l.GetDomainInfoList.NumDomains)), room)
		for i := range n {
			out = append(out, decodeDomainInfo(l, list, i*stride))
		}
		if n < room {
			break
		}
		first = int(out[len(out)-1].ID) + 1
	}
	return out, nil
}
