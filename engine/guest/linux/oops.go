package linux

import (
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// taintDie is the bit of tainted_mask that an oops sets (TAINT_DIE).
const taintDie = 1 << 7

// crashSigns begin the line of a log that says why a kernel ended, or would have, the
// worst first.
var crashSigns = []string{"Kernel panic", "BUG: ", "kernel BUG at", "Oops", "general protection fault"}

// CrashReason is the line of a kernel's log that says why it has crashed, or "".
func CrashReason(log []report.LogRecord) report.Text {
	for _, sign := range crashSigns {
		for i := len(log) - 1; i >= 0; i-- {
			if m := log[i].Message; strings.Contains(string(m), sign) {
				return m
			}
		}
	}
	return ""
}

// Oopses looks whether the kernel has met with an error that it has lived through: it
// ends the process that was at work then, and runs on with whatever that held. The
// finding is of the latest, with the log at this moment; each is an object of
// its own where the kernel numbers them (die_counter).
func (r *Reader) Oopses() (report.Verdict, error) {
	const name, means = "oops", "The kernel met with an error in its own code, ended the process that was at work and ran on; an exploit that fails looks like that."
	at, err := r.variable("tainted_mask")
	if err != nil {
		return judge(name, means, 0, err), nil
	}
	mask, err := r.as.ReadUint64(at)
	v := judge(name, means, 1, err)
	if err != nil || mask&taintDie == 0 {
		return v, nil
	}
	object := "the guest's kernel"
	if at, err := r.variable("die_counter"); err == nil {
		if n, err := r.as.ReadUint32(at); err == nil {
			object = fmt.Sprintf("oops %d of the guest's kernel", n)
		}
	}
	f := report.Finding{Check: name, Object: report.Text(object)}
	log, err := r.Log()
	if f.Detail = CrashReason(log.Items); f.Detail == "" {
		f.Detail = "its log says nothing of it any more"
		if err != nil {
			f.Detail = report.Text("its log could not be read: " + err.Error())
		}
	}
	f.Log = log.Items
	v.Findings = append(v.Findings, f)
	return found(v), nil
}
