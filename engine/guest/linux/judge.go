package linux

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// What a policy forbids is no check of [Reader.Check]: a healthy guest may have it. Of
// each there is a verdict as of a check.

const (
	// maxNotes bounds how much of a module's constants is searched for its build ID,
	// in bytes: the note lies at their beginning.
	maxNotes = 64 << 10
	// maxBuildID bounds a build ID: a SHA-1's 20 bytes, or up to 32.
	maxBuildID = 32
)

// ForbiddenPrograms looks for eBPF programs that are loaded and that a policy forbids.
func (r *Reader) ForbiddenPrograms(forbidden func(*report.Program) bool) (report.Verdict, error) {
	const name, means = "ebpf-programs", "An eBPF program is loaded that the policy forbids."
	_, programs := r.k.Symbols.Lookup("prog_idr")
	if _, verifier := r.k.Symbols.Lookup("bpf_check"); !programs && !verifier {
		return judge(name, means, 0, nil), nil // built without CONFIG_BPF_SYSCALL
	}
	list, err := r.Programs()
	v := judge(name, means, len(list.Items), err)
	v.Reading = list.Reading
	if err != nil {
		return v, nil
	}
	for i := range list.Items {
		p := &list.Items[i]
		if !forbidden(p) {
			continue
		}
		detail := fmt.Sprintf("user %d has loaded it", p.UID)
		for j, a := range p.Attached {
			if j == maxAttached {
				detail += fmt.Sprintf(" and %d more", len(p.Attached)-j)
				break
			}
			if j == 0 {
				detail += ", and it is attached: "
			} else {
				detail += ", "
			}
			detail += strings.TrimSpace(a.Kind + " " + string(a.Target))
		}
		f := report.Finding{Check: name, Object: report.Text(fmt.Sprintf("eBPF program %s of type %s, number %d", p.Name, p.Type, p.ID)), Detail: report.Text(detail)}
		if p.Code != 0 {
			f.Place = &report.Place{Addr: p.Code, In: report.InBPF}
		}
		v.Findings = append(v.Findings, f)
	}
	return found(v), nil
}

// maxAttached bounds what is told of a program's attachments.
const maxAttached = 4

// ForbiddenModules looks for modules that are loaded and that a policy does not list.
// buildID is that of a module, in lower case, or "".
func (r *Reader) ForbiddenModules(forbidden func(m *report.Module, buildID func() string) bool) (report.Verdict, error) {
	const name = "listed-modules"
	mods, err := r.LiveModules()
	v := judge(name, "A module is loaded that the policy does not list.", len(mods), err)
	if err != nil {
		return v, nil
	}
	for i := range mods {
		m := &mods[i]
		id, asked := "", false
		buildID := func() string {
			if !asked {
				id, asked = r.moduleBuildID(m), true
			}
			return id
		}
		if !forbidden(m, buildID) {
			continue
		}
		detail := "it is loaded, and the policy does not list it"
		if id := buildID(); id != "" {
			detail += "; its build ID is " + id
		}
		v.Findings = append(v.Findings, report.Finding{
			Check: name, Object: "module " + m.Name, Detail: report.Text(detail),
			Place: &report.Place{Addr: m.Base, Module: m.Name, In: report.InModule},
		})
	}
	return found(v), nil
}

// ForbiddenCode looks for memory that processes which a policy seals can execute and
// that is no file's, or that they can write as well: what a loader and a dynamic linker
// make is neither, nor is what the kernel maps into each process.
func (r *Reader) ForbiddenCode(sealed func(p *report.Process) bool) (report.Verdict, error) {
	const name = "sealed-processes"
	list, err := r.Processes()
	examined := 0
	var findings []report.Finding
	for i := range list.Items {
		p := &list.Items[i]
		if err != nil || p.KernelThread || p.MM == 0 || !sealed(p) {
			continue
		}
		var maps report.List[report.Mapping]
		if maps, err = r.Maps(p.PID); errors.Is(err, ErrNoProcess) {
			err = nil // it has ended
		}
		examined += len(maps.Items)
		for _, m := range maps.Items {
			if what := foreignCode(&m); what != "" {
				findings = append(findings, report.Finding{
					Check: name, Object: report.Text(fmt.Sprintf("process %d (%s)", p.PID, p.Comm)),
					Detail: report.Text(fmt.Sprintf("it can execute %s: %v to %v, %s", what, m.Start, m.End, m.Perm)),
				})
			}
		}
	}
	v := judge(name, "A process that the policy seals can execute memory that is no file's code.", examined, err)
	if err == nil {
		v.Findings = append(v.Findings, findings...)
	}
	return found(v), nil
}

