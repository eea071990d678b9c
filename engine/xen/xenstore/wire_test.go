package xenstore

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMessage(t *testing.T) {
	m := message{typ: 11, req: 0x01020304, tx: 5, payload: []byte("/a\x00v")}
	b := appendMessage(nil, m)
	want := []byte{11, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 4, 0, 0, 0, '/', 'a', 0, 'v'}
	if !bytes.Equal(b, want) {
		t.Errorf("got %x, want %x", b, want)
	}
	r := bytes.NewReader(append(b, 99))
	got, err := readMessage(r)
	if err != nil || got.typ != m.typ || got.req != m.req || got.tx != m.tx || !bytes.Equal(got.payload, m.payload) {
		t.Errorf("read %+v, %v", got, err)
	}
	if r.Len() != 1 {
		t.Error("more than the message was read")
	}
	for n := range b {
		_, err := readMessage(bytes.NewReader(b[:n]))
		if want := io.ErrUnexpectedEOF; n == 0 && err != io.EOF || n > 0 && err != want {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	big := appendMessage(nil, message{payload: make([]byte, PayloadMax)})
	if _, err := readMessage(bytes.NewReader(big)); err != nil {
		t.Errorf("the largest message: %v", err)
	}
	big = appendMessage(nil, message{payload: make([]byte, PayloadMax+1)})
	if _, err := readMessage(bytes.NewReader(big)); err == nil {
		t.Error("a message too large is accepted")
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add(appendMessage(nil, message{typ: 15, payload: []byte("/a\x00token\x00")}))
	f.Add(appendMessage(nil, message{typ: 16, req: 1, payload: []byte("ENOENT\x00")}))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(m.payload) > PayloadMax {
			t.Errorf("payload of %d bytes", len(m.payload))
		}
		if again := appendMessage(nil, m); !bytes.Equal(again, b[:len(again)]) {
			t.Errorf("%x became %x", b, again)
		}
		for _, s := range fields(m.payload) {
			if strings.IndexByte(s, 0) >= 0 {
				t.Errorf("a field with a NUL: %q", s)
			}
		}
	})
}

func TestFields(t *testing.T) {
	for in, want := range map[string][]string{
		"":              nil,
		"\x00":          {""},
		"a\x00":         {"a"},
		"a":             {"a"},
		"a\x00b\x00":    {"a", "b"},
		"a\x00\x00":     {"a", ""},
		"a\x00b":        {"a", "b"},
		"\x00b\x00\x00": {"", "b", ""},
	} {
		if got := fields([]byte(in)); !slices.Equal(got, want) {
			t.Errorf("fields(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"/", "/a", "/local/domain/0", "/a-b_c@d/1", "/" + strings.Repeat("x", 3071)} {
		if err := checkPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"", "a", "/a/", "//", "/a//b", "/a b", "/a\x00", "/ü", "/a\n", "/" + strings.Repeat("x", 3072), "@introduceDomain"} {
		if err := checkPath(p); err == nil {
			t.Errorf("%q is accepted", p)
		}
	}
	for _, w := range []string{"/a", IntroduceDomain, ReleaseDomain} {
		if err := checkWatch(w, "token"); err != nil {
			t.Errorf("%q: %v", w, err)
		}
	}
	for _, w := range []string{"a", "@a b", "@a/", ""} {
		if err := checkWatch(w, "token"); err == nil {
			t.Errorf("watch on %q is accepted", w)
		}
	}
	if err := checkWatch("/a", "t\x00"); err == nil {
		t.Error("a token with a NUL is accepted")
	}
}

func TestPermission(t *testing.T) {
	for s, p := range map[string]Permission{
		"n0": {}, "r5": {Domain: 5, Read: true}, "w7": {Domain: 7, Write: true}, "b65535": {Domain: 65535, Read: true, Write: true},
	} {
		if p.String() != s {
			t.Errorf("%+v is %q, want %q", p, p, s)
		}
		if got, err := parsePermission(s); err != nil || got != p {
			t.Errorf("parsePermission(%q) = %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "n", "x1", "r-1", "r65536", "r1x"} {
		if _, err := parsePermission(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestError(t *testing.T) {
	err := newError("read", "/a", []byte("ENOENT\x00"))
	if err.Error() != "xenstore read /a: ENOENT" || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
	err = newError("transaction end", "", []byte("EODD"))
	if err.Error() != "xenstore transaction end: EODD" || err.Errno != unix.EIO {
		t.Errorf("got %v, %v", err, err.Errno)
	}
}
