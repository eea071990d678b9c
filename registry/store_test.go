package registry

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

var (
	uuid1 = xen.UUID{0x6c, 0x9f, 0x7a, 0x1e, 0x0b, 0x1d, 0x4f, 0x0e, 0x9c, 0x5c, 1, 0x23, 0x45, 0x67, 0x89, 0xab}
	uuid2 = xen.UUID{15: 2}
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// numbered is a UUID of its own for each n.
func numbered(n int) xen.UUID {
	return xen.UUID{0xaa, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}
}

// spec is a policy of that mode, written at source:1.
func spec(t testing.TB, mode, source string) policy.Spec {
	t.Helper()
	var b policy.Builder
	b.Mode(mode, policy.Origin{Source: source, Line: 1})
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// full is an entry with something in every field.
func full(t testing.TB) Entry {
	file := policy.Origin{Source: "/etc/hvi/policies/web.toml", Line: 3, Column: 7}
	s := spec(t, "enforce", "/etc/xen/web.cfg")
	s.Preset, s.RequireAttach = "web", true
	s.Origins.Preset, s.Origins.RequireAttach = policy.Origin{Source: "/etc/xen/web.cfg", Line: 2, Column: 9}, file
	s.Guards = []policy.GuardSetting{{Name: policy.GuardKernelText, Action: policy.ActionAlert, Origin: policy.Origin{Source: "xl command line"}}}
	s.Named = &policy.Named{Name: "web", Origin: policy.Origin{Source: file.Source}, RequireAttach: true, RequireAttachAt: file}
	return Entry{
		UUID: uuid1, Name: "web", Toolstack: ToolstackXL, Source: `xl config "/etc/xen/web.cfg"`, Spec: s,
		Asserted: noon.Add(-time.Second), Captured: noon, Standing: true, Suspended: true, Gone: noon.Add(time.Hour), End: Saved, Domain: 7,
		Next: &Next{Name: "web2", UUID: uuid2, HasUUID: true, Source: "xl config-update", Broken: "web.cfg:1:1: unknown mode", Asserted: noon},
	}
}

// open opens a store that does not wait for the disk, in memory if it can be.
func open(t testing.TB) *Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hvi-registry-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := Open(filepath.Join(dir, "domains"))
	if err != nil {
		t.Fatal(err)
	}
	s.sync = func(*os.File) error { return nil }
	return s
}

func mustPut(t testing.TB, s *Store, e Entry) {
	t.Helper()
	if err := s.Put(e); err != nil {
		t.Fatal(err)
	}
}

// files lists what is in the store's directory.
func files(t testing.TB, s *Store) []string {
	t.Helper()
	names, err := s.names("")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestStoreRoundTrip(t *testing.T) {
	hostile := []string{
		"", "../../x", "a b;rm -rf /", strings.Repeat("n", 200), "ünïcödé \u202e", "\xff\xfe\x00", "a\nb", `"\`, `{"bytes":""}`,
		strings.Repeat("\x01", MaxText),
	}
	for _, name := range hostile {
		s := open(t)
		want := full(t)
		want.Name, want.Source = name, name
		want.Next.Name = name
		mustPut(t, s, want)
		// Another store reads it: what counts is the file.
		again, err := Open(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		got, ok, err := again.Get(uuid1)
		if err != nil || !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\ngot  %+v, %v, %v\nwant %+v", name, got, ok, err, want)
		}
		if names := files(t, s); !slices.Equal(names, []string{uuid1.String() + ".json"}) {
			t.Errorf("%q: the directory holds %q", name, names)
		}
		info, err := os.Stat(s.path(uuid1))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%q: mode %v, %v", name, info.Mode(), err)
		}
	}
}

func TestStoreRefuses(t *testing.T) {
	s := open(t)
	for name, change := range map[string]func(*Entry){
		"a long name":        func(e *Entry) { e.Name = strings.Repeat("n", MaxText+1) },
		"a long source":      func(e *Entry) { e.Source = strings.Repeat("n", MaxText+1) },
		"no toolstack":       func(e *Entry) { e.Toolstack = "" },
		"another toolstack":  func(e *Entry) { e.Toolstack = "xm" },
		"an invalid spec":    func(e *Entry) { e.Spec.Guards[0].Name = "nope" },
		"an invalid next":    func(e *Entry) { e.Next.Spec.Mode = 9 },
		"broken and sound":   func(e *Entry) { e.Broken = "x" },
		"another end":        func(e *Entry) { e.End = 99 },
		"more than a file":   func(e *Entry) { e.Spec.Origins.Mode.Source = strings.Repeat("x", MaxEntrySize) },
		"a next of both":     func(e *Entry) { e.Next.Spec = e.Spec },
		"a long next reason": func(e *Entry) { e.Next.Broken = strings.Repeat("n", MaxText+1) },
	} {
		e := full(t)
		change(&e)
		if err := s.Put(e); err == nil {
			t.Errorf("%s was kept", name)
		}
	}
	if n := files(t, s); len(n) != 0 {
		t.Errorf("left %q", n)
	}
}

// TestStoreSurvivesAnyCrash cuts the new file anywhere, as a crash may leave it,
// and the kept one, as a broken disk may.
func TestStoreSurvivesAnyCrash(t *testing.T) {
	s := open(t)
	old := full(t)
	mustPut(t, s, old)
	changed := old
	changed.Name = "changed"
	data, err := EncodeEntry(changed)
	if err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(s.Dir(), uuid1.String()+tempSuffix)
	for n := 0; n <= len(data); n += 7 {
		if err := os.WriteFile(temp, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		after, err := Open(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := after.Get(uuid1); err != nil || !ok || !reflect.DeepEqual(got, old) {
			t.Fatalf("a new file cut at %d: %+v, %v, %v", n, got, ok, err)
		}
		if names := files(t, after); len(names) != 1 {
			t.Fatalf("a new file cut at %d leaves %q", n, names)
		}
	}
	for n := 0; n < len(data)-1; n += 7 {
		if err := os.WriteFile(s.path(uuid1), data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		_, ok, err := s.Get(uuid1)
		var corrupt *CorruptError
		if ok || !errors.As(err, &corrupt) || corrupt.Aside == "" || !strings.Contains(err.Error(), "set aside as") {
			t.Fatalf("cut at %d: %v, %v", n, ok, err)
		}
		if kept, err := os.ReadFile(corrupt.Aside); err != nil || string(kept) != string(data[:n]) {
			t.Fatalf("cut at %d: set aside is %q, %v", n, kept, err)
		}
		if _, ok, err := s.Get(uuid1); ok || err != nil {
			t.Fatalf("cut at %d: reported twice: %v, %v", n, ok, err)
		}
	}
}

// TestStoreFullDisk fails each step of writing: the older entry stays.
func TestStoreFullDisk(t *testing.T) {
	s := open(t)
	old := full(t)
	mustPut(t, s, old)
	s.sync = func(*os.File) error { return syscall.ENOSPC }
	changed := old
	changed.Name = "changed"
	if err := s.Put(changed); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), uuid1.String()) {
		t.Errorf("Put: %v", err)
	}
	if got, ok, err := s.Get(uuid1); err != nil || !ok || !reflect.DeepEqual(got, old) {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	if names := files(t, s); len(names) != 1 {
		t.Errorf("left %q", names)
	}
}

func TestStoreOddFiles(t *testing.T) {
	s := open(t)
	mustPut(t, s, full(t))
	elsewhere := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(elsewhere, []byte("root:x:0"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, make := range map[string]func(string) error{
		"README.json": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		strings.ToUpper(uuid1.String()) + ".json": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		numbered(1).String() + ".json":            func(p string) error { return os.Symlink(elsewhere, p) },
		numbered(2).String() + ".json":            func(p string) error { return syscall.Mkfifo(p, 0o600) },
		numbered(3).String() + ".json":            func(p string) error { return os.Mkdir(p, 0o700) },
		numbered(4).String() + ".json": func(p string) error { // another's
			data, err := os.ReadFile(s.path(uuid1))
			return errors.Join(err, os.WriteFile(p, data, 0o600))
		},
		numbered(5).String() + ".json": func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat(" ", MaxEntrySize+1)), 0o600)
		},
	} {
		if err := make(filepath.Join(s.Dir(), path)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.All()
	if len(all) != 1 || all[0].UUID != uuid1 {
		t.Errorf("%+v", all)
	}
	if n := strings.Count(err.Error(), "is damaged"); n != 5 {
		t.Errorf("%d reports: %v", n, err)
	}
	if all, err := s.All(); err != nil || len(all) != 1 {
		t.Errorf("reported twice: %v, %v", all, err)
	}
	if data, err := os.ReadFile(elsewhere); err != nil || string(data) != "root:x:0" {
		t.Errorf("what the link points to: %q, %v", data, err)
	}
}

func TestStoreLifetime(t *testing.T) {
	nobody := func(xen.UUID) bool { return false }
	for _, tt := range []struct {
		name      string
		suspended bool
		how       End
		stays     time.Duration // 0: not at all; -1: for ever
	}{
		{"destroyed", false, Destroyed, 0},
		{"powered off", false, PoweredOff, PowerOffGrace},
		{"rebooted or crashed", false, Restarting, RestartGrace},
		{"saved", false, Saved, -1},
		{"restored once, then destroyed", true, Destroyed, -1},
		{"restored once, then powered off", true, PoweredOff, -1},
	} {
		s := open(t)
		mustPut(t, s, Entry{UUID: uuid1, Toolstack: ToolstackXL, Suspended: tt.suspended})
		if err := s.Ended(uuid1, tt.how, noon); err != nil {
			t.Fatal(err)
		}
		there := func() bool {
			_, ok, err := s.Get(uuid1)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if there() != (tt.stays != 0) {
			t.Errorf("%s: there is %v at once", tt.name, there())
		}
		prune := func(after time.Duration) {
			if _, err := s.Prune(noon.Add(after), nobody); err != nil {
				t.Fatal(err)
			}
		}
		if tt.stays > 0 {
			if prune(tt.stays - 1); !there() {
				t.Errorf("%s: gone too early", tt.name)
			}
			if prune(tt.stays); there() {
				t.Errorf("%s: there too long", tt.name)
			}
		}
		if prune(1000 * time.Hour); there() != (tt.stays < 0) {
			t.Errorf("%s: there is %v in the end", tt.name, there())
		}
	}
}

func TestStorePruneUnseen(t *testing.T) {
	s := open(t)
	mustPut(t, s, Entry{UUID: uuid1, Toolstack: ToolstackLibvirt}) // its start failed
	mustPut(t, s, Entry{UUID: uuid2, Toolstack: ToolstackXL})      // it runs
	alive := func(u xen.UUID) bool { return u == uuid2 }
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {RestartGrace - 1, 0}, {RestartGrace, 1}, {2 * RestartGrace, 0}} {
		if n, err := s.Prune(noon.Add(tt.after), alive); n != tt.want || err != nil {
			t.Errorf("after %v: removed %d, %v", tt.after, n, err)
		}
	}
	if names := files(t, s); len(names) != 1 || !strings.HasPrefix(names[0], uuid2.String()) {
		t.Errorf("left %q", names)
	}
}

func TestStoreBoundsTheSaved(t *testing.T) {
	s := open(t)
	for i := range MaxSaved + 3 {
		// The earliest numbers went last.
		mustPut(t, s, Entry{UUID: numbered(i), Toolstack: ToolstackXL, Suspended: true, Gone: noon.Add(-time.Duration(i) * time.Second), End: Saved})
	}
	mustPut(t, s, Entry{UUID: uuid1, Toolstack: ToolstackXL, Suspended: true, Gone: noon.Add(-1000 * time.Hour)})
	n, err := s.Prune(noon, func(u xen.UUID) bool { return u == uuid1 })
	if n != 3 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	for i, want := range map[int]bool{0: true, MaxSaved - 1: true, MaxSaved: false, MaxSaved + 2: false} {
		if _, ok, _ := s.Get(numbered(i)); ok != want {
			t.Errorf("entry %d: there is %v", i, ok)
		}
	}
	if _, ok, _ := s.Get(uuid1); !ok {
		t.Error("the entry of a domain that runs was removed")
	}
}

func TestStoreBoundsTheCorrupt(t *testing.T) {
	s := open(t)
	for i := range maxCorrupt + 10 {
		if err := os.WriteFile(s.path(numbered(i)), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Prune(noon, func(xen.UUID) bool { return true })
	if err == nil {
		t.Error("nothing was reported")
	}
	if _, err := s.Prune(noon, func(xen.UUID) bool { return true }); err != nil {
		t.Errorf("reported again: %v", err)
	}
	if n := len(files(t, s)); n != maxCorrupt {
		t.Errorf("%d files are left, want %d", n, maxCorrupt)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	data, err := EncodeEntry(full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	small, err := EncodeEntry(Entry{UUID: uuid2, Name: "\xff", Toolstack: ToolstackLibvirt, Captured: noon})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Add([]byte(`{"version":1,"uuid":"6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab","toolstack":"xl","name":{"bytes":"/w=="},"declared":{"mode":"off"}}`))
	f.Add([]byte(`{"version":1} {}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := DecodeEntry(data)
		if err != nil {
			return
		}
		out, err := EncodeEntry(e)
		if err != nil {
			// A file that is smaller than what it says can be too large when
			// it is written in full.
			if len(data) < MaxEntrySize/8 {
				t.Errorf("read but not to be written: %v", err)
			}
			return
		}
		again, err := DecodeEntry(out)
		if err != nil {
			t.Fatalf("written but not to be read: %v\n%s", err, out)
		}
		a, _ := json.Marshal(e)
		b, _ := json.Marshal(again)
		if string(a) != string(b) {
			t.Errorf("%s\nbecame\n%s", a, b)
		}
	})
}
