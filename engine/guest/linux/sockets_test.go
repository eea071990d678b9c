package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// socketWorld is a guest with a socket of each kind that Sockets tells apart,
// and what is to be said of them.
type socketWorld struct {
	*linuxtest.Sockets
	world
	want []report.Socket

	listener, peer, timeWait, unixName, bound x86.VirtAddr
}

func newSocketWorld() *socketWorld {
	w := &socketWorld{Sockets: linuxtest.NewSockets(nil)}
	w.world.g = w.Guest
	add := func(at x86.VirtAddr, s report.Socket) {
		s.Addr, s.NetNS = at, linuxtest.Inum
		w.want = append(w.want, s)
	}
	node := func(sock x86.VirtAddr) x86.VirtAddr { return sock + linuxtest.SockNode }
	daemon := func(fd int) []report.Owner { return []report.Owner{{PID: 42, Comm: "daemon", FD: fd}} }
	v6 := func(last byte) []byte { return append([]byte{0x20, 0x01, 0x0d, 0xb8, 11: 0}, 0, 0, 0, last) }

	// A listening socket that a process has open, in bucket 1.
	w.listener = w.Sock(afInet, sockStream, protoTCP, 10)
	w.Write(w.listener+linuxtest.SockRcvSAddr, []byte{127, 0, 0, 1})
	w.WriteUint16(w.listener+linuxtest.SockNum, 22)
	w.WriteUint32(w.listener+linuxtest.SockUID, 7)
	w.OpenSocket(w.Socket(w.listener, 100))
	w.WriteChain(w.LHash+24, uint64(1+listenNulls)<<1|1, node(w.listener))
	add(w.listener, report.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "listen", Local: "127.0.0.1:22", Inode: 100, UID: 7, Owners: daemon(1)})

	// A connection that nobody has accepted yet, one that is closed on this
	// side, and one that is being made, in bucket 2.
	w.peer = w.Sock(afInet6, sockStream, protoTCP, 1)
	w.Write(w.peer+linuxtest.SockV6Rcv, v6(1))
	w.Write(w.peer+linuxtest.SockV6DAddr, v6(2))
	w.WriteUint16(w.peer+linuxtest.SockNum, 443)
	w.Write(w.peer+linuxtest.SockDPort, []byte{0x30, 0x39})
	w.timeWait = w.Sock(afInet, 0xffff, 0xffff, stateTimeWait)
	w.Write(w.timeWait+linuxtest.SockRcvSAddr, []byte{10, 0, 0, 1})
	w.Write(w.timeWait+linuxtest.SockDAddr, []byte{10, 0, 0, 2})
	w.WriteUint16(w.timeWait+linuxtest.SockNum, 80)
	w.Write(w.timeWait+linuxtest.SockDPort, []byte{0x30, 0x39})
	w.Write(w.timeWait+linuxtest.TimeWaitSub, []byte{5})
	request := w.Sock(afInet, 0xffff, 0xffff, stateNewSynRecv)
	w.Write(request+linuxtest.SockRcvSAddr, []byte{127, 0, 0, 1})
	w.Write(request+linuxtest.SockDAddr, []byte{127, 0, 0, 2})
	w.WriteUint16(request+linuxtest.SockNum, 22)
	w.Write(request+linuxtest.SockDPort, []byte{0x30, 0x39})
	w.WriteUint64(request+linuxtest.SockListener, uint64(w.listener))
	w.WriteChain(w.EHash+16, 2<<1|1, node(w.peer), node(w.timeWait), node(request))
	add(w.peer, report.Socket{Family: "inet6", Type: "stream", Protocol: "tcp", State: "established", Local: "[2001:db8::1]:443", Remote: "[2001:db8::2]:12345"})
	add(w.timeWait, report.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "fin-wait-2", Local: "10.0.0.1:80", Remote: "10.0.0.2:12345"})
	add(request, report.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "syn-recv", Local: "127.0.0.1:22", Remote: "127.0.0.2:12345", UID: 7})

	// One that is bound and no more hangs on its port, as the listener does.
	w.bound = w.Sock(afInet, sockStream, protoTCP, stateClose)
	w.WriteUint16(w.bound+linuxtest.SockNum, 8080)
	port, other := w.Alloc(48), w.Alloc(48)
	w.WriteChain(w.BHash+8, 0, port+linuxtest.BindNode, other+linuxtest.BindNode)
	w.WriteChain(port+linuxtest.BindOwners, 0, w.listener+linuxtest.SockBindNode)
	w.WriteChain(other+linuxtest.BindOwners, 0, w.bound+linuxtest.SockBindNode)
	add(w.bound, report.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "close", Local: "0.0.0.0:8080"})

	udp := w.Sock(afInet, 2, protoUDP, stateClose)
	w.WriteUint16(udp+linuxtest.SockNum, 53)
	w.WriteChain(w.UDP, 0, node(udp))
	add(udp, report.Socket{Family: "inet", Type: "dgram", Protocol: "udp", State: "unconnected", Local: "0.0.0.0:53"})

	raw := w.Sock(afInet6, sockRaw, 58, stateClose)
	w.WriteUint16(raw+linuxtest.SockNum, 58)
	w.WriteChain(w.Addr("raw_v6_hashinfo")+58*8, 0, node(raw))
	add(raw, report.Socket{Family: "inet6", Type: "raw", Protocol: "icmpv6", State: "unconnected", Local: "::"})

	path, abstract := w.Sock(afUnix, 5, 0, 10), w.Sock(afUnix, 5, 0, 1)
	w.BindUnix(path, "/run/\x1b[2J\x00")
	w.unixName = w.BindUnix(abstract, "\x00a\x00b")
	w.WriteUint64(path+linuxtest.UnixPeer, uint64(abstract))
	w.WriteUint64(abstract+linuxtest.UnixPeer, uint64(path))
	w.WriteChain(w.Unix+511*8, 0, node(path), node(abstract))
	add(path, report.Socket{Family: "unix", Type: "seqpacket", State: "listen", Local: `/run/\x1b[2J`, Remote: "@a@b"})
	add(abstract, report.Socket{Family: "unix", Type: "seqpacket", State: "established", Local: "@a@b", Remote: `/run/\x1b[2J`})

	packet, dev := w.Sock(afPacket, sockRaw, 0, 0), w.String("eth0")
	w.Write(packet+linuxtest.PacketNum, []byte{0x08, 0x06})
	w.WriteUint32(packet+linuxtest.PacketIndex, 2)
	w.WriteUint64(packet+linuxtest.PacketDev, uint64(dev))
	w.WriteChain(w.Net+linuxtest.NetPacket, 0, node(packet))
	add(packet, report.Socket{Family: "packet", Type: "raw", Protocol: "0x0806", Local: "eth0"})

	netlink := w.Sock(afNetlink, 2, 0, 0)
	w.WriteUint32(netlink+linuxtest.NetlinkPort, 77)
	bucket := w.Netlink + 64 + 8
	w.WriteUint64(bucket, uint64(netlink+linuxtest.NetlinkNode))
	w.WriteUint64(netlink+linuxtest.NetlinkNode, uint64(bucket)|1)
	add(netlink, report.Socket{Family: "netlink", Type: "dgram", Protocol: "route", Local: "77"})

	// Of a family that has no table here, open twice.
	vsock := w.Sock(40, sockStream, 0, stateClose)
	socket := w.Socket(vsock, 200)
	w.OpenSocket(socket)
	w.WriteUint64(w.FDs+8*9, uint64(w.Open(0, 0))) // a file of another kind, too
	as := w.AddressSpace()
	file, err := as.ReadPointer(w.FDs + 8*2)
	if err != nil {
		panic(err)
	}
	w.WriteUint64(w.FDs+8*63, uint64(file))
	add(vsock, report.Socket{Family: "vsock", Type: "stream", State: "unconnected", Inode: 200,
		Owners: []report.Owner{{PID: 42, Comm: "daemon", FD: 2}, {PID: 42, Comm: "daemon", FD: 63}}})
	return w
}

