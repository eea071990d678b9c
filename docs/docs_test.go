// Package docs holds the documentation against the code: what it tells people to
// type exists, what it shows is accepted, what it points at is there.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	hvictl "github.com/xen-hvi/hvi/cmd/hvictl/command"
	hvid "github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/libvirt/metadata"
	"github.com/xen-hvi/hvi/metrics"
	"github.com/xen-hvi/hvi/xlplugin"
)

// block is a fenced block of a page.
type block struct {
	page, lang string
	line       int // of its first line of text
	text       string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// page is a page of Markdown.
type page struct {
	name string
	// prose is the text outside of fenced and indented blocks, by line.
	prose   map[int]string
	blocks  []block
	anchors map[string]bool
}

func read(t *testing.T, name string) page {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	p := page{name: name, prose: map[int]string{}, anchors: map[string]bool{}}
	var b *block
	before := ""
	for i, line := range strings.Split(string(data), "\n") {
		n := i + 1
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && b == nil:
			b = &block{page: name, line: n + 1, lang: strings.TrimPrefix(strings.TrimSpace(line), "```")}
		case fence:
			p.blocks = append(p.blocks, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		case strings.HasPrefix(line, "    ") && strings.TrimSpace(before) == "",
			strings.HasPrefix(line, "    ") && strings.HasPrefix(before, "    "):
			// An indented block is an example without a language, as in README.md.
			p.blocks = append(p.blocks, block{page: name, line: n, text: line + "\n"})
		default:
			p.prose[n] = line
			if h := strings.TrimLeft(line, "#"); h != line && strings.HasPrefix(h, " ") {
				p.anchors[slug(h)] = true
			}
		}
		before = line
	}
	if b != nil {
		t.Errorf("%v: the block does not end", b)
	}
	return p
}

// slug is the anchor that a heading gets.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, strings.TrimSpace(heading))
}

