package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"syscall"

	"github.com/xen-hvi/hvi/engine/journal"
)

// peer is the process at the other end of a connection, as the kernel saw it
// when it connected.
type peer struct {
	pid    int32
	uid    uint32
	gid    uint32
	groups []uint32
}

// LogValue lets a log line name the peer.
func (p peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", int(p.pid)), slog.Int("uid", int(p.uid)), slog.Int("gid", int(p.gid)))
}

// PeerOf returns who made the request that ctx is of, as the kernel saw it when it
// connected; it is zero for a context of nobody's.
func PeerOf(ctx context.Context) journal.Peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return journal.Peer{UID: p.uid, PID: p.pid}
}

// right is what a request needs.
type right int

const (
	// mayRead: status, alerts, what is declared.
	mayRead right = iota
	// mayLook: into a guest. Its memory holds what its users hold secret.
	mayLook
	mayChange
)

// rights decides who may do what; see the package documentation.
type rights struct {
	// uid may do everything, as root may: it is the daemon's own, which is
	// root's too unless somebody runs it otherwise.
	uid uint32
	// gid may read; -1 where the group does not exist.
	gid int
}

// check returns nil or the Problem to answer with.
func (r rights) check(p peer, need right) *Problem {
	if p.uid == 0 || p.uid == r.uid {
		return nil
	}
	inGroup := r.gid >= 0 && (p.gid == uint32(r.gid) || slices.Contains(p.groups, uint32(r.gid)))
	switch {
	case need == mayRead && inGroup:
		return nil
	case need == mayRead:
		return &Problem{
			Code: CodePermission, What: fmt.Sprintf("uid %d may not talk to hvid", p.uid),
			Fix: "run it as root, or join the group " + Group + " and log in again",
		}
	case need == mayLook:
		return &Problem{
			Code: CodePermission, What: fmt.Sprintf("uid %d may not look into a guest", p.uid),
			Fix: "run it as root",
		}
	}
	return &Problem{
		Code: CodePermission, What: fmt.Sprintf("uid %d may not change a domain's protection", p.uid),
		Fix: "run it as root",
	}
}

type peerKey struct{}

// peerOf is http.Server.ConnContext: it asks the kernel once per connection. A
// connection that can't be asked about has no peer and gets nothing.
func peerOf(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	})
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var p peer
	var perr error
	err = raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		cred, perr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if perr != nil {
			return
		}
		p.pid, p.uid, p.gid = cred.Pid, cred.Uid, cred.Gid
		// Without them (before Linux 4.13) the primary group still counts.
		p.groups, _ = peerGroups(fd)
	})
	if err != nil || perr != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}
