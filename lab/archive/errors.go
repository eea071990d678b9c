package archive

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Sentinels that the typed errors of this package match with errors.Is.
var (
	// ErrUntrusted: a suite's InRelease carries no good signature of the keyring,
	// or is not what was asked for.
	ErrUntrusted = errors.New("not trusted")
	// ErrExpired: a suite's InRelease is past its Valid-Until.
	ErrExpired = errors.New("expired")
	// ErrCorrupt: a file is not what the signed index says it is.
	ErrCorrupt = errors.New("checksum or size mismatch")
	// ErrNotFound: no such package, or the mirror has no such file.
	ErrNotFound = errors.New("not found")
	// ErrOffline: something is not in the cache and the network may not be used.
	ErrOffline = errors.New("not in the cache, and offline")
	// ErrNoMirror: apt's configuration names no usable Debian mirror.
	ErrNoMirror = errors.New("no Debian mirror configured")
	// ErrUnsatisfied: a dependency cannot be met from the suites given.
	ErrUnsatisfied = errors.New("unsatisfied dependency")
)

// TrustError says why a suite's InRelease was refused. It matches ErrUntrusted.
type TrustError struct {
	Suite   string
	URL     string   // where the file came from
	Keyring string   // the keyring file it was checked against
	Reason  string   // what is wrong
	Signers []string // long key IDs of the signatures seen, upper-case hex
	Hint    string   // what to do, may be empty
}

func (e *TrustError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "suite %s: InRelease from %s is refused: %s", e.Suite, e.URL, e.Reason)
	if len(e.Signers) > 0 {
		fmt.Fprintf(&b, " (signed by %s, checked against %s)", strings.Join(e.Signers, ", "), e.Keyring)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Is reports whether target is ErrUntrusted.
func (e *TrustError) Is(target error) bool { return target == ErrUntrusted }

// ExpiredError says that a suite's InRelease is correctly signed but too old.
// It matches ErrExpired.
type ExpiredError struct {
	Suite      string
	URL        string
	ValidUntil time.Time
	Now        time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("suite %s: InRelease from %s was valid until %s and it is now %s: the mirror is stale, the suite has been archived, "+
		"or this machine's clock is wrong; to accept it set HVI_LAB_ALLOW_EXPIRED=1 or apt's Acquire::Check-Valid-Until \"false\"",
		e.Suite, e.URL, e.ValidUntil.UTC().Format(time.DateTime), e.Now.UTC().Format(time.DateTime))
}

// Is reports whether target is ErrExpired.
func (e *ExpiredError) Is(target error) bool { return target == ErrExpired }

// IntegrityError says that a downloaded file is not the one the signed index
// names. It matches ErrCorrupt.
type IntegrityError struct {
	What               string // package or index
	URL                string // or path, for a file of the cache
	WantSize, GotSize  int64  // bytes
	WantSHA256, GotSHA string // hex; GotSHA is empty where the size already differs
}

func (e *IntegrityError) Error() string {
	if e.WantSize != e.GotSize {
		return fmt.Sprintf("%s: %s has %d bytes, the signed index says %d: a truncated or altered file; try again, or another mirror with HVI_LAB_MIRROR",
			e.What, e.URL, e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("%s: %s has SHA256 %s, the signed index says %s: an altered file; try again, or another mirror with HVI_LAB_MIRROR",
		e.What, e.URL, e.GotSHA, e.WantSHA256)
}

// Is reports whether target is ErrCorrupt.
func (e *IntegrityError) Is(target error) bool { return target == ErrCorrupt }

// HTTPError is a mirror's answer other than success. A 404 or 410 matches
// ErrNotFound.
type HTTPError struct {
	URL    string
	Status int
	Hint   string // what to do, may be empty
}

func (e *HTTPError) Error() string {
	s := fmt.Sprintf("%s: HTTP status %d", e.URL, e.Status)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Is reports whether target is ErrNotFound and the file does not exist.
func (e *HTTPError) Is(target error) bool {
	return target == ErrNotFound && (e.Status == 404 || e.Status == 410)
}

// NotFoundError says that no package of the suites matches. It matches
// ErrNotFound.
type NotFoundError struct {
	Name   string // the name, glob or name=version asked for
	Suites []string
	Hint   string
}

func (e *NotFoundError) Error() string {
	s := fmt.Sprintf("no package %s in %s", e.Name, strings.Join(e.Suites, ", "))
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Is reports whether target is ErrNotFound.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// OfflineError names what is missing from the cache. It matches ErrOffline.
type OfflineError struct {
	What string
}

func (e *OfflineError) Error() string {
	return e.What + " is not in the cache and the network may not be used; run once without HVI_LAB_OFFLINE"
}

// Is reports whether target is ErrOffline.
func (e *OfflineError) Is(target error) bool { return target == ErrOffline }

// MirrorError says which sources were looked at and why none serves. It matches
// ErrNoMirror.
type MirrorError struct {
	Looked  []string // files read
	Skipped []string // entries that were found and not used, with the reason
}

func (e *MirrorError) Error() string {
	s := "apt's configuration names no usable Debian mirror"
	if len(e.Looked) > 0 {
		s += " (looked in " + strings.Join(e.Looked, ", ") + ")"
	}
	if len(e.Skipped) > 0 {
		s += " (not used: " + strings.Join(e.Skipped, "; ") + ")"
	}
	return s + "; set HVI_LAB_MIRROR to the base URL of one, the folder that holds dists/ and pool/"
}

// Is reports whether target is ErrNoMirror.
func (e *MirrorError) Is(target error) bool { return target == ErrNoMirror }

// UnsatisfiedError says which dependency cannot be met, and how it came to be
// wanted. It matches ErrUnsatisfied.
type UnsatisfiedError struct {
	Dependency string   // as written, all its alternatives
	Chain      []string // from a package asked for down to the one that depends
	Suites     []string
	Reason     string
}

func (e *UnsatisfiedError) Error() string {
	return fmt.Sprintf("%s needs %s: %s in %s", strings.Join(e.Chain, " → "), e.Dependency, e.Reason, strings.Join(e.Suites, ", "))
}

// Is reports whether target is ErrUnsatisfied.
func (e *UnsatisfiedError) Is(target error) bool { return target == ErrUnsatisfied }

// SyntaxError is a malformed field or line in an index, a dependency or an apt
// source.
type SyntaxError struct {
	What string // file, package or field
	Line int    // from 1; 0 where there is no line
	Msg  string
}

func (e *SyntaxError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.What, e.Line, e.Msg)
	}
	return e.What + ": " + e.Msg
}
