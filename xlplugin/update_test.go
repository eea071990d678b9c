package xlplugin

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

func updateFile(dir string) string {
	return filepath.Join(dir, "userdata-d.5."+uuid1.String()+".xl")
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUpdated(t *testing.T) {
	r := &Resolver{Lib: t.TempDir(), uid: uint32(os.Getuid())}
	file := updateFile(r.Lib)
	if _, ok, err := r.Updated(5, uuid1); ok || err != nil {
		t.Errorf("no update: %v, %v", ok, err)
	}
	stored := time.Unix(bootTime, 0)
	writeFile(t, file, "name='g1'\nintrospection='enforce'\nmemory=1\nmemory=2\nintrospection='observe'\n")
	if err := os.Chtimes(file, stored, stored); err != nil {
		t.Fatal(err)
	}
	u, ok, err := r.Updated(5, uuid1)
	if err != nil || !ok || u.Err != nil {
		t.Fatalf("%+v, %v, %v", u, ok, err)
	}
	if u.Declared.Spec.Mode != policy.ModeObserve || u.Declared.Name != "g1" || u.Declared.HasUUID || !u.Stored.Equal(stored) || u.Path != file {
		t.Errorf("%+v", u)
	}
	if at := u.Declared.Spec.Origins.Mode; at.Source != file || at.Line != 5 {
		t.Errorf("the mode is said to be at %v", at)
	}
	if len(u.Warnings) != 1 || !strings.Contains(u.Warnings[0], "was set already") {
		t.Errorf("warnings %q", u.Warnings)
	}
	if _, ok, _ := r.Updated(6, uuid1); ok {
		t.Error("the update of another domain was taken")
	}

	writeFile(t, file, "name='g1'\nintrospection='enfroce'\n")
	if u, ok, err := r.Updated(5, uuid1); err != nil || !ok || u.Err == nil || u.Declared.Spec.Declared() || u.Declared.Name != "g1" {
		t.Errorf("a broken policy: %+v, %v, %v", u, ok, err)
	}
	writeFile(t, file, "name=")
	if u, ok, err := r.Updated(5, uuid1); err != nil || !ok || u.Err == nil {
		t.Errorf("no config: %+v, %v, %v", u, ok, err)
	}
	writeFile(t, file, "")
	if _, ok, err := r.Updated(5, uuid1); ok || err != nil {
		t.Errorf("an empty file is none to xl: %v, %v", ok, err)
	}

	writeFile(t, file, enforceG1)
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Updated(5, uuid1); ok || err == nil || !strings.Contains(err.Error(), "not believed") {
		t.Errorf("others can write it: %v, %v", ok, err)
	}
	os.Remove(file)
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Updated(5, uuid1); ok || err == nil {
		t.Errorf("a directory: %v, %v", ok, err)
	}
}

func TestUpdateNames(t *testing.T) {
	u := uuid1.String()
	for name, want := range map[string]xen.DomID{
		"userdata-d.5." + u + ".xl":                   5,
		"userdata-d.32751." + u + ".xl":               32751,
		"userdata-n.5." + u + ".xl":                   0, // half written
		"userdata-d.5." + u + ".libxl-json":           0,
		"userdata-d.05." + u + ".xl":                  0,
		"userdata-d.-5." + u + ".xl":                  0,
		"userdata-d.99999." + u + ".xl":               0,
		"userdata-d.5." + strings.ToUpper(u) + ".xl":  0,
		"userdata-d.5." + u + ".xl.xl":                0,
		"userdata-d.5.xl":                             0,
		"userdata-d..xl":                              0,
		"":                                            0,
		"userdata-d.5." + u[:35] + ".xl":              0,
		"userdata-d.5/../../6." + u + ".xl":           0,
		"domain-userdata-lock.5." + u + ".xl":         0,
		"userdata-d.5.6." + u + ".xl":                 0,
		"userdata-d.5." + u + ".xl\x00":               0,
		"userdata-d. 5." + u + ".xl":                  0,
		strings.Repeat("userdata-d.5."+u+".xl", 1000): 0,
	} {
		id, uuid, ok := parseUpdateName(name)
		if ok != (want != 0) || id != want || ok && uuid != uuid1 {
			t.Errorf("%q: %v, %v, %v", name, id, uuid, ok)
		}
	}
}

func TestWatchUpdates(t *testing.T) {
	r := &Resolver{Lib: t.TempDir()}
	writeFile(t, filepath.Join(r.Lib, "userdata-d.4."+uuid1.String()+".xl"), "old")
	writeFile(t, filepath.Join(r.Lib, "userdata-d.4."+uuid1.String()+".libxl-json"), "other")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan xen.DomID)
	ended := make(chan error, 1)
	go func() {
		ended <- r.WatchUpdates(ctx, func(id xen.DomID, uuid xen.UUID) {
			if uuid != uuid1 {
				t.Errorf("domain %d has uuid %v", id, uuid)
			}
			seen <- id
		})
	}()
	next := func(want xen.DomID) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("domain %d, want %d", got, want)
			}
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatalf("domain %d was not seen", want)
		}
	}
	next(4)
	// As libxl does it: under another name first.
	half := filepath.Join(r.Lib, "userdata-n.5."+uuid1.String()+".xl")
	writeFile(t, half, "new")
	if err := os.Rename(half, updateFile(r.Lib)); err != nil {
		t.Fatal(err)
	}
	next(5)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}

	r.Lib = filepath.Join(r.Lib, "missing")
	if err := r.WatchUpdates(t.Context(), nil); err == nil {
		t.Error("a directory that is not there is watched")
	}
}

