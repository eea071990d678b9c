package linux

import (
	"net/netip"
	"strconv"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// Address families, from include/linux/socket.h.
const (
	afUnix    = 1
	afInet    = 2
	afInet6   = 10
	afNetlink = 16
	afPacket  = 17
)

var familyNames = map[uint16]string{
	afUnix: "unix", afInet: "inet", afInet6: "inet6", afNetlink: "netlink", afPacket: "packet",
	3: "ax25", 4: "ipx", 5: "appletalk", 15: "key", 24: "pppox", 29: "can", 30: "tipc", 31: "bluetooth",
	38: "alg", 40: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}

// Types of sockets, from include/linux/net.h.
const (
	sockStream = 1
	sockRaw    = 3
)

var socketTypeNames = map[uint16]string{
	sockStream: "stream", 2: "dgram", sockRaw: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet",
}

// Protocols over IP, from include/uapi/linux/in.h.
const (
	protoTCP = 6
	protoUDP = 17
)

var inetProtocolNames = map[uint16]string{
	1: "icmp", 2: "igmp", 4: "ipip", protoTCP: "tcp", protoUDP: "udp", 33: "dccp", 41: "ipv6", 47: "gre", 50: "esp", 51: "ah",
	58: "icmpv6", 103: "pim", 115: "l2tp", 132: "sctp", 136: "udplite", 255: "raw", 256: "smc", 262: "mptcp",
}

// Netlink's protocols, from include/uapi/linux/netlink.h.
var netlinkProtocolNames = map[uint16]string{
	0: "route", 2: "usersock", 3: "firewall", 4: "sock_diag", 5: "nflog", 6: "xfrm", 7: "selinux", 8: "iscsi", 9: "audit",
	10: "fib_lookup", 11: "connector", 12: "netfilter", 14: "dnrtmsg", 15: "kobject_uevent", 16: "generic",
	18: "scsitransport", 19: "ecryptfs", 20: "rdma", 21: "crypto", 22: "smc",
}

// States, from include/net/tcp_states.h. Other protocols use a few of them.
const (
	stateTimeWait   = 6
	stateClose      = 7
	stateNewSynRecv = 12
)

var tcpStateNames = map[uint8]string{
	1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1", 5: "fin-wait-2", stateTimeWait: "time-wait",
	stateClose: "close", 8: "close-wait", 9: "last-ack", 10: "listen", 11: "closing", stateNewSynRecv: "syn-recv",
}

// nameOf names a number, or says of which kind it is.
func nameOf[T uint8 | uint16](names map[T]string, n T, kind string) string {
	if s, ok := names[n]; ok {
		return s
	}
	return kind + strconv.Itoa(int(n))
}

// stateName names a socket's state in its family's words.
func stateName(family uint16, tcp bool, state uint8) string {
	switch {
	case family == afNetlink || family == afPacket:
		return ""
	case state == stateClose && !tcp:
		return "unconnected"
	}
	return nameOf(tcpStateNames, state, "state-")
}

// endpoint is an address and a port; none of an address that is not set and no
// port.
func endpoint(addr []byte, port uint16, raw bool) report.Text {
	a, ok := netip.AddrFromSlice(addr)
	switch {
	case !ok, port == 0 && a.IsUnspecified():
		return ""
	case raw: // it has a protocol instead of ports
		return report.Text(a.String())
	}
	return report.Text(netip.AddrPortFrom(a, port).String())
}