func (w *socketWorld) read(t testing.TB) (report.List[report.Socket], error) {
	return w.kernel(t).NewReader(w.Regs).Sockets()
}

// world is a guest built for a test.
type world struct{ g *linuxtest.Guest }

// kernel identifies it.
func (w world) kernel(t testing.TB) *Kernel {
	k, err := Identify(w.g.Memory(), w.g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	if k.BTFError != nil {
		t.Fatal(k.BTFError)
	}
	return k
}

// scribble writes over what is on the guest's heap and returns what undoes it:
// to build a guest for each input of a fuzz test would take most of its time.
func (w world) scribble(at uint16, data []byte) func() {
	return overwrite(w.g, w.g.Base+linuxtest.HeapStart+x86.VirtAddr(at&^7), data[:min(len(data), 0x4000)])
}

// overwrite writes into a guest's memory and returns what undoes it.
func overwrite(g *linuxtest.Guest, at x86.VirtAddr, data []byte) (undo func()) {
	old := make([]byte, len(data))
	as := g.AddressSpace()
	if err := as.Read(at, old); err != nil {
		panic(err)
	}
	g.Write(at, data)
	return func() { g.Write(at, old) }
}

func bySocket(a, b report.Socket) int {
	if a.Addr < b.Addr {
		return -1
	}
	return 1
}

func TestSockets(t *testing.T) {
	w := newSocketWorld()
	got, err := w.read(t)
	if err != nil || got.Reading.Incomplete != nil || got.Reading.Retries != 0 {
		t.Fatalf("%+v, %v", got.Reading, err)
	}
	slices.SortFunc(got.Items, bySocket)
	slices.SortFunc(w.want, bySocket)
	for i, want := range w.want {
		if i >= len(got.Items) || fmt.Sprintf("%+v", got.Items[i]) != fmt.Sprintf("%+v", want) {
			t.Errorf("socket %d: %+v, want %+v", i, got.Items[min(i, len(got.Items)-1)], want)
		}
	}
	if len(got.Items) != len(w.want) {
		t.Errorf("%d sockets, want %d", len(got.Items), len(w.want))
	}
}

// TestSocketsHostile bends the tables in the ways a guest can. What is bent is
// said to be missing, and all else is still told.
func TestSocketsHostile(t *testing.T) {
	const unmapped, user = 0xffff_c900_0000_0000, 0x7fff_0000_0000
	for name, c := range map[string]struct {
		bend func(w *socketWorld)
		says string // in what is incomplete
		left int    // how many sockets can't be told
	}{
		"a table of 4 Gi buckets":      {func(w *socketWorld) { w.WriteUint32(w.Hash+linuxtest.HashMask, 0xffff_ffff) }, "TCP connections: read inet_hashinfo.ehash", 3},
		"a table of 6 buckets":         {func(w *socketWorld) { w.WriteUint32(w.Hash+linuxtest.HashMask, 5) }, "6 buckets", 3},
		"an unmapped table":            {func(w *socketWorld) { w.WriteUint64(w.Hash+linuxtest.HashEHash, unmapped) }, "TCP connections", 3},
		"a user's table":               {func(w *socketWorld) { w.WriteUint64(w.Hash+linuxtest.HashEHash, user) }, "TCP connections", 3},
		"a table of no port":           {func(w *socketWorld) { w.WriteUint32(w.Hash+linuxtest.HashBSize, 0) }, "bound TCP sockets", 1},
		"a chain to itself":            {func(w *socketWorld) { w.WriteUint64(w.peer+linuxtest.SockNode, uint64(w.peer+linuxtest.SockNode)) }, "a change in each", 3},
		"a chain back":                 {func(w *socketWorld) { w.WriteUint64(w.timeWait+linuxtest.SockNode, uint64(w.peer+linuxtest.SockNode)) }, "a change in each", 3},
		"a node that points elsewhere": {func(w *socketWorld) { w.WriteUint64(w.timeWait+linuxtest.SockNode+8, uint64(w.peer)) }, "a change in each", 3},
		"another chain's end":          {func(w *socketWorld) { w.WriteUint64(w.timeWait+linuxtest.SockNode, 3<<1|1) }, "a change in each", 3},
		"a chain into user memory":     {func(w *socketWorld) { w.WriteUint64(w.timeWait+linuxtest.SockNode, user) }, "a change in each", 3},
		"a chain to nowhere":           {func(w *socketWorld) { w.WriteUint64(w.timeWait+linuxtest.SockNode, unmapped) }, "a change in each", 3},
		"a chain back to its head": {func(w *socketWorld) {
			head := w.Unix + 510*8 // the next head is the one's back pointer
			w.WriteChain(head, uint64(head), w.unixName)
			w.WriteUint64(head+8, uint64(w.unixName))
		}, "unix sockets", 2},
		"a name of 4 GiB":           {func(w *socketWorld) { w.WriteUint32(w.unixName+linuxtest.UnixAddressLen, 0xffff_ffff) }, "unix sockets", 2},
		"a socket's inode unmapped": {func(w *socketWorld) { w.WriteUint64(w.bound+linuxtest.SockSocket, unmapped) }, "bound TCP sockets", 1},
		"2 Gi open files":           {func(w *socketWorld) { w.WriteUint32(w.FDTable, 1<<31) }, "open files of process 42", 1},
		"1 Mi open files":           {func(w *socketWorld) { w.WriteUint32(w.FDTable, maxFDs) }, "open files of process 42", 1},
		"open files unmapped":       {func(w *socketWorld) { w.WriteUint64(w.FDTable+linuxtest.TableFDs, unmapped) }, "open files of process 42", 1},
		"namespaces in a circle": {func(w *socketWorld) { w.WriteUint64(w.Net, uint64(w.Net)) },
			"net_namespace_list", 3}, // unix and packet sockets are found by them
		"a rehash for ever": {func(w *socketWorld) { w.WriteUint64(w.Netlink+48, uint64(w.Netlink)) }, "", 0},
		"nested buckets":    {func(w *socketWorld) { w.WriteUint32(w.Netlink+4, 1) }, "netlink sockets", 1},
		"processes in a circle": {func(w *socketWorld) {
			w.WriteUint64(w.Addr("init_task")+linuxtest.TaskTasks, uint64(w.Addr("init_task")+linuxtest.TaskTasks+8))
		}, "the sockets' owners", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newSocketWorld()
			c.bend(w)
			got, err := w.read(t)
			if err != nil {
				t.Fatal(err)
			}
			if said := strings.Join(got.Reading.Incomplete, "\n"); c.says == "" && said != "" || !strings.Contains(said, c.says) {
				t.Errorf("said %q, want %q", said, c.says)
			}
			if len(got.Items) != len(w.want)-c.left {
				t.Errorf("%d sockets, want %d", len(got.Items), len(w.want)-c.left)
			}
		})
	}
}

