package dump

import (
	"errors"
	"fmt"
)

// What is wrong with a file; an [*OpenError] wraps one of them, or an error of
// package os (os.ErrNotExist, os.ErrPermission).
var (
	// ErrNotRegular: a folder, a device, a pipe.
	ErrNotRegular = errors.New("not a regular file")
	// ErrEmpty: a file of no bytes.
	ErrEmpty = errors.New("empty file")
	// ErrTruncated: the file is shorter than its own headers say.
	ErrTruncated = errors.New("truncated")
	// ErrDamaged: the headers contradict themselves.
	ErrDamaged = errors.New("damaged")
	// ErrUnsupported: a known kind of file that is not read.
	ErrUnsupported = errors.New("not supported")
	// ErrNotImage: nothing about the file says that it holds memory.
	ErrNotImage = errors.New("not a memory image")
)

// OpenError says in one line why a file can't be read as a memory image.
type OpenError struct {
	Path string
	// Format is what the file was taken for, or empty.
	Format Format
	// Detail is what was found, or empty.
	Detail string
	// Hint is what a person can do, or empty.
	Hint string
	Err  error
}

func (e *OpenError) Error() string {
	s := "open memory image " + e.Path + ": "
	if e.Format != "" {
		s += string(e.Format) + ": "
	}
	s += e.Err.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// broken is an OpenError of a parser, to which Open adds the path.
func broken(cause error, f Format, format string, args ...any) *OpenError {
	e := &OpenError{Format: f, Detail: fmt.Sprintf(format, args...), Err: cause}
	if errors.Is(cause, ErrTruncated) {
		e.Hint = "it was not written or copied to its end"
	}
	return e
}

// ErrGone: a part of the file that was mapped is no longer there.
var ErrGone = errors.New("the file was truncated, or its disk failed, while it was read")

// GoneError is what [Image.Guard] makes of a fault. It matches [ErrGone].
type GoneError struct {
	Path string
	// Offset is the place in the file that could not be read.
	Offset uint64
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("read memory image %s at offset %#x: %v", e.Path, e.Offset, ErrGone)
}

// Unwrap returns ErrGone.
func (e *GoneError) Unwrap() error { return ErrGone }
