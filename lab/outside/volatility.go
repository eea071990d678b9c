package outside

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
	"github.com/xen-hvi/hvi/lab/witness"
)

func linuxVolatility(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-volatility",
		Brief:   "With profiles that hvictl exports, Volatility 3 lists the processes and modules of each of Debian's releases (needs its program, vol)",
		Timeout: 3 * time.Hour,
		Run: func(t *scenario.T) error {
			return volatility(t, env, "5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud")
		},
	}
}

// volatilityLimit bounds one plugin: the first reads all of the profile.
const volatilityLimit = 30 * time.Minute

// vol is Volatility 3.
type vol struct {
	program string
	home    string // for its caches
	symbols string // the folder with the profiles
}

// volatility has Volatility take profiles of ours and nothing else.
func volatility(t *scenario.T, env Env, kernels ...string) error {
	program, err := exec.LookPath("vol")
	if err != nil {
		return fmt.Errorf("install Volatility 3 (pip install volatility3): %w", err)
	}
	h, err := env.build(t)
	if err != nil {
		return err
	}
	env, giveBack := env.keepPlace()
	defer giveBack()
	var list []specimen.Specimen
	for _, name := range kernels {
		k, ok := image.FindKernel(name)
		if !ok {
			return fmt.Errorf("no kernel is called %s", name)
		}
		s, err := env.specimen(t, specimen.Variant{Kernel: k})
		if err != nil {
			return err
		}
		list = append(list, s)
	}
	giveBack() // Volatility takes its time
	for _, s := range list {
		dir, err := t.TempDir()
		if err != nil {
			return err
		}
		if err := volatilityReads(t, h, vol{program, dir, filepath.Join(dir, "symbols")}, s); err != nil {
			return fmt.Errorf("%v: %w", s.Variant, err)
		}
	}
	return nil
}

// volatilityReads exports one kernel's profile and has its guest read with it.
func volatilityReads(t *scenario.T, h *hvictl, v vol, s specimen.Specimen) error {
	name := s.Variant.String()
	profile, bad, code, err := h.run(t.Context(), "profile", "export", s.Raw())
	if err != nil {
		return err
	}
	if !t.Check(code == 0, "%s: a profile is exported: exit code %d, %s", name, code, bad) {
		return nil
	}
	to := filepath.Join(v.symbols, "linux")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, name+".json"), profile, 0o644); err != nil {
		return err
	}
	say, err := reports(s)
	if err != nil {
		return err
	}
	for _, plugin := range []struct {
		name  string
		truth func(witness.Report) view
		see   func(row map[string]any) (id string, rec record)
	}{
		{"linux.pslist.PsList", volatilityProcesses, func(r map[string]any) (string, record) {
			return cell(r["PID"]), record{"ppid": cell(r["PPID"]), "comm": text(cell(r["COMM"]))}
		}},
		{"linux.lsmod.Lsmod", volatilityModules, func(r map[string]any) (string, record) {
			size := cell(r["Size"])
			if n, err := strconv.ParseUint(strings.TrimPrefix(size, "0x"), 16, 64); strings.HasPrefix(size, "0x") && err == nil {
				size = strconv.FormatUint(n, 10)
			}
			return cell(r["Name"]), record{"size": size}
		}},
	} {
		rows, err := v.run(t.Context(), s.Raw(), plugin.name)
		if !t.Check(err == nil, "%s: Volatility takes the profile for %s: %v", name, plugin.name, err) {
			continue
		}
		got := view{}
		for _, r := range rows {
			id, rec := plugin.see(r)
			got[id] = rec
		}
		c := compare(plugin.truth(say.before), plugin.truth(say.after), got, nil)
		t.Fact(name+" "+plugin.name, c)
		t.Check(c.Different == 0 && c.Things > 0, "%s: %s: of %d in %d values, %d differ from what the guest says: %s",
			name, plugin.name, c.Things, c.Values, c.Different, strings.Join(c.Samples, "; "))
	}
	return nil
}

// run runs a plugin and returns its table.
func (v vol) run(ctx context.Context, file, plugin string) ([]map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, volatilityLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, v.program, "-q", "-r", "json", "-s", v.symbols, "-f", file, plugin)
	cmd.Env = append(os.Environ(), "HOME="+v.home)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(bad.Bytes()))
	}
	var rows []map[string]any
	text := out.Bytes()
	if i := bytes.IndexByte(text, '['); i > 0 { // behind its name and version
		text = text[i:]
	}
	if err := json.Unmarshal(text, &rows); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out.Bytes()[:min(out.Len(), 400)]))
	}
	return rows, nil
}

// cell is a value of a table as text.
func cell(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// volatilityProcesses is what the guest says of what pslist shows. A name that is
// no UTF-8 is shown in a way of its own.
func volatilityProcesses(r witness.Report) view {
	v := view{}
	for pid, rec := range processView(r) {
		short := record{"ppid": rec["ppid"]}
		if !strings.Contains(rec["comm"], `\`) {
			short["comm"] = rec["comm"]
		}
		v[pid] = short
	}
	return v
}

// volatilityModules is what the guest says of what lsmod shows.
func volatilityModules(r witness.Report) view {
	v := view{}
	for line := range strings.Lines(r.Text("proc/modules")) {
		if f := strings.Fields(line); len(f) > 1 {
			v[f[0]] = record{"size": f[1]}
		}
	}
	return v
}
