package outside

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/lab/witness"
)

// moduleView is /proc/modules:
//
//	NAME SIZE REFCOUNT USER,USER,|- STATE ADDRESS (TAINTS)
func moduleView(r witness.Report) view {
	v := view{}
	for line := range strings.Lines(r.Text("proc/modules")) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		rec := record{"size": f[1], "refcount": f[2], "state": strings.ToLower(f[4]), "base": hex(f[5]), "users": "", "taints": ""}
		if f[3] != "-" {
			rec["users"] = set(strings.Split(strings.TrimSuffix(f[3], ","), ","))
		}
		if len(f) > 6 {
			rec["taints"] = strings.Trim(f[6], "()")
		}
		v[text(f[0])] = rec
	}
	return v
}

func seenModules(items []report.Module) (view, error) {
	v := view{}
	for _, m := range items {
		if v[string(m.Name)] != nil {
			return nil, fmt.Errorf("%s is there twice", m.Name)
		}
		var users []string
		for _, u := range m.UsedBy {
			users = append(users, string(u))
		}
		v[string(m.Name)] = record{
			"size": strconv.FormatUint(m.Size, 10), "refcount": strconv.Itoa(m.Refcount), "state": m.State,
			"base": hex(m.Base.String()), "users": set(users), "taints": m.Taints,
		}
	}
	return v, nil
}

// logView is the kernel's log as /dev/kmsg gives it, by sequence number:
//
//	PRIORITY,SEQ,MICROSECONDS,FLAGS[,...];MESSAGE
//	 KEY=VALUE
func logView(r witness.Report) view {
	v := view{}
	for line := range strings.Lines(string(r[witness.DmesgFile])) {
		if strings.HasPrefix(line, " ") {
			continue
		}
		prefix, message, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		f := strings.Split(prefix, ",")
		priority, err := strconv.Atoi(f[0])
		if len(f) < 3 || err != nil {
			continue
		}
		v[f[1]] = record{
			"level": strconv.Itoa(priority & 7), "facility": strconv.Itoa(priority >> 3), "microseconds": f[2], "message": text(unescape(message)),
		}
	}
	return v
}

func seenLog(items []report.LogRecord) view {
	v := view{}
	for _, l := range items {
		v[strconv.FormatUint(l.Seq, 10)] = record{
			"level": strconv.Itoa(int(l.Level)), "facility": strconv.Itoa(int(l.Facility)),
			"microseconds": strconv.FormatUint(l.Nanoseconds/1000, 10), "message": string(l.Message),
		}
	}
	return v
}

// mountView is a mountinfo file:
//
//	ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG]... - TYPE SOURCE SUPEROPTIONS
func mountView(r witness.Report, name string) view {
	v := view{}
	for line := range strings.Lines(r.Text(name)) {
		f := strings.Fields(line)
		dash := -1
		for i, word := range f {
			if word == "-" {
				dash = i
			}
		}
		if dash < 6 || len(f) < dash+3 {
			continue
		}
		v[f[0]] = record{
			"parent": f[1], "device": f[2], "point": text(unescape(f[4])), "options": set(strings.Split(f[5], ",")),
			"type": text(unescape(f[dash+1])), "source": text(unescape(f[dash+2])),
		}
	}
	return v
}

func seenMounts(items []report.Mount) view {
	v := view{}
	for _, m := range items {
		v[strconv.Itoa(m.ID)] = record{
			"parent": strconv.Itoa(m.Parent), "device": m.Device, "point": string(m.Point), "options": set(strings.Split(m.Options, ",")),
			"type": string(m.Type), "source": string(m.Source),
		}
	}
	return v
}

// mapView is /proc/PID/maps. The page for old system calls, which is in no
// process' list, is left out, and so are the names that a process gave to
// memory of its own.
func mapView(r witness.Report, pid int) view {
	v := view{}
	for line := range strings.Lines(string(r[fmt.Sprintf("proc/%d/maps", pid)])) {
		line = strings.TrimSuffix(line, "\n")
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		start, end, _ := strings.Cut(f[0], "-")
		path := ""
		if len(f) > 5 {
			_, rest, _ := strings.Cut(line, f[3]+" "+f[4])
			path = strings.TrimLeft(rest, " ")
		}
		switch {
		case path == "[vsyscall]":
			continue
		case strings.HasPrefix(path, "[anon"):
			path = ""
		}
		v[hex(start)] = record{
			"end": hex(end), "perm": f[1], "offset": hex(f[2]), "device": device(f[3]), "inode": f[4], "path": text(exe(unescape(path))),
		}
	}
	return v
}

// device is "MAJOR:MINOR" in decimal; /proc/PID/maps has it in hexadecimal.
func device(s string) string {
	major, minor, _ := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 16, 32)
	b, err2 := strconv.ParseUint(minor, 16, 32)
	if err1 != nil || err2 != nil {
		return s
	}
	return fmt.Sprintf("%d:%d", a, b)
}

func seenMaps(items []report.Mapping) view {
	v := view{}
	for _, m := range items {
		dev := m.Device
		if dev == "" {
			dev = "0:0"
		}
		v[hex(m.Start.String())] = record{
			"end": hex(m.End.String()), "perm": m.Perm, "offset": strconv.FormatUint(m.Offset, 16), "device": dev,
			"inode": strconv.FormatUint(m.Inode, 10), "path": exe(string(m.Path)),
		}
	}
	return v
}

// programView is what bpf(2) says of eBPF programs.
func programView(s witness.State) view {
	v := view{}
	for _, p := range s.Programs {
		v[strconv.FormatUint(uint64(p.ID), 10)] = record{"name": text(p.Name), "type": programType(p.Type), "tag": p.Tag}
	}
	return v
}

// programType is a type's name however its words are set apart: "CGroupSKB" and
// "cgroup_skb".
func programType(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }

func seenPrograms(items []report.Program) view {
	v := view{}
	for _, p := range items {
		v[strconv.FormatUint(uint64(p.ID), 10)] = record{"name": string(p.Name), "type": programType(p.Type), "tag": p.Tag}
	}
	return v
}
