package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/registry"
)

// Exceptions implements control.Engine.
func (a *api) Exceptions(context.Context) ([]control.Exception, error) {
	written, kept := a.exceptions.All()
	var out []control.Exception
	at := map[string]int{}
	add := func(e policy.Exception, from string) *control.Exception {
		id := e.ID()
		i, ok := at[id]
		if !ok {
			i = len(out)
			at[id] = i
			out = append(out, control.Exception{ID: id, Exception: e, From: from, Expired: e.Expired(time.Now())})
		}
		return &out[i]
	}
	for _, e := range written {
		add(e, control.ExceptionFile)
	}
	for _, e := range kept {
		add(e, control.ExceptionKept)
	}
	for _, st := range a.engine.Status() {
		if st.State == engine.StateDetached {
			continue
		}
		for _, u := range st.Exceptions {
			x := add(u.Exception, control.ExceptionPolicy)
			x.Domains = append(x.Domains, control.ExceptionUse{
				ID: uint16(st.Info.ID), Name: printable.Escape(st.Name), UUID: st.Info.UUID.String(), Uses: u.Uses, Last: u.Last, Inactive: u.Why,
			})
		}
	}
	return out, nil
}

// Allow implements control.Engine.
func (a *api) Allow(ctx context.Context, e policy.Exception) ([]control.Exception, error) {
	if e.Created.IsZero() {
		e.Created = time.Now().UTC().Truncate(time.Second)
	}
	if e.Expired(time.Now()) {
		return nil, &control.Problem{Code: control.CodeBadRequest, What: "the exception has ended already", Where: "exception", Fix: "give a later time, or none"}
	}
	if err := a.exceptions.Add(e); err != nil {
		return nil, &control.Problem{Code: control.CodeNotPossible, What: err.Error(), Where: "exceptions", Err: err}
	}
	a.log.Warn("violations are permitted from now on", "id", e.ID(), "exception", e.String(), "expires", e.Expires, "comment", e.Comment)
	a.engine.RefreshExceptions()
	return a.Exceptions(ctx)
}

// Disallow implements control.Engine.
func (a *api) Disallow(ctx context.Context, ids []string) ([]control.Exception, error) {
	err := a.exceptions.Remove(ids...)
	switch {
	case errors.Is(err, registry.ErrNoException):
		return nil, &control.Problem{Code: control.CodeConflict, What: err.Error(), Where: "exceptions", Fix: "run: hvictl exceptions list", Err: err}
	case err != nil:
		return nil, &control.Problem{Code: control.CodeNotPossible, What: err.Error(), Where: "exceptions", Err: err}
	}
	a.log.Info("violations are no longer permitted", "ids", ids)
	a.engine.RefreshExceptions()
	return a.Exceptions(ctx)
}

// ReloadExceptions implements control.Engine.
func (a *api) ReloadExceptions(ctx context.Context) ([]control.Exception, error) {
	if err := a.exceptions.Reload(); err != nil {
		return nil, &control.Problem{
			Code: control.CodeBadRequest, What: err.Error(), Where: "exceptions", Err: err,
			Fix: "what was in force before stays so; run: hvictl policy check " + config.DefaultDir + "/" + config.ExceptionsFile,
		}
	}
	a.engine.RefreshExceptions()
	return a.Exceptions(ctx)
}

// exceptionsCheck is doctor's line on the host's exceptions.
func (a *api) exceptionsCheck() control.Check {
	c := control.Check{Name: "exceptions", Status: control.CheckOK}
	if err := a.exceptions.Broken(); err != nil {
		c.Status, c.Detail = control.CheckFail, err.Error()
		c.Fix = "correct the file, then run: hvictl exceptions reload"
		return c
	}
	written, kept := a.exceptions.All()
	ended := 0
	for _, list := range [][]policy.Exception{written, kept} {
		for _, e := range list {
			if e.Expired(time.Now()) {
				ended++
			}
		}
	}
	c.Detail = fmt.Sprintf("%d, %d of them made with hvictl allow", len(written)+len(kept), len(kept))
	if ended > 0 {
		c.Status = control.CheckInfo
		c.Detail += fmt.Sprintf("; %d have ended", ended)
		c.Fix = "remove them: hvictl exceptions remove --expired"
	}
	return c
}