// notice is an inotify event as the kernel writes it.
func notice(mask uint32, name string) []byte {
	padded := (len(name)/16 + 1) * 16
	b := make([]byte, noticeHeader+padded)
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(padded))
	copy(b[noticeHeader:], name)
	return b
}

func TestParseNotices(t *testing.T) {
	name := "userdata-d.5." + uuid1.String() + ".xl"
	count := func(data []byte) (n int, again bool, err error) {
		again, err = parseNotices(data, func(xen.DomID, xen.UUID) { n++ })
		return n, again, err
	}
	first, second := notice(syscall.IN_MOVED_TO, name), notice(syscall.IN_CLOSE_WRITE, "other")
	two := slices.Concat(first, second, first)
	if n, again, err := count(two); n != 2 || again || err != nil {
		t.Errorf("%d, %v, %v", n, again, err)
	}
	if _, again, err := count(notice(syscall.IN_Q_OVERFLOW, "")); !again || err != nil {
		t.Errorf("an overflow: %v, %v", again, err)
	}
	if _, _, err := count(notice(syscall.IN_IGNORED, "")); err == nil {
		t.Error("the directory is gone and nobody says so")
	}
	for n := 1; n < len(two); n++ {
		whole := n == len(first) || n == len(first)+len(second)
		if _, _, err := count(two[:n]); (err == nil) != whole {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestOwnUUID(t *testing.T) {
	vm := xen.UUID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	come, sent := vm, vm
	copy(come[10:], toCome)
	copy(sent[10:], sentOff)
	nodes := map[string]string{
		"/vm/" + come.String() + "/final-uuid":  vm.String(),
		"/vm/" + sent.String() + "/origin-uuid": vm.String(),
	}
	asked := 0
	read := func(path string) (string, error) {
		asked++
		if v, ok := nodes[path]; ok {
			return v, nil
		}
		return "", os.ErrNotExist
	}
	if own, temporary := OwnUUID(read, vm); temporary || own != vm || asked != 0 {
		t.Errorf("a VM's own: %v, %v, asked %d times", own, temporary, asked)
	}
	for _, u := range []xen.UUID{come, sent} {
		if own, temporary := OwnUUID(read, u); !temporary || own != vm {
			t.Errorf("%v: %v, %v", u, own, temporary)
		}
	}
	for _, v := range []string{"", "x", uuid1.String(), come.String(), vm.String() + " "} {
		nodes["/vm/"+come.String()+"/final-uuid"] = v
		if own, temporary := OwnUUID(read, come); temporary || own != come {
			t.Errorf("final-uuid %q: %v, %v", v, own, temporary)
		}
	}
	clear(nodes)
	if own, temporary := OwnUUID(read, sent); temporary || own != sent {
		t.Errorf("one that only looks so: %v, %v", own, temporary)
	}
}

func FuzzParseNotices(f *testing.F) {
	f.Add(notice(syscall.IN_MOVED_TO, "userdata-d.5."+uuid1.String()+".xl"))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseNotices(data, func(xen.DomID, xen.UUID) {})
	})
}
