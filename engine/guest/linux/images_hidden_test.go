package linux

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// changedImage is an image of a real guest in which a test plays the attacker.
type changedImage struct {
	t    *testing.T
	data []byte
	k    *Kernel
	r    *Reader
}

// changed runs f on each image.
func changed(t *testing.T, f func(t *testing.T, c *changedImage, roles map[string]int)) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			before, _ := img.witnesses(t)
			var state struct {
				Roles map[string]int `json:"roles"`
			}
			if err := json.Unmarshal([]byte(before["state.json"]), &state); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(img.file(img.Image))
			if err != nil {
				t.Fatal(err)
			}
			k, err := Identify(guest.NewRawImage(data), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			f(t, &changedImage{t, data, k, k.NewReader(img.Regs)}, state.Roles)
		})
	}
}

func (c *changedImage) get(va x86.VirtAddr, off int) x86.VirtAddr {
	p, err := c.k.as.ReadPointer(va + x86.VirtAddr(off))
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *changedImage) put(va x86.VirtAddr, off int, v x86.VirtAddr) {
	at, err := c.k.as.Translate(va + x86.VirtAddr(off))
	if err != nil {
		c.t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(c.data[at.Phys:], uint64(v))
}

// unlink takes a node off its list as list_del_init does.
func (c *changedImage) unlink(node x86.VirtAddr) {
	next, prev := c.get(node, 0), c.get(node, 8)
	c.put(prev, 0, next)
	c.put(next, 8, prev)
	c.put(node, 0, node)
	c.put(node, 8, node)
}

// found returns the details of what a check finds of an object.
func (c *changedImage) found(name, object string) []string {
	v, err := c.r.make(processChecks)
	if err != nil {
		c.t.Fatal(err)
	}
	var out []string
	for _, f := range v.Findings {
		if f.Check != name || !strings.Contains(string(f.Object), object) {
			c.t.Errorf("unasked: %+v", f)
			continue
		}
		out = append(out, string(f.Detail))
	}
	if v.Clean != (len(v.Findings) == 0) {
		c.t.Errorf("clean: %v, with %d findings", v.Clean, len(v.Findings))
	}
	return out
}

// TestImageSources: every way to find tasks finds those that the lists have. A
// source that finds nothing would never contradict them.
func TestImageSources(t *testing.T) {
	changed(t, func(t *testing.T, c *changedImage, _ map[string]int) {
		h := &census{r: c.r, size: span(c.k.Offsets.Task)}
		if err := h.take(); err != nil {
			t.Fatal(err)
		}
		by := map[string]int{}
		for _, where := range h.seen {
			for _, w := range where {
				by[w]++
			}
		}
		t.Logf("of %d tasks: %v", len(h.listed), by)
		if by["the table of process numbers"] != len(h.listed) {
			t.Errorf("the table of process numbers has %d tasks, the lists have %d", by["the table of process numbers"], len(h.listed))
		}
		if err := c.r.processes(); err != nil {
			t.Fatal(err)
		}
		if n := by["its parent's children"]; n != len(c.r.tasks) {
			t.Errorf("%d children of %d processes", n, len(c.r.tasks))
		}
		if by["its control group"] < len(h.listed)*9/10 || by["a run queue"] == 0 || by["a processor, which runs it"] == 0 {
			t.Errorf("of %d tasks: %v", len(h.listed), by)
		}
	})
}

// TestImageHidden hides processes as rootkits do, and worse.
func TestImageHidden(t *testing.T) {
	changed(t, func(t *testing.T, c *changedImage, roles map[string]int) {
		o := &c.k.Offsets.Task
		hide, busy := int32(roles["hidden"]), int32(roles["yes"])
		task, err := c.r.findTask(hide)
		if err != nil {
			t.Fatal(err)
		}
		threads, err := c.r.threadList(task)
		if err != nil || len(threads) < 2 {
			t.Fatalf("%d threads, %v", len(threads), err)
		}
		c.unlink(task + x86.VirtAddr(o.Tasks))
		list, err := c.r.Processes()
		if err != nil || slices.ContainsFunc(list.Items, func(p report.Process) bool { return p.PID == hide }) {
			t.Fatalf("it is not hidden (%v)", err)
		}
		if maps, err := c.r.Maps(hide); err != nil || len(maps.Items) < 10 {
			t.Errorf("%d mappings of the hidden process, %v", len(maps.Items), err)
		}
		got := c.found("hidden-processes", "(")
		if len(got) != len(threads) {
			t.Errorf("%d findings of %d threads: %q", len(got), len(threads), got)
		}
		for _, f := range got {
			if !strings.Contains(f, "the table of process numbers") || !strings.Contains(f, "its control group") {
				t.Errorf("finding %q", f)
			}
		}

		// It leaves the table of process numbers too: children and groups tell.
		for _, th := range threads {
			pid := c.get(th, o.ThreadPID)
			c.put(pid, c.k.Offsets.PID.Tasks, 0)
		}
		got = c.found("hidden-processes", "(")
		if len(got) != len(threads) || !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "its parent's children") }) {
			t.Errorf("%d findings of %d threads: %q", len(got), len(threads), got)
		}
		for _, f := range got {
			if strings.Contains(f, "the table of process numbers") {
				t.Errorf("finding %q", f)
			}
		}

		// And those: only what it runs on can tell, and it does not run now.
		for _, th := range threads {
			c.unlink(th + x86.VirtAddr(o.CSSSetNode))
		}
		c.unlink(task + x86.VirtAddr(o.Sibling))
		if got := c.found("hidden-processes", "("); len(got) > 0 {
			t.Errorf("findings %q", got)
		}

		// One that runs can't do without a processor.
		task, err = c.r.findTask(busy)
		if err != nil {
			t.Fatal(err)
		}
		c.unlink(task + x86.VirtAddr(o.Tasks))
		c.put(c.get(task, o.ThreadPID), c.k.Offsets.PID.Tasks, 0)
		c.unlink(task + x86.VirtAddr(o.CSSSetNode))
		c.unlink(task + x86.VirtAddr(o.Sibling))
		got = c.found("hidden-processes", "process")
		if len(got) != 1 || !strings.Contains(got[0], "a run queue") {
			t.Errorf("findings %q", got)
		}
	})
}

