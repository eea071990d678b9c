package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// client talks to s, whatever it listens on.
func client(t *testing.T, s *Server) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, s.Addr().Network(), s.Addr().String())
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func get(t *testing.T, c *http.Client, method, path string) (status int, body string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://hvid"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func options() Options {
	return Options{Source: &fakeSource{domains: []Domain{web(), db()}, host: fullHost()}, Build: Build{Version: "1.2.3"}}
}

// listens are what the tests listen on, by name.
func listens(t *testing.T) map[string]string {
	return map[string]string{
		"unix": "unix:" + filepath.Join(t.TempDir(), "m.sock"),
		"tcp":  "127.0.0.1:0",
	}
}

func TestScrape(t *testing.T) {
	for name, listen := range listens(t) {
		t.Run(name, func(t *testing.T) {
			s, err := Serve(t.Context(), listen, options())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			c := client(t, s)
			status, body, header := get(t, c, "GET", Path)
			if status != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
				t.Errorf("status %d, %s", status, header.Get("Content-Type"))
			}
			for _, want := range []string{
				`hvi_domain_protected{domain="web",uuid="` + uuidWeb + `"} 1`,
				"\ngo_goroutines ", "\nprocess_open_fds ", `hvi_build_info{goversion="",revision="",version="1.2.3",xen=""} 1`,
			} {
				if !strings.Contains(body, want) {
					t.Errorf("no %q in what is served", want)
				}
			}
			if status, body, _ := get(t, c, "HEAD", Path); status != http.StatusOK || body != "" {
				t.Errorf("HEAD: status %d, %d bytes", status, len(body))
			}
			for _, other := range []string{"/", "/metrics/", "/metrics/x", "/debug/pprof/", "/v1/version", "//metrics"} {
				if status, _, _ := get(t, c, "GET", other); status != http.StatusNotFound {
					t.Errorf("%s: status %d", other, status)
				}
			}
			if status, _, h := get(t, c, "POST", Path); status != http.StatusMethodNotAllowed || h.Get("Allow") == "" {
				t.Errorf("POST: status %d, Allow %q", status, h.Get("Allow"))
			}
		})
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "m.sock")
	s, err := serve(t.Context(), "unix:"+path, os.Getgid(), options())
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("mode %v, want a socket of 0660", fi.Mode())
	}
	if _, err := Serve(t.Context(), "unix:"+path, options()); !errors.Is(err, ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Dir(path) + "/*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// One that a dead process left is replaced, a file is not.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err = Serve(t.Context(), "unix:"+path, options())
	if err != nil {
		t.Fatal(err)
	}
	// Nor does Close remove what is not its own.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); string(b) != "x" {
		t.Errorf("another's file: %q, %v", b, err)
	}
	var le *ListenError
	if _, err := Serve(t.Context(), "unix:"+path, options()); !errors.As(err, &le) || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(t.Context(), "unix:"+filepath.Dir(path)+"/n.sock", options()); err == nil || !strings.Contains(err.Error(), "everybody can write") {
		t.Errorf("a directory that everybody can write to: %v", err)
	}
}

func TestListenWords(t *testing.T) {
	for _, good := range []string{"unix:/run/hvi/metrics.sock", "127.0.0.1:9617", "[::1]:9617", "127.8.0.1:1", "[::ffff:127.0.0.1]:9617"} {
		if err := CheckListen(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", ":9617", "0.0.0.0:9617", "[::]:9617", "192.168.1.1:9617", "localhost:9617", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999",
		"unix:", "unix:metrics.sock", "unix:../m", "unix:/run/../m", "unix:/run/m/", "unix:/" + strings.Repeat("x", 120), "unix:/a\x00b",
		"tcp:127.0.0.1:9617", "/run/hvi/metrics.sock", "[fe80::1%lo]:1", "\xff",
	} {
		err := CheckListen(bad)
		var le *ListenError
		if !errors.As(err, &le) || le.Listen != bad {
			t.Errorf("%q: %v", bad, err)
			continue
		}
		if le.Fix == "" {
			t.Errorf("%q: nothing says what to do: %v", bad, err)
		}
		if _, err := Serve(t.Context(), bad, options()); err == nil {
			t.Errorf("%q is listened on", bad)
		}
	}
	s, err := Serve(t.Context(), "127.0.0.1:0", options())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Serve(t.Context(), s.Addr().String(), options()); !errors.Is(err, ErrInUse) {
		t.Errorf("a port that is in use: %v", err)
	}
}

// running returns the stacks of this room's goroutines, but for the test's own.
func running() []string {
	buf := make([]byte, 1<<20)
	var out []string
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "hvi/metrics.") && !strings.Contains(g, "testing.tRunner") || strings.Contains(g, "net/http.(*conn)") {
			out = append(out, g)
		}
	}
	return out
}

func TestCloseLeavesNothing(t *testing.T) {
	ends := map[string]func(s *Server, cancel func()) error{
		"close":   func(s *Server, _ func()) error { return s.Close() },
		"context": func(s *Server, cancel func()) error { cancel(); <-s.served; return s.Close() },
	}
	for how, end := range ends {
		for name, listen := range listens(t) {
			t.Run(how+" "+name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s, err := Serve(ctx, listen, options())
				if err != nil {
					t.Fatal(err)
				}
				if status, _, _ := get(t, client(t, s), "GET", Path); status != http.StatusOK {
					t.Errorf("status %d", status)
				}
				if len(running()) == 0 {
					t.Fatal("no goroutine of a server that runs is found, so the end of this test would prove nothing")
				}
				// A reader that never asks, one that never reads, and as many
				// as there is room for.
				for range maxConnections {
					c, err := net.Dial(s.Addr().Network(), s.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					io.WriteString(c, "GET "+Path+" HTTP/1.1\r\n")
				}
				if err := end(s, cancel); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("closed again: %v", err)
				}
				for limit := time.Now().Add(5 * time.Second); len(running()) > 0; runtime.Gosched() {
					if time.Now().After(limit) {
						t.Fatalf("left running:\n%s", strings.Join(running(), "\n\n"))
					}
				}
				if path, ok := strings.CutPrefix(listen, "unix:"); ok {
					if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("the socket is still there: %v", err)
					}
				}
				if c, err := net.Dial(s.Addr().Network(), s.Addr().String()); err == nil {
					c.Close()
					t.Error("it still listens")
				}
			})
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	s, err := Serve(t.Context(), "127.0.0.1:0", options())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		// Go's server reads a little beyond the bound before it answers.
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", Path, strings.Repeat("x", 4*maxHeader))
	}()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("%d bytes of header: %q, %v", 4*maxHeader, line, err)
	}
	for name, d := range map[string]time.Duration{
		"reading headers": s.http.ReadHeaderTimeout, "reading": s.http.ReadTimeout, "writing": s.http.WriteTimeout, "idling": s.http.IdleTimeout,
	} {
		if d <= 0 {
			t.Errorf("there is no bound on %s", name)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := new(Server)
	l := newLimited(inner, 1, &s.conns)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	defer dial().Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer dial().Close()
	accepted := make(chan net.Conn)
	failed := make(chan error)
	accept := func() {
		c, err := l.Accept()
		if err != nil {
			failed <- err
			return
		}
		accepted <- c
	}
	go accept()
	select {
	case <-accepted:
		t.Fatal("a second connection where there is room for one")
	default:
	}
	first.Close()
	first.Close() // makes room once
	second := <-accepted
	go accept()
	// Close ends an Accept that waits for room.
	l.Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("waiting for room: %v", err)
	}
	second.Close()
	s.conns.Wait()
}
