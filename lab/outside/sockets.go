package outside

import (
	hexadecimal "encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/witness"
)

// socketView is what a guest says of its sockets, by their inode number.
func socketView(r witness.Report) view {
	v := view{}
	owners := map[string][]string{}
	dirs := []string{"proc/"} // one for each network namespace
	for _, pid := range r.Processes() {
		dir := fmt.Sprintf("proc/%d/", pid)
		if r[dir+"net/tcp"] != nil {
			dirs = append(dirs, dir)
		}
		for name, target := range r {
			fd, ok := strings.CutPrefix(name, dir+"fd/")
			if inode, is := strings.CutPrefix(string(target), "socket:["); ok && is {
				inode = strings.TrimSuffix(inode, "]")
				owners[inode] = append(owners[inode], fmt.Sprintf("%d/%s", pid, fd))
			}
		}
	}
	for _, dir := range dirs {
		ns := nsInode(r.Text(dir + "ns/net"))
		if dir == "proc/" {
			ns = nsInode(r.Text(fmt.Sprintf("proc/%d/ns/net", witnessPID)))
		}
		add := func(inode string, rec record) {
			rec["netns"], rec["owners"] = ns, set(owners[inode])
			v[inode] = rec
		}
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
			for _, f := range rows(r, dir+"net/"+table) {
				if inode, rec := internetSocket(table, f); rec != nil {
					add(inode, rec)
				}
			}
		}
		for _, f := range rows(r, dir+"net/unix") {
			if inode, rec := unixSocket(f); rec != nil {
				add(inode, rec)
			}
		}
		for _, f := range rows(r, dir+"net/packet") {
			if len(f) == 9 {
				add(f[8], record{"family": "packet", "type": map[string]string{"2": "dgram", "3": "raw"}[f[2]]})
			}
		}
		for _, f := range rows(r, dir+"net/netlink") {
			if len(f) == 10 {
				add(f[9], record{"family": "netlink"})
			}
		}
	}
	delete(v, "0") // sockets that no file belongs to
	// The tables show what is bound or connected. Of the others is known who
	// has them open.
	for inode, who := range owners {
		if v[inode] == nil {
			v[inode] = record{"owners": set(who)}
		}
	}
	return v
}

// rows returns the words of each line of a table but its head.
func rows(r witness.Report, name string) [][]string {
	var out [][]string
	for line := range strings.Lines(r.Text(name)) {
		out = append(out, strings.Fields(line))
	}
	return out[min(1, len(out)):]
}

// internetSocket reads a row of /proc/net/tcp and its siblings:
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
func internetSocket(table string, f []string) (inode string, rec record) {
	if len(f) < 10 {
		return "", nil
	}
	protocol := strings.TrimSuffix(table, "6")
	rec = record{"family": "inet", "uid": f[7], "type": map[string]string{"tcp": "stream", "udp": "dgram", "raw": "raw"}[protocol]}
	if table != protocol {
		rec["family"] = "inet6"
	}
	if protocol == "raw" { // what follows the address is the protocol
		return f[9], rec
	}
	rec["protocol"], rec["local"], rec["remote"] = protocol, address(f[1]), address(f[2])
	if state := map[string]string{"01": "established", "0A": "listen"}[f[3]]; protocol == "tcp" && state != "" {
		rec["state"] = state
	}
	return f[9], rec
}

// address reads "0100007F:1267". Each four bytes are a number of the
// processor's. An address without a port, and none at all, are "".
func address(s string) string {
	host, port, _ := strings.Cut(s, ":")
	raw, err := hexadecimal.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || n == 0 {
		return ""
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return ""
	}
	return net.JoinHostPort(ip.String(), strconv.FormatUint(n, 10))
}

// unixSocket reads a row of /proc/net/unix:
//
//	Num: RefCount Protocol Flags Type St Inode Path
func unixSocket(f []string) (inode string, rec record) {
	const listens = 0x10000 // __SO_ACCEPTCON, include/linux/net.h
	if len(f) < 7 {
		return "", nil
	}
	rec = record{"family": "unix", "type": map[string]string{"0001": "stream", "0002": "dgram", "0005": "seqpacket"}[f[4]], "local": ""}
	if flags, err := strconv.ParseUint(f[3], 16, 64); err == nil && flags&listens != 0 {
		rec["state"] = "listen"
	}
	if len(f) > 7 {
		rec["local"] = text(strings.Join(f[7:], " "))
	}
	return f[6], rec
}

// seenSockets is what hvi says of sockets.
func seenSockets(items []report.Socket) view {
	v := view{}
	for i, s := range items {
		id := strconv.FormatUint(s.Inode, 10)
		if s.Inode == 0 {
			id = fmt.Sprintf("without inode %d", i)
		}
		var owners []string
		for _, o := range s.Owners {
			owners = append(owners, fmt.Sprintf("%d/%d", o.PID, o.FD))
		}
		v[id] = record{
			// The tables have the TCP connection of a multipath one, which is what
			// Go's listeners are.
			"family": s.Family, "type": s.Type, "protocol": strings.TrimPrefix(s.Protocol, "mp"), "state": s.State,
			"local": bound(string(s.Local)), "remote": bound(string(s.Remote)),
			"uid": strconv.FormatUint(uint64(s.UID), 10), "netns": strconv.FormatUint(uint64(s.NetNS), 10), "owners": set(owners),
		}
	}
	return v
}

// bound is an address, "" if it has no port.
func bound(s string) string {
	if strings.HasSuffix(s, ":0") {
		return ""
	}
	return s
}

// ownerless says of a socket that the guest shows in no table that it is the
// kernel's own.
func ownerless(s record) bool { return s["owners"] == "" }
