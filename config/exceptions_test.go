package config

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

const twoExceptions = `
[[exception]]
guard = "kernel-text"
process = "agent*"
module = "falcon"
target = "do_syscall_64"
bytes = "e9"
kernel = "6.1.0-*"
comment = "patches \"itself\" in, ticket 7"
created = 2026-05-09
expires = "2026-12-31"

[[exception]]
guard = "cr"
domain = "6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab"
target = "CR4"
value = "0x370ef0"
expires = 2026-05-09T12:00:00+02:00
`

// TestExceptions: what is read, and that it is the same written and read again.
func TestExceptions(t *testing.T) {
	s := newShelf(t)
	if list, err := s.Exceptions(); err != nil || list != nil {
		t.Errorf("without a file: %v, %v", list, err)
	}
	path := s.write(ExceptionsFile, twoExceptions)
	list, err := s.Exceptions()
	if err != nil || len(list) != 2 {
		t.Fatalf("%d exceptions, %v", len(list), err)
	}
	want := policy.Exception{
		Guard: policy.GuardKernelText, Process: "agent*", Module: "falcon", Target: "do_syscall_64", Bytes: "e9", Kernel: "6.1.0-*",
		Comment: `patches "itself" in, ticket 7`, Created: time.Date(2026, 5, 9, 0, 0, 0, 0, time.UTC), Expires: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		Origin: policy.Origin{Source: path, Line: 2, Column: 3},
	}
	if list[0] != want {
		t.Errorf("got %+v\nwant %+v", list[0], want)
	}
	if got, want := list[1].Expires, time.Date(2026, 5, 9, 10, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("expires %v, want %v", got, want)
	}
	written := FormatExceptions("Made by a test.", list)
	if !bytes.HasPrefix(written, []byte("# Made by a test.\n\n[[exception]]\nguard = \"kernel-text\"\n")) {
		t.Errorf("written:\n%s", written)
	}
	again, err := ParseExceptions("again.toml", written)
	if err != nil || len(again) != 2 {
		t.Fatalf("read again: %v\n%s", err, written)
	}
	for i := range again {
		again[i].Origin = list[i].Origin
		if again[i] != list[i] {
			t.Errorf("%d: got %+v\nwant %+v", i, again[i], list[i])
		}
	}

	named, err := ParsePolicy("web", "p.toml", []byte("require_attach = true\n[guards]\ncr = \"alert\"\n[[exception]]\nguard = \"cr\"\nprocess = \"kexec\"\n"))
	if err != nil || len(named.Exceptions) != 1 || named.Exceptions[0].Process != "kexec" || !named.RequireAttach || len(named.Guards) != 1 {
		t.Errorf("in a policy: %+v, %v", named, err)
	}
}

