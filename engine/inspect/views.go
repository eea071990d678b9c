package inspect

import "github.com/xen-hvi/hvi/engine/guest/report"

// Views is what a reader can tell of a guest; a *linux.Reader can. Its methods
// are called by one goroutine.
type Views interface {
	Info() (report.Info, error)
	Processes() (report.List[report.Process], error)
	// Threads are those of a process, or of all with 0.
	Threads(pid int32) (report.List[report.Process], error)
	Maps(pid int32) (report.List[report.Mapping], error)
	// Mounts are those that a process sees, or the first one with 0.
	Mounts(pid int32) (report.List[report.Mount], error)
	Modules() (report.List[report.Module], error)
	Sockets() (report.List[report.Socket], error)
	Syscalls() (report.List[report.SyscallTable], error)
	Interrupts() (report.List[report.Gate], error)
	Segments() (report.List[report.Segment], error)
	Probes() (report.List[report.Probe], error)
	Programs() (report.List[report.Program], error)
	Log() (report.List[report.LogRecord], error)
	Check() (report.Verdict, error)
}
