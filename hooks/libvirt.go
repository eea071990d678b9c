package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/libvirt/metadata"
)

// What libvirt's driver for Xen calls hooks for, with begin or end after it.
const (
	opPrepare   = "prepare"
	opStart     = "start"
	opReconnect = "reconnect"
	opMigrate   = "migrate" // on the host it migrates to
)

// libvirt is the hook of libvirt's Xen driver. Of the operations it knows, those
// that aren't here need nothing; of those it doesn't know, a later libvirt may
// have some, and a hook that refuses them would refuse every start.
func (h Host) libvirt(ctx context.Context, args []string) int {
	if len(args) < 4 || args[0] == "" || args[1] == "" {
		return h.usage(fmt.Sprintf("libvirt: %d arguments where libvirt gives 4", len(args)))
	}
	name, op := args[0], args[1]
	if args[2] != "begin" {
		return exitOK
	}
	switch op {
	case opPrepare, opStart, opMigrate:
		return h.begin(ctx, name, op)
	case opReconnect:
		// The domain runs, and libvirt would destroy it if this failed.
		h.begin(ctx, name, op)
	}
	return exitOK
}

// begin checks what is declared for a domain, and hands it to hvid.
func (h Host) begin(ctx context.Context, name, op string) int {
	quoted := policy.Quote(name)
	refuse := func(format string, a ...any) int {
		verb := "is not started"
		if op == opReconnect {
			verb = "runs on"
		}
		h.say("domain %s %s: %s", quoted, verb, fmt.Sprintf(format, a...))
		return exitRefused
	}
	doc, err := readInput(h.Stdin, h.InputTime)
	if err != nil {
		return refuse("its XML cannot be read: %v", err)
	}
	d, err := metadata.ParseDomain("domain XML", doc)
	var spec policy.Spec
	if err == nil && d.Element != nil {
		spec, err = d.Element.Check()
		if err == nil && d.UUID == "" {
			err = errors.New("the domain XML has no UUID")
		}
	}
	if err != nil {
		return refuse("%s", complaints(err, name))
	}
	if op == opPrepare || d.UUID == "" {
		return exitOK
	}

	required := spec.Mode == policy.ModeEnforce || spec.RequireAttach
	c := h.client()
	defer c.Close()
	var answer control.Declared
	declare := func() error {
		answer, err = c.Declare(ctx, d.UUID, request(d))
		return err
	}
	if required && op != opReconnect {
		err = h.patiently(ctx, declare)
	} else {
		err = declare()
	}
	for _, w := range answer.Warnings {
		h.say("domain %s: %s", quoted, oneLine(w))
	}
	var p *control.Problem
	switch {
	case err == nil:
		return exitOK
	case d.Element == nil:
		// Nothing is asked for.
		return exitOK
	case errors.As(err, &p) && p.Code == control.CodeBadRequest:
		return refuse("hvid does not understand its policy: %s", explain(err))
	case spec.Mode == policy.ModeOff:
		return exitOK
	case required:
		asked := "mode enforce"
		if spec.RequireAttach {
			asked = "require_attach"
		}
		return refuse("%s asks for protection, and %s", asked, explain(err))
	}
	h.say("domain %s starts without introspection until hvid can be reached: %s", quoted, explain(err))
	return exitOK
}

// request says to hvid what the element says.
func request(d metadata.Domain) control.DeclareRequest {
	r := control.DeclareRequest{
		Name:      printable.Escape(d.Name),
		Toolstack: "libvirt",
		Source:    "libvirt metadata of the domain",
	}
	if d.Element == nil {
		return r
	}
	r.Mode, r.Policy, r.RequireAttach = d.Element.Mode.Text, d.Element.Policy.Text, d.Element.RequireAttach.Text
	for _, g := range d.Element.Guards {
		r.Guards = append(r.Guards, control.GuardRequest{Name: g.Name.Text, Action: g.Action.Text})
	}
	return r
}

// complaints puts all errors on lines of their own, and says where to mend them.
func complaints(err error, name string) string {
	var b strings.Builder
	all := policy.Errors(err)
	for i, e := range all {
		if i > 0 {
			b.WriteString("\nhvi: ")
		}
		b.WriteString(oneLine(e.Error()))
	}
	if len(all) == 0 {
		b.WriteString(oneLine(err.Error()))
	}
	b.WriteString("; mend it: virsh edit " + policy.Quote(name))
	return b.String()
}

var errLate = errors.New("it does not end")

// readInput reads all of r, within bounds.
func readInput(r io.Reader, within time.Duration) ([]byte, error) {
	type result struct {
		doc []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		doc, err := io.ReadAll(io.LimitReader(r, metadata.MaxXML+1))
		done <- result{doc, err}
	}()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case got := <-done:
		return got.doc, got.err
	case <-late.C:
		return nil, fmt.Errorf("%w within %v", errLate, within)
	}
}
