package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestGuestProblem: each way in which a guest can't be looked into has a code,
// and something to do.
func TestGuestProblem(t *testing.T) {
	dom := control.DomainRef{ID: 7, Name: "web"}
	for _, tc := range []struct {
		err  error
		code control.Code
	}{
		{engine.ErrPVGuest, control.CodeNotPossible},
		{engine.ErrControlDomain, control.CodeNotPossible},
		{engine.ErrNoKernelYet, control.CodeConflict},
		{fmt.Errorf("%w: %w", engine.ErrManyReaders, context.DeadlineExceeded), control.CodeBusy},
		{fmt.Errorf("gone: %w", xen.ErrNoDomain), control.CodeNoSuchDomain},
		{&linux.IdentifyError{Stage: linux.StageBase, Want: "x"}, control.CodeNotPossible},
		{&linux.ReadError{What: "init_task", Err: linux.ErrUnsupported}, control.CodeNotPossible},
		{&linux.ReadError{What: "init_task", Err: linux.ErrNotYet}, control.CodeNotPossible},
		{&inspect.ArgumentError{Kind: inspect.Maps, What: "x", Fix: "y"}, control.CodeBadRequest},
	} {
		var p *control.Problem
		if err := guestProblem(tc.err, dom); !errors.As(err, &p) || p.Code != tc.code || p.What == "" || p.Fix == "" || p.Where != "domain 7, web" || !errors.Is(err, tc.err) {
			t.Errorf("%v became %+v", tc.err, p)
		}
	}
	// A context's end is the server's to tell of, and a fault is a fault.
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, errors.New("out of memory")} {
		if got := guestProblem(err, dom); !errors.Is(got, err) || errors.As(got, new(*control.Problem)) {
			t.Errorf("%v became %v", err, got)
		}
	}
}