// pages are those for administrators.
func pages(t *testing.T) []page {
	t.Helper()
	names, err := filepath.Glob("*.md")
	if err != nil || len(names) < 5 {
		t.Fatalf("pages: %v, %v", names, err)
	}
	var ps []page
	for _, n := range names {
		ps = append(ps, read(t, n))
	}
	return ps
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinks(t *testing.T) {
	all := map[string]page{}
	get := func(name string) (page, bool) {
		if p, ok := all[name]; ok {
			return p, true
		}
		if _, err := os.Stat(name); err != nil {
			return page{}, false
		}
		if !strings.HasSuffix(name, ".md") {
			return page{}, true
		}
		all[name] = read(t, name)
		return all[name], true
	}
	checked := 0
	from := pages(t)
	for _, name := range []string{"../README.md", "../SECURITY.md", "../ARCHITECTURE.md"} {
		from = append(from, read(t, name))
	}
	for _, p := range from {
		for n, line := range p.prose {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				checked++
				file, anchor, _ := strings.Cut(m[1], "#")
				target := p.name
				if file != "" {
					target = filepath.Join(filepath.Dir(p.name), file)
				}
				to, ok := get(target)
				if !ok {
					t.Errorf("%s:%d: %s is not there", p.name, n, m[1])
				} else if anchor != "" && !to.anchors[anchor] {
					t.Errorf("%s:%d: %s has no such heading", p.name, n, m[1])
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("%d links were checked", checked)
	}
	index := read(t, "README.md")
	for _, p := range pages(t) {
		found := p.name == index.name
		for _, line := range index.prose {
			found = found || strings.Contains(line, "("+p.name+")")
		}
		if !found {
			t.Errorf("README.md does not name %s", p.name)
		}
	}
}

// words splits a line as a shell does, and ends it at each operator. Quotes are
// understood as far as the documentation uses them.
func words(line string) (commands [][]string) {
	var args []string
	var word strings.Builder
	started := false
	quote := rune(0)
	endWord := func() {
		if started {
			args = append(args, word.String())
		}
		word.Reset()
		started = false
	}
	endCommand := func() {
		endWord()
		if len(args) > 0 {
			commands = append(commands, args)
		}
		args = nil
	}
line:
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, started = r, true
		case r == ' ' || r == '\t':
			endWord()
		case strings.ContainsRune("|&;()", r):
			endCommand()
		case r == '>' || r == '<':
			// What follows is a file.
			endWord()
			args = append(args, "<>")
		case r == '#' && !started:
			break line
		default:
			word.WriteRune(r)
			started = true
		}
	}
	endCommand()
	for i, c := range commands {
		if n := slices.Index(c, "<>"); n >= 0 {
			commands[i] = c[:n]
		}
	}
	return commands
}

func TestWords(t *testing.T) {
	got := fmt.Sprint(words(`a 'b c' "d|e" | ssh x y >f 2>&1 && g <h; i # j`))
	if want := `[[a b c d|e] [ssh x y] [1] [g] [i]]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// program checks a command line of one of our programs, or of another that runs
// one, and reports whether there was any. In prose a command may be called by its
// name alone.
func program(args []string, prose bool) (ours bool, err error) {
	for len(args) > 0 {
		var root *cobra.Command
		switch args[0] {
		case "hvictl":
			root = hvictl.New()
		case "hvid":
			root = hvid.New(hvid.Actions{})
		case "ssh":
			args = args[min(2, len(args)):]
			continue
		default:
			return false, nil
		}
		return true, accepts(root, args[1:], prose)
	}
	return false, nil
}

// accepts says why a command would not take a command line, or nil.
func accepts(root *cobra.Command, args []string, prose bool) error {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 {
		return fmt.Errorf("%s has no command %q", cmd.CommandPath(), cmd.Flags().Arg(0))
	}
	if cmd.Name() == "help" {
		topic, _, err := root.Find(cmd.Flags().Args())
		if err == nil && topic == root && cmd.Flags().NArg() > 0 {
			err = fmt.Errorf("no help about %q", cmd.Flags().Args())
		}
		return err
	}
	if prose && len(rest) == 0 {
		return nil
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// inline is code within a line of prose.
var inline = regexp.MustCompile("`([^`]+)`")

func TestCommands(t *testing.T) {
	checked := map[string]bool{}
	check := func(where, line string, prose bool) {
		for _, args := range words(line) {
			if slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "...") || strings.Contains(a, "…") }) {
				continue // it is left to the reader
			}
			ours, err := program(args, prose)
			if ours {
				checked[strings.Join(args, " ")] = true
			}
			if err != nil {
				t.Errorf("%s: %s: %v", where, strings.Join(args, " "), err)
			}
		}
	}
	for _, p := range append(pages(t), read(t, "../SECURITY.md"), read(t, "../README.md")) {
		for _, b := range p.blocks {
			if b.lang != "sh" && b.lang != "" {
				continue
			}
			for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
				if b.lang == "" {
					// A list of commands in two columns.
					line, _, _ = strings.Cut(strings.TrimSpace(line), "  ")
					line = strings.NewReplacer("[", "", "]", "").Replace(line)
				}
				check(b.String(), strings.TrimSpace(line), false)
			}
		}
		for n, line := range p.prose {
			for _, m := range inline.FindAllStringSubmatch(line, -1) {
				check(fmt.Sprintf("%s:%d", p.name, n), m[1], true)
			}
		}
	}
	if len(checked) < 25 {
		t.Errorf("%d command lines were checked: %v", len(checked), checked)
	}
	// That the check can fail.
	for _, wrong := range []string{"hvictl statuss web", "hvictl status --jsn", "hvictl attach", "hvictl attach a b", "hvictl help no-such-topic", "hvid recover x", "ssh other hvictl policy exprot web"} {
		if ours, err := program(words(wrong)[0], false); !ours || err == nil {
			t.Errorf("%q is accepted: %v", wrong, ours)
		}
	}
	for _, right := range []string{"hvictl", "hvictl help exit-codes", "hvictl completion bash", "hvid --help", "hvictl create -c /etc/xen/web.cfg memory=2048"} {
		if ours, err := program(words(right)[0], false); !ours || err != nil {
			t.Errorf("%q is not accepted: %v", right, err)
		}
	}
}

// shown are the policies of the documentation's own examples.
type shown map[string]*policy.Named

func (s shown) Policy(name string) (*policy.Named, error) { return s[name], nil }
func (s shown) Names() []string                           { return nil }

