package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func dir(name string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}
}

// treeOf publishes packages, and unpacks them all.
func treeOf(t *testing.T, debs ...fakeDeb) (string, *client, error) {
	t.Helper()
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: debs})
	c := m.open(t.TempDir())
	pkgs, err := c.Find(t.Context(), []string{"bookworm"}, "*")
	if err != nil {
		t.Fatal(err)
	}
	path, err := c.Tree(t.Context(), "t", pkgs)
	return path, c, err
}

// list describes every entry below a folder: "path mode" and contents or target.
func list(t testing.TB, root string, times bool) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		s := rel + " " + st.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " → " + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(data) > 40 {
				data = []byte(hexSum(data))
			}
			s += fmt.Sprintf(" %q", data)
			if times {
				s += " " + st.ModTime().UTC().String()
			}
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTree(t *testing.T) {
	base := fakeDeb{name: "base-files", version: "1"}.
		entry(dir("./", 0o755)).entry(dir("./etc/", 0o755)).entry(dir("./tmp/", 0o777|0o1000)).entry(dir("./root/", 0o700)).
		entry(symlink("./bin", "usr/bin")).entry(symlink("./lib", "usr/lib")).
		file("./etc/debian_version", "12\n").
		entry(symlink("./var/run", "/run")).entry(tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666})
	tool := fakeDeb{name: "tool", version: "1"}.
		entry(dir("./bin/", 0o755)).file("./bin/tool", "tool").entry(hardlink("./bin/tool2", "./bin/tool")).
		entry(dir("./lib/", 0o755)).entry(dir("./lib/x86/", 0o755)).file("./lib/x86/lib.so.1", "lib").entry(symlink("./lib/x86/lib.so", "lib.so.1")).
		file("./lib64/ld.so", "ld").file("./var/run/tool.pid", "1")
	priv := fakeDeb{name: "priv", version: "1"}
	priv = priv.file("./usr/bin/priv", "priv")
	priv.files[0].Mode = 0o4755
	path, c, err := treeOf(t, base, tool, priv)
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, path, false)
	want := []string{
		"bin Lrwxrwxrwx → usr/bin",
		"dev drwxr-xr-x",
		"etc drwxr-xr-x",
		`etc/debian_version -rw-r--r-- "12\n"`,
		"lib Lrwxrwxrwx → usr/lib",
		"lib64 Lrwxrwxrwx → usr/lib64",
		"root drwx------",
		"run drwxr-xr-x",
		`run/tool.pid -rw-r--r-- "1"`,
		"sbin Lrwxrwxrwx → usr/sbin",
		"tmp dtrwxrwxrwx",
		"usr drwxr-xr-x",
		"usr/bin drwxr-xr-x",
		`usr/bin/priv urwxr-xr-x "priv"`,
		`usr/bin/tool -rw-r--r-- "tool"`,
		`usr/bin/tool2 -rw-r--r-- "tool"`,
		"usr/lib drwxr-xr-x",
		"usr/lib/x86 drwxr-xr-x",
		"usr/lib/x86/lib.so Lrwxrwxrwx → lib.so.1",
		`usr/lib/x86/lib.so.1 -rw-r--r-- "lib"`,
		"usr/lib64 drwxr-xr-x",
		`usr/lib64/ld.so -rw-r--r-- "ld"`,
		"usr/sbin drwxr-xr-x",
		"var drwxr-xr-x",
		"var/run Lrwxrwxrwx → /run",
	}
	// What "var/run" means to the second package depends on which one is first.
	got = slices.DeleteFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "run") || strings.HasPrefix(s, "var/run")
	})
	want = slices.DeleteFunc(want, func(s string) bool {
		return strings.HasPrefix(s, "run") || strings.HasPrefix(s, "var/run")
	})
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	st, err := os.Stat(filepath.Join(path, "usr/bin/tool"))
	if want := testNow.AddDate(0, -1, 0); err != nil || !st.ModTime().Equal(want) {
		t.Errorf("time of a file: %v, %v; want %v", st, err, want)
	}

	// Again: the same folder, and nobody touches it.
	mark := filepath.Join(path, "mark")
	write(t, mark, "")
	pkgs, err := c.Find(t.Context(), []string{"bookworm"}, "*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(pkgs)
	if again, err := c.Tree(t.Context(), "t", append(pkgs, pkgs[0])); err != nil || again != path {
		t.Errorf("got %s, %v; want %s", again, err, path)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error("the tree was built again")
	}
	other, err := c.Tree(t.Context(), "t", pkgs[:1])
	if err != nil || other == path {
		t.Errorf("fewer packages gave %s, %v", other, err)
	}
	if !strings.HasPrefix(filepath.Base(other), "t-") {
		t.Errorf("named %s", other)
	}
}

