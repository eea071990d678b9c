package archive

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestProxyFor(t *testing.T) {
	script := filepath.Join(t.TempDir(), "detect")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho http://found.test:3142/\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, conf, url, want string
	}{
		{"none", ``, "http://d.test/x", ""},
		{"for all hosts", `Acquire::http::Proxy "http://p.test:3128/";`, "http://d.test/x", "http://p.test:3128/"},
		{"without a scheme", `Acquire::http::Proxy "p.test:3128";`, "http://d.test/x", "http://p.test:3128"},
		{"case", `ACQUIRE::HTTP::proxy "http://p.test/";`, "http://d.test/x", "http://p.test/"},
		{"this host not", "Acquire::http::Proxy \"http://p.test/\";\nAcquire::http::Proxy::D.test \"DIRECT\";", "http://d.test/x", ""},
		{"this host only", `Acquire::http::Proxy::d.test "http://p.test/";`, "http://e.test/x", ""},
		{"https of its own", "Acquire::http::Proxy \"http://p.test/\";\nAcquire::https::Proxy \"http://q.test/\";", "https://d.test/x", "http://q.test/"},
		{"https as http", `Acquire::http::Proxy "http://p.test/";`, "https://d.test/x", "http://p.test/"},
		{"http not as https", `Acquire::https::Proxy "http://p.test/";`, "http://d.test/x", ""},
		{"empty", `Acquire::http::Proxy "";`, "http://d.test/x", ""},
		{"detected", `Acquire::http::Proxy-Auto-Detect "` + script + `";`, "http://d.test/x", "http://found.test:3142/"},
		{"detection fails", `Acquire::http::Proxy-Auto-Detect "/nowhere";`, "http://d.test/x", ""},
		{"garbage", "x\nAcquire::http::Proxy\nAcquire::http::Proxy p;\n", "http://d.test/x", ""},
	} {
		req, err := http.NewRequest(http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := parseAptConfig(c.conf).proxyFor(req)
		got := ""
		if u != nil {
			got = u.String()
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestCheckValidUntil(t *testing.T) {
	for conf, want := range map[string]bool{
		``:                                    true,
		`Acquire::Check-Valid-Until "true";`:  true,
		`Acquire::Check-Valid-Until "false";`: false,
		`acquire::check-valid-until "0";`:     false,
	} {
		if got := parseAptConfig(conf).checkValidUntil(); got != want {
			t.Errorf("%s: got %v, want %v", conf, got, want)
		}
	}
}