// checkOutput checks that a table shown has the columns that hvictl writes.
func checkOutput(b block) error {
	columns := func(s string) []string {
		line, _, _ := strings.Cut(s, "\n")
		return regexp.MustCompile(`\s{2,}`).Split(strings.TrimSpace(line), -1)
	}
	golden, err := filepath.Glob("../cmd/hvictl/command/testdata/*.golden")
	if err != nil {
		return err
	}
	for _, name := range golden {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if slices.Equal(columns(string(data)), columns(b.text)) {
			return nil
		}
	}
	return fmt.Errorf("no command writes the columns %q", columns(b.text))
}

func TestExamples(t *testing.T) {
	known := shown{}
	count := map[string]int{}
	var ps []page
	for _, p := range pages(t) {
		ps = append(ps, p)
		for _, b := range p.blocks {
			if path, ok := tomlPath(b); ok && strings.Contains(path, "/policies/") {
				name := strings.TrimSuffix(filepath.Base(path), ".toml")
				n, err := config.ParsePolicy(name, path, []byte(b.text))
				if err != nil {
					t.Errorf("%v: %v", b, err)
					continue
				}
				known[name] = &n
			}
		}
	}
	for _, p := range ps {
		for _, b := range p.blocks {
			count[b.lang]++
			var err error
			switch b.lang {
			case "toml":
				err = checkTOML(b, known)
			case "xml":
				err = checkXML(b)
			case "xl":
				err = checkXL(b, known)
			case "text":
				err = checkOutput(b)
			case "sh", "yaml", "":
			default:
				err = fmt.Errorf("nobody checks blocks of language %q", b.lang)
			}
			if err != nil {
				t.Errorf("%v: %v", b, err)
			}
		}
	}
	for lang, least := range map[string]int{"toml": 5, "xml": 3, "xl": 4, "sh": 20, "text": 4} {
		if count[lang] < least {
			t.Errorf("%d blocks of %s were checked", count[lang], lang)
		}
	}
}

// tomlPath is the file that a block of TOML says it is, in its first line.
func tomlPath(b block) (string, bool) {
	if b.lang != "toml" {
		return "", false
	}
	first, _, _ := strings.Cut(b.text, "\n")
	return strings.CutPrefix(first, "# ")
}

func checkTOML(b block, known policy.Policies) error {
	path, ok := tomlPath(b)
	switch {
	case !ok:
		return fmt.Errorf("its first line does not say which file it is")
	case path == "/etc/hvi/hvid.toml":
		_, err := config.Parse(path, []byte(b.text), known)
		return err
	case path == "/etc/hvi/exceptions.toml":
		_, err := config.ParseExceptions(path, []byte(b.text))
		return err
	case filepath.Dir(path) == "/etc/hvi/domains":
		_, err := config.ParseDomain(path, []byte(b.text), known)
		return err
	case filepath.Dir(path) == "/etc/hvi/policies":
		return nil // it was read
	}
	return fmt.Errorf("%s is no file of hvi's", path)
}

func checkXML(b block) error {
	doc := b.text
	if !strings.HasPrefix(doc, "<domain") {
		doc = "<domain type='xen'>" + doc + "</domain>"
	}
	d, err := metadata.ParseDomain(b.String(), []byte(doc))
	if err != nil {
		return err
	}
	if strings.Contains(doc, metadata.Namespace) != (d.Element != nil) {
		return fmt.Errorf("the element is not found")
	}
	if d.Element != nil {
		_, err = d.Element.Check()
	}
	return err
}

func checkXL(b block, known policy.Policies) error {
	cfg, err := xlplugin.Parse(b.String(), []byte(b.text), `name="web"`)
	if err != nil {
		return err
	}
	d, err := xlplugin.FromConfig(cfg, known)
	if err != nil {
		return err
	}
	if len(d.Warnings) > 0 {
		return fmt.Errorf("%v", d.Warnings)
	}
	if strings.Contains(b.text, xlplugin.KeyMode) != d.Spec.Declared() {
		return fmt.Errorf("declared is %v", d.Spec.Declared())
	}
	return nil
}