// TestTreeOrder sees that the outcome doesn't depend on which package is
// unpacked first.
func TestTreeOrder(t *testing.T) {
	one := fakeDeb{name: "one", version: "1"}.entry(dir("./d/", 0o750)).file("./d/f", "from one").entry(symlink("./l", "one"))
	two := fakeDeb{name: "two", version: "1"}.entry(dir("./d/", 0o700)).file("./d/f", "from two").file("./l", "two")
	for range 20 {
		path, _, err := treeOf(t, one, two)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(list(t, path, true), func(s string) bool { return s[0] != 'd' && !strings.HasPrefix(s, "l ") })
		at := testNow.AddDate(0, -1, 0).String()
		want := []string{"d drwxr-x---", `d/f -rw-r--r-- "from two" ` + at, `l -rw-r--r-- "two" ` + at}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestTreeStaysInside(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	write(t, secret, "untouched")
	evil := fakeDeb{name: "evil", version: "1"}
	for _, c := range []struct {
		name  string
		deb   fakeDeb
		where string // where the file ends up; empty: an error
	}{
		{"dots", evil.file("./../../x", "x"), ""},
		{"absolute", evil.file(secret, "x"), ""},
		{"hard link", evil.entry(hardlink("./x", "../../../etc/passwd")), ""},
		{"absolute link", evil.entry(symlink("./out", outside)).file("./out/secret", "x"), outside + "/secret"},
		{"relative link", evil.entry(symlink("./out", "../../../../../../../../..")).file("./out/secret", "x"), "/secret"},
		{"link to link", evil.entry(symlink("./a", "b/c")).entry(symlink("./b", "/d")).file("./a/secret", "x"), "/d/c/secret"},
		{"file over link", evil.entry(symlink("./x", secret)).file("./x", "x"), "/x"},
		{"folder over link", evil.entry(symlink("./x", outside)).entry(dir("./x/", 0o777)).file("./x/secret", "x"), outside + "/secret"},
		{"hard link through link", evil.entry(symlink("./x", secret)).entry(hardlink("./y", "./x")).file("./y", "x"), "/y"},
		{"loop", evil.entry(symlink("./x", "y")).entry(symlink("./y", "x")).file("./x/f", "x"), ""},
		{"folder where a file is", evil.file("./x", "x").entry(dir("./x/", 0o755)), ""},
		{"file where a folder is", evil.entry(dir("./x/", 0o755)).file("./x", "x"), ""},
		{"file below a file", evil.file("./x", "x").file("./x/y", "x"), ""},
		{"link where a folder is", evil.entry(dir("./x/", 0o755)).entry(symlink("./x", outside)).file("./x/secret", "x"), "/x/secret"},
		{"unknown type", evil.entry(tar.Header{Name: "./x", Typeflag: 'Z', Mode: 0o644}), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, cl, err := treeOf(t, c.deb)
			if c.where == "" {
				if err == nil || !strings.Contains(err.Error(), "evil 1 (bookworm)") {
					t.Errorf("got %v, want an error that names the package", err)
				}
				if left, _ := os.ReadDir(filepath.Join(cl.opt.CacheDir, "trees")); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
			} else if err != nil {
				t.Error(err)
			} else if data, err := os.ReadFile(filepath.Join(path, c.where)); err != nil || string(data) != "x" {
				t.Errorf("%s holds %q, %v", c.where, data, err)
			}
			if data, err := os.ReadFile(secret); err != nil || string(data) != "untouched" {
				t.Errorf("a file outside holds %q, %v", data, err)
			}
		})
	}
}

func TestTreeAfterCrash(t *testing.T) {
	m := newFakeMirror(t)
	m.publish(suite{name: "bookworm", debs: []fakeDeb{debB}})
	c := m.open(t.TempDir())
	pkgs, err := c.Find(t.Context(), []string{"bookworm"}, "*")
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(c.opt.CacheDir, "trees", buildingPrefix+"t-"+treeHash(pkgs))
	write(t, filepath.Join(left, "half"), "x")
	path, err := c.Tree(t.Context(), "t", pkgs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "half")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an unfinished tree was taken over")
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an unfinished tree is still there")
	}
}

func TestTreeErrors(t *testing.T) {
	m := newFakeMirror(t)
	rubbish := []byte("not a package")
	m.set("pool/r.deb", rubbish)
	m.publish(suite{name: "bookworm", packages: fmt.Sprintf("Package: r\nVersion: 1\nArchitecture: all\nFilename: pool/r.deb\nSize: %d\nSHA256: %s\n", len(rubbish), hexSum(rubbish))})
	c := m.open(t.TempDir())
	p, err := c.Lookup(t.Context(), []string{"bookworm"}, "r")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tree(t.Context(), "t", []Package{p}); err == nil || !strings.Contains(err.Error(), "dpkg-deb") || !strings.Contains(err.Error(), "r 1 (bookworm)") {
		t.Errorf("got %v, want dpkg-deb's complaint", err)
	}
	for _, name := range []string{"", "../x", "a/b", "A"} {
		if _, err := c.Tree(t.Context(), name, []Package{p}); err == nil {
			t.Errorf("tree name %q was accepted", name)
		}
	}
	if _, err := c.Download(t.Context(), []Package{{Name: "made-up"}}); err == nil {
		t.Error("a package that no index gave was accepted")
	}
	if path, err := c.Tree(t.Context(), "empty", nil); err != nil || !isDir(filepath.Join(path, "usr/bin")) {
		t.Errorf("a tree of nothing: %s, %v", path, err)
	}
}
