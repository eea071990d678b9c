package policy

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Lists say what a guard lets pass, or does not, where the guest's owner must know:
// which modules are the guest's own, which eBPF programs. They stand in a policy of
// the admin's alone.

// ListName is a list's key.
type ListName string

// The lists.
const (
	// ListForbiddenEBPF are types of eBPF programs.
	ListForbiddenEBPF ListName = "forbidden_ebpf"
	// ListAllowedEBPF are programs that may be of such a type, and users who may
	// load them.
	ListAllowedEBPF ListName = "allowed_ebpf"
	// ListAllowedModules are the modules that may be loaded.
	ListAllowedModules ListName = "allowed_modules"
	// ListProtectedProcesses are processes that nobody else gets hold of.
	ListProtectedProcesses ListName = "protected_processes"
	// ListChildlessProcesses are processes that start no program.
	ListChildlessProcesses ListName = "childless_processes"
	// ListSealedProcesses are processes that have no code but that of files.
	ListSealedProcesses ListName = "sealed_processes"
	// ListReportedProcesses are processes of which exec, fork and exit are recorded.
	ListReportedProcesses ListName = "reported_processes"
)

const (
	// NoneAfterBoot is the element of [ListAllowedModules] that allows what is
	// loaded when the guards are armed, and in the guest's first minutes.
	NoneAfterBoot = "none-after-boot"
	// ebpfUser begins an element of [ListAllowedEBPF] that is a user's number.
	ebpfUser = "user:"

	// MaxList is how many elements a list has at most.
	MaxList = 1024
	// maxProgram is BPF_OBJ_NAME_LEN without the NUL.
	maxProgram = 15
	// maxProcess is how much of the name of a program's file is compared, in bytes.
	maxProcess = 63
	// A build ID is a SHA-1 mostly; less than eight digits of one tell little.
	minBuildID, maxBuildID = 8, 64
)

// List is one line of the table of lists.
type List struct {
	Name  ListName
	Guard GuardName
	// Meaning is one sentence for people, without a full stop.
	Meaning string
	// Words are what an element may be, or nil.
	Words []string
	// Default is what holds where the list is not set; nil, for one that allows, is
	// that all is allowed.
	Default []string

	problem func(string) *Error
}

// ebpfTypes are the types of eBPF programs, enum bpf_prog_type of 6.15, as bpftool
// calls them.
var ebpfTypes = []string{
	"socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp", "perf_event", "cgroup_skb",
	"cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops", "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint",
	"cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl",
	"raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall", "netfilter",
}

var lists = []List{
	{
		Name: ListForbiddenEBPF, Guard: GuardEBPF, Words: ebpfTypes,
		Meaning: "The types of eBPF programs that are not to be loaded, as bpftool calls them",
		Default: []string{"kprobe", "tracepoint", "perf_event", "raw_tracepoint", "raw_tracepoint_writable"},
	},
	{
		Name: ListAllowedEBPF, Guard: GuardEBPF, problem: ebpfProblem,
		Meaning: "Programs of such a type that may be loaded all the same: a program's name, at most 15 bytes, with * at its end names that begin so; or user:NUMBER, the user who loads it",
	},
	{
		Name: ListAllowedModules, Guard: GuardModules, problem: moduleProblem,
		Meaning: "The modules that may be loaded: a module's name, with * at its end names that begin so; NAME@BUILDID, at least eight digits of its build ID; or none-after-boot, what is loaded in the first five minutes",
	},
	{
		Name: ListProtectedProcesses, Guard: GuardProcesses, problem: processProblem, Default: []string{},
		Meaning: "Processes that no other may trace, nor write into: a process's name, or that of its program's file without folders, with * at its end names that begin so",
	},
	{
		Name: ListChildlessProcesses, Guard: GuardProcesses, problem: processProblem, Default: []string{},
		Meaning: "Processes that may execute no program, nor may children that they fork: named likewise",
	},
	{
		Name: ListSealedProcesses, Guard: GuardProcesses, problem: processProblem, Default: []string{},
		Meaning: "Processes that may be able to execute no memory but that of files, and not write what they execute: named likewise",
	},
	{
		Name: ListReportedProcesses, Guard: GuardProcesses, problem: processProblem, Default: []string{},
		Meaning: "Processes of which each exec, fork and exit is recorded, as no violation: named likewise; * is all",
	},
}

// Lists returns every known list.
func Lists() []List { return slices.Clone(lists) }

// LookupList finds a list by name.
func LookupList(name ListName) (List, bool) {
	i := slices.IndexFunc(lists, func(l List) bool { return l.Name == name })
	if i < 0 {
		return List{}, false
	}
	return lists[i], true
}

// listOrder is where a list is in [Lists].
func listOrder(name ListName) int {
	return slices.IndexFunc(lists, func(l List) bool { return l.Name == name })
}

func ebpfProblem(s string) *Error {
	if number, ok := strings.CutPrefix(s, ebpfUser); ok {
		if _, err := strconv.ParseUint(number, 10, 32); err != nil {
			return &Error{Reason: "has no number of a user", Hint: "write user:0"}
		}
		return nil
	}
	return nameProblem(s, maxProgram)
}

func moduleProblem(s string) *Error {
	if s == NoneAfterBoot {
		return nil
	}
	name, id, has := strings.Cut(s, "@")
	if has {
		if _, err := hex.DecodeString(id); err != nil || len(id) < minBuildID || len(id) > maxBuildID {
			return &Error{Reason: fmt.Sprintf("has no build ID behind the @: %d to %d hexadecimal digits, two for each byte", minBuildID, maxBuildID)}
		}
	}
	return nameProblem(name, maxModule)
}

