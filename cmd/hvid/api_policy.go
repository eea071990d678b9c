package main

import (
	"context"

	"github.com/xen-hvi/hvi/control"
)

// unwired answers what this hvid's engine has no part for.
func unwired(what string) error {
	return &control.Problem{Code: control.CodeNotPossible, What: what + " is not possible with this hvid", Fix: "use hvid and its clients of one release"}
}

func (a *api) Declare(context.Context, string, control.DeclareRequest) (control.Declared, error) {
	return control.Declared{}, unwired("handing over a declaration")
}

func (a *api) Declarations(context.Context) ([]control.Declaration, error) {
	return nil, unwired("listing declarations")
}

func (a *api) Import(context.Context, control.Declaration) (control.Declaration, error) {
	return control.Declaration{}, unwired("importing a declaration")
}

func (a *api) Policy(context.Context, control.DomainRef) (control.PolicyReport, error) {
	return control.PolicyReport{}, unwired("reporting a policy")
}

func (a *api) SetPolicy(context.Context, control.DomainRef, control.PolicyRequest) (control.PolicyReport, error) {
	return control.PolicyReport{}, unwired("setting a policy")
}

func (a *api) ClearPolicy(context.Context, control.DomainRef, string) (control.PolicyReport, error) {
	return control.PolicyReport{}, unwired("removing a policy")
}
