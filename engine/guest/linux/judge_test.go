package linux

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestForbiddenPrograms tells of those that are forbidden, with what they are attached
// to.
func TestForbiddenPrograms(t *testing.T) {
	w := newProgramWorld()
	r := w.kernel(t).NewReader(w.Regs)
	v, err := r.ForbiddenPrograms(func(p *report.Program) bool { return p.Type == "kprobe" || p.Type == "socket_filter" })
	if err != nil || v.Clean || len(v.Checks) != 1 || v.Checks[0].Status != report.CheckFound || v.Checks[0].Examined != len(w.want) {
		t.Fatalf("%+v, %v", v, err)
	}
	var got []string
	for _, f := range v.Findings {
		got = append(got, string(f.Object+": "+f.Detail))
	}
	want := []string{
		`eBPF program filter\x1b of type socket_filter, number 1: user 1000 has loaded it, and it is attached: socket socket:[300]`,
		"eBPF program probe of type kprobe, number 4: user 0 has loaded it, and it is attached: kprobe vfs_unlink",
		"eBPF program many of type kprobe, number 12: user 0 has loaded it, and it is attached: kprobe_multi entry_SYSCALL_64 and 2 more",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if p := v.Findings[0].Place; p == nil || p.Addr != 0xffff_ffff_c000_1000 || v.Findings[1].Place != nil {
		t.Errorf("places %+v, %+v", p, v.Findings[1].Place)
	}
	if v, err := r.ForbiddenPrograms(func(*report.Program) bool { return false }); err != nil || !v.Clean || len(v.Findings) != 0 {
		t.Errorf("nothing forbidden: %+v, %v", v, err)
	}
	// A table that can't be read is told of, and nothing is found in it.
	w.WriteUint64(w.first+linuxtest.ProgAux, 0xffff_c900_0000_0000)
	if v, err := r.ForbiddenPrograms(func(*report.Program) bool { return true }); err != nil || v.Clean || v.Checks[0].Status != report.CheckFailed || len(v.Findings) != 0 {
		t.Errorf("a hostile table: %+v, %v", v, err)
	}
	_, k := identified(t, linuxtest.Config{})
	if v, err := k.NewReader(nil).ForbiddenPrograms(func(*report.Program) bool { return true }); err != nil || !v.Clean {
		t.Errorf("a kernel without eBPF: %+v, %v", v, err)
	}
}

// TestForbiddenModules tells of those that are forbidden, with their build IDs.
func TestForbiddenModules(t *testing.T) {
	for _, arrays := range []bool{false, true} {
		b := newKernelGuest(t, arrays)
		b.addModule("virtio", coreBase)
		b.addModule("pwn", coreBase+0x10_0000)
		rodata := coreBase + 0x2000 // of a module in one piece
		if arrays {
			rodata = coreBase + 0x2_0000
		}
		const frame = x86.PhysAddr(0x9_8000)
		b.Map(rodata, frame, x86.PageSize, guest.Page4K, guesttest.NX)
		// A note of another owner, one that is too long, and the right one.
		b.Write(rodata+8, []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00Xen\x00abcd"))
		b.Write(rodata+64, []byte("\x04\x00\x00\x00\x40\x00\x00\x00\x03\x00\x00\x00GNU\x00abcd"))
		b.Write(rodata+128, []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00GNU\x00\x01\xab\xcd\xef"))
		var ids []string
		forbidden := func(m *report.Module, id func() string) bool {
			ids = append(ids, string(m.Name)+" "+id())
			return true
		}
		v, err := b.reader().ForbiddenModules(forbidden)
		if err != nil || v.Clean || len(v.Findings) != 2 || v.Checks[0].Examined != 2 {
			t.Fatalf("%+v, %v", v, err)
		}
		if !slices.Equal(ids, []string{"virtio 01abcdef", "pwn "}) {
			t.Errorf("build IDs %q", ids)
		}
		f := v.Findings[0]
		if f.Object != "module virtio" || !strings.HasSuffix(string(f.Detail), "; its build ID is 01abcdef") || f.Place.Addr != coreBase || f.Place.Module != "virtio" {
			t.Errorf("%+v", f)
		}
		if f := v.Findings[1]; f.Object != "module pwn" || strings.Contains(string(f.Detail), "build ID") {
			t.Errorf("%+v", f)
		}
		// A list that leads to itself.
		b.pointer(b.get(b.Addr("modules")), b.get(b.Addr("modules")))
		if v, err := b.reader().ForbiddenModules(forbidden); err != nil || v.Clean || v.Checks[0].Status != report.CheckFailed || len(v.Findings) != 0 {
			t.Errorf("a hostile list: %+v, %v", v, err)
		}
	}
	_, k := identified(t, linuxtest.Config{})
	if _, err := k.NewReader(nil).Uptime(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("uptime of a kernel that has no timekeeper: %v", err)
	}
}

// TestImagesJudged: real programs and modules are told of by the names that a policy has
// for them.
func TestImagesJudged(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			img.leftAlone(t)
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			r := k.NewReader(img.Regs)
			v, err := r.ForbiddenPrograms(func(p *report.Program) bool { return p.Type == "kprobe" })
			if err != nil || len(v.Findings) != 1 || !strings.HasPrefix(string(v.Findings[0].Object), "eBPF program odd_kprobe of type kprobe") {
				t.Errorf("%+v, %v", v, err)
			}
			n := 0
			v, err = r.ForbiddenModules(func(m *report.Module, id func() string) bool {
				if len(id()) == 40 {
					n++
				}
				return m.Name == "dummy"
			})
			if err != nil || len(v.Findings) != 1 || v.Findings[0].Object != "module dummy" || n != v.Checks[0].Examined || n == 0 {
				t.Errorf("%+v, %v; %d build IDs", v, err, n)
			}
			if up, err := r.Uptime(); err != nil || up < 1 || up > 3600 {
				t.Errorf("up for %v seconds, %v", up, err)
			}
		})
	}
}

