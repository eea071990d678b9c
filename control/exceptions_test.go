package control

import (
	"errors"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

// TestExceptionOf: an exception from an event permits that event, and as little
// else as the event can say.
func TestExceptionOf(t *testing.T) {
	if _, err := ExceptionOf(&journal.Record{Guard: "modules", Action: journal.Noted, Target: journal.Target{Kind: journal.TargetModule, Module: &journal.ModuleTarget{}}}, nil); err == nil {
		t.Error("an exception of what is no violation")
	}
	text := journal.Record{
		Guard: "kernel-text", Action: journal.Blocked, Domain: journal.Domain{UUID: "6C9F7A1E-0B1D-4F0E-9C5C-0123456789AB", Kernel: "6.1.0"},
		RIP: journal.Location{Symbol: "falcon", Module: "falcon"}, Process: journal.Process{Comm: "agent"},
		Target:    journal.Target{Kind: journal.TargetMemory, Memory: &journal.MemoryTarget{Location: journal.Location{Symbol: "do_syscall_64"}}},
		Attempted: journal.Bytes([]byte{0xe9, 1}), Detail: journal.Detail{Access: "w"},
	}
	msr := journal.Record{
		Guard: "syscall-entry", Action: journal.Alerted, Domain: text.Domain, RIP: journal.Location{Symbol: "wrmsr_safe"}, Process: text.Process,
		Target: journal.Target{Kind: journal.TargetMSR, MSR: &journal.MSRTarget{Index: 1, Name: "LSTAR"}}, Attempted: journal.Number(0x10),
	}
	unknown := text
	unknown.Process = journal.Process{Unknown: "no"}
	unknown.RIP = journal.Location{Addr: 1}
	escaped := text
	escaped.Process.Comm = `a\x1b`
	found := text
	found.Action, found.Process, found.RIP = journal.Found, journal.Process{Unknown: "late"}, journal.Location{}
	helper := journal.Record{
		Guard: "usermode-helper", Action: journal.Found, Domain: text.Domain, Process: journal.Process{Unknown: "late"},
		Target: journal.Target{Kind: journal.TargetObject, Object: &journal.ObjectTarget{Check: "usermode-helpers", Name: "modprobe_path", What: `it is "/opt/x"`}},
	}
	paused, stopped := text, helper
	paused.Action, paused.Prevented = journal.Paused, true
	stopped.Action = journal.ShutDown
	call := journal.Record{
		Guard: "dpi", Action: journal.Blocked, Domain: text.Domain, RIP: journal.Location{Symbol: "__x64_sys_execve"}, Process: text.Process,
		Target: journal.Target{Kind: journal.TargetCall, Call: &journal.CallTarget{What: "executes", Program: "/bin/sh"}}, Attempted: journal.Unknown("a call"),
	}
	odd := helper
	odd.Target.Object = &journal.ObjectTarget{Check: "hidden-modules", Name: "module x*", What: "ü"}
	for _, tt := range []struct {
		name   string
		record journal.Record
		any    string
		want   string // or, with a !, the conditions that are missing
	}{
		{"text", text, "", `kernel-text domain=6c9f7a1e-0b1d-4f0e-9c5c-0123456789ab process=agent module=falcon target=do_syscall_64 bytes=e901 kernel=6.1.0`},
		{"less", text, "bytes domain kernel code", `kernel-text process=agent target=do_syscall_64`},
		{"MSR", msr, "domain kernel", `syscall-entry process=agent symbol=wrmsr_safe target=LSTAR value=0x10`},
		{"unknown", unknown, "", `!process code`},
		{"unknown, left out", unknown, "process code domain kernel", `kernel-text target=do_syscall_64 bytes=e901`},
		{"escaped", escaped, "", `!process`},
		{"what a look found", helper, "domain kernel", `usermode-helper object=modprobe_path what="it is \"/opt/x\""`},
		{"that, whatever it is", helper, "domain kernel bytes", `usermode-helper object=modprobe_path`},
		{"what can't be written", odd, "", `!target bytes`},
		{"paused for a write", paused, "domain kernel", `kernel-text process=agent module=falcon target=do_syscall_64 bytes=e901`},
		{"shut down for what a look found", stopped, "domain kernel", `usermode-helper object=modprobe_path what="it is \"/opt/x\""`},
		{"a call", call, "domain kernel", `dpi process=agent symbol=__x64_sys_execve`},
		{"found", found, "domain kernel", `kernel-text target=do_syscall_64 bytes=e901`},
	} {
		leave := map[string]bool{}
		for _, w := range strings.Fields(tt.any) {
			leave[w] = true
		}
		e, err := ExceptionOf(&tt.record, leave)
		if missing, bad := strings.CutPrefix(tt.want, "!"); bad {
			var got []string
			if many, ok := err.(interface{ Unwrap() []error }); ok {
				for _, one := range many.Unwrap() {
					var u *UnnamedError
					if errors.As(one, &u) {
						got = append(got, u.Condition)
					}
				}
			}
			if strings.Join(got, " ") != missing {
				t.Errorf("%s: missing %q, want %q (%v)", tt.name, got, missing, err)
			}
			continue
		}
		if err != nil || e.String() != tt.want || e.Validate() != nil {
			t.Errorf("%s: %v, %v\ngot  %s\nwant %s", tt.name, err, e.Validate(), e, tt.want)
		}
	}
}

// TestExceptionRoutes goes through the socket.
func TestExceptionRoutes(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	x := policy.Exception{Guard: policy.GuardKernelText, Process: "agent"}
	list, err := w.client.Allow(ctx, x)
	if err != nil || len(list) != 1 || list[0].ID != x.ID() || list[0].Process != "agent" || list[0].Domains == nil {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := w.client.Allow(ctx, policy.Exception{Guard: policy.GuardKernelText}); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("one that permits all: %v", err)
	}
	if _, err := w.client.Disallow(ctx, []string{"a", "b"}); err != nil {
		t.Error(err)
	}
	if _, err := w.client.Disallow(ctx, []string{""}); !errors.Is(err, &Problem{Code: CodeBadRequest}) {
		t.Errorf("none: %v", err)
	}
	if _, err := w.client.ReloadExceptions(ctx); err != nil {
		t.Error(err)
	}
	if list, err := w.client.Exceptions(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if got, want := strings.Join(w.engine.asks, "; "), `allow kernel-text process=agent; disallow ["a" "b"]; reload; exceptions`; got != want {
		t.Errorf("asked %s\nwant  %s", got, want)
	}
}
