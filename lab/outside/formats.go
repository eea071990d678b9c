package outside

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
)

func linuxFormats(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-formats",
		Brief:   "What hvictl inspect reads in a raw image, an ELF core and a file of LiME's own is what the guest says",
		Timeout: 30 * time.Minute,
		Run:     func(t *scenario.T) error { return formats(t, env, "6.1-cloud") },
	}
}

// format is a file of a guest's memory.
type format struct {
	name, file string
	say        truth
}

// formats compares what is read in each kind of file. (Xen's own is compared
// where there is Xen, by linux-xencore.)
func formats(t *scenario.T, env Env, kernel string) error {
	k, ok := image.FindKernel(kernel)
	if !ok {
		return fmt.Errorf("no kernel is called %s", kernel)
	}
	s, err := env.specimen(t, specimen.Variant{Kernel: k})
	if err != nil {
		return err
	}
	say, err := reports(s)
	if err != nil {
		return err
	}
	list := []format{{"raw", s.Raw(), say}, {"elf", s.Core(), say}}
	lime, err := limeFile(t, env, k)
	if err != nil {
		return err
	}
	for _, f := range append(list, lime) {
		h, err := env.build(t)
		if err != nil {
			return err
		}
		if err := f.compare(t, h); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

const limeName = "lime"

// limeFile has a guest write its memory down with LiME.
func limeFile(t *scenario.T, env Env, k image.Kernel) (format, error) {
	f := format{name: limeName}
	dir, err := t.TempDir()
	if err != nil {
		return f, err
	}
	f.file = filepath.Join(dir, "memory.lime")
	m := specimen.Maker{Builder: env.Builder, LiME: true, Show: func(line string) { t.Logf("lime| %s", line) }}
	guest, err := m.Start(t.Context(), specimen.Variant{Kernel: k, VCPUs: 2}) // one is kept busy
	if err != nil {
		return f, err
	}
	defer guest.Close()
	if f.say.before, err = guest.Report(t.Context()); err != nil {
		return f, err
	}
	start := time.Now()
	if err := guest.LiME(t.Context(), f.file); err != nil {
		return f, err
	}
	t.Fact("lime.seconds", seconds(start))
	f.say.after, err = guest.Report(t.Context())
	return f, err
}

// compare compares all views of a file with what its guest said.
func (f format) compare(t *scenario.T, h *hvictl) error {
	out := map[string]*comparison{}
	defer func() { t.Fact(f.name, out) }()
	state, err := f.say.before.State()
	if err != nil {
		return err
	}
	for _, v := range append(views, mapsOf(state.Roles["maps"])) {
		got, reading, err := v.ask(t.Context(), h, f.file)
		if !t.Check(err == nil, "%s: hvictl answers %s: %v", f.name, v.name, err) {
			continue
		}
		before := v.truth(f.say.before)
		if f.name == limeName && v.name == "modules" {
			delete(before["virtio_blk"], "refcount") // LiME has its disk open
		}
		c := compare(before, v.truth(f.say.after), got, v.rest)
		out[v.name] = c
		t.Check(c.Different == 0 && c.Things > 0 && len(reading.Incomplete) == 0, "%s: %s: of %d compared in %d values, %d differ: %s, incomplete %q",
			f.name, v.name, c.Things, c.Values, c.Different, strings.Join(c.Samples, "; "), reading.Incomplete)
	}
	return f.check(t.Context(), t, h)
}

// check wants the guest to be found clean, and to be told what could not be
// looked at: none of these files holds MSRs, most no registers at all.
func (f format) check(ctx context.Context, t *scenario.T, h *hvictl) error {
	var got report.Verdict
	code, err := h.inspect(ctx, &got, f.file, "check")
	if err != nil {
		return err
	}
	statuses := map[report.CheckStatus]int{}
	for _, c := range got.Checks {
		statuses[c.Status]++
	}
	t.Fact(f.name+".checks", statuses)
	t.Check(code == 0 && got.Clean && len(got.Findings) == 0 && statuses[report.CheckClean] > 0,
		"%s: check finds nothing: exit code %d, %v, findings %v", f.name, code, statuses, got.Findings)
	return nil
}