// text is all of a page's.
func text(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What can be written is written down.
func TestVocabulary(t *testing.T) {
	pol, xl, virt := text(t, "policy.md"), text(t, "xl.md"), text(t, "libvirt.md")
	for _, w := range append(policy.Modes(), policy.Actions()...) {
		if !strings.Contains(pol, "| `"+w+"` |") {
			t.Errorf("policy.md has no row for %s", w)
		}
	}
	for _, g := range policy.Guards() {
		if !strings.Contains(pol, fmt.Sprintf("| `%s` | %s | %s | %s |", g.Name, g.Meaning, g.Observe, g.Enforce)) {
			t.Errorf("policy.md has no row for %s that says %q, %s, %s", g.Name, g.Meaning, g.Observe, g.Enforce)
		}
	}
	for _, p := range policy.Presets() {
		if !strings.Contains(pol, "`"+p.Name+"`") {
			t.Errorf("policy.md does not name the policy %s", p.Name)
		}
		lines := p.Lines()
		if lines == nil {
			continue
		}
		want := fmt.Sprintf("`%s` is %s.\n\n| guard | action | because |\n|---|---|---|\n", p.Name, p.Meaning)
		for _, l := range lines {
			want += fmt.Sprintf("| `%s` | %s | %s |\n", l.Guard, l.Action, l.Why)
		}
		if !strings.Contains(pol, want) {
			t.Errorf("policy.md does not have:\n%s", want)
		}
	}
	for _, f := range policy.ExceptionFields() {
		if !strings.Contains(pol, fmt.Sprintf("| `%s` | %s |", f.Name, f.Meaning)) {
			t.Errorf("policy.md has no row for %s of an exception that says %q", f.Name, f.Meaning)
		}
	}
	for _, l := range policy.Lists() {
		if !strings.Contains(pol, fmt.Sprintf("| `%s` | `%s` | %s |", l.Name, l.Guard, l.Meaning)) {
			t.Errorf("policy.md has no row for the list %s that says %q", l.Name, l.Meaning)
		}
		if words := "`" + strings.Join(l.Default, "`, `") + "`"; l.Default != nil && !strings.Contains(strings.Join(strings.Fields(pol), " "), words) {
			t.Errorf("policy.md does not say that %s is %s by default", l.Name, words)
		}
	}
	ev := text(t, "events.md")
	for _, a := range policy.Abouts() {
		var techniques []string
		for _, x := range a.Techniques {
			techniques = append(techniques, x.ID+" "+x.Name)
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |\n", a.Guard, a.Severity, strings.Join(techniques, ", ")); !strings.Contains(ev, row) {
			t.Errorf("events.md has no row: %s", row)
		}
	}
	for _, k := range []string{xlplugin.KeyMode, xlplugin.KeyPolicy, xlplugin.KeyGuards, xlplugin.KeyRequireAttach} {
		if !strings.Contains(xl, "| `"+k+"` |") || !strings.Contains(pol, "`"+k+"`") {
			t.Errorf("%s is missing from xl.md or policy.md", k)
		}
	}
	if !strings.Contains(virt, metadata.Namespace) {
		t.Error("libvirt.md does not name the namespace")
	}
	all := ""
	for _, p := range pages(t) {
		all += text(t, p.name)
	}
	for _, s := range config.Sections() {
		if s.Name != "" && s.Name != "default.guards" && s.Name != "journal" && !strings.Contains(all, "["+s.Name+"]") {
			t.Errorf("no page shows the table [%s] of hvid.toml", s.Name)
		}
	}
}

type nothing struct{}

func (nothing) Domains() []metrics.Domain {
	return []metrics.Domain{{State: "protecting", Guards: []metrics.Guard{{Name: "g"}}, AttachedAt: time.Unix(1, 0)}}
}

func (nothing) Host() metrics.Host { return metrics.Host{Libvirt: new(metrics.Libvirt)} }

func TestMetrics(t *testing.T) {
	fams, err := metrics.NewRegistry(metrics.NewCollector(nothing{}, metrics.Build{})).Gather()
	if err != nil {
		t.Fatal(err)
	}
	page := text(t, "metrics.md")
	names := map[string]bool{}
	for _, f := range fams {
		names[f.GetName()] = true
		if !strings.HasPrefix(f.GetName(), "hvi_") {
			continue
		}
		row := regexp.MustCompile(`(?m)^\| .*` + "`" + f.GetName() + "`" + `.*$`).FindString(page)
		if row == "" {
			t.Errorf("metrics.md has no row for %s", f.GetName())
		}
		for _, l := range f.Metric[0].Label {
			if !strings.Contains(row, "`"+l.GetName()+"`") {
				t.Errorf("metrics.md: the row of %s does not name the label %s", f.GetName(), l.GetName())
			}
		}
	}
	rules := text(t, "../metrics/rules/hvi.rules.yml")
	for _, p := range pages(t) {
		whole := text(t, p.name)
		for _, m := range regexp.MustCompile("`(hvi_[a-z_]+)`").FindAllStringSubmatch(whole, -1) {
			if !names[m[1]] {
				t.Errorf("%s: there is no metric %s", p.name, m[1])
			}
		}
		for _, m := range regexp.MustCompile("`(Hvi[A-Z][A-Za-z]+)`").FindAllStringSubmatch(whole, -1) {
			if !strings.Contains(rules, "alert: "+m[1]+"\n") {
				t.Errorf("%s: there is no alert %s", p.name, m[1])
			}
		}
	}
}

// What the package installs, outside of trees of documents, is in files.md, and
// the other way round.
func TestFiles(t *testing.T) {
	page, pkg := text(t, "files.md"), text(t, "../packaging/nfpm.yaml")
	installed := regexp.MustCompile(`dst: (/(?:etc|usr/s?bin|usr/libexec|usr/lib/systemd/system)/[^,}\s]+)`).FindAllStringSubmatch(pkg, -1)
	if len(installed) < 10 {
		t.Fatalf("the package's description has changed: %v", installed)
	}
	for _, m := range installed {
		path := m[1]
		if i := strings.LastIndex(path, "/hvi-vif-"); i >= 0 {
			// One line for all.
			path = "-" + strings.TrimPrefix(path[i:], "/hvi-vif-") + "`"
		}
		if path != "/etc/hvi" && !strings.Contains(page, path) {
			t.Errorf("files.md does not name %s", path)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(/(?:etc|usr/s?bin|usr/libexec|usr/lib)/[^`]+)`").FindAllStringSubmatch(page, -1) {
		if !strings.Contains(pkg, "dst: "+strings.TrimSuffix(m[1], "/")) {
			t.Errorf("files.md names %s, which is not in the package", m[1])
		}
	}
}

// TestUnitOutOfMemory holds the unit to what SECURITY.md says of a control domain
// without memory.
func TestUnitOutOfMemory(t *testing.T) {
	unit, err := os.ReadFile("../packaging/systemd/hvid.service")
	if err != nil {
		t.Fatal(err)
	}
	security, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(unit), "\n")
	for _, setting := range []string{"OOMScoreAdjust=-900", "OOMPolicy=continue"} {
		if !slices.Contains(lines, setting) {
			t.Errorf("hvid.service has no line %s", setting)
		}
		if !strings.Contains(string(security), "`"+setting+"`") {
			t.Errorf("SECURITY.md does not name %s", setting)
		}
	}
	for _, limit := range []string{"MemoryMax=", "MemoryHigh=", "MemorySwapMax=", "LimitAS=", "LimitDATA=", "LimitRSS="} {
		if slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, limit) }) {
			t.Errorf("hvid.service sets %s", limit)
		}
	}
}

