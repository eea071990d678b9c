package linux

import (
	"archive/tar"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
)

// ownView is what the guest said about itself right after its image was taken:
// files by their names in the guest, those whose name matches. It skips the test
// if there is none.
func (img *testImage) ownView(t *testing.T, names string) map[string]string {
	f, err := os.Open(img.file("after.tar"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the image has no view of the guest's own beside it")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want, out := regexp.MustCompile(names), map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !want.MatchString(h.Name) {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
	}
}

// TestImagesSockets compares the sockets of the first network namespace with
// the guest's own /proc/net, and who has them open with its /proc/PID/fd.
func TestImagesSockets(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			own := img.ownView(t, `^proc/(net/.*|1/ns/net|[0-9]+/fd/[0-9]+|[0-9]+/comm)$`)
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.NewReader(img.Regs).Sockets()
			if err != nil {
				t.Fatal(err)
			}
			if got.Reading.Retries != 0 || got.Reading.Incomplete != nil {
				t.Errorf("of a guest that stands still: %+v", got.Reading)
			}
			t.Logf("%d sockets in %d µs", len(got.Items), got.Reading.Microseconds)
			var ns uint32
			if _, err := fmt.Sscanf(own["proc/1/ns/net"], "net:[%d]", &ns); err != nil {
				t.Fatal(err)
			}
			found, want := map[string]bool{}, map[string]bool{}
			for _, s := range got.Items {
				if s.NetNS == ns && s.Inode != 0 && !unlisted(s) {
					found[socketLine(s)] = true
				}
			}
			for _, s := range ownSockets(t, own) {
				want[socketLine(s)] = true
			}
			compareLines(t, found, want)
			checkOwners(t, got.Items, own)
		})
	}
}

// unlisted reports whether /proc/net has no list of such sockets: those of MPTCP
// and those that have a process but no address yet.
func unlisted(s report.Socket) bool {
	return len(s.Owners) > 0 && (s.Protocol == "mptcp" || s.Family == "netlink" && s.Local == "0" || s.Protocol == "udp" && s.Local == "")
}

// compareLines says what is in one set and not in the other.
func compareLines(t *testing.T, found, want map[string]bool) {
	t.Helper()
	if len(want) == 0 {
		t.Error("the guest has nothing of this: this shows nothing")
	}
	for _, l := range slices.Sorted(maps.Keys(found)) {
		if !want[l] {
			t.Errorf("found, the guest has not: %s", l)
		}
	}
	for _, l := range slices.Sorted(maps.Keys(want)) {
		if !found[l] {
			t.Errorf("not found: %s", l)
		}
	}
}

// socketLine is what /proc/net tells of a socket. A unix socket's peer and a
// netlink socket's type are not told there.
func socketLine(s report.Socket) string {
	switch s.Family {
	case "unix":
		s.Remote = ""
	case "netlink":
		s.Type = ""
	}
	return fmt.Sprintf("%s %s %s %s %q %q inode %d uid %d", s.Family, s.Type, s.Protocol, s.State, s.Local, s.Remote, s.Inode, s.UID)
}

// ownSockets is what the guest lists in /proc/net.
func ownSockets(t *testing.T, own map[string]string) []report.Socket {
	var out []report.Socket
	num := func(s string, base int) uint64 {
		n, err := strconv.ParseUint(s, base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	lines := func(name string) [][]string {
		text, ok := own["proc/net/"+name]
		if !ok {
			t.Errorf("no /proc/net/%s", name)
		}
		var f [][]string
		for i, l := range strings.Split(strings.TrimSpace(text), "\n") {
			if i > 0 {
				f = append(f, strings.Fields(l))
			}
		}
		return f
	}
	for name, typ := range map[string]string{"tcp": "stream", "udp": "dgram", "raw": "raw"} {
		for _, v := range []string{"", "6"} {
			for _, f := range lines(name + v) {
				local, remote := ownEndpoint(t, f[1]), ownEndpoint(t, f[2])
				s := report.Socket{
					Family: "inet" + v, Type: typ, Protocol: name, State: stateName(afInet, name == "tcp", uint8(num(f[3], 16))),
					Local: report.Text(local.String()), Remote: report.Text(remote.String()),
					Inode: num(f[9], 10), UID: uint32(num(f[7], 10)),
				}
				if name == "raw" { // it has the protocol for a port
					s.Protocol, s.Local = inetProtocolNames[local.Port()], report.Text(local.Addr().String())
				}
				if remote.Port() == 0 && remote.Addr().IsUnspecified() {
					s.Remote = ""
				}
				out = append(out, s)
			}
		}
	}
	for _, f := range lines("packet") {
		out = append(out, report.Socket{Family: "packet", Type: socketTypeNames[uint16(num(f[2], 10))], Protocol: "0x" + f[3], UID: uint32(num(f[7], 10)), Inode: num(f[8], 10)})
	}
	for _, f := range lines("netlink") {
		out = append(out, report.Socket{Family: "netlink", Protocol: netlinkProtocolNames[uint16(num(f[1], 10))], Local: report.Text(f[2]), Inode: num(f[9], 10)})
	}
	for _, f := range lines("unix") {
		s := report.Socket{Family: "unix", Type: socketTypeNames[uint16(num(f[4], 16))], State: "unconnected", Inode: num(f[6], 10)}
		if len(f) > 7 {
			s.Local = printable.Escape(f[7])
		}
		switch {
		case f[3] == "00010000":
			s.State = "listen"
		case f[5] == "03":
			s.State = "established"
		}
		out = append(out, s)
	}
	return out
}

// ownEndpoint is an address of /proc/net: words in the order of the processor.
func ownEndpoint(t *testing.T, s string) netip.AddrPort {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(p))
}

// checkOwners compares who has sockets open with the guest's /proc/PID/fd, in
// all its network namespaces.
func checkOwners(t *testing.T, sockets []report.Socket, own map[string]string) {
	got, want := map[string]bool{}, map[string]bool{}
	for _, s := range sockets {
		for _, o := range s.Owners {
			got[fmt.Sprintf("socket:[%d] pid %d fd %d %s", s.Inode, o.PID, o.FD, o.Comm)] = true
		}
	}
	fd := regexp.MustCompile(`^proc/([0-9]+)/fd/([0-9]+)$`)
	for name, target := range own {
		if m := fd.FindStringSubmatch(name); m != nil && strings.HasPrefix(target, "socket:[") {
			comm := printable.Escape(strings.TrimSuffix(own["proc/"+m[1]+"/comm"], "\n"))
			want[fmt.Sprintf("%s pid %s fd %s %s", target, m[1], m[2], comm)] = true
		}
	}
	compareLines(t, got, want)
}
