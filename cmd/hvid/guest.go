package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/cmd/guestproblem"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Guest answers a question about a domain's guest.
func (a *api) Guest(ctx context.Context, dom control.DomainRef, q inspect.Question, args inspect.Args) (any, error) {
	answer, err := a.engine.Ask(ctx, xen.DomID(dom.ID), q, args)
	if err != nil {
		return nil, guestProblem(err, dom)
	}
	return answer, nil
}

// Profile returns the symbols and types of a domain's kernel.
func (a *api) Profile(ctx context.Context, dom control.DomainRef) ([]byte, error) {
	var b boundedBuffer
	err := a.engine.Look(ctx, xen.DomID(dom.ID), func(r *linux.Reader) error { return linux.ExportISF(&b, r.Kernel()) })
	if err != nil {
		return nil, guestProblem(err, dom)
	}
	return b.Bytes(), nil
}

// boundedBuffer takes as much as a profile may have: what the guest says of its
// types decides how long it is.
type boundedBuffer struct{ bytes.Buffer }

// Write takes all or nothing.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > control.MaxProfile {
		return 0, &linux.ReadError{What: "the kernel's types", Got: fmt.Sprintf("more than %d MiB of them", control.MaxProfile>>20), Err: linux.ErrImplausible}
	}
	return b.Buffer.Write(p)
}

// guestProblem says why a domain can't be looked into, and what to do.
func guestProblem(err error, dom control.DomainRef) error {
	p := &control.Problem{Where: where(dom), Err: err}
	switch {
	case errors.Is(err, xen.ErrNoDomain):
		p.Code, p.What, p.Fix = control.CodeNoSuchDomain, fmt.Sprintf("domain %d has gone", dom.ID), "run: hvictl list"
	case errors.Is(err, engine.ErrManyReaders):
		p.Code, p.What, p.Fix = control.CodeBusy, engine.ErrManyReaders.Error(), "try again"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, engine.ErrPVGuest):
		p.Code, p.What, p.Fix = control.CodeNotPossible, engine.ErrPVGuest.Error(), `only HVM and PVH guests can be looked into: run it with type="pvh" in its xl config`
	case errors.Is(err, engine.ErrControlDomain):
		p.Code, p.What, p.Fix = control.CodeNotPossible, engine.ErrControlDomain.Error(), "name a guest: hvictl list shows them"
	case errors.Is(err, engine.ErrNoKernelYet):
		p.Code, p.What, p.Fix = control.CodeConflict, engine.ErrNoKernelYet.Error(), "wait until it has booted; a guest that is not 64-bit Linux cannot be looked into"
	default:
		return guestproblem.Of(err, where(dom))
	}
	return p
}