// TestUnitPrivileges holds the unit to what the pages say that hvid may do.
func TestUnitPrivileges(t *testing.T) {
	unit, security := text(t, "../packaging/systemd/hvid.service"), text(t, "security-model.md")
	settings := map[string][]string{}
	for line := range strings.Lines(unit) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			settings[name] = append(settings[name], value)
		}
	}
	for name, want := range map[string][]string{
		"CapabilityBoundingSet":   {"CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_CHOWN"},
		"NoNewPrivileges":         {"yes"},
		"DevicePolicy":            {"closed"},
		"ProtectSystem":           {"strict"},
		"MemoryDenyWriteExecute":  {"yes"},
		"RestrictNamespaces":      {"yes"},
		"SystemCallArchitectures": {"native"},
		"SystemCallErrorNumber":   {"EPERM"},
		"IPAddressDeny":           {"any"},
		"IPAddressAllow":          {"localhost"},
		"RestrictAddressFamilies": {"AF_UNIX AF_INET AF_INET6"},
		"AmbientCapabilities":     nil,
		"User":                    nil,
	} {
		if !slices.Equal(settings[name], want) {
			t.Errorf("hvid.service has %s=%q, want %q", name, settings[name], want)
		}
	}
	for _, d := range settings["DeviceAllow"] {
		if !strings.HasPrefix(d, "/dev/xen/") {
			t.Errorf("hvid.service allows the device %s", d)
		}
	}
	calls := settings["SystemCallFilter"]
	if len(calls) < 2 || calls[0] != "@system-service" || !strings.HasPrefix(calls[1], "~") || !strings.Contains(calls[1], "@privileged") || !strings.Contains(calls[1], "@module") {
		t.Errorf("hvid.service has SystemCallFilter=%q", calls)
	}
	if !strings.Contains(strings.Join(strings.Fields(security), " "), "three capabilities, Xen's devices, its own directories, no network beyond loopback") {
		t.Error("security-model.md doesn't say what hvid may do")
	}
}

