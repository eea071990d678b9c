package linux

import (
	"fmt"
	"strconv"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Bounds of reading sockets. What is beyond is left out, and said to be.
const (
	// maxSockets is more than a busy proxy has.
	maxSockets = 1 << 18
	// maxSocketSteps bounds the list entries and open files that are looked at,
	// some microseconds each, and maxPartSteps those of one table, or of all
	// processes, so that one that is bent does not hide the others. Of empty
	// buckets and descriptors cheap many count as one.
	maxSocketSteps = 1 << 21
	maxPartSteps   = 1 << 19
	// maxNetNS bounds the network namespaces.
	maxNetNS = 1 << 16
)

// SockCommonOffsets lays out struct sock_common, which the kernel's full
// sockets, those that wait out a closed connection and those of a connection
// that is being made begin with.
type SockCommonOffsets struct {
	Size      int
	DAddr     int `c:"skc_daddr"`
	RcvSAddr  int `c:"skc_rcv_saddr"`
	DPort     int `c:"skc_dport"` // big endian
	Num       int `c:"skc_num"`
	Family    int `c:"skc_family"`
	State     int `c:"skc_state"`
	Net       int `c:"skc_net"`
	V6DAddr   int `c:"skc_v6_daddr"`
	V6RcvAddr int `c:"skc_v6_rcv_saddr"`
	Listener  int `c:"skc_listener"`
	Node      int `c:"skc_node"`
	BindNode  int `c:"skc_bind_node"`
}

// SockOffsets lays out struct sock.
type SockOffsets struct {
	Size int
	// Type and Protocol were bit fields before 5.6.
	Type     Bits `c:"sk_type"`
	Protocol Bits `c:"sk_protocol"`
	UID      int  `c:"sk_uid"`
	Socket   int  `c:"sk_socket"`
	Filter   int  `c:"sk_filter"`
}

// TimeWaitSockOffsets lays out struct inet_timewait_sock.
type TimeWaitSockOffsets struct {
	State int `c:"tw_substate"`
}

// SocketOffsets lays out struct socket, SocketAllocOffsets what it is allocated
// in.
type SocketOffsets struct {
	File int `c:"file"`
	Sock int `c:"sk"`
}

// SocketAllocOffsets lays out struct socket_alloc.
type SocketAllocOffsets struct {
	Inode int `c:"vfs_inode"`
}

// SocketInodeOffsets lays out struct inode.
type SocketInodeOffsets struct {
	Number int `c:"i_ino"`
	Mode   int `c:"i_mode"`
}

// UnixSockOffsets lays out struct unix_sock.
type UnixSockOffsets struct {
	Addr int `c:"addr"`
	Peer int `c:"peer"`
}

// UnixAddressOffsets lays out struct unix_address: the length of what follows,
// a sockaddr_un.
type UnixAddressOffsets struct {
	Len  int `c:"len"`
	Name int `c:"name"`
}

// PacketSockOffsets lays out struct packet_sock.
type PacketSockOffsets struct {
	Protocol int `c:"num"` // big endian
	IfIndex  int `c:"ifindex"`
	Device   int `c:"prot_hook.dev"`
}

// NetlinkSockOffsets lays out struct netlink_sock.
type NetlinkSockOffsets struct {
	Port int `c:"portid"`
	Node int `c:"node"`
}

// NetDeviceOffsets lays out struct net_device.
type NetDeviceOffsets struct {
	Name int `c:"name"`
}

// Sockets lists the sockets in the kernel's own tables, those included that no
// process holds, and those that a process has open without being in a table: of
// families without one, and of TCP before they are bound.
//
// The guest goes on while it is read, so each chain of a table is consistent in
// itself; a socket that moves from one to another meanwhile may be missed.
func (r *Reader) Sockets() (report.List[report.Socket], error) {
	out := report.List[report.Socket]{Items: []report.Socket{}}
	err := r.reading(&out.Reading, func() error {
		o := &r.k.Offsets
		if err := need("sock_common.skc_family", o.SockCommon.Family, "sock_common.skc_state", o.SockCommon.State,
			"sock_common.skc_node", o.SockCommon.Node, "sock.sk_type", o.Sock.Type.Offset, "sock.sk_protocol", o.Sock.Protocol.Offset,
			"sock.sk_socket", o.Sock.Socket, "socket_alloc.vfs_inode", o.SocketAlloc.Inode, "inode.i_ino", o.SocketInode.Number); err != nil {
			return err
		}
		w := r.newSocketWalk()
		w.tables()
		w.part("the sockets' owners", w.processes)
		for _, s := range w.sockets {
			s.Owners = w.owners[s.socket]
			out.Items = append(out.Items, s.Socket)
		}
		return nil
	})
	return out, err
}

// foundSocket is a socket with the address of its struct socket, the half that
// files have to do with: 0 for one that is in no file any more, or not yet. All
// connections of MPTCP's, which are TCP sockets in the tables, have that of the
// one that the process sees.
type foundSocket struct {
	report.Socket
	socket x86.VirtAddr
	filter x86.VirtAddr // its struct sk_filter
}

// socketWalk is one reading of all sockets.
type socketWalk struct {
	r       *Reader
	sockets []foundSocket
	seen    map[x86.VirtAddr]bool // the addresses of the structs sock
	// owners are who has a struct socket open, by its address.
	owners map[x86.VirtAddr][]report.Owner
	// namespaces are the inode numbers of network namespaces, by address.
	namespaces map[x86.VirtAddr]uint32
	left       int    // of maxSocketSteps
	budget     budget // of the present part

	common, full, extra object
}

func (r *Reader) newSocketWalk() *socketWalk {
	return &socketWalk{
		r: r, left: maxSocketSteps, seen: map[x86.VirtAddr]bool{},
		namespaces: map[x86.VirtAddr]uint32{}, owners: map[x86.VirtAddr][]report.Owner{},
	}
}

// step counts something looked at.
func (w *socketWalk) step() error {
	if len(w.sockets) >= maxSockets {
		return errBudget
	}
	return w.budget.spend(1)
}

// part reads a part of the report, whose failure leaves it out and no more.
func (w *socketWalk) part(what string, f func() error) {
	w.budget.left = min(maxPartSteps, w.left)
	w.left -= w.budget.left
	if err := f(); err != nil {
		w.r.missing("%s: %v", what, err)
	}
	w.left += max(w.budget.left, 0)
}

// add puts sockets into the report, each once.
func (w *socketWalk) add(found ...foundSocket) {
	for _, s := range found {
		if !w.seen[s.Addr] {
			w.seen[s.Addr] = true
			w.sockets = append(w.sockets, s)
		}
	}
}

// socket copies what a struct sock says. Whoever calls it checks afterwards
// that the socket is still where it was found.
func (w *socketWalk) socket(at x86.VirtAddr) (foundSocket, error) {
	c := &w.r.k.Offsets.SockCommon
	s := foundSocket{Socket: report.Socket{Addr: at}}
	if w.r.read(&w.common, at, c.Size) != nil {
		return s, errTorn
	}
	family, state := w.common.u16(c.Family), w.common.u8(c.State)
	s.Family = nameOf(familyNames, family, "family-")
	s.NetNS = w.netNS(w.common.pointer(c.Net))
	inet := family == afInet || family == afInet6
	if inet && (state == stateTimeWait || state == stateNewSynRecv) {
		s.Type, s.Protocol = socketTypeNames[sockStream], inetProtocolNames[protoTCP]
		if err := w.mini(&s, state); err != nil {
			return s, err
		}
		w.inet(&s, family, false)
		return s, nil
	}
	typ, protocol, err := w.wholeSock(&s)
	if err != nil {
		return s, err
	}
	s.Type = nameOf(socketTypeNames, typ, "type-")
	s.State = stateName(family, inet && typ == sockStream, state)
	switch {
	case inet:
		s.Protocol = nameOf(inetProtocolNames, protocol, "")
		w.inet(&s, family, typ == sockRaw)
		return s, nil
	case family == afUnix:
		return s, w.unix(&s)
	case family == afPacket:
		return s, w.packet(&s)
	case family == afNetlink:
		s.Protocol = nameOf(netlinkProtocolNames, protocol, "")
		return s, w.netlink(&s)
	case protocol != 0:
		s.Protocol = strconv.Itoa(int(protocol))
	}
	return s, nil
}

// mini reads what the small structures have that the kernel keeps for a
// connection that is closed, or not yet made.
func (w *socketWalk) mini(s *foundSocket, state uint8) error {
	o := &w.r.k.Offsets
	if state == stateNewSynRecv {
		// Such a one belongs to whom the listening socket belongs to.
		if o.Sock.UID >= 0 && o.SockCommon.Listener >= 0 {
			uid, err := w.r.as.ReadUint32(w.common.pointer(o.SockCommon.Listener) + x86.VirtAddr(o.Sock.UID))
			if err != nil {
				return errTorn
			}
			s.UID = uid
		}
	} else if o.TimeWaitSock.State >= 0 {
		// It may also stand for one that the other side has not closed.
		v, err := w.r.as.ReadUint8(s.Addr + x86.VirtAddr(o.TimeWaitSock.State))
		if err != nil {
			return errTorn
		}
		state = v
	}
	s.State = nameOf(tcpStateNames, state, "state-")
	return nil
}

// wholeSock reads what only a full struct sock has.
func (w *socketWalk) wholeSock(s *foundSocket) (typ, protocol uint16, err error) {
	o := &w.r.k.Offsets
	if w.r.read(&w.full, s.Addr, o.Sock.Size) != nil {
		return 0, 0, errTorn
	}
	if o.Sock.Type.Width == 16 { // both are bit fields
		typ, protocol = uint16(w.full.bits(o.Sock.Type)), uint16(w.full.bits(o.Sock.Protocol))
	} else {
		typ, protocol = w.full.u16(o.Sock.Type.Offset), w.full.u16(o.Sock.Protocol.Offset)
	}
	s.UID, s.filter = w.full.u32(o.Sock.UID), w.full.pointer(o.Sock.Filter)
	socket := w.full.pointer(o.Sock.Socket)
	if socket == 0 {
		return typ, protocol, nil
	}
	ino, err := w.r.as.ReadUint64(socket + x86.VirtAddr(o.SocketAlloc.Inode+o.SocketInode.Number))
	if err != nil {
		return 0, 0, errTorn
	}
	// It may have been closed in between.
	if now, err := w.r.as.ReadPointer(s.Addr + x86.VirtAddr(o.Sock.Socket)); err != nil || now != socket {
		return 0, 0, errTorn
	}
	s.Inode, s.socket = ino, socket
	return typ, protocol, nil
}

// inet adds addresses and ports.
func (w *socketWalk) inet(s *foundSocket, family uint16, raw bool) {
	o, c := &w.common, &w.r.k.Offsets.SockCommon
	local, remote := c.RcvSAddr, c.DAddr
	n := 4
	if family == afInet6 {
		local, remote, n = c.V6RcvAddr, c.V6DAddr, 16
	}
	dport := o.u16(c.DPort)
	if o.has(local, n) {
		s.Local = endpoint(o.b[local:local+n], o.u16(c.Num), raw)
	}
	if o.has(remote, n) {
		s.Remote = endpoint(o.b[remote:remote+n], dport>>8|dport<<8, raw)
	}
}

// unix adds the names of a socket and of its peer.
func (w *socketWalk) unix(s *foundSocket) error {
	o := &w.r.k.Offsets.UnixSock
	if err := need("unix_sock.addr", o.Addr, "unix_sock.peer", o.Peer); err != nil {
		return err
	}
	var err error
	if s.Local, err = w.unixName(s.Addr); err != nil {
		return err
	}
	peer, err := w.r.as.ReadPointer(s.Addr + x86.VirtAddr(o.Peer))
	if err != nil {
		return errTorn
	}
	if peer == 0 {
		return nil
	}
	s.Remote, err = w.unixName(peer)
	return err
}

// maxUnixName bounds a sockaddr_un: 2 bytes of family and 108 of path, and the
// NUL that the kernel adds.
const maxUnixName = 2 + 108 + 1

// unixName reads the name that a unix socket is bound to.
func (w *socketWalk) unixName(sock x86.VirtAddr) (report.Text, error) {
	o, a := &w.r.k.Offsets.UnixSock, &w.r.k.Offsets.UnixAddress
	if err := need("unix_address.len", a.Len, "unix_address.name", a.Name); err != nil {
		return "", err
	}
	at := sock + x86.VirtAddr(o.Addr)
	addr, err := w.r.as.ReadPointer(at)
	if err != nil {
		return "", errTorn
	}
	if addr == 0 {
		return "", nil
	}
	n, err := w.r.as.ReadUint32(addr + x86.VirtAddr(a.Len))
	if err != nil || n < 2 || n > maxUnixName {
		return "", errTorn
	}
	if n == 2 {
		return "", nil
	}
	if w.r.read(&w.extra, addr+x86.VirtAddr(a.Name), int(n)) != nil {
		return "", errTorn
	}
	if now, err := w.r.as.ReadPointer(at); err != nil || now != addr {
		return "", errTorn
	}
	return unixPath(w.extra.b[2:]), nil
}

// unixPath is a name as /proc/net/unix has it: an abstract one begins with a
// NUL, which is shown as @, as are others in it; a path ends with one.
func unixPath(b []byte) report.Text {
	if b[0] != 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	name := []byte(string(b))
	for i := range name {
		if name[i] == 0 {
			name[i] = '@'
		}
	}
	return printable.Escape(string(name))
}

// packet adds the link-layer protocol and the device.
func (w *socketWalk) packet(s *foundSocket) error {
	o := &w.r.k.Offsets.PacketSock
	if err := need("packet_sock.num", o.Protocol, "packet_sock.ifindex", o.IfIndex); err != nil {
		return err
	}
	num, err := w.r.as.ReadUint16(s.Addr + x86.VirtAddr(o.Protocol))
	if err != nil {
		return errTorn
	}
	s.Protocol = fmt.Sprintf("0x%04x", num>>8|num<<8)
	index, err := w.r.as.ReadUint32(s.Addr + x86.VirtAddr(o.IfIndex))
	if err != nil {
		return errTorn
	}
	if index == 0 {
		return nil
	}
	s.Local = report.Text("if" + strconv.FormatUint(uint64(index), 10))
	if o.Device < 0 {
		return nil
	}
	dev, err := w.r.as.ReadPointer(s.Addr + x86.VirtAddr(o.Device))
	if err != nil {
		return errTorn
	}
	if name, ok := w.r.deviceName(dev); ok {
		s.Local = name
	}
	return nil
}

// ifNameLen is IFNAMSIZ.
const ifNameLen = 16

// deviceName is the name of a struct net_device.
func (r *Reader) deviceName(dev x86.VirtAddr) (report.Text, bool) {
	off := r.k.Offsets.NetDevice.Name
	if off < 0 || dev == 0 {
		return "", false
	}
	var o object
	if r.read(&o, dev+x86.VirtAddr(off), ifNameLen) != nil {
		return "", false
	}
	return o.text(0, ifNameLen), true
}

// netlink adds the port, which is 0 for the kernel's own.
func (w *socketWalk) netlink(s *foundSocket) error {
	o := &w.r.k.Offsets.NetlinkSock
	if err := need("netlink_sock.portid", o.Port); err != nil {
		return err
	}
	port, err := w.r.as.ReadUint32(s.Addr + x86.VirtAddr(o.Port))
	if err != nil {
		return errTorn
	}
	s.Local = report.Text(strconv.FormatUint(uint64(port), 10))
	return nil
}

// netNS is the inode number of a network namespace, 0 where it can't be told.
func (w *socketWalk) netNS(net x86.VirtAddr) uint32 {
	inum, ok := w.namespaces[net]
	if ok || w.r.k.Offsets.Net.Number < 0 || !net.KernelHalf() {
		return inum
	}
	inum, err := w.r.as.ReadUint32(net + x86.VirtAddr(w.r.k.Offsets.Net.Number))
	if err != nil {
		return 0
	}
	if len(w.namespaces) < maxNetNS {
		w.namespaces[net] = inum
	}
	return inum
}
