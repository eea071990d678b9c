package linuxtest

import (
	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of the members of a socket's structures, in bytes.
const (
	SockDAddr    = 0
	SockRcvSAddr = 4
	SockDPort    = 12
	SockNum      = 14
	SockFamily   = 16
	SockState    = 18
	SockBindNode = 24
	SockNet      = 48
	SockV6DAddr  = 56
	SockV6Rcv    = 72
	SockListener = 96
	SockNode     = 104
	TimeWaitSub  = 141
	SockType     = 136
	SockProtocol = 138
	SockUID      = 140
	SockSocket   = 144
	SockFilter   = 152
	SockSize     = 160
	// What a family adds begins there.
	UnixAddr    = SockSize
	UnixPeer    = SockSize + 8
	PacketNum   = SockSize
	PacketIndex = SockSize + 4
	PacketDev   = SockSize + 8
	NetlinkPort = SockSize
	NetlinkNode = SockSize + 8
	WholeSock   = SockSize + 32

	SocketFile  = 16
	SocketSock  = 24
	SocketInode = 128
	InodeNumber = 64

	UnixAddressLen  = 4
	UnixAddressName = 8

	NetList     = 0
	NetDevices  = 16
	NetInum     = 40
	NetHash     = 48
	NetUDP      = 56
	NetUnix     = 64
	NetPacket   = 72
	NetSize     = 80
	DeviceList  = 16
	DeviceXDP   = 32
	DeviceModes = 40

	HashEHash = 0
	HashMask  = 8
	HashBHash = 16
	HashBSize = 24
	HashLMask = 28
	HashLHash = 32

	BindNode   = 16
	BindOwners = 32

	TaskFiles   = 1640
	FilesTable  = 8
	TableMax    = 0
	TableFDs    = 8
	FileOps     = 8
	FileInode   = 16
	FilePrivate = 24
)

// TaskFileMembers are the members of struct task_struct that lead to open files.
func TaskFileMembers() []btf.Member {
	return []btf.Member{member("files", TaskFiles, pointer), member("signal", TaskSignal, pointer), member("thread_node", TaskThreadNode, array(u64, 2))}
}

// SocketTypes are the structures of sockets and open files of a 6.1.
func SocketTypes() []btf.Type {
	list := array(u64, 2)
	common := structOf("sock_common", 136,
		member("skc_daddr", SockDAddr, u32), member("skc_rcv_saddr", SockRcvSAddr, u32), member("skc_dport", SockDPort, u16),
		member("skc_num", SockNum, u16), member("skc_family", SockFamily, u16), member("skc_state", SockState, u8),
		member("skc_bind_node", SockBindNode, list), member("skc_net", SockNet, pointer), member("skc_v6_daddr", SockV6DAddr, array(u8, 16)),
		member("skc_v6_rcv_saddr", SockV6Rcv, array(u8, 16)), member("skc_listener", SockListener, pointer), member("skc_node", SockNode, list))
	return []btf.Type{
		common,
		structOf("sock", SockSize, member("__sk_common", 0, common), member("sk_type", SockType, u16), member("sk_protocol", SockProtocol, u16),
			member("sk_uid", SockUID, u32), member("sk_socket", SockSocket, pointer), member("sk_filter", SockFilter, pointer)),
		structOf("inet_timewait_sock", 200, member("tw_substate", TimeWaitSub, u8)),
		structOf("socket", 128, member("file", SocketFile, pointer), member("sk", SocketSock, pointer)),
		structOf("socket_alloc", 256, member("vfs_inode", SocketInode, array(u8, 128))),
		structOf("inode", 128, member("i_mode", 0, u16), member("i_ino", InodeNumber, u64)),
		structOf("unix_sock", WholeSock, member("addr", UnixAddr, pointer), member("peer", UnixPeer, pointer)),
		structOf("unix_address", UnixAddressName, member("len", UnixAddressLen, u32), member("name", UnixAddressName, array(u8, 0))),
		structOf("packet_sock", WholeSock, member("num", PacketNum, u16), member("ifindex", PacketIndex, u32),
			member("prot_hook", PacketDev, structOf("packet_type", 8, member("dev", 0, pointer)))),
		structOf("netlink_sock", WholeSock, member("portid", NetlinkPort, u32), member("node", NetlinkNode, pointer)),
		structOf("net_device", 96, member("name", 0, array(u8, 16)), member("dev_list", DeviceList, list), member("xdp_prog", DeviceXDP, pointer),
			member("xdp_state", DeviceModes, array(structOf("bpf_xdp_entity", 16, member("prog", 0, pointer)), 3))),
		structOf("net", NetSize, member("list", NetList, list), member("dev_base_head", NetDevices, list),
			member("ns", 32, structOf("ns_common", 16, member("inum", NetInum-32, u32))),
			member("ipv4", 48, structOf("netns_ipv4", 16,
				member("tcp_death_row", 0, structOf("inet_timewait_death_row", 8, member("hashinfo", 0, pointer))), member("udp_table", 8, pointer))),
			member("unx", NetUnix, structOf("netns_unix", 8, member("table", 0, structOf("unix_table", 8, member("buckets", 0, pointer))))),
			member("packet", NetPacket, structOf("netns_packet", 8, member("sklist", 0, pointer)))),
		structOf("inet_hashinfo", 40, member("ehash", HashEHash, pointer), member("ehash_mask", HashMask, u32), member("bhash", HashBHash, pointer),
			member("bhash_size", HashBSize, u32), member("lhash2_mask", HashLMask, u32), member("lhash2", HashLHash, pointer)),
		structOf("inet_ehash_bucket", 8, member("chain", 0, pointer)),
		structOf("inet_listen_hashbucket", 16, member("nulls_head", 8, pointer)),
		structOf("inet_bind_hashbucket", 16, member("chain", 8, pointer)),
		structOf("inet_bind_bucket", 40, member("node", BindNode, list), member("owners", BindOwners, pointer)),
		structOf("udp_table", 16, member("hash", 0, pointer), member("mask", 8, u32)),
		structOf("udp_hslot", 16, member("head", 0, pointer)),
		structOf("raw_hashinfo", 2048, member("ht", 0, array(u64, 256))),
		structOf("netlink_table", 16, member("hash", 0, structOf("rhashtable", 16, member("tbl", 0, pointer)))),
		structOf("bucket_table", 64, member("size", 0, u32), member("nest", 4, u32), member("future_tbl", 48, pointer), member("buckets", 64, array(u64, 0))),
		structOf("signal_struct", 64, member("thread_head", SignalHead, list)),
		structOf("files_struct", 16, member("fdt", FilesTable, pointer)),
		structOf("fdtable", 16, member("max_fds", TableMax, u32), member("fd", TableFDs, pointer)),
		structOf("file", 32, member("f_op", FileOps, pointer), member("f_inode", FileInode, pointer), member("private_data", FilePrivate, pointer)),
	}
}

// Sockets is a guest with one network namespace, empty tables of sockets, and
// one process, 42, with room for 64 open files.
type Sockets struct {
	*Guest
	*Heap
	Net, Hash, EHash, LHash, BHash, UDP, Unix, Netlink x86.VirtAddr
	Files, FDTable, FDs                                x86.VirtAddr
	fd                                                 int
}

// Inum is the inode number of its network namespace.
const Inum = 4026531840

// NewSockets builds one. more are types of other things that are to be in it.
func NewSockets(more []btf.Type, variables ...string) *Sockets {
	vars := map[string]x86.VirtAddr{}
	at := x86.VirtAddr(Data + 0x8000)
	for _, name := range append([]string{
		"init_task", "net_namespace_list", "tcp_hashinfo", "udp_table", "raw_v4_hashinfo", "raw_v6_hashinfo", "nl_table", "socket_file_ops",
	}, variables...) {
		vars[name] = at
		at += 0x1000
	}
	g := New(Config{Layout: Relative61, Symbols: 300, Types: append(SocketTypes(), more...), Task: TaskFileMembers(), Data: vars})
	s := &Sockets{Guest: g, Heap: g.NewHeap()}
	s.EHash, s.LHash, s.BHash, s.UDP, s.Unix = s.Alloc(4*8), s.Alloc(2*16), s.Alloc(2*16), s.Alloc(4*16), s.Alloc(512*8)
	for i := range 4 {
		g.WriteUint64(s.EHash+x86.VirtAddr(8*i), uint64(i)<<1|1)
	}
	for i := range 2 {
		g.WriteUint64(s.LHash+x86.VirtAddr(16*i+8), uint64(i+1<<29)<<1|1)
	}
	s.Hash = g.Addr("tcp_hashinfo")
	g.WriteUint64(s.Hash+HashEHash, uint64(s.EHash))
	g.WriteUint32(s.Hash+HashMask, 3)
	g.WriteUint64(s.Hash+HashBHash, uint64(s.BHash))
	g.WriteUint32(s.Hash+HashBSize, 2)
	g.WriteUint64(s.Hash+HashLHash, uint64(s.LHash))
	g.WriteUint32(s.Hash+HashLMask, 1)
	g.WriteUint64(g.Addr("udp_table"), uint64(s.UDP))
	g.WriteUint32(g.Addr("udp_table")+8, 3)

	s.Net = s.Alloc(NetSize)
	g.WriteList(g.Addr("net_namespace_list"), s.Net+NetList)
	g.WriteList(s.Net + NetDevices)
	g.WriteUint32(s.Net+NetInum, Inum)
	g.WriteUint64(s.Net+NetHash, uint64(s.Hash))
	g.WriteUint64(s.Net+NetUDP, uint64(g.Addr("udp_table")))
	g.WriteUint64(s.Net+NetUnix, uint64(s.Unix))

	// The tables of netlink; the first has two buckets, the others none.
	tables := s.Alloc(32 * 16)
	g.WriteUint64(g.Addr("nl_table"), uint64(tables))
	s.Netlink = s.Alloc(64 + 2*8)
	g.WriteUint64(tables, uint64(s.Netlink))
	g.WriteUint32(s.Netlink, 2)

	task, signal := s.Alloc(TaskSize), s.Alloc(64)
	s.Files, s.FDTable, s.FDs = s.Alloc(16), s.Alloc(16), s.Alloc(64*8)
	g.WriteList(g.Addr("init_task")+TaskTasks, task+TaskTasks)
	g.WriteList(signal+SignalHead, task+TaskThreadNode)
	g.WriteUint32(task+TaskPID, 42)
	g.Write(task+TaskComm, []byte("daemon"))
	g.WriteUint64(task+TaskSignal, uint64(signal))
	g.WriteUint64(task+TaskFiles, uint64(s.Files))
	g.WriteUint64(s.Files+FilesTable, uint64(s.FDTable))
	g.WriteUint32(s.FDTable+TableMax, 64)
	g.WriteUint64(s.FDTable+TableFDs, uint64(s.FDs))
	return s
}

// Sock makes a struct sock of the namespace.
func (s *Sockets) Sock(family uint16, typ, protocol uint16, state uint8) x86.VirtAddr {
	at := s.Alloc(WholeSock)
	s.WriteUint16(at+SockFamily, family)
	s.Write(at+SockState, []byte{state})
	s.WriteUint64(at+SockNet, uint64(s.Net))
	s.WriteUint16(at+SockType, typ)
	s.WriteUint16(at+SockProtocol, protocol)
	return at
}

// Socket gives a struct sock its other half, with an inode.
func (s *Sockets) Socket(sock x86.VirtAddr, inode uint64) x86.VirtAddr {
	socket := s.Alloc(SocketInode + 128)
	s.WriteUint64(sock+SockSocket, uint64(socket))
	s.WriteUint64(socket+SocketSock, uint64(sock))
	s.WriteUint64(socket+SocketInode+InodeNumber, inode)
	return socket
}

// Open puts a file of some operations into the process's table and returns its
// struct file.
func (s *Sockets) Open(ops, private x86.VirtAddr) x86.VirtAddr {
	file := s.Alloc(32)
	s.WriteUint64(file+FileOps, uint64(ops))
	s.WriteUint64(file+FilePrivate, uint64(private))
	s.fd++
	s.WriteUint64(s.FDs+x86.VirtAddr(8*s.fd), uint64(file))
	return file
}

// OpenSocket has the process open a socket.
func (s *Sockets) OpenSocket(socket x86.VirtAddr) {
	s.WriteUint64(socket+SocketFile, uint64(s.Open(s.Addr("socket_file_ops"), socket)))
}

// BindUnix gives a unix socket a name, with the NUL that the kernel counts.
func (s *Sockets) BindUnix(sock x86.VirtAddr, name string) x86.VirtAddr {
	at := s.Alloc(UnixAddressName + 2 + len(name))
	s.WriteUint32(at+UnixAddressLen, uint32(2+len(name)))
	s.Write(at+UnixAddressName+2, []byte(name))
	s.WriteUint64(sock+UnixAddr, uint64(at))
	return at
}
