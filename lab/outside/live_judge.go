package outside

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/lab/witness"
)

// judge tells a right answer about a guest that runs from a wrong one, by what
// the guest said of itself when it was at rest and by what its load does.
type judge struct {
	release       string
	first, second witness.Report
	state         witness.State
	kernel        *linux.Kernel // as it was found at rest
	// tables are the answers of questions whose answers don't change.
	tables map[inspect.Kind]string
	// loaded says that the load runs, shells are its processes that stay.
	loaded bool
	shells map[string]bool

	uptime  float64
	passing int32 // a process of the load, as seen last
}

func newJudge(first, second witness.Report, release string) (*judge, error) {
	j := &judge{release: release, first: first, second: second, tables: map[inspect.Kind]string{}, uptime: math.Min(uptime(first), uptime(second))}
	var err error
	j.state, err = second.State()
	return j, err
}

// now takes what the guest says now for what it is.
func (j *judge) now(r witness.Report) (err error) {
	j.first, j.second = r, r
	j.state, err = r.State()
	return err
}

// remember takes an answer for the right one.
func (j *judge) remember(kind inspect.Kind, answer any) error {
	text, err := tableText(answer)
	if err != nil {
		return err
	}
	if strings.Contains(text, `"in":"`+string(report.InUnknown)+`"`) {
		return fmt.Errorf("something leads to no known code: %s", text)
	}
	j.tables[kind] = text
	return nil
}

// tableText is an answer but for how it was read.
func tableText(answer any) (string, error) {
	text, err := json.Marshal(answer)
	if err != nil {
		return "", err
	}
	var parts struct{ Items json.RawMessage }
	err = json.Unmarshal(text, &parts)
	return string(parts.Items), err
}

// questions are all, with how often each is asked in a round of those under
// load.
func (j *judge) questions(underLoad bool) []liveQuestion {
	role := func(name string) int32 { return int32(j.state.Roles[name]) }
	of := func(i int) listView { return views[i] }
	maps1, maps2 := mapsOf(int(role("maps"))), mapsOf(int(role("threads")))
	out := []liveQuestion{
		{name: "ps", kind: inspect.Processes, share: 8, judge: j.list(of(0), j.known, j.task)},
		{name: "threads", kind: inspect.Processes, args: inspect.Args{Threads: true}, share: 4, judge: j.list(of(1), j.known, j.thread)},
		{name: "modules", kind: inspect.Modules, share: 8, judge: j.list(of(2), j.staying, j.module)},
		{name: "sockets", kind: inspect.Sockets, share: 2, judge: j.list(of(3), nil, ownerless)},
		{name: "dmesg", kind: inspect.Log, share: 2, judge: j.log},
		{name: "mounts", kind: inspect.Mounts, share: 2, judge: j.list(of(5), nil, j.mount)},
		{name: "programs", kind: inspect.Programs, share: 1, judge: j.list(of(6), nil, nil)},
		{name: "maps", kind: inspect.Maps, args: inspect.Args{PID: role("maps")}, share: 1, judge: j.list(maps1, nil, nil)},
		{name: "maps of threads", kind: inspect.Maps, args: inspect.Args{PID: role("threads")}, share: 1, judge: j.list(maps2, nil, nil)},
		{name: "info", kind: inspect.Info, share: 2, judge: j.info},
		{name: "syscalls", kind: inspect.Syscalls, share: 1, judge: j.table(inspect.Syscalls)},
		{name: "interrupts", kind: inspect.Interrupts, share: 1, judge: j.table(inspect.Interrupts)},
		{name: "segments", kind: inspect.Segments, share: 1, judge: j.table(inspect.Segments)},
		{name: "probes", kind: inspect.Probes, share: 1, judge: j.table(inspect.Probes)},
		{name: "check", kind: inspect.Check, share: 3, judge: j.check},
	}
	if underLoad {
		out = append(out, liveQuestion{name: "identify", share: 1, judge: j.identified}, liveQuestion{name: "maps of one that ends", kind: inspect.Maps, share: 2, gone: true,
			pid: func() int32 { return max(j.passing, 1) }, judge: j.passingMaps})
	}
	return out
}

// list judges a list: what the guest said twice at rest must be in it, but for
// what known leaves out; and nothing else, but for what rest lets pass.
func (j *judge) list(v listView, known func(view), rest func(record) bool) func(any) (report.Reading, []string) {
	before, after := v.truth(j.first), v.truth(j.second)
	if known != nil {
		known(before)
		known(after)
	}
	return func(answer any) (report.Reading, []string) {
		got, reading, err := v.answer.see(answer)
		if err != nil {
			return reading, []string{err.Error()}
		}
		want := before
		if len(reading.Incomplete) > 0 { // it said itself that something may be missing
			want = maps.Clone(before)
			maps.DeleteFunc(want, func(id string, _ record) bool { return got[id] == nil })
		}
		c := compare(want, after, got, rest)
		return reading, c.Samples
	}
}

