package linux

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// imageEnv names a description of a memory image of a real guest, or a folder
// of such. A description is JSON, see testImage; the paths in it are relative
// to its own.
const imageEnv = "HVI_TEST_IMAGE"

// testImage describes a flat image of a guest's memory and what the guest said
// about itself when it was taken.
type testImage struct {
	path string

	Regs     []x86.Registers `json:"regs"` // of each vCPU
	Image    string          `json:"image"`
	Kallsyms string          `json:"kallsyms"` // /proc/kallsyms, gzip
	BTF      string          `json:"btf"`      // /sys/kernel/btf/vmlinux, gzip
	Version  string          `json:"version"`  // /proc/version
	Running  bool            `json:"running"`  // boot is over
	PID      int32           `json:"pid"`      // of a process "yes" that keeps one vCPU busy
}

func testImages(tb testing.TB) []testImage {
	root := os.Getenv(imageEnv)
	if root == "" {
		tb.Skipf("%s names no memory image of a real guest", imageEnv)
	}
	var out []testImage
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".json" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		img := testImage{path: path}
		if err := json.Unmarshal(b, &img); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if len(img.Regs) == 0 {
			return fmt.Errorf("%s: no registers", path)
		}
		out = append(out, img)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	if len(out) == 0 {
		tb.Fatalf("%s=%s: no description there", imageEnv, root)
	}
	return out
}

func (img *testImage) name() string {
	return filepath.Base(filepath.Dir(img.path)) + "-" + strings.TrimSuffix(filepath.Base(img.path), ".json")
}

func (img *testImage) file(name string) string { return filepath.Join(filepath.Dir(img.path), name) }

func (img *testImage) memory(tb testing.TB) *guest.RawImage {
	b, err := os.ReadFile(img.file(img.Image))
	if err != nil {
		tb.Fatal(err)
	}
	return guest.NewRawImage(b)
}

func (img *testImage) gunzip(tb testing.TB, name string) []byte {
	f, err := os.Open(img.file(name))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestImages(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) { checkImage(t, img) })
	}
}

func checkImage(t *testing.T, img testImage) {
	mem := img.memory(t)
	for i, regs := range img.Regs {
		k, err := Identify(mem, regs)
		if err != nil {
			t.Fatalf("vCPU %d: %v", i, err)
		}
		if k.BTFError != nil {
			t.Errorf("vCPU %d: %v", i, k.BTFError)
		}
		if k.Banner != img.Version {
			t.Errorf("vCPU %d: banner %q, the guest says %q", i, k.Banner, img.Version)
		}
		if regs.IDTBase != 0 { // the other way to the kernel, as for a trampoline
			regs.LSTAR = 0
			if other, err := Identify(mem, regs); err != nil || other.Base != k.Base || other.Symbols.Len() != k.Symbols.Len() {
				t.Errorf("vCPU %d: by the IDT: %+v, %v", i, other, err)
			}
		}
		if i == 0 {
			checkSymbols(t, k, img.gunzip(t, img.Kallsyms))
			checkBTF(t, k, img.gunzip(t, img.BTF))
		}
		checkState(t, k, img)
	}
}

// checkSymbols compares the whole table with the guest's own /proc/kallsyms,
// each symbol both ways.
func checkSymbols(t *testing.T, k *Kernel, want []byte) {
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(want)); s.Scan(); {
		if !strings.Contains(s.Text(), "[") { // a module's
			lines = append(lines, s.Text())
		}
	}
	if k.Symbols.Len() != len(lines) {
		t.Errorf("%d symbols, the guest has %d", k.Symbols.Len(), len(lines))
	}
	first := map[x86.VirtAddr]string{}
	i, bad := 0, 0
	for s := range k.Symbols.All() {
		if i < len(lines) {
			if got := fmt.Sprintf("%016x %c %s", uint64(s.Addr), s.Type, s.Name); got != lines[i] {
				if bad++; bad < 10 {
					t.Errorf("symbol %d: %q, the guest has %q", i, got, lines[i])
				}
			}
		}
		i++
		if !s.Absolute && s.Addr < k.Symbols.end {
			if _, dup := first[s.Addr]; !dup {
				first[s.Addr] = s.Name
			}
		}
	}
	byName := map[string][]x86.VirtAddr{}
	for s := range k.Symbols.All() {
		byName[s.Name] = append(byName[s.Name], s.Addr)
	}
	for name, addrs := range byName {
		if got := k.Symbols.LookupAll(name); fmt.Sprint(got) != fmt.Sprint(addrs) {
			t.Fatalf("LookupAll(%q) = %v, want %v", name, got, addrs)
		}
		if got, ok := k.Lookup(name); !ok || got != addrs[0] {
			t.Fatalf("Lookup(%q) = %v, %v, want %v", name, got, ok, addrs[0])
		}
	}
	for va, name := range first {
		if got, off, ok := k.Symbolize(va); got != name || off != 0 || !ok {
			t.Fatalf("Symbolize(%v) = %q+%d, %v, want %q", va, got, off, ok, name)
		}
	}
	t.Logf("%s: %d symbols, base %v at physical %v, text to %v", k.Release, i, k.Base, k.PhysBase, k.TextEnd)
}

