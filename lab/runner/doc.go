// Package runner runs scenarios from the host's side: it builds what they need,
// boots a machine for each group that can share one, follows what comes out of
// it, and writes the results.
//
// A run passes only if every scenario said so itself and nothing it said was
// lost. Whatever else happens, a machine that stops, a time limit, a damaged
// result, is a failure with a reason, and its console log is kept.
package runner
