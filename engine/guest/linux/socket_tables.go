package linux

import (
	"fmt"
	"strconv"

	"github.com/xen-hvi/hvi/engine/x86"
)

// NetOffsets lays out struct net, a network namespace.
type NetOffsets struct {
	List   int `c:"list"`
	Number int `c:"ns.inum"`
	// InetHash and UDPTable are pointers to the namespace's tables, which may
	// be everybody's; there are others since 6.1 and 6.2.
	InetHash int `c:"ipv4.tcp_death_row.hashinfo"`
	UDPTable int `c:"ipv4.udp_table"`
	// UnixBuckets is the table of unix sockets, which was one for all
	// namespaces before 6.0.
	UnixBuckets int `c:"unx.table.buckets"`
	Packets     int `c:"packet.sklist"`
	Devices     int `c:"dev_base_head"`
}

// ChainHeadOffsets lays out a bucket of a hash table.
type ChainHeadOffsets struct {
	Size int
	Head int `c:"nulls_head|head|chain"`
}

// InetHashOffsets lays out struct inet_hashinfo, the tables of TCP.
type InetHashOffsets struct {
	EHash     int `c:"ehash"` // connections
	EHashMask int `c:"ehash_mask"`
	BHash     int `c:"bhash"` // by local port
	BHash2    int `c:"bhash2"`
	BHashSize int `c:"bhash_size"`
	// Listening was the table of listening sockets before 5.19, LHash2 has
	// them since.
	Listening      int `c:"listening_hash"`
	ListeningHeads int `c:"listening_hash[]"`
	LHash2         int `c:"lhash2"`
	LHash2Mask     int `c:"lhash2_mask"`
}

// InetBindOffsets lays out what a TCP port's sockets hang on. From 6.8 on that
// is struct inet_bind2_bucket, one for each address, and inet_bind_bucket has no
// owners any more.
type InetBindOffsets struct {
	Node   int `c:"node"`
	Owners int `c:"owners"`
}

// UDPTableOffsets lays out struct udp_table.
type UDPTableOffsets struct {
	Hash int `c:"hash"`
	Mask int `c:"mask"`
}

// RawHashOffsets lays out struct raw_hashinfo.
type RawHashOffsets struct {
	Heads   int `c:"ht"`
	NumHead int `c:"ht[]"`
}

// NetlinkTableOffsets lays out struct netlink_table, one for each protocol.
type NetlinkTableOffsets struct {
	Size  int
	Table int `c:"hash.tbl"`
}

// BucketTableOffsets lays out struct bucket_table, of a resizable hash table.
type BucketTableOffsets struct {
	Buckets int `c:"buckets"`
	Count   int `c:"size"`
	Nest    int `c:"nest"`
	// Next is the table that entries are being moved to.
	Next int `c:"future_tbl"`
}

const (
	// unixBuckets is the number of chains of unix sockets: 256 for those with a
	// name, and 256 for the others.
	unixBuckets = 512
	// maxNetlink is MAX_LINKS, the number of netlink's protocols.
	maxNetlink = 32
	// maxRehash bounds how many tables an rhashtable is moved through at once.
	maxRehash = 4
)

// tables reads all tables that the kernel finds sockets by.
func (w *socketWalk) tables() {
	var nets []x86.VirtAddr
	w.part("network namespaces", func() (err error) {
		nets, err = w.r.nets()
		return err
	})
	o := &w.r.k.Offsets
	for _, at := range w.each(nets, o.Net.InetHash, "tcp_hashinfo") {
		w.part("TCP connections", func() error { return w.connections(at) })
		w.part("listening TCP sockets", func() error { return w.listeners(at) })
		w.part("bound TCP sockets", func() error { return w.bound(at) })
	}
	for _, at := range w.each(nets, o.Net.UDPTable, "udp_table", "udplite_table") {
		w.part("UDP sockets", func() error { return w.udp(at) })
	}
	for _, name := range []string{"raw_v4_hashinfo", "raw_v6_hashinfo"} {
		w.part("raw sockets", func() error { return w.raw(name) })
	}
	w.part("unix sockets", func() error { return w.unixTables(nets) })
	w.part("packet sockets", func() error { return w.packets(nets) })
	w.part("netlink sockets", w.netlinkTables)
}