// claim is something that a page promises, with what is named in code in it.
type claim struct {
	place string
	text  string
}

var (
	codeWord = regexp.MustCompile("`([^`]+)`")
	// codeList is nothing but that, in parentheses or in a table's last cell.
	codeList = regexp.MustCompile("[(|]\\s*`[^`]+`(?:,\\s+`[^`]+`)*\\s*[)|]")
	labName  = regexp.MustCompile(`(?m)^\s*(?:Name: +|\{name: |\{)"([a-z0-9-]+)"`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
)

// tested are the names of all tests and fuzz targets of the module, and of the lab's
// scenarios.
func tested(t *testing.T) (tests, scenarios map[string]bool) {
	t.Helper()
	tests, scenarios = map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir("..", func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		switch {
		case strings.HasSuffix(path, "_test.go"):
			for _, m := range testFunc.FindAllStringSubmatch(text(t, path), -1) {
				tests[m[1]] = true
			}
		case strings.HasPrefix(path, "../lab/scenario/"):
			for _, m := range labName.FindAllStringSubmatch(text(t, path), -1) {
				scenarios[m[1]] = true
			}
		}
		return nil
	})
	if err != nil || len(tests) < 500 || len(scenarios) < 40 {
		t.Fatalf("%d tests, %d scenarios: %v", len(tests), len(scenarios), err)
	}
	return tests, scenarios
}

// TestClaimsAreTested wants a test, by its name, behind each claim of SECURITY.md and each
// row of what security-model.md says happens, and wants those to exist. What a guest can
// do all the same is no claim of ours.
func TestClaimsAreTested(t *testing.T) {
	tests, scenarios := tested(t)
	claims := claimsOf(t, "../SECURITY.md", "What each party can do", "- **", "- **Can lie", "- **Can use")
	claims = append(claims, claimsOf(t, "security-model.md", "What holds this", "| ", "| what", "|---")...)
	if len(claims) < 25 {
		t.Fatalf("only %d claims", len(claims))
	}
	for _, c := range claims {
		named := 0
		for _, list := range codeList.FindAllString(c.text, -1) {
			var unknown []string
			known := 0
			for _, m := range codeWord.FindAllStringSubmatch(list, -1) {
				if tests[m[1]] || scenarios[m[1]] {
					known++
				} else {
					unknown = append(unknown, m[1])
				}
			}
			if known > 0 && len(unknown) > 0 {
				t.Errorf("%s: no test is called %q", c.place, unknown)
			}
			named += known
		}
		if named == 0 {
			t.Errorf("%s: no test is named: %.60s", c.place, c.text)
		}
	}
}

// claimsOf are the items of a section, with their other lines, that begin with one word
// and with none of the others.
func claimsOf(t *testing.T, page, section, begin string, but ...string) (claims []claim) {
	t.Helper()
	inside, level := false, 0
	var now *claim
	end := func() {
		if now != nil {
			claims = append(claims, *now)
		}
		now = nil
	}
	for i, line := range strings.Split(text(t, page), "\n") {
		if h := strings.TrimLeft(line, "#"); h != line {
			end()
			if n := len(line) - len(h); strings.TrimSpace(h) == section {
				inside, level = true, n
			} else if n <= level {
				inside = false
			}
			continue
		}
		switch {
		case !inside:
		case slices.ContainsFunc(but, func(b string) bool { return strings.HasPrefix(line, b) }):
			end()
		case strings.HasPrefix(line, begin):
			end()
			now = &claim{place: fmt.Sprintf("%s:%d", page, i+1), text: line}
		case strings.HasPrefix(line, "  ") && now != nil:
			now.text += "\n" + line
		default:
			end()
		}
	}
	end()
	if len(claims) == 0 {
		t.Fatalf("%s has no section %q with items", page, section)
	}
	return claims
}
