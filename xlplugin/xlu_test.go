package xlplugin

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// xluRequest is a config and the key whose value is asked.
type xluRequest struct{ config, key string }

// render writes a value the way testdata/xlu/xlu.c does.
func render(v Value) string {
	if !v.IsList {
		return "'" + hex.EncodeToString([]byte(v.Text)) + "'"
	}
	parts := make([]string, len(v.List))
	for i, e := range v.List {
		parts[i] = render(e)
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// ours answers a request with our parser.
func ours(r xluRequest) string {
	cfg, err := Parse("config", []byte(r.config))
	if err != nil {
		return "error"
	}
	s, ok := cfg.Lookup(r.key)
	if !ok {
		return "none"
	}
	return render(s.Value)
}

// soup makes a config of random pieces of the language, mostly well formed:
// enough is accepted to compare values, enough is broken to compare refusals.
func soup(r *rand.Rand) string {
	pieces := []string{
		"a", "b", "introspection", "a.b_1", "=", "=", "=", "+=", "+", "[", "]", "[", "]", ",", ",", ";", "\n", "\n", "\n",
		"1", "0", "0x1f", "12ab", "09", "'", "\"", `"x"`, `'y'`, `"a\tb"`, `'\''`, `"\x41"`, `"\101"`, `"\1012"`, `"\0 1"`, `"\0-1"`, `"\q"`, "\"\\\n\"",
		"# c\n", "#", " ", "\t", "\r", "A", "-", "(", ".", "@", "é", "\v", "''", "\x01",
	}
	valid := []string{
		"a = 1\n", "a='q'\n", "b=[1,2]\n", "b += [ 'x', [ 3, ], ]\n", "a += 'z'\n", "a+=2;", "b = [\n1 # c\n,\n2 ]\n", "b=[]\n", "\n", ";", "# c\n", "b=[[],[[]]]\n", "a = 0x10 ; b = [ \"s\" ] # t\n",
		"a=\"\\0123\"\n", "a = 'it\\'s'\n", "b+=[\n]\n",
	}
	var b strings.Builder
	for range 1 + r.IntN(6) {
		if r.IntN(4) > 0 {
			b.WriteString(valid[r.IntN(len(valid))])
			continue
		}
		for range 1 + r.IntN(5) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
	}
	return b.String()
}

// TestAgainstXl compares our parser with xl's own. It needs a C compiler and
// libxlutil (Debian: libxen-dev), so it runs only when asked to with
// HVI_XLU=1, or another number to generate other configs; then a missing piece is a failure. CFLAGS and LDFLAGS of the
// environment are passed on.
func TestAgainstXl(t *testing.T) {
	asked := os.Getenv("HVI_XLU")
	if asked == "" {
		t.Skip("set HVI_XLU=1 to compare with the libxlutil of this machine")
	}
	seed, err := strconv.ParseUint(asked, 10, 64)
	if err != nil {
		t.Fatalf("HVI_XLU: %v", err)
	}
	judge := filepath.Join(t.TempDir(), "xlu")
	args := append(strings.Fields(os.Getenv("CFLAGS")), "-o", judge, "testdata/xlu/xlu.c")
	args = append(append(args, strings.Fields(os.Getenv("LDFLAGS"))...), "-lxlutil")
	if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}

	var requests []xluRequest
	files, err := filepath.Glob("../testdata/xl/*.cfg")
	if err != nil || len(files) == 0 {
		t.Fatalf("no configs found: %v", err)
	}
	if more := os.Getenv("HVI_XLU_CONFIGS"); more != "" {
		files = append(files, strings.Fields(more)...)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		keys := []string{"name", "introspection", "introspection_guards"}
		if cfg, err := Parse(f, data); err == nil {
			for _, s := range cfg.Settings {
				keys = append(keys, s.Key)
			}
		}
		for _, k := range keys {
			requests = append(requests, xluRequest{string(data), k})
		}
	}
	for _, c := range configCases {
		requests = append(requests, xluRequest{c.config, "a"})
	}
	r := rand.New(rand.NewPCG(seed, 2))
	for range 20000 {
		c := soup(r)
		key := "a"
		if r.IntN(3) == 0 {
			key = "b"
		}
		requests = append(requests, xluRequest{c, key})
	}

	var in bytes.Buffer
	for _, q := range requests {
		for _, s := range []string{q.config, q.key} {
			in.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(s))))
			in.WriteString(s)
		}
	}
	cmd := exec.Command(judge)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := bufio.NewScanner(bytes.NewReader(out))
	theirs.Buffer(nil, 1<<22)
	counts := map[string]int{}
	for i, q := range requests {
		if !theirs.Scan() {
			t.Fatalf("xl's parser answered %d of %d requests", i, len(requests))
		}
		want := theirs.Text()
		if got := ours(q); got != want {
			t.Errorf("config %q key %s:\n ours %s\n xl's %s", q.config, q.key, got, want)
		}
		switch want {
		case "error", "none":
			counts[want]++
		default:
			counts["value"]++
		}
	}
	if counts["error"] < 1000 || counts["value"] < 1000 {
		t.Errorf("too lopsided to prove anything: %v", counts)
	}
	t.Logf("%d configs: %v", len(requests), counts)
}