// nets lists the network namespaces.
func (r *Reader) nets() ([]x86.VirtAddr, error) {
	o := &r.k.Offsets.Net
	if err := need("net.list", o.List); err != nil {
		return nil, err
	}
	head, err := r.variable("net_namespace_list")
	if err != nil {
		return nil, err
	}
	var out []x86.VirtAddr
	err = r.consistently("net_namespace_list", func() error {
		out = out[:0]
		return r.list("net_namespace_list", head, maxNetNS, func(node x86.VirtAddr) error {
			out = append(out, node-x86.VirtAddr(o.List))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// each collects the addresses of a kind of table: the kernel's variables, and
// what namespaces point at; each once.
func (w *socketWalk) each(nets []x86.VirtAddr, member int, names ...string) []x86.VirtAddr {
	var out []x86.VirtAddr
	seen := map[x86.VirtAddr]bool{0: true}
	note := func(at x86.VirtAddr) {
		if !seen[at] {
			seen[at] = true
			out = append(out, at)
		}
	}
	for _, name := range names {
		if at, err := w.r.variable(name); err == nil {
			note(at)
		} else if name == names[0] && member < 0 {
			w.r.missing("%v", err)
		}
	}
	if member >= 0 {
		for _, net := range nets {
			if at, err := w.r.as.ReadPointer(net + x86.VirtAddr(member)); err == nil && at.KernelHalf() {
				note(at)
			}
		}
	}
	return out
}

// inTable reads the sockets of a table, whose nodes are at the offset node.
func (w *socketWalk) inTable(t hashTable, node int) error {
	if err := need(t.what, node); err != nil {
		return err
	}
	return w.eachChain(t, func(bucket uint64, head x86.VirtAddr, found *[]foundSocket) error {
		return w.inChain(bucket, head, node, found)
	})
}

// inChain is one attempt at a chain of sockets.
func (w *socketWalk) inChain(bucket uint64, head x86.VirtAddr, node int, found *[]foundSocket) error {
	return w.r.chain(head, bucket, maxSockets, func(at x86.VirtAddr) error {
		if err := w.step(); err != nil || len(*found) >= maxSockets {
			return errBudget
		}
		sock := at - x86.VirtAddr(node)
		if w.seen[sock] { // in another table
			return nil
		}
		s, err := w.socket(sock)
		*found = append(*found, s)
		return err
	})
}

// eachChain runs f on each chain of a table until it is consistent.
func (w *socketWalk) eachChain(t hashTable, f func(bucket uint64, head x86.VirtAddr, found *[]foundSocket) error) error {
	if err := t.check(); err != nil {
		return err
	}
	if err := w.budget.spend(t.buckets / cheap); err != nil {
		return err
	}
	var found []foundSocket
	return w.r.eachBucket(t, func(bucket uint64, head x86.VirtAddr) error {
		err := w.r.consistently(t.what, func() error {
			found = found[:0]
			return f(bucket, head, &found)
		})
		if err == nil {
			w.add(found...)
		}
		return err
	})
}

// table reads where a structure at an address keeps a hash table, and the number
// that tells its size.
func (w *socketWalk) table(at x86.VirtAddr, pointer, number int) (x86.VirtAddr, uint32, error) {
	if err := need("a hash table", pointer, "its size", number); err != nil {
		return 0, 0, err
	}
	p, err := w.r.as.ReadPointer(at + x86.VirtAddr(pointer))
	if err != nil {
		return 0, 0, err
	}
	n, err := w.r.as.ReadUint32(at + x86.VirtAddr(number))
	return p, n, err
}

// connections reads the TCP sockets that have a peer.
func (w *socketWalk) connections(at x86.VirtAddr) error {
	o := &w.r.k.Offsets
	table, mask, err := w.table(at, o.InetHash.EHash, o.InetHash.EHashMask)
	if err != nil {
		return err
	}
	return w.inTable(masked("inet_hashinfo.ehash", table, mask, o.InetEHash.Size, o.InetEHash.Head), o.SockCommon.Node)
}

// listeners reads the TCP sockets that listen.
func (w *socketWalk) listeners(at x86.VirtAddr) error {
	o := &w.r.k.Offsets
	if o.InetHash.Listening >= 0 && o.InetHash.ListeningHeads > 0 {
		return w.inTable(hashTable{"inet_hashinfo.listening_hash", at + x86.VirtAddr(o.InetHash.Listening), o.InetHash.ListeningHeads,
			o.InetLHash.Size, o.InetLHash.Head}, o.SockCommon.Node)
	}
	table, mask, err := w.table(at, o.InetHash.LHash2, o.InetHash.LHash2Mask)
	if err != nil {
		return err
	}
	return w.inTable(masked("inet_hashinfo.lhash2", table, mask, o.InetLHash.Size, o.InetLHash.Head), o.SockCommon.Node)
}

// bound reads the TCP sockets that have a port, among them those that neither
// listen nor have a peer.
func (w *socketWalk) bound(at x86.VirtAddr) error {
	o := &w.r.k.Offsets
	bind, first := &o.InetBind, o.InetHash.BHash
	if bind.Owners < 0 {
		bind, first = &o.InetBind2, o.InetHash.BHash2
	}
	if err := need("inet_bind_bucket.owners", bind.Owners, "inet_bind_bucket.node", bind.Node, "sock_common.skc_bind_node", o.SockCommon.BindNode); err != nil {
		return err
	}
	table, n, err := w.table(at, first, o.InetHash.BHashSize)
	if err != nil {
		return err
	}
	t := hashTable{"inet_hashinfo.bhash", table, int(n), o.InetBHash.Size, o.InetBHash.Head}
	return w.eachChain(t, func(bucket uint64, head x86.VirtAddr, found *[]foundSocket) error {
		return w.r.chain(head, bucket, maxSockets, func(node x86.VirtAddr) error {
			if err := w.step(); err != nil {
				return err
			}
			return w.inChain(0, node+x86.VirtAddr(bind.Owners-bind.Node), o.SockCommon.BindNode, found)
		})
	})
}

// udp reads a table of UDP sockets.
func (w *socketWalk) udp(at x86.VirtAddr) error {
	o := &w.r.k.Offsets
	table, mask, err := w.table(at, o.UDPTable.Hash, o.UDPTable.Mask)
	if err != nil {
		return err
	}
	return w.inTable(masked("udp_table.hash", table, mask, o.UDPSlot.Size, o.UDPSlot.Head), o.SockCommon.Node)
}

// raw reads the raw sockets of one version of IP.
func (w *socketWalk) raw(name string) error {
	o := &w.r.k.Offsets
	at, err := w.r.variable(name)
	if err != nil {
		return err
	}
	if err := need("raw_hashinfo.ht", o.RawHash.Heads); err != nil {
		return err
	}
	return w.inTable(hashTable{name, at + x86.VirtAddr(o.RawHash.Heads), o.RawHash.NumHead, 8, 0}, o.SockCommon.Node)
}

// unixTables reads the unix sockets.
func (w *socketWalk) unixTables(nets []x86.VirtAddr) error {
	o := &w.r.k.Offsets
	if o.Net.UnixBuckets < 0 {
		at, err := w.r.variable("unix_socket_table")
		if err != nil {
			return err
		}
		return w.inTable(hashTable{"unix_socket_table", at, unixBuckets, 8, 0}, o.SockCommon.Node)
	}
	for _, net := range nets {
		at, err := w.r.as.ReadPointer(net + x86.VirtAddr(o.Net.UnixBuckets))
		if err != nil {
			return err
		}
		if err := w.inTable(hashTable{"net.unx.table", at, unixBuckets, 8, 0}, o.SockCommon.Node); err != nil {
			return err
		}
	}
	return nil
}

// packets reads the packet sockets.
func (w *socketWalk) packets(nets []x86.VirtAddr) error {
	o := &w.r.k.Offsets
	if o.Net.Packets < 0 {
		return nil // a kernel without them
	}
	for _, net := range nets {
		if err := w.inTable(hashTable{"net.packet.sklist", net + x86.VirtAddr(o.Net.Packets), 1, 8, 0}, o.SockCommon.Node); err != nil {
			return err
		}
	}
	return nil
}

// netlinkTables reads the netlink sockets of all protocols.
func (w *socketWalk) netlinkTables() error {
	o := &w.r.k.Offsets
	if err := need("netlink_table.hash", o.NetlinkTable.Table, "bucket_table.buckets", o.BucketTable.Buckets,
		"bucket_table.size", o.BucketTable.Count, "netlink_sock.node", o.NetlinkSock.Node); err != nil {
		return err
	}
	v, err := w.r.variable("nl_table")
	if err != nil {
		return err
	}
	first, err := w.r.as.ReadPointer(v)
	if err != nil {
		return &ReadError{What: "nl_table", Err: err}
	}
	for i := range maxNetlink {
		at := first + x86.VirtAddr(i*o.NetlinkTable.Size+o.NetlinkTable.Table)
		if err := w.netlinkTable(uint16(i), at); err != nil {
			return fmt.Errorf("protocol %d: %w", i, err)
		}
	}
	return nil
}

// netlinkTable reads an rhashtable; at is where the pointer to its buckets is.
func (w *socketWalk) netlinkTable(protocol uint16, at x86.VirtAddr) error {
	o := &w.r.k.Offsets.BucketTable
	for range maxRehash {
		table, err := w.r.as.ReadPointer(at)
		if err != nil || table == 0 {
			return err
		}
		if o.Nest >= 0 {
			if nest, err := w.r.as.ReadUint32(table + x86.VirtAddr(o.Nest)); err != nil || nest != 0 {
				return &ReadError{What: "bucket_table.nest", Got: strconv.Itoa(int(nest)), Err: ErrUnsupported}
			}
		}
		n, err := w.r.as.ReadUint32(table + x86.VirtAddr(o.Count))
		if err != nil {
			return err
		}
		t := hashTable{"bucket_table", table + x86.VirtAddr(o.Buckets), int(n), 8, 0}
		err = w.eachChain(t, func(_ uint64, head x86.VirtAddr, found *[]foundSocket) error {
			return w.netlinkChain(protocol, head, found)
		})
		if err != nil || o.Next < 0 {
			return err
		}
		at = table + x86.VirtAddr(o.Next)
	}
	return nil
}

// netlinkChain is one attempt at a chain of an rhashtable, whose nodes do not
// point back: a socket must be of the protocol, and still linked when it has
// been copied, and the chain must end with the address of its own head.
func (w *socketWalk) netlinkChain(protocol uint16, head x86.VirtAddr, found *[]foundSocket) error {
	o := &w.r.k.Offsets.NetlinkSock
	link, lock := head, uint64(1) // bit 0 of a head is its lock
	for range maxSockets {
		v, err := w.r.as.ReadUint64(link)
		if err != nil {
			return errTorn
		}
		node := x86.VirtAddr(v &^ lock)
		switch {
		case node == 0, node == head && v&1 != 0:
			return nil
		case link != head && v&1 != 0:
			// Before 5.2 a number tells whose end it is.
			if x86.VirtAddr(v&^1) == head || v>>1 < 1<<32 {
				return nil
			}
			return errTorn
		case node&7 != 0 || !node.KernelHalf():
			return errTorn
		}
		if err := w.step(); err != nil {
			return err
		}
		s, err := w.socket(node - x86.VirtAddr(o.Node))
		if err != nil {
			return err
		}
		if s.Family != familyNames[afNetlink] || s.Protocol != nameOf(netlinkProtocolNames, protocol, "") {
			return errTorn
		}
		if now, err := w.r.as.ReadUint64(link); err != nil || now != v {
			return errTorn
		}
		*found = append(*found, s)
		link, lock = node, 0
	}
	return errBudget
}