func processProblem(s string) *Error { return nameProblem(s, maxProcess) }

// nameProblem says what is wrong with a name that may have a star at its end.
func nameProblem(s string, most int) *Error {
	name := strings.TrimSuffix(s, "*")
	switch {
	case s == "":
		return &Error{Reason: "is empty"}
	case len(name) > most:
		return &Error{Reason: fmt.Sprintf("is longer than the %d bytes that the kernel has for a name", most)}
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' }):
		return &Error{Reason: "has a character that names do not have"}
	}
	return nil
}

// ListSetting is a list as somebody has set it.
type ListSetting struct {
	Name     ListName `json:"name"`
	Elements []string `json:"elements"`
	Origin   Origin   `json:"origin,omitzero"`
}

// ListElement is an element of a list and where it is written.
type ListElement struct {
	Text string
	At   Origin
}

// List sets a list. One that is set twice can't be told from a longer one, and is an
// error.
func (b *Builder) List(name ListName, elements []ListElement, at Origin) {
	at = written(at)
	l, ok := LookupList(name)
	if !ok {
		b.Fail(&Error{Origin: at, What: "list", Value: string(name), Reason: "is not known"})
		return
	}
	for _, set := range b.lists {
		if set.Name == name {
			b.Fail(twice(string(name), set.Origin, at))
			return
		}
	}
	set := ListSetting{Name: name, Elements: []string{}, Origin: at}
	for _, e := range elements {
		if err := l.check(e.Text); err != nil {
			b.Fail(place(err, written(e.At)))
			continue
		}
		set.Elements = append(set.Elements, e.Text)
	}
	if len(elements) > MaxList {
		b.Fail(&Error{Origin: at, What: string(name), Reason: fmt.Sprintf("has more than %d elements", MaxList)})
		return
	}
	b.lists = append(b.lists, set)
}

// check returns what is wrong with an element.
func (l List) check(s string) error {
	if l.Words != nil {
		if !slices.Contains(l.Words, s) {
			return UnknownWord("element of "+string(l.Name), s, l.Words, Origin{})
		}
		return nil
	}
	if e := l.problem(s); e != nil {
		e.What, e.Value = "element of "+string(l.Name), s
		return e
	}
	return nil
}

// checkLists returns what is wrong with lists that no [Builder] made.
func checkLists(settings []ListSetting) []error {
	var errs []error
	seen := map[ListName]bool{}
	for _, set := range settings {
		l, ok := LookupList(set.Name)
		switch {
		case !ok:
			errs = append(errs, &Error{Origin: set.Origin, What: "list", Value: string(set.Name), Reason: "is not known"})
			continue
		case seen[set.Name]:
			errs = append(errs, twice(string(set.Name), Origin{}, set.Origin))
		case len(set.Elements) > MaxList:
			errs = append(errs, &Error{Origin: set.Origin, What: string(set.Name), Reason: fmt.Sprintf("has more than %d elements", MaxList)})
		}
		seen[set.Name] = true
		for _, e := range set.Elements {
			if err := l.check(e); err != nil {
				errs = append(errs, place(err, set.Origin))
				break
			}
		}
	}
	return errs
}

// List is a list's elements, and whether it was set; where it was not they are its
// default.
func (e Effective) List(name ListName) (elements []string, set bool) {
	for _, s := range e.Lists {
		if s.Name == name {
			return s.Elements, true
		}
	}
	l, _ := LookupList(name)
	return l.Default, false
}

// ForbidsProgram reports whether the policy forbids an eBPF program of a type, with a
// name, that a user has loaded.
func (e Effective) ForbidsProgram(typ, name string, user uint32) bool {
	forbidden, _ := e.List(ListForbiddenEBPF)
	if !slices.Contains(forbidden, typ) {
		return false
	}
	allowed, _ := e.List(ListAllowedEBPF)
	return !slices.ContainsFunc(allowed, func(a string) bool {
		if number, ok := strings.CutPrefix(a, ebpfUser); ok {
			return number == strconv.FormatUint(uint64(user), 10)
		}
		return listedName(a, name)
	})
}

// AllowsModule reports whether the policy lists a module by its name, or by that and
// its build ID, which is asked for where it matters, in lower case. Of [NoneAfterBoot]
// it knows nothing.
func (e Effective) AllowsModule(name string, buildID func() string) bool {
	allowed, set := e.List(ListAllowedModules)
	if !set {
		return true
	}
	return slices.ContainsFunc(allowed, func(a string) bool {
		n, id, has := strings.Cut(a, "@")
		// The kernel writes a dash in a module's name as an underscore.
		if !listedName(strings.ReplaceAll(n, "-", "_"), name) {
			return false
		}
		return a != NoneAfterBoot && (!has || strings.HasPrefix(buildID(), strings.ToLower(id)))
	})
}

// ListsProcess reports whether a list of processes has one, by its name or by the path
// of its program.
func (e Effective) ListsProcess(list ListName, comm, exe string) bool {
	elements, _ := e.List(list)
	program := strings.TrimSuffix(exe[strings.LastIndex(exe, "/")+1:], " (deleted)")
	return slices.ContainsFunc(elements, func(l string) bool {
		return listedName(l, comm) || program != "" && listedName(l, program)
	})
}

// listedName reports whether a name is the listed one, or begins as that does if it has
// a star at its end.
func listedName(listed, name string) bool {
	if prefix, ok := strings.CutSuffix(listed, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return listed == name
}

// sameLists reports whether two policies list the same.
func sameLists(a, b []ListSetting) bool {
	return slices.EqualFunc(a, b, func(x, y ListSetting) bool { return x.Name == y.Name && slices.Equal(x.Elements, y.Elements) })
}
