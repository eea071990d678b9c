package inspect

import (
	"errors"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// ErrNoView: the reader has no such view.
var ErrNoView = errors.New("this version can't tell")

// Partial makes Views of a reader that has some of the methods only.
func Partial(reader any) Views { return partial{reader} }

type partial struct{ reader any }

// view calls f if the reader has the interface M.
func view[M, T any](p partial, f func(M) (T, error)) (T, error) {
	if m, ok := p.reader.(M); ok {
		return f(m)
	}
	var none T
	return none, ErrNoView
}

func (p partial) Info() (report.Info, error) {
	return view(p, func(m interface{ Info() (report.Info, error) }) (report.Info, error) { return m.Info() })
}

func (p partial) Processes() (report.List[report.Process], error) {
	type has interface {
		Processes() (report.List[report.Process], error)
	}
	return view(p, has.Processes)
}

func (p partial) Threads(pid int32) (report.List[report.Process], error) {
	type has interface {
		Threads(int32) (report.List[report.Process], error)
	}
	return view(p, func(m has) (report.List[report.Process], error) { return m.Threads(pid) })
}

func (p partial) Maps(pid int32) (report.List[report.Mapping], error) {
	type has interface {
		Maps(int32) (report.List[report.Mapping], error)
	}
	return view(p, func(m has) (report.List[report.Mapping], error) { return m.Maps(pid) })
}

func (p partial) Mounts(pid int32) (report.List[report.Mount], error) {
	type has interface {
		Mounts(int32) (report.List[report.Mount], error)
	}
	return view(p, func(m has) (report.List[report.Mount], error) { return m.Mounts(pid) })
}

func (p partial) Modules() (report.List[report.Module], error) {
	type has interface {
		Modules() (report.List[report.Module], error)
	}
	return view(p, has.Modules)
}

func (p partial) Sockets() (report.List[report.Socket], error) {
	type has interface {
		Sockets() (report.List[report.Socket], error)
	}
	return view(p, has.Sockets)
}

func (p partial) Syscalls() (report.List[report.SyscallTable], error) {
	type has interface {
		Syscalls() (report.List[report.SyscallTable], error)
	}
	return view(p, has.Syscalls)
}

func (p partial) Interrupts() (report.List[report.Gate], error) {
	type has interface {
		Interrupts() (report.List[report.Gate], error)
	}
	return view(p, has.Interrupts)
}

func (p partial) Segments() (report.List[report.Segment], error) {
	type has interface {
		Segments() (report.List[report.Segment], error)
	}
	return view(p, has.Segments)
}

func (p partial) Probes() (report.List[report.Probe], error) {
	type has interface {
		Probes() (report.List[report.Probe], error)
	}
	return view(p, has.Probes)
}

func (p partial) Programs() (report.List[report.Program], error) {
	type has interface {
		Programs() (report.List[report.Program], error)
	}
	return view(p, has.Programs)
}

func (p partial) Log() (report.List[report.LogRecord], error) {
	type has interface {
		Log() (report.List[report.LogRecord], error)
	}
	return view(p, has.Log)
}

func (p partial) Check() (report.Verdict, error) {
	type has interface {
		Check() (report.Verdict, error)
	}
	return view(p, has.Check)
}