func TestExceptionErrors(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"no guard", "[[exception]]\nprocess='x'", []string{`x.toml:1:3: exception names no guard`}},
		{"a guard alone", "[[exception]]\nguard='cr'", []string{`exception permits everything that the guard is for`}},
		{"only a kernel", "[[exception]]\nguard='cr'\nkernel='6.1*'", []string{`exception permits everything`}},
		{"unknown guard", "[[exception]]\nguard='kernel-txt'\nprocess='x'", []string{`x.toml:2:7: unknown guard "kernel-txt"; did you mean "kernel-text"?`}},
		{"unknown key", "[[exception]]\nguard='cr'\nprcess='x'", []string{`x.toml:3:1: unknown setting of an exception "prcess"; did you mean "process"?`}},
		{"a number", "[[exception]]\nguard='cr'\nvalue=0x10", []string{`x.toml:3:7: setting "value" is a whole number, but must be a string`, "exception permits everything"}},
		{"long process", "[[exception]]\nguard='cr'\nprocess='0123456789abcdef'", []string{`process "0123456789abcdef" is longer than 15 bytes`}},
		{"all processes", "[[exception]]\nguard='cr'\nprocess='*'", []string{`process "*" would be met by all`}},
		{"odd bytes", "[[exception]]\nguard='kernel-text'\nbytes='e9 0'", []string{`bytes "e9 0" is not bytes`}},
		{"many bytes", "[[exception]]\nguard='kernel-text'\nbytes='0102030405060708091011121314151617'", []string{`is more than 16 bytes`}},
		{"no value", "[[exception]]\nguard='cr'\nvalue='12'", []string{`value "12" is no number`}},
		{"no date", "[[exception]]\nguard='cr'\nprocess='x'\nexpires='soon'", []string{`expires "soon" is no date; write 2026-12-31`}},
		{"a time only", "[[exception]]\nguard='cr'\nprocess='x'\nexpires=07:30:00", []string{`setting "expires" is another kind of value`}},
		{"ends before", "[[exception]]\nguard='cr'\nprocess='x'\nexpires=2026-01-01\ncreated=2026-02-01", []string{`exception expires before it was made`}},
		{"module and symbol", "[[exception]]\nguard='cr'\nmodule='m'\nsymbol='s'", []string{`has both a module and a symbol`}},
		{"bytes and value", "[[exception]]\nguard='cr'\nbytes='01'\nvalue='0x1'", []string{`has both bytes and a value`}},
		{"UUID", "[[exception]]\nguard='cr'\nprocess='x'\ndomain='web'", []string{`domain "web" is no UUID`}},
		{"twice", "[[exception]]\nguard='cr'\nprocess='x'\n[[exception]]\nguard='cr'\nprocess='x'\ncomment='y'", []string{`x.toml:4:3: exception is there twice; the first is at x.toml:1:3`}},
		{"single brackets", "[exception]\nguard='cr'\nprocess='x'", []string{`x.toml:1:2: table "exception" does not belong here; a file of exceptions has nothing but tables [[exception]]`, `setting "exception.guard"`, `setting "exception.process"`}},
		{"a subtable", "[[exception]]\nguard='cr'\nprocess='x'\n[exception.more]\na=1", []string{`table "exception.more" does not belong here`, `setting "exception.more.a" does not belong here`}},
		{"nested", "[[exception]]\nguard='cr'\nprocess='x'\nby.who='y'", []string{`unknown setting of an exception "by.who"`}},
		{"a mode", "mode='enforce'", []string{`setting "mode" does not belong here`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseExceptions("x.toml", []byte(tt.text))
			wantError(t, err, tt.want...)
		})
	}
	const one = "[[exception]]\nguard='cr'\nprocess='x'\n"
	_, err := ParsePolicy("web", "p.toml", []byte(one+"domain='6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab'\n"))
	wantError(t, err, `p.toml:4:1: domain cannot be set here`)
	const elsewhere = `table "exception" cannot stand in this file; exceptions stand in /etc/hvi/exceptions.toml and in policies`
	_, err = ParseDomain("d.toml", []byte("mode='enforce'\n"+one), nil)
	wantError(t, err, `d.toml:2:3: `+elsewhere)
	_, err = Parse("hvid.toml", []byte(one), nil)
	wantError(t, err, `hvid.toml:1:3: `+elsewhere)
}

// TestManyExceptions: a file of nothing but mistakes is bounded work, and few lines of
// errors.
func TestManyExceptions(t *testing.T) {
	settings := "[[exception]]\n"
	for i := range maxSettings + 10 {
		settings += fmt.Sprintf("a%d = 1\n", i)
	}
	for name, text := range map[string]string{
		"settings":   settings + "[[exception]]\nguard = 'cr'\nprocess = 'x'\n",
		"exceptions": strings.Repeat("[[exception]]\n", 10_000),
		"valid ones": manyExceptions(policy.MaxExceptions + 10),
	} {
		list, err := ParseExceptions("x.toml", []byte(text))
		if n := len(policy.Errors(err)); list != nil || n == 0 || n > maxErrors {
			t.Errorf("%s: %d exceptions, %d errors", name, len(list), n)
		}
	}
	if list, err := ParseExceptions("x.toml", []byte(manyExceptions(policy.MaxExceptions))); err != nil || len(list) != policy.MaxExceptions {
		t.Errorf("%d exceptions, %v", len(list), err)
	}
}

func manyExceptions(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[[exception]]\nguard = 'cr'\nprocess = 'p%d'\n", i)
	}
	return b.String()
}