// foreignCode says in words what a mapping is that a sealed process must not be able to
// execute; "" if it may, or can't.
func foreignCode(m *report.Mapping) string {
	const writable, executable = 1, 2 // places in Perm
	special := m.Path == "[vdso]" || m.Path == "[vsyscall]" || m.Path == "[uprobes]"
	ofFile := m.Inode != 0 || m.Path != "" && m.Path[0] != '['
	switch {
	case len(m.Perm) <= executable || m.Perm[executable] != 'x' || special:
		return ""
	case m.Path == "[stack]":
		return "its stack"
	case m.Path == "[heap]":
		return "its heap"
	case !ofFile:
		return "anonymous memory"
	case m.Perm[writable] == 'w':
		return "memory of a file that it can write"
	}
	return ""
}

// judge is a verdict of one check, which is clean or has an error.
func judge(name, means string, examined int, err error) report.Verdict {
	c := report.Check{Name: name, Means: means, Status: report.CheckClean, Examined: examined}
	switch {
	case errors.Is(err, ErrUnsupported):
		c.Status, c.Why = report.CheckUnavailable, err.Error()
	case err != nil:
		c.Status, c.Why = report.CheckFailed, err.Error()
	}
	return report.Verdict{Clean: c.Status == report.CheckClean, Checks: []report.Check{c}, Findings: []report.Finding{}}
}

// found completes a verdict with what its findings mean for it.
func found(v report.Verdict) report.Verdict {
	if len(v.Findings) > maxFindings {
		v.Findings = v.Findings[:maxFindings]
	}
	if len(v.Findings) > 0 {
		v.Checks[0].Status, v.Clean = report.CheckFound, false
	}
	return v
}

// moduleBuildID finds the build ID that the linker has put into a module, in the section
// .note.gnu.build-id, which lies among the constants. It is what the module says of
// itself. "" if there is none.
func (r *Reader) moduleBuildID(m *report.Module) string {
	for _, a := range m.Regions {
		if a.Kind != regionROData {
			continue
		}
		notes := make([]byte, min(a.Size, maxNotes))
		n := 0
		for n < len(notes) {
			end := min(len(notes), n+int(x86.PageSize-(a.Base+x86.VirtAddr(n)).Offset()))
			if r.as.Read(a.Base+x86.VirtAddr(n), notes[n:end]) != nil {
				break
			}
			n = end
		}
		if id := buildIDIn(notes[:n]); id != "" {
			return id
		}
	}
	return ""
}

// buildIDIn finds the first ELF note of the owner "GNU" and of type 3
// (NT_GNU_BUILD_ID), and returns what it holds, in hexadecimal.
func buildIDIn(notes []byte) string {
	head := []byte{4, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 'G', 'N', 'U', 0} // namesz, descsz, type, name
	for i := 0; i+len(head) < len(notes); i += 4 {
		size := int(notes[i+4])
		head[4] = notes[i+4]
		id := notes[i+len(head):]
		if size == 0 || size > min(len(id), maxBuildID) || !bytes.Equal(notes[i:i+len(head)], head) {
			continue
		}
		return hex.EncodeToString(id[:size])
	}
	return ""
}

// Uptime is how long the guest says that it has run, in seconds.
func (r *Reader) Uptime() (float64, error) {
	var info report.Info
	err := r.uptime(&info)
	return info.Uptime, err
}