// TestSocketsAreBounded makes a chain of a guest's whole memory that never ends
// well: it is given up, and the other tables are read.
func TestSocketsAreBounded(t *testing.T) {
	w := newSocketWorld()
	nodes := make([]x86.VirtAddr, 0x4000) // ports without a socket
	for i := range nodes {
		nodes[i] = w.Base + linuxtest.HeapStart + 0x1_0000 + x86.VirtAddr(64*i)
	}
	w.WriteChain(w.BHash+8, 0x7fff_0000_0000, nodes...)
	got, err := w.read(t)
	if err != nil || len(got.Items) != len(w.want)-1 || len(got.Reading.Incomplete) != 1 {
		t.Errorf("%d sockets, want %d; %+v, %v", len(got.Items), len(w.want)-1, got.Reading, err)
	}
	if most := maxPartSteps / len(nodes); got.Reading.Retries > most {
		t.Errorf("read %d times, want at most %d", got.Reading.Retries, most)
	}
}

// TestSocketsNeedTypes: without type information there is an error, no list of
// nothing.
func TestSocketsNeedTypes(t *testing.T) {
	_, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61, NoBTF: true})
	if got, err := k.NewReader(nil).Sockets(); err == nil {
		t.Errorf("%+v", got)
	}
}

func TestSocketNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{stateName(afInet, true, 7), "close"},
		{stateName(afInet, false, 7), "unconnected"},
		{stateName(afUnix, false, 1), "established"},
		{stateName(afInet, true, 12), "syn-recv"},
		{stateName(afInet, true, 99), "state-99"},
		{stateName(afPacket, false, 7), ""},
		{nameOf(familyNames, uint16(999), "family-"), "family-999"},
		{string(endpoint([]byte{0, 0, 0, 0}, 0, false)), ""},
		{string(endpoint([]byte{192, 0, 2, 1}, 0, false)), "192.0.2.1:0"},
		{string(endpoint(make([]byte, 16), 22, false)), "[::]:22"},
		{string(endpoint([]byte{192, 0, 2, 1}, 1, true)), "192.0.2.1"},
		{string(endpoint([]byte{1, 2, 3}, 1, true)), ""},
		{string(unixPath([]byte("/run/x\x00"))), "/run/x"},
		{string(unixPath([]byte("/run/x"))), "/run/x"},
		{string(unixPath([]byte("\x00a\x00b\x00"))), "@a@b@"},
		{string(unixPath([]byte{0})), "@"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

// FuzzSockets lets a guest fill the tables, the sockets and the open files with
// anything.
func FuzzSockets(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(0x1200))
	w := newSocketWorld()
	k := w.kernel(f)
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		defer w.scribble(at, data)()
		got, err := k.NewReader(w.Regs).Sockets()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[x86.VirtAddr]bool{}
		for _, s := range got.Items {
			if seen[s.Addr] {
				t.Errorf("twice: %+v", s)
			}
			seen[s.Addr] = true
		}
	})
}
