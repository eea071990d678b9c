package archive

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseSourcesList(t *testing.T) {
	const in = `# Debian
deb http://one.test/debian bookworm main contrib # all of it
deb-src http://one.test/debian bookworm main
deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://two.test/debian/ trixie main
deb	https://three.test/  ./
deb cdrom:[Debian GNU/Linux 12.0.0 - DVD]/ bookworm main
`
	got, err := parseSourcesList("list", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	want := []aptSource{
		{URIs: []string{"http://one.test/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}},
		{URIs: []string{"http://two.test/debian/"}, Suites: []string{"trixie"}, Components: []string{"main"}, SignedBy: "/k/debian-archive-keyring.gpg"},
		{URIs: []string{"https://three.test/"}, Suites: []string{"./"}, Components: []string{}},
	}
	if !reflect.DeepEqual(got[:3], want) {
		t.Errorf("got %+v, want %+v", got[:3], want)
	}
	for in, line := range map[string]int{"deb\n": 1, "\nrpm http://x y main\n": 2, "deb [a=b http://x y main\n": 1} {
		_, err := parseSourcesList("list", []byte(in))
		if se, ok := errors.AsType[*SyntaxError](err); !ok || se.Line != line {
			t.Errorf("%q: got %v, want a SyntaxError in line %d", in, err, line)
		}
	}
}

func TestParseSourcesDeb822(t *testing.T) {
	const in = `Types: deb deb-src
URIs: http://one.test/debian http://two.test/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /k/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.test/
Suites: bookworm
Components: main

types: deb-src
uris: http://src.test/
suites: bookworm
components: main

Types: deb
URIs: http://inline.test/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
`
	got, err := parseSourcesDeb822("sources", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("got %+v, want two entries", got)
	}
	want := aptSource{
		URIs:   []string{"http://one.test/debian", "http://two.test/debian"},
		Suites: []string{"bookworm", "bookworm-updates"}, Components: []string{"main"}, SignedBy: "/k/debian-archive-keyring.gpg",
	}
	if !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
	if got[1].URIs[0] != "http://inline.test/debian" {
		t.Errorf("got %+v", got[1])
	}
	if _, err := parseSourcesDeb822("sources", []byte("Types deb\n")); err == nil {
		t.Error("a line without a colon was accepted")
	}
}

func TestReadMirrors(t *testing.T) {
	const keyring = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
	list := filepath.Join(t.TempDir(), "mirrors.list")
	write(t, list, "# comment\nhttp://m1.test/debian/\thigh\nhttps://m2.test/debian\n")
	for _, c := range []struct {
		name           string
		files          map[string]string
		main, security []string
	}{
		{
			"deb822, as Debian installs it",
			map[string]string{"sources.list.d/debian.sources": "Types: deb\nURIs: http://d.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n" + keyring +
				"\nTypes: deb\nURIs: http://d.test/debian-security/\nSuites: bookworm-security\nComponents: main\n" + keyring},
			[]string{"http://d.test/debian"}, []string{"http://d.test/debian-security"},
		},
		{
			"one line, security beside it",
			map[string]string{"sources.list": "deb http://user:pw@d.test:8080/mirror/debian/ trixie main\n"},
			[]string{"http://user:pw@d.test:8080/mirror/debian"}, []string{"http://user:pw@d.test:8080/mirror/debian-security"},
		},
		{
			"other vendors come last",
			map[string]string{
				"sources.list":              "deb https://vendor.test/prod bookworm main\ndeb https://docker.test/linux/debian bookworm stable\n",
				"sources.list.d/z.sources":  "Types: deb\nURIs: http://d.test/debian\nSuites: bookworm\nComponents: main\n" + keyring,
				"sources.list.d/b.list":     "deb https://vendor2.test/apt foo-bookworm main\n",
				"sources.list.d/c.list.off": "deb http://off.test/debian bookworm main\n",
			},
			[]string{"http://d.test/debian", "https://vendor.test/prod", "https://vendor2.test/apt"}, []string{"http://d.test/debian-security"},
		},
		{
			"cloud image",
			map[string]string{"sources.list.d/d.sources": "Types: deb\nURIs: mirror+file://" + list + "\nSuites: bookworm\nComponents: main\n"},
			[]string{"http://m1.test/debian", "https://m2.test/debian"}, []string{"http://m1.test/debian-security", "https://m2.test/debian-security"},
		},
		{
			"a local mirror",
			map[string]string{"sources.list": "deb file:/srv/debian bookworm main\ndeb file:///srv/debian sid main\n"},
			[]string{"file:///srv/debian"}, []string{"file:///srv/debian-security"},
		},
		{
			"an old security suite",
			map[string]string{"sources.list": "deb http://s.test/debian-security buster/updates main\n"},
			nil, []string{"http://s.test/debian-security"},
		},
		{
			"a broken file beside a good one",
			map[string]string{"sources.list": "what\n", "sources.list.d/d.list": "deb http://d.test/debian sid main\n"},
			[]string{"http://d.test/debian"}, []string{"http://d.test/debian-security"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				write(t, filepath.Join(dir, name), text)
			}
			m, err := readMirrors(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m.of("bookworm"), c.main) || !reflect.DeepEqual(m.of("bookworm-security"), c.security) {
				t.Errorf("got %v and %v, want %v and %v", m.main, m.security, c.main, c.security)
			}
		})
	}
}

func TestReadMirrorsNone(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"not main":      "deb http://x.test/debian bookworm contrib\n",
		"unusable URIs": "deb cdrom:[Debian]/ bookworm main\ndeb tor+http://x.test/debian bookworm main\ndeb mirror+file:/nowhere/at/all bookworm main\ndeb http:/// bookworm main\n",
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "sources.list"), text)
		_, err := readMirrors(dir)
		if !errors.Is(err, ErrNoMirror) || !strings.Contains(err.Error(), "HVI_LAB_MIRROR") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want ErrNoMirror with what was looked at and what to do", name, err)
		}
	}
}

func FuzzParseSources(f *testing.F) {
	f.Add([]byte("deb [signed-by=/k] http://a/debian bookworm main # x\n"))
	f.Add([]byte("Types: deb\nURIs: http://a/debian mirror+file:/x\nSuites: sid\nComponents: main\n"))
	f.Add([]byte("deb cdrom:[a b]/ c main"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, parse := range []func(string, []byte) ([]aptSource, error){parseSourcesList, parseSourcesDeb822} {
			srcs, _ := parse("fuzz", in)
			for i := range srcs {
				for j, uri := range srcs[i].URIs {
					if strings.HasPrefix(uri, "mirror+file:") {
						srcs[i].URIs[j] = "http://x" // not to read the machine's files
					}
				}
			}
			var fail MirrorError
			m := rankMirrors(srcs, &fail)
			for _, base := range append(m.main, m.security...) {
				again, err := checkBase(base)
				if err != nil || again != base {
					t.Errorf("base %q is read back as %q, %v", base, again, err)
				}
			}
		}
	})
}

func FuzzParseAptConfig(f *testing.F) {
	f.Add("Acquire::http::Proxy \"http://p:1/\";\nAcquire::Languages:: \"none\";\n")
	f.Add("x \"")
	f.Fuzz(func(t *testing.T, in string) {
		for k, v := range parseAptConfig(in) {
			if k != strings.ToLower(k) || strings.Contains(v, "\n") {
				t.Errorf("%q: %q", k, v)
			}
		}
	})
}

// write makes a file and the folders above it.
func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