// FuzzBuildID looks for a build ID in anything.
func FuzzBuildID(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00GNU\x00\x01\xab\xcd\xef"))
	f.Add([]byte("\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00\x01"))
	f.Add([]byte("\x04\x00\x00\x00\xff\x00\x00\x00\x03\x00\x00\x00GNU"))
	f.Fuzz(func(t *testing.T, notes []byte) {
		id := buildIDIn(notes)
		if len(id) > 2*maxBuildID {
			t.Errorf("a build ID of %d digits", len(id))
		}
		if raw, err := hex.DecodeString(id); err != nil || !bytes.Contains(notes, raw) {
			t.Errorf("%q is not there: %v", id, err)
		}
	})
}

// TestForbiddenCode finds what a sealed process can execute and is no file's.
func TestForbiddenCode(t *testing.T) {
	p, r := processGuest(t, 3)
	giveMemory(p, p.Tasks[1], 3) // code of a file, and two pages of none
	look := func(sealed int32) report.Verdict {
		t.Helper()
		v, err := r.ForbiddenCode(func(q *report.Process) bool { return q.PID == sealed })
		if err != nil || len(v.Checks) != 1 || v.Checks[0].Name != "sealed-processes" || v.Clean != (len(v.Findings) == 0) {
			t.Fatalf("%+v, %v", v, err)
		}
		return v
	}
	if v := look(1); len(v.Findings) != 0 {
		t.Errorf("of another: %+v", v.Findings)
	}
	v := look(2)
	if len(v.Findings) != 2 || v.Checks[0].Examined != 3 {
		t.Fatalf("%+v", v)
	}
	want := report.Finding{Check: "sealed-processes", Object: "process 2 (worker)", Detail: "it can execute anonymous memory: 0x402000 to 0x403000, r-xp"}
	if !reflect.DeepEqual(v.Findings[0], want) {
		t.Errorf("%+v, want %+v", v.Findings[0], want)
	}
	for _, c := range []struct {
		m    report.Mapping
		want string
	}{
		{report.Mapping{Perm: "r-xp", Inode: 7, Path: "/bin/a"}, ""},
		{report.Mapping{Perm: "rwxp", Inode: 7, Path: "/bin/a"}, "memory of a file that it can write"},
		{report.Mapping{Perm: "rw-p"}, ""},
		{report.Mapping{Perm: "rwxp", Path: "[stack]"}, "its stack"},
		{report.Mapping{Perm: "r-xp", Path: "[heap]"}, "its heap"},
		{report.Mapping{Perm: "r-xp", Path: "[anon:[vdso]]"}, "anonymous memory"},
		{report.Mapping{Perm: "r-xp", Path: "[vdso]"}, ""},
		{report.Mapping{Perm: "--xp", Path: "[vsyscall]"}, ""},
		{report.Mapping{Perm: "--xp", Path: "[uprobes]"}, ""},
	} {
		if got := foreignCode(&c.m); got != c.want {
			t.Errorf("%+v: %q, want %q", c.m, got, c.want)
		}
	}
}