// known leaves out of a view of tasks what changes in a guest that does
// something: workers come and go, and Go's programs get threads as they need
// them.
func (j *judge) known(v view) {
	maps.DeleteFunc(v, func(_ string, p record) bool { return worker(p) })
	for _, p := range v {
		delete(p, "state")
		if p["kernel thread"] == "false" {
			delete(p, "threads")
		}
	}
}

// Names that a process of the load can have: a shell's child is called as the
// shell until it runs a program of its own, and busybox runs its own as
// /proc/self/exe.
var loadNames = []string{"sh", "exe", "true", "insmod", "rmmod", "mount", "umount"}

// maxPID is the greatest number that Linux gives on so few processors
// (PID_MAX_DEFAULT).
const maxPID = 32768

// task says of a process that the guest did not show at rest whether it can be.
func (j *judge) task(p record) bool {
	if p["kernel thread"] == "true" {
		// One that is being made has kthreadd's name for a moment.
		return p["ppid"] == "2" && (worker(p) || p["comm"] == "kthreadd") && p["uids"] == "0 0 0 0"
	}
	tgid, err := strconv.Atoi(p["tgid"])
	if err != nil || tgid <= 1 || tgid > maxPID || !j.loaded {
		return false
	}
	j.passing = int32(tgid)
	return slices.Contains(loadNames, p["comm"]) && p["uids"] == "0 0 0 0" && p["gids"] == "0 0 0 0" &&
		(j.shells[p["tgid"]] && p["ppid"] == "1" || j.shells[p["ppid"]]) &&
		(p["exe"] == "/bin/busybox" || p["exe"] == "")
}

// thread is task of threads, of which Go's programs get more.
func (j *judge) thread(p record) bool {
	if j.task(p) {
		return true
	}
	pid, err := strconv.Atoi(p["tgid"])
	if err != nil {
		return false
	}
	of := taskRecord(j.second, fmt.Sprintf("proc/%d/", pid))
	return of != nil && of["kernel thread"] == "false" && of["ppid"] == p["ppid"] && of["uids"] == p["uids"]
}

// The modules that come and go, by who uses each.
var passingModules = map[string]string{"fat": "vfat", "vfat": ""}

// staying leaves out of a view of modules those that don't stay.
func (j *judge) staying(v view) {
	maps.DeleteFunc(v, func(name string, _ record) bool { _, ok := passingModules[name]; return ok })
}

func (j *judge) module(m record) bool {
	for name, user := range passingModules {
		was := moduleView(j.second)[name]
		if was == nil {
			continue
		}
		size, err1 := strconv.Atoi(m["size"])
		usual, err2 := strconv.Atoi(was["size"])
		refs, err3 := strconv.Atoi(m["refcount"])
		// One that is being loaded has memory that it gives back when it is.
		if err1 != nil || err2 != nil || err3 != nil || size > 4*usual {
			continue
		}
		if m["state"] == "unformed" { // nothing of it is settled yet
			return size <= 4*usual
		}
		states := m["state"] == "live" || m["state"] == "coming" || m["state"] == "going"
		if states && size >= usual && refs >= -1 && refs <= 3 && (m["users"] == "" || m["users"] == user) && strings.HasPrefix(m["base"], "ffffffffc") {
			return true
		}
	}
	return false
}

func (j *judge) mount(m record) bool {
	return j.loaded && m["point"] == loadPoint && m["type"] == "tmpfs" && m["source"] == loadSource
}

// log judges the kernel's log, of which the oldest is overwritten.
func (j *judge) log(answer any) (report.Reading, []string) {
	v := surely(seenLog)
	got, reading, err := v.see(answer)
	if err != nil {
		return reading, []string{err.Error()}
	}
	want := logView(j.first)
	last, oldest := 0, math.MaxInt
	for id := range logView(j.second) {
		n, _ := strconv.Atoi(id) // is a number
		last = max(last, n)
	}
	var seqs []int
	for id := range got {
		n, _ := strconv.Atoi(id)
		seqs = append(seqs, n)
		oldest = min(oldest, n)
	}
	slices.Sort(seqs)
	var wrong []string
	for i := range seqs {
		if i > 0 && seqs[i] != seqs[i-1]+1 && len(reading.Incomplete) == 0 {
			wrong = append(wrong, fmt.Sprintf("between the records %d and %d there are none", seqs[i-1], seqs[i]))
		}
	}
	maps.DeleteFunc(want, func(id string, _ record) bool { n, _ := strconv.Atoi(id); return n < oldest })
	c := compare(want, want, got, func(record) bool { return true })
	wrong = append(wrong, c.Samples...)
	for _, n := range seqs {
		if r := got[strconv.Itoa(n)]; n > last && !logged(r["message"]) {
			wrong = append(wrong, fmt.Sprintf("record %d is %q", n, r["message"]))
		}
	}
	return reading, wrong
}