// checkBTF compares the blob with the guest's own and the offsets with what the
// full parser makes of it.
func checkBTF(t *testing.T, k *Kernel, want []byte) {
	got, err := readBTF(k.as, k.btfStart, k.btfEnd)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("BTF of %d bytes differs from the guest's own %d", len(got), len(want))
	}
	spec, err := k.BTF()
	if err != nil {
		t.Fatal(err)
	}
	var task *btf.Struct
	if err := spec.TypeByName("task_struct", &task); err != nil {
		t.Fatal(err)
	}
	o := k.Offsets.Task
	if o.Size != int(task.Size) {
		t.Errorf("task_struct of %d bytes, want %d", o.Size, task.Size)
	}
	for name, off := range map[string]int{"tasks": o.Tasks, "mm": o.MM, "active_mm": o.ActiveMM, "pid": o.PID, "tgid": o.TGID,
		"real_parent": o.RealParent, "parent": o.Parent, "cred": o.Cred, "real_cred": o.RealCred, "comm": o.Comm, "flags": o.Flags, "__state": o.State} {
		w, ok := memberOffset(task.Members, name, 0)
		if !ok && name == "__state" {
			w, ok = memberOffset(task.Members, "state", 0)
		}
		if !ok || w != off {
			t.Errorf("task_struct.%s at %d, want %d (%v)", name, off, w, ok)
		}
	}
	var mm *btf.Struct
	if err := spec.TypeByName("mm_struct", &mm); err != nil {
		t.Fatal(err)
	}
	if w, ok := memberOffset(mm.Members, "pgd", 0); !ok || w != k.Offsets.MM.PGD {
		t.Errorf("mm_struct.pgd at %d, want %d (%v)", k.Offsets.MM.PGD, w, ok)
	}
	var states *btf.Enum
	if err := spec.TypeByName("system_states", &states); err != nil {
		t.Fatal(err)
	}
	for _, v := range states.Values {
		if v.Name == "SYSTEM_RUNNING" && int(v.Value) != k.Offsets.SystemStates.Running {
			t.Errorf("SYSTEM_RUNNING %d, want %d", k.Offsets.SystemStates.Running, v.Value)
		}
	}
}

func memberOffset(members []btf.Member, name string, at int) (int, bool) {
	for _, m := range members {
		off := at + int(m.Offset.Bytes())
		if m.Name == name {
			return off, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if off, ok := memberOffset(inner, name, off); ok {
			return off, true
		}
	}
	return 0, false
}

func checkState(t *testing.T, k *Kernel, img testImage) {
	running, err := k.Running()
	if err != nil || running != img.Running {
		t.Errorf("running %v (%v), want %v", running, err, img.Running)
	}
	text, err := k.TextFrames()
	if err != nil {
		t.Fatal(err)
	}
	pages := uint64(0)
	for _, r := range text {
		pages += r.N
	}
	if want := uint64(k.TextEnd-k.TextStart+x86.PageMask) >> x86.PageShift; pages != want || text[0].First != k.PhysBase.GFN() {
		t.Errorf("text frames %v: %d pages, want %d from %v", text, pages, want, k.PhysBase.GFN())
	}
	poke, err := k.TextPoke()
	if !img.Running {
		if !errors.Is(err, ErrNotYet) {
			t.Errorf("text poke %+v, %v, want %v", poke, err, ErrNotYet)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	// The window's page tables exist but for the last entry; the kernel
	// half must be this kernel's.
	as := k.AddressSpace()
	pokeAS := as.WithRoot(poke.CR3)
	own, err := as.Translate(k.TextStart)
	if err != nil {
		t.Fatal(err)
	}
	if tr, err := pokeAS.Translate(k.TextStart); err != nil || tr.Phys != own.Phys {
		t.Errorf("text in the patching address space at %v (%v), want %v", tr.Phys, err, own.Phys)
	}
	var te *guest.TranslateError
	if _, err := pokeAS.Translate(poke.Window); !errors.As(err, &te) || !errors.Is(err, guest.ErrNotPresent) || te.Level != 1 {
		t.Errorf("window %v: %v, want its page table to be there and empty", poke.Window, err)
	}
	memcpy, ok := k.Lookup("memcpy")
	code := k.TextPokeCode()
	if !ok || !slices.ContainsFunc(code, func(r Range) bool { return r.Contains(memcpy) }) {
		t.Errorf("patching code %v without memcpy at %v", code, memcpy)
	}
	for _, r := range code {
		if r.End-r.Start > 0x1000 {
			t.Errorf("patching code %v: too much of it", r)
		}
	}
	found := false
	for i := range img.Regs {
		task, err := k.CurrentTask(&img.Regs[i])
		if err != nil {
			t.Errorf("vCPU %d: %v", i, err)
			continue
		}
		t.Logf("vCPU %d: %s, pid %d, tgid %d at %v", i, task.Name(), task.PID, task.TGID, task.Addr)
		found = found || task.PID == img.PID && task.TGID == img.PID && task.Name() == "yes"
		if img.Regs[i].CPL == 3 && task.PID == 0 {
			t.Errorf("vCPU %d is in user space with task %+v", i, task)
		}
	}
	if !found {
		t.Errorf("no vCPU runs process %d", img.PID)
	}
}