// TestImagePageTables hides even what the kernel knows of a process that runs:
// its page tables are in a processor.
func TestImagePageTables(t *testing.T) {
	changed(t, func(t *testing.T, c *changedImage, roles map[string]int) {
		other := c.r.cpus[0]
		task, err := c.r.findTask(1)
		if err != nil {
			t.Fatal(err)
		}
		root, err := c.r.pageTables(c.get(task, c.k.Offsets.Task.MM))
		if err != nil {
			t.Fatal(err)
		}
		other.CR3 = uint64(root)
		c.r.cpus = append(slices.Clone(c.r.cpus), other)
		if got := c.found("hidden-processes", ""); len(got) > 0 {
			t.Errorf("page tables of process 1: %q", got)
		}
		c.r.cpus[len(c.r.cpus)-1].CR3 += 4 * x86.PageSize
		if got := c.found("hidden-processes", "page tables"); len(got) != 1 {
			t.Errorf("findings %q, want one of strange page tables", got)
		}
	})
}

// TestImageCredentials gives a process rights in the ways exploits do.
func TestImageCredentials(t *testing.T) {
	changed(t, func(t *testing.T, c *changedImage, roles map[string]int) {
		off := c.k.Offsets.Task.RealCred
		task, err := c.r.findTask(int32(roles["user"]))
		if err != nil {
			t.Fatal(err)
		}
		init, err := c.r.findTask(1)
		if err != nil {
			t.Fatal(err)
		}
		first, err := c.r.variable("init_cred")
		if err != nil {
			t.Fatal(err)
		}
		own := c.get(task, off)
		for what, cred := range map[string]x86.VirtAddr{
			"the kernel's first task": first,
			"the same credentials as": c.get(init, off),
			"not memory that":         0x4141_4141_0000,
			"which is not memory":     c.k.Base + 0x1000,
		} {
			c.put(task, off, cred)
			if got := c.found("credentials", "process"); len(got) != 1 || !strings.Contains(got[0], what) {
				t.Errorf("findings %q, want %q", got, what)
			}
		}
		c.put(task, off, own)
		// Its own, changed in place, which are its threads' too.
		uid := c.get(own, c.k.Offsets.Cred.UID)
		c.put(own, c.k.Offsets.Cred.UID, uid&^0xffff_ffff)
		got := c.found("credentials", "process")
		if others := slices.DeleteFunc(slices.Clone(got), func(f string) bool { return strings.Contains(f, "is user 0 by its credentials") }); len(got) == 0 || len(others) > 0 {
			t.Errorf("findings %q of a changed user", got)
		}
		c.put(own, c.k.Offsets.Cred.UID, uid)
		if got := c.found("credentials", ""); len(got) > 0 {
			t.Errorf("findings %q", got)
		}
	})
}