// logged says of a message whether the load, or a kernel under it, writes such.
func logged(message string) bool {
	f := strings.Fields(message)
	if len(f) == 4 && f[0] == loadWord {
		return f[1] == f[2] && f[2] == f[3]
	}
	return !strings.Contains(message, loadWord) && !strings.Contains(message, `\`)
}

// info judges what is said of the guest as a whole.
func (j *judge) info(answer any) (report.Reading, []string) {
	got, ok := answer.(*report.Info)
	if !ok {
		return report.Reading{}, []string{fmt.Sprintf("the answer is a %T", answer)}
	}
	c := &comparison{}
	c.equal("release", string(got.Release), text(j.release))
	c.equal("banner", string(got.Banner), text(j.first.Text("proc/version")))
	c.equal("command line", string(got.CommandLine), text(j.first.Text("proc/cmdline")))
	c.equal("hostname", string(got.Hostname), "witness")
	c.equal("processors", strconv.Itoa(len(got.CPUs)), strconv.Itoa(liveVCPUs))
	if got.Uptime < j.uptime || got.Uptime > j.uptime+3600 {
		c.differ("uptime %v, it was %v", got.Uptime, j.uptime)
	}
	j.uptime = got.Uptime
	for _, cpu := range got.CPUs {
		task := taskRecord(j.first, fmt.Sprintf("proc/%d/task/%d/", cpu.PID, cpu.PID))
		switch name := string(cpu.Comm); {
		case cpu.PID == 0:
			c.equal(fmt.Sprintf("idle task of CPU %d", cpu.ID), name, fmt.Sprintf("swapper/%d", cpu.ID))
		case cpu.PID < 0 || cpu.PID > maxPID:
			c.differ("CPU %d runs process %d", cpu.ID, cpu.PID)
		case task != nil && !worker(task):
			c.equal(fmt.Sprintf("process %d", cpu.PID), name, task["comm"])
		}
	}
	return got.Reading, c.Samples
}

// table judges an answer that is always the same.
func (j *judge) table(kind inspect.Kind) func(any) (report.Reading, []string) {
	return func(answer any) (report.Reading, []string) {
		text, err := tableText(answer)
		if err != nil {
			return report.Reading{}, []string{err.Error()}
		}
		var r struct{ Reading report.Reading }
		if all, err := json.Marshal(answer); err != nil || json.Unmarshal(all, &r) != nil {
			return r.Reading, []string{"no reading"}
		}
		if want := j.tables[kind]; text != want {
			at := 0
			for at < min(len(text), len(want)) && text[at] == want[at] {
				at++
			}
			from := max(0, at-100)
			return r.Reading, []string{fmt.Sprintf("from byte %d on it is %.300s and was %.300s", at, text[from:], want[from:])}
		}
		return r.Reading, nil
	}
}

// check judges a verdict on a guest that nobody attacked.
func (j *judge) check(answer any) (report.Reading, []string) {
	v, ok := answer.(*report.Verdict)
	if !ok {
		return report.Reading{}, []string{fmt.Sprintf("the answer is a %T", answer)}
	}
	var wrong []string
	for _, f := range v.Findings {
		wrong = append(wrong, fmt.Sprintf("%s: %s: %s", f.Check, f.Object, f.Detail))
	}
	for _, c := range v.Checks {
		switch c.Status {
		case report.CheckClean, report.CheckFound:
		default: // no wrong answer, but none
			v.Reading.Incomplete = append(v.Reading.Incomplete, fmt.Sprintf("%s is %s: %s", c.Name, c.Status, c.Why))
		}
	}
	return v.Reading, wrong
}

// identified judges what a kernel is taken for.
func (j *judge) identified(answer any) (report.Reading, []string) {
	k, ok := answer.(*linux.Kernel)
	if !ok || k.Banner != j.kernel.Banner || k.Base != j.kernel.Base || k.PhysBase != j.kernel.PhysBase || k.Symbols.Len() != j.kernel.Symbols.Len() || k.BTFError != nil {
		return report.Reading{}, []string{fmt.Sprintf("the kernel is taken for another: %+v", answer)}
	}
	return report.Reading{}, nil
}

// passingMaps judges the memory of a process that may be ending: it is a shell
// or a program of busybox, or there is nothing of it any more.
func (j *judge) passingMaps(answer any) (report.Reading, []string) {
	got, ok := answer.(*report.List[report.Mapping])
	if !ok {
		return report.Reading{}, []string{fmt.Sprintf("the answer is a %T", answer)}
	}
	if j.passing <= 1 {
		return got.Reading, nil
	}
	var wrong []string
	for _, m := range got.Items {
		switch path := string(m.Path); {
		case m.Start >= m.End || len(m.Perm) != 4:
			wrong = append(wrong, fmt.Sprintf("%v to %v, %s", m.Start, m.End, m.Perm))
		case path != "" && path != "/bin/busybox" && !strings.HasPrefix(path, "["):
			wrong = append(wrong, fmt.Sprintf("%v to %v is %q", m.Start, m.End, path))
		}
	}
	return got.Reading, wrong
}
