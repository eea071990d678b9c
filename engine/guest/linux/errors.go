package linux

import (
	"errors"
	"fmt"
)

// Stage is a step of [Identify], in the order they are taken.
type Stage string

// The stages of Identify.
const (
	// StageRegisters: the registers show a processor in long mode with an
	// entry point in the kernel half.
	StageRegisters Stage = "registers"
	// StageBase: the kernel image is found in the page tables.
	StageBase Stage = "kernel base"
	// StageKallsyms: the symbol table is found and agrees with itself.
	StageKallsyms Stage = "kallsyms"
	// StageBanner: the version text is where the symbols say.
	StageBanner Stage = "banner"
	// StageRoot: the kernel's own top-level page table is found.
	StageRoot Stage = "page-table root"
	// StageISF: the profile that was given is this kernel's.
	StageISF Stage = "ISF profile"
	// StageBTF: the type information is found and agrees with itself. Its
	// failure does not fail Identify, see [Kernel.BTFError].
	StageBTF Stage = "BTF"
)

// IdentifyError says at which stage a kernel was not recognised, and why.
type IdentifyError struct {
	Stage Stage
	// Want and Got are what was expected and what was found.
	Want, Got string
	// Hint says what a person can do, or is empty.
	Hint string
	// Err is the cause underneath, or nil.
	Err error
}

func (e *IdentifyError) Error() string {
	s := fmt.Sprintf("identify Linux: %s: want %s", e.Stage, e.Want)
	if e.Got != "" {
		s += ", got " + e.Got
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *IdentifyError) Unwrap() error { return e.Err }

// Errors of reading a running kernel.
var (
	// ErrNotYet: the kernel has not come far enough in its boot.
	ErrNotYet = errors.New("not set up by the kernel yet")
	// ErrUnsupported: this kernel has no such thing, or not where hvi
	// knows to look.
	ErrUnsupported = errors.New("not supported for this kernel")
	// ErrImplausible: what was read can't be what it should be, because the
	// guest is changing it or forging it.
	ErrImplausible = errors.New("implausible guest data")
	// ErrNoProcess: no process or thread has that number.
	ErrNoProcess = errors.New("no such process")
)

// ReadError names what could not be read of a kernel. errors.Is finds
// [ErrNotYet], [ErrUnsupported], [ErrImplausible], [ErrNoProcess] or an error of
// package guest.
type ReadError struct {
	// What was to be read, in the kernel's words: "poking_mm".
	What string
	// Got is what was found, or empty.
	Got string
	Err error
}

func (e *ReadError) Error() string {
	s := "read " + e.What + ": " + e.Err.Error()
	if e.Got != "" {
		s += ": " + e.Got
	}
	return s
}

// Unwrap returns the cause.
func (e *ReadError) Unwrap() error { return e.Err }
