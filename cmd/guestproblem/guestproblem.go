// Package guestproblem says, for hvid and for an hvictl without one, what an
// error of reading a guest's memory means to people: a control.Problem.
package guestproblem

import (
	"errors"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/inspect"
)

// Of returns the Problem that an error of a question is; where names the domain
// or file. An error that is none of a reader's is returned as it is.
func Of(err error, where string) error {
	if err == nil {
		return nil
	}
	p := &control.Problem{Where: where, Err: err}
	var arg *inspect.ArgumentError
	var id *linux.IdentifyError
	var read *linux.ReadError
	var profile *linux.ISFError
	switch {
	case errors.As(err, &arg):
		p.Code, p.What, p.Fix = control.CodeBadRequest, arg.Error(), arg.Fix
	case errors.As(err, &id):
		p.Code = control.CodeNotPossible
		p.What, p.Fix = identify(id)
	case errors.As(err, &read):
		p.Code, p.What, p.Fix = control.CodeNotPossible, err.Error(), fixOf(err)
	case errors.As(err, &profile):
		bare := *profile
		p.Code, p.Fix, bare.Hint = control.CodeNotPossible, profile.Hint, ""
		p.What = bare.Error()
		if p.Fix == "" {
			p.Fix = "make it anew with dwarf2json, of the very build that runs"
		}
	default:
		return err
	}
	return p
}

// identify takes the hint, which is the fix, out of an error's words.
func identify(e *linux.IdentifyError) (what, fix string) {
	bare := *e
	bare.Hint = ""
	fix = e.Hint
	if fix == "" {
		fix = "hvi reads 64-bit Linux with kallsyms, of any distribution"
	}
	return bare.Error(), fix
}

func fixOf(err error) string {
	switch {
	case errors.Is(err, linux.ErrNoProcess):
		return "hvictl ps shows those that there are"
	case errors.Is(err, linux.ErrNotYet):
		return "wait until the guest has booted"
	case errors.Is(err, linux.ErrUnsupported):
		return "this kernel lacks it, or has no type information (BTF)"
	case errors.Is(err, linux.ErrImplausible):
		return "try again; if it lasts, the guest's kernel is damaged or forges what it shows"
	}
	return "try again; if it lasts, the guest's kernel is damaged or the image is not complete"
}
