// Package inspect knows what can be asked about a guest. [Questions] is the one
// table of it: the control interface, hvictl's commands, completion and the
// manual are made from it. A [Question] is answered by [Views], which is what
// is used of a reader of the guest's memory; whether that memory is a running
// domain's or a file's is none of this package's business. Package image,
// below, opens files.
//
// It holds no state and owns nothing.
package inspect
