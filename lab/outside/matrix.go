package outside

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
	"github.com/xen-hvi/hvi/lab/witness"
)

func linuxMatrix(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-matrix",
		Brief:   "What hvi reads in the memory of each Debian kernel, 5.10 to 7.2, is what that kernel says of itself",
		Timeout: 2 * time.Hour,
		Run: func(t *scenario.T) error {
			var list []specimen.Variant
			for _, k := range image.Kernels() {
				list = append(list, specimen.Variant{Kernel: k})
			}
			for _, name := range []string{"5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud"} {
				k, _ := image.FindKernel(name)
				list = append(list, specimen.Variant{Kernel: k, VCPUs: 4, PTI: true})
				if name != "5.10-cloud" { // which Debian built without
					list = append(list, specimen.Variant{Kernel: k, VCPUs: 2, LA57: true})
				}
			}
			return matrix(t, env, list)
		},
	}
}

func linuxMatrixQuick(env Env) scenario.Scenario {
	return scenario.Scenario{
		Name:    "linux-matrix-quick",
		Brief:   "The same of two kernels, the smallest that Debian 12 has",
		Timeout: 30 * time.Minute,
		Run: func(t *scenario.T) error {
			var list []specimen.Variant
			for _, name := range []string{"6.1-cloud", "6.12-cloud"} {
				k, ok := image.FindKernel(name)
				if !ok {
					return fmt.Errorf("no kernel is called %s", name)
				}
				list = append(list, specimen.Variant{Kernel: k})
			}
			return matrix(t, env, list)
		},
	}
}

// row is what is known of one kernel.
type row struct {
	Release string                 `json:"release"`
	VCPUs   int                    `json:"vcpus"`
	BTF     int                    `json:"btf_bytes"` // equal to the guest's own
	Views   map[string]*comparison `json:"views"`
	Checks  map[string]string      `json:"checks"` // outcome by name
	Missing []string               `json:"missing,omitempty"`
	Seconds map[string]float64     `json:"seconds"` // of hvictl's commands
}

// matrix compares one kernel after the other.
func matrix(t *scenario.T, env Env, list []specimen.Variant) error {
	env, giveBack := env.keepPlace()
	defer giveBack()
	var errs []error
	for _, v := range list {
		h, err := env.build(t)
		if err != nil {
			return err
		}
		s, err := env.specimen(t, v)
		if err != nil {
			// The others may do.
			t.Check(false, "%v: %v", v, err)
			continue
		}
		r := &row{Release: s.Release, VCPUs: max(v.VCPUs, 1), Views: map[string]*comparison{}, Checks: map[string]string{}, Seconds: h.seconds}
		err = r.fill(t, h, s)
		t.Fact(v.String(), r)
		if err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", v, err))
		}
	}
	return errors.Join(errs...)
}

// truth is what a guest said of itself, before and after its memory was taken.
type truth struct{ before, after witness.Report }

func reports(s specimen.Specimen) (t truth, err error) {
	if t.before, err = s.Before(); err != nil {
		return t, err
	}
	if t.after, err = s.After(); err != nil {
		return t, err
	}
	if t.after == nil {
		t.after = t.before
	}
	return t, nil
}

// fill compares all that there is of a specimen.
func (r *row) fill(t *scenario.T, h *hvictl, s specimen.Specimen) error {
	say, err := reports(s)
	if err != nil {
		return err
	}
	name := s.Variant.String()
	keep := func(what string, c *comparison) {
		r.Views[what] = c
		t.Check(c.Different == 0 && c.Things > 0, "%s: %s: of %d compared in %d values, %d differ: %s",
			name, what, c.Things, c.Values, c.Different, strings.Join(c.Samples, "; "))
	}
	table, btf, err := symbols(s, say.before)
	if table != nil {
		keep("symbols", table)
	}
	r.BTF = btf
	t.Check(err == nil, "%s: its type information, %d bytes, is the guest's own: %v", name, btf, err)

	for _, v := range views {
		got, reading, err := v.ask(t.Context(), h, s.Core())
		if !t.Check(err == nil, "%s: hvictl answers %s: %v", name, v.name, err) {
			continue
		}
		r.Missing = append(r.Missing, reading.Incomplete...)
		keep(v.name, compare(v.truth(say.before), v.truth(say.after), got, v.rest))
	}
	r.maps(t, h, s, say, keep)
	r.info(t, h, s, say)
	return r.check(t, h, s)
}

// views are the questions whose answers are lists.
var views = []listView{
	{"ps", []string{"ps"}, processView, list[report.Process](seenProcesses), worker},
	{"threads", []string{"ps", "--threads"}, threadView, list[report.Process](seenProcesses), worker},
	{"modules", []string{"modules"}, moduleView, list[report.Module](seenModules), nil},
	{"sockets", []string{"sockets"}, socketView, surely(seenSockets), ownerless},
	{"dmesg", []string{"dmesg"}, logView, surely(seenLog), nil},
	{"mounts", []string{"mounts"}, witnessMounts, surely(seenMounts), nil},
	{"programs", []string{"programs"}, loadedPrograms, surely(seenPrograms), nil},
}

// listView is a question whose answer is a list.
type listView struct {
	name    string
	command []string // of hvictl
	// truth is what the guest says, answer makes the same of what hvi does, and
	// rest says of a thing that the guest shows at no time whether that is right.
	truth  func(witness.Report) view
	answer answer
	rest   func(record) bool
}

