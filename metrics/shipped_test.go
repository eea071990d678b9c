package metrics

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// known returns the names and labels that a scrape can have, as an expression
// may use them.
func known(t *testing.T) map[string][]string {
	t.Helper()
	fams, err := NewRegistry(collector(t, &fakeSource{domains: []Domain{web(), db()}, host: fullHost()})).Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{"up": {}}
	for _, f := range fams {
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		names[f.GetName()] = labels
		if f.Metric[0].Summary != nil {
			names[f.GetName()+"_sum"], names[f.GetName()+"_count"] = labels, labels
		}
	}
	return names
}

var (
	selector  = regexp.MustCompile(`\b((?:hvi|go|process)_[a-z_]+|up)\b(?:\{([^}]*)\})?`)
	labelName = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"`)
	stateWord = regexp.MustCompile(`\bstate(?:=~|!~|!=|=)"([^"]*)"`)
)

// checkExpr holds an expression against what the collector has.
func checkExpr(t *testing.T, where, expr string, names map[string][]string) (used []string) {
	t.Helper()
	found := selector.FindAllStringSubmatch(expr, -1)
	if len(found) == 0 {
		t.Errorf("%s: no metric in %s", where, expr)
	}
	for _, m := range found {
		labels, ok := names[m[1]]
		if !ok {
			t.Errorf("%s: there is no metric %s", where, m[1])
			continue
		}
		used = append(used, m[1])
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			// Those that Prometheus adds.
			if l[1] != "instance" && l[1] != "job" && !slices.Contains(labels, l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
		}
		if !strings.HasPrefix(m[1], "hvi_domain") {
			continue
		}
		for _, s := range stateWord.FindAllStringSubmatch(m[2], -1) {
			for w := range strings.SplitSeq(s[1], "|") {
				if !slices.Contains(States, w) {
					t.Errorf("%s: there is no state %q", where, w)
				}
			}
		}
	}
	return used
}

type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func TestRules(t *testing.T) {
	b, err := os.ReadFile("rules/hvi.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil {
		t.Fatal(err)
	}
	names := known(t)
	seen := map[string]bool{}
	field := regexp.MustCompile(`\$labels\.([a-z_]+)`)
	for _, g := range f.Groups {
		for _, r := range g.Rules {
			if !regexp.MustCompile(`^Hvi[A-Z][A-Za-z]+$`).MatchString(r.Alert) || seen[r.Alert] {
				t.Errorf("an alert is called %q, or twice so", r.Alert)
			}
			seen[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: no summary or no description", r.Alert)
			}
			used := checkExpr(t, r.Alert, r.Expr, names)
			for _, text := range r.Annotations {
				for _, l := range field.FindAllStringSubmatch(text, -1) {
					if l[1] != "instance" && l[1] != "job" && !slices.ContainsFunc(used, func(n string) bool { return slices.Contains(names[n], l[1]) }) {
						t.Errorf("%s: its text has the label %s, its metrics have not", r.Alert, l[1])
					}
				}
			}
		}
	}
	for _, want := range []string{"HviDown", "HviViolation", "HviDomainNotProtected", "HviDomainDegraded", "HviRecordsLost"} {
		if !seen[want] {
			t.Errorf("no alert %s", want)
		}
	}
}

// Prometheus's own tool judges the rules where it is installed. tools/test
// installs it, and requires it then.
func TestRulesWithPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	switch {
	case err != nil && os.Getenv("HVI_OUTSIDE_TOOLS") == "required":
		t.Fatal(err)
	case err != nil:
		t.Skip("promtool is not installed")
	}
	for _, args := range [][]string{{"check", "rules", "hvi.rules.yml"}, {"test", "rules", "hvi.test.yml"}} {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir = "rules"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("grafana", "hvi.json"))
	if err != nil {
		t.Fatal(err)
	}
	type grid struct{ X, Y, W, H int }
	var d struct {
		Title, UID string
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
		Panels []struct {
			ID          int
			Type, Title string
			GridPos     grid
			Targets     []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" {
		t.Error("the dashboard has no title or no uid")
	}
	names := known(t)
	vars := map[string]bool{"__rate_interval": true}
	for _, v := range d.Templating.List {
		vars[v.Name] = true
		if v.Type == "query" {
			inner := strings.TrimSuffix(strings.TrimPrefix(v.Definition, "label_values("), ")")
			i := strings.LastIndex(inner, ", ")
			if i < 0 {
				t.Errorf("variable %s: %s", v.Name, v.Definition)
				continue
			}
			checkExpr(t, "variable "+v.Name, inner[:i], names)
		}
	}
	ids := map[int]bool{}
	used := map[string]bool{}
	variable := regexp.MustCompile(`\$([a-z_]+)`)
	var taken []grid
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the number %d", p.ID)
		}
		ids[p.ID] = true
		for _, o := range taken {
			if p.GridPos.X < o.X+o.W && o.X < p.GridPos.X+p.GridPos.W && p.GridPos.Y < o.Y+o.H && o.Y < p.GridPos.Y+p.GridPos.H {
				t.Errorf("%s lies over another panel", p.Title)
			}
		}
		taken = append(taken, p.GridPos)
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s asks for nothing", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] {
				t.Errorf("%s: two queries are called %s", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			for _, n := range checkExpr(t, p.Title, q.Expr, names) {
				used[n] = true
			}
			for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
				if !vars[v[1]] {
					t.Errorf("%s: there is no variable %s", p.Title, v[1])
				}
			}
		}
	}
	// What counts violations and protection must be seen.
	for _, want := range []string{"hvi_domain_protected", "hvi_domain_state", "hvi_guard_violations_total", "hvi_records_lost_total"} {
		if !used[want] {
			t.Errorf("no panel shows %s", want)
		}
	}
}
