package witness

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Report is what a kernel said about itself: files by name. A file of /proc,
// /sys or /dev is called as there, without the first slash ("proc/1/stat"); a
// link's contents are its target. Beside them, StateFile, "dmesg" with one
// record of /dev/kmsg in each line, and "complete", which is last.
type Report map[string][]byte

// Names of files that are not the kernel's own.
const (
	StateFile    = "state.json"
	DmesgFile    = "dmesg"
	completeFile = "complete"
)

// maxReport bounds what a report may hold; those of Debian's kernels have 25 MB.
const maxReport = 256 << 20

// State is what the witness knows of what it made, since it made it.
type State struct {
	// Roles are process numbers, in the first PID namespace, by what the process
	// is for: "yes" keeps a processor busy.
	Roles map[string]int `json:"roles"`
	// Modules are those that the witness loaded, in their order.
	Modules []string `json:"modules"`
	// Programs are the eBPF programs that are loaded, the kernel's own included.
	Programs []Program `json:"programs"`
	// Processors are their registers, where the guest can read them.
	Processors []Processor `json:"processors"`
	// Missing says what of the state this kernel would not have.
	Missing []string `json:"missing"`
}

// Program is a loaded eBPF program as bpf(2) describes it.
type Program struct {
	ID       uint32 `json:"id"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	Tag      string `json:"tag"`
	Attached string `json:"attached,omitempty"` // to what the witness did
}

// Processor holds registers of one vCPU that QEMU's monitor doesn't show.
type Processor struct {
	EFER        uint64 `json:"efer"`
	STAR        uint64 `json:"star"`
	LSTAR       uint64 `json:"lstar"`
	CSTAR       uint64 `json:"cstar"`
	SFMask      uint64 `json:"sfmask"`
	SysenterCS  uint64 `json:"sysenter_cs"`
	SysenterESP uint64 `json:"sysenter_esp"`
	SysenterEIP uint64 `json:"sysenter_eip"`
}

// ErrIncomplete reports a report that breaks off.
var ErrIncomplete = errors.New("the witness' report is incomplete")

// Read reads a report. What follows it on the same disk is not looked at.
func Read(r io.Reader) (Report, error) {
	out := Report{}
	left := int64(maxReport)
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, ErrIncomplete
		}
		if err != nil {
			return nil, fmt.Errorf("the witness' report: %w", err)
		}
		if left -= h.Size; left < 0 {
			return nil, fmt.Errorf("the witness' report has more than %d bytes", int64(maxReport))
		}
		data, err := io.ReadAll(t)
		if err != nil {
			return nil, fmt.Errorf("the witness' report: %s: %w", h.Name, err)
		}
		if h.Name == completeFile {
			return out, nil
		}
		out[h.Name] = data
	}
}

// Text returns a file's contents without the white space at its end, "" if
// there is none.
func (r Report) Text(name string) string { return strings.TrimRight(string(r[name]), " \n") }

// State returns what the witness knows.
func (r Report) State() (s State, err error) {
	if err = json.Unmarshal(r[StateFile], &s); err != nil {
		err = fmt.Errorf("the witness' report: %s: %w", StateFile, err)
	}
	return s, err
}

// Processes returns the process numbers that the report has, in their order.
func (r Report) Processes() []int {
	found := map[int]bool{}
	for name := range r {
		rest, ok := strings.CutPrefix(name, "proc/")
		number, _, below := strings.Cut(rest, "/")
		if pid, err := strconv.Atoi(number); ok && below && err == nil {
			found[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Threads returns the thread numbers of a process, in their order.
func (r Report) Threads(pid int) []int {
	var out []int
	prefix := fmt.Sprintf("proc/%d/task/", pid)
	for name := range r {
		rest, ok := strings.CutPrefix(name, prefix)
		number, what, _ := strings.Cut(rest, "/")
		if tid, err := strconv.Atoi(number); ok && what == "stat" && err == nil {
			out = append(out, tid)
		}
	}
	slices.Sort(out)
	return out
}
