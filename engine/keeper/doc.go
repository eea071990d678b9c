// Package keeper is hvi's second process: small, and there for the case that the
// first one fails.
//
// A guest's vCPU stands still while it waits for hvid's answer, and nobody else
// would ever give it. So hvid starts a keeper before it attaches to anything
// ([Start]). That learns of hvid's death from the socket between the two, whose
// other end the kernel closes, and of its hanging from a page that both have
// mapped: hvid's heart beats there, and so does each ring goroutine while it has a
// request in its hands. Either way the keeper makes sure that hvid is dead, and
// then has done what `hvid recover` does, from the ledgers: what a domain may have
// of ours is written there before it is made, so the keeper knows of every attached
// domain without being told ([Serve]).
//
// The keeper can't be stopped for long, neither alone nor together with hvid: the
// kernel has it go on as if by SIGCONT when it is late for a look.
//
// The keeper maps nothing of a guest and reads nothing that a guest wrote. Its
// memory is locked, so that it acts at once on a machine that has no memory left.
// When it dies, hvid notices and starts another. When both are dead, systemd's
// ExecStopPost, the next hvid, or `hvid recover` does its work: they all work from
// the same ledgers and under the same lock.
//
// Who watches whom, and when who is killed, is counted in one's own looks at the
// page and not in time that went by: on a machine that was asleep, or that gives
// neither of the two any time, none has failed.
package keeper