// ask asks hvictl about an image.
func (v listView) ask(ctx context.Context, h *hvictl, file string) (view, report.Reading, error) {
	into := v.answer.empty()
	code, err := h.inspect(ctx, into, file, v.command...)
	if err != nil {
		return nil, report.Reading{}, err
	}
	if code != 0 {
		return nil, report.Reading{}, fmt.Errorf("exit code %d", code)
	}
	return v.answer.see(into)
}

// answer makes a view of what hvi says.
type answer interface {
	// empty is what an answer is decoded into.
	empty() any
	see(answer any) (view, report.Reading, error)
}

// list is for a report.List[T].
type list[T any] func([]T) (view, error)

func (list[T]) empty() any { return new(report.List[T]) }

func (l list[T]) see(answer any) (view, report.Reading, error) {
	a, ok := answer.(*report.List[T])
	if !ok {
		return nil, report.Reading{}, fmt.Errorf("the answer is a %T", answer)
	}
	v, err := l(a.Items)
	return v, a.Reading, err
}

// surely is for what can't fail.
func surely[T any](see func([]T) view) list[T] {
	return func(items []T) (view, error) { return see(items), nil }
}

func witnessMounts(r witness.Report) view {
	return mountView(r, fmt.Sprintf("proc/%d/mountinfo", witnessPID))
}

func loadedPrograms(r witness.Report) view {
	s, err := r.State()
	if err != nil {
		return nil
	}
	return programView(s)
}

// mapsOf is the question for the memory of one process.
func mapsOf(pid int) listView {
	return listView{"maps", []string{"maps", strconv.Itoa(pid)}, func(r witness.Report) view { return mapView(r, pid) }, surely(seenMaps), nil}
}

// maps compares the memory of some processes.
func (r *row) maps(t *scenario.T, h *hvictl, s specimen.Specimen, say truth, keep func(string, *comparison)) {
	state, err := say.before.State()
	if !t.Check(err == nil, "the witness' state: %v", err) {
		return
	}
	for _, role := range []string{"maps", "yes", "gone", "odd-path", "namespaces", "threads"} {
		pid := state.Roles[role]
		v := mapsOf(pid)
		got, reading, err := v.ask(t.Context(), h, s.Core())
		if !t.Check(err == nil, "%v: hvictl answers maps of %s: %v", s.Variant, role, err) {
			continue
		}
		r.Missing = append(r.Missing, reading.Incomplete...)
		keep("maps "+role, compare(v.truth(say.before), v.truth(say.after), got, nil))
	}
}

// info compares what is said of the guest as a whole.
func (r *row) info(t *scenario.T, h *hvictl, s specimen.Specimen, say truth) {
	var got report.Info
	code, err := h.inspect(t.Context(), &got, s.Core(), "info")
	if !t.Check(err == nil && code == 0, "%v: hvictl answers info: exit code %d, %v", s.Variant, code, err) {
		return
	}
	r.Missing = append(r.Missing, got.Reading.Incomplete...)
	c := &comparison{Things: 1}
	c.equal("release", string(got.Release), text(s.Release))
	c.equal("banner", string(got.Banner), text(say.before.Text("proc/version")))
	c.equal("command line", string(got.CommandLine), text(say.before.Text("proc/cmdline")))
	c.equal("hostname", string(got.Hostname), "witness")
	c.equal("processors", strconv.Itoa(len(got.CPUs)), strconv.Itoa(r.VCPUs))
	c.equal("tainted", strconv.FormatBool(got.Taints != ""), strconv.FormatBool(say.before.Text("proc/sys/kernel/tainted") != "0"))
	levels := "4"
	if s.Variant.LA57 {
		levels = "5"
	}
	c.equal("paging levels", strconv.Itoa(got.PagingLevels), levels)
	c.equal("isolation", strconv.FormatBool(got.Isolation), strconv.FormatBool(s.Variant.PTI))
	from, to := uptime(say.before), uptime(say.after)
	c.Values++
	if got.Uptime < from-tick || got.Uptime > to+tick {
		c.differ("uptime %v is not between the guest's %v and %v", got.Uptime, from, to)
	}
	r.Views["info"] = c
	t.Check(c.Different == 0, "%v: info: of %d values %d differ: %s", s.Variant, c.Values, c.Different, strings.Join(c.Samples, "; "))
}

// tick is how much the kernel's clock may lag behind, in seconds.
const tick = 0.1

func uptime(r witness.Report) float64 {
	word, _, _ := strings.Cut(r.Text("proc/uptime"), " ")
	n, err := strconv.ParseFloat(word, 64)
	if err != nil {
		return -1
	}
	return n
}

// check wants a kernel that nobody attacked to be found clean, as far as it can
// be seen: QEMU's core has no MSRs.
func (r *row) check(t *scenario.T, h *hvictl, s specimen.Specimen) error {
	const unseen = "entry-points"
	var got report.Verdict
	code, err := h.inspect(t.Context(), &got, s.Core(), "check")
	if err != nil {
		return err
	}
	clean := len(got.Checks) > 0
	for _, c := range got.Checks {
		r.Checks[c.Name] = string(c.Status)
		if c.Why != "" {
			r.Checks[c.Name] += ": " + c.Why
		}
		want := report.CheckClean
		if c.Name == unseen {
			want = report.CheckUnavailable
		}
		clean = clean && c.Status == want
	}
	t.Check(got.Clean && clean && code == 0 && len(got.Findings) == 0,
		"%v: check finds an unharmed kernel clean: exit code %d, %d checks, findings %v", s.Variant, code, len(got.Checks), got.Findings)
	return nil
}
