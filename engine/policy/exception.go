package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of an exception.
const (
	// MaxExceptions is how many one file may hold, or hvid may keep.
	MaxExceptions = 256
	// MaxExceptionBytes is how many bytes of a write can be compared, which is
	// how many are kept with the evidence of one.
	MaxExceptionBytes = 16
	// MaxComment is the longest comment, in bytes.
	MaxComment = 200

	// maxComm and maxModule are the kernel's TASK_COMM_LEN and MODULE_NAME_LEN,
	// without the NUL; maxSymbol is KSYM_NAME_LEN of 6.1 and later.
	maxComm   = 15
	maxModule = 55
	maxSymbol = 511
	// maxFinding bounds what is said of a finding: the longest program that the kernel
	// may start by itself (KMOD_PATH_LEN, 256 bytes) with a sentence.
	maxFinding = 512
	// maxKernel is longer than any banner of a kernel.
	maxKernel = 512
)

// Exception says which violations of a guard are permitted: those that meet every
// condition that is set. An empty condition is met by all. What is permitted
// takes place and is counted, and neither reported nor blocked.
//
// Names of processes and modules are what the guest says of itself: who controls
// the guest's kernel can choose them. The more conditions, the less is given away.
type Exception struct {
	// Guard is whose violations they are.
	Guard GuardName `json:"guard"`
	// Domain is the UUID of the domain it holds for, in lower case, or empty for
	// every domain that the place it is written in speaks of.
	Domain string `json:"domain,omitempty"`

	// Process is the name of the task that did it, 15 bytes at most as Linux
	// keeps it. With a star at its end, names that begin so.
	Process string `json:"process,omitempty"`
	// Module is the loaded module that the instruction lies in.
	Module string `json:"module,omitempty"`
	// Symbol is the kernel's own function that the instruction lies in.
	Symbol string `json:"symbol,omitempty"`
	// Target is what was written to: a function or variable of the kernel, or a
	// register by the processor manual's name (LSTAR, CR4, EFER).
	Target string `json:"target,omitempty"`
	// TargetModule is the loaded module whose memory was written to.
	TargetModule string `json:"target_module,omitempty"`
	// Bytes are the first bytes that were to be written, two hexadecimal digits
	// each; Value is what a register was to become, as in "0x1f".
	Bytes string `json:"bytes,omitempty"`
	Value string `json:"value,omitempty"`
	// Object is what a guard that looks has found, by the name that the event has for
	// it, and What what is wrong with it, in the event's words. With a star at its
	// end, what begins so. Both may hold what the guest says of itself.
	Object string `json:"object,omitempty"`
	What   string `json:"what,omitempty"`
	// Kernel is the guest kernel's release, as uname -r prints it, or its whole
	// banner. With a star at its end, those that begin so.
	Kernel string `json:"kernel,omitempty"`

	// Comment is for people.
	Comment string `json:"comment,omitempty"`
	// Created is when it was made, and Expires when it ends; zero is never.
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// Origin is where it is written.
	Origin Origin `json:"origin,omitzero"`
}

// ExceptionField is one key of an exception as people write it.
type ExceptionField struct {
	// Name is the key.
	Name string
	// Meaning is one sentence for people, without a full stop.
	Meaning string
	// Condition says that it narrows what is permitted.
	Condition bool

	get func(*Exception) string
	set func(*Exception, string) *Error
}

// Get returns the field's value as it is written, empty where it is not set.
func (f ExceptionField) Get(e Exception) string { return f.get(&e) }

// textField is a field that is a string.
func textField(name, meaning string, of func(*Exception) *string, wrong func(string) string) ExceptionField {
	return ExceptionField{
		Name: name, Meaning: meaning, Condition: true,
		get: func(e *Exception) string { return *of(e) },
		set: func(e *Exception, s string) *Error {
			if why := wrong(s); why != "" {
				return &Error{What: name, Value: s, Reason: why}
			}
			*of(e) = s
			return nil
		},
	}
}

// dateField is a field that is a time; last says that a date means its end.
func dateField(name, meaning string, last bool, of func(*Exception) *time.Time) ExceptionField {
	return ExceptionField{
		Name: name, Meaning: meaning,
		get: func(e *Exception) string {
			if of(e).IsZero() {
				return ""
			}
			return of(e).UTC().Format(time.RFC3339)
		},
		set: func(e *Exception, s string) *Error {
			t, err := ParseDate(s, last)
			if err != nil {
				return &Error{What: name, Value: s, Reason: "is no date", Hint: "write 2026-12-31 or 2026-12-31T12:00:00Z"}
			}
			*of(e) = t
			return nil
		},
	}
}

var exceptionFields = []ExceptionField{
	{
		Name: "guard", Meaning: "The guard whose violations are permitted",
		get: func(e *Exception) string { return string(e.Guard) },
		set: func(e *Exception, s string) *Error {
			if _, ok := LookupGuard(GuardName(s)); !ok {
				return UnknownWord("guard", s, guardWords(), Origin{})
			}
			e.Guard = GuardName(s)
			return nil
		},
	},
	textField("domain", "The UUID of the only domain it holds for", func(e *Exception) *string { return &e.Domain }, wrongUUID),
	textField("process", "The name of the process, at most 15 bytes; with * at its end, names that begin so", func(e *Exception) *string { return &e.Process },
		func(s string) string { return wrongPattern(s, maxComm) }),
	textField("module", "The loaded module that the writing instruction lies in", func(e *Exception) *string { return &e.Module },
		func(s string) string { return wrongName(s, maxModule) }),
	textField("symbol", "The kernel's function that the writing instruction lies in", func(e *Exception) *string { return &e.Symbol },
		func(s string) string { return wrongName(s, maxSymbol) }),
	textField("target", "What is written to: a symbol of the kernel, or a register such as LSTAR, EFER or CR4", func(e *Exception) *string { return &e.Target },
		func(s string) string { return wrongName(s, maxSymbol) }),
	textField("target_module", "The loaded module whose memory is written to", func(e *Exception) *string { return &e.TargetModule },
		func(s string) string { return wrongName(s, maxModule) }),
	textField("bytes", "The first bytes written to memory, in hexadecimal, at most 16", func(e *Exception) *string { return &e.Bytes }, wrongBytes),
	textField("value", "What is written to a register, as in 0x1f", func(e *Exception) *string { return &e.Value }, wrongValue),
	textField("object", "What a guard that looks has found, as the event names it; with * at its end, names that begin so", func(e *Exception) *string { return &e.Object },
		func(s string) string { return wrongPattern(s, maxFinding) }),
	textField("what", "What is wrong with it, in the event's words; with * at its end, what begins so", func(e *Exception) *string { return &e.What },
		func(s string) string { return wrongPattern(s, maxFinding) }),
	textField("kernel", "The guest kernel's release (uname -r) or banner; with * at its end, those that begin so", func(e *Exception) *string { return &e.Kernel },
		func(s string) string { return wrongPattern(s, maxKernel) }),
	{
		Name: "comment", Meaning: "Why it is permitted, for people",
		get: func(e *Exception) string { return e.Comment },
		set: func(e *Exception, s string) *Error {
			if why := wrongComment(s); why != "" {
				return &Error{What: "comment", Value: s, Reason: why}
			}
			e.Comment = s
			return nil
		},
	},
	dateField("created", "When it was made", false, func(e *Exception) *time.Time { return &e.Created }),
	dateField("expires", "When it ends: a date, to its end in UTC, or a time; never where it is left out", true, func(e *Exception) *time.Time { return &e.Expires }),
}

// ExceptionFields returns the keys of an exception, in the order they are shown.
func ExceptionFields() []ExceptionField { return append([]ExceptionField(nil), exceptionFields...) }

// ParseDate reads a time in RFC 3339, or a date, which is midnight in UTC at its
// beginning or, with last, at its end.
func ParseDate(s string, last bool) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is no date", Quote(s))
	}
	if last {
		t = t.AddDate(0, 0, 1)
	}
	return t, nil
}

func wrongName(s string, longest int) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > longest:
		return fmt.Sprintf("is longer than %d bytes", longest)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "has a character that such names do not have"
	}
	return ""
}

// wrongPattern is wrongName for a text that may end in a star, and may have
// blanks in it: processes name themselves.
func wrongPattern(s string, longest int) string {
	begin := strings.TrimSuffix(s, "*")
	switch {
	case s == "":
		return "is empty"
	case begin == "":
		return "would be met by all: leave it out"
	case len(begin) > longest:
		return fmt.Sprintf("is longer than %d bytes", longest)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }):
		return "has a character that cannot be printed"
	}
	return ""
}

func wrongComment(s string) string {
	switch {
	case len(s) > MaxComment:
		return fmt.Sprintf("is longer than %d bytes", MaxComment)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "has a character that cannot be printed"
	}
	return ""
}

func wrongUUID(s string) string {
	if len(s) == 36 && strings.Trim(s, "0123456789abcdef-") == "" && strings.Count(s, "-") == 4 &&
		s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		return ""
	}
	return "is no UUID in lower case"
}

func wrongBytes(s string) string {
	b, err := hex.DecodeString(s)
	switch {
	case err != nil:
		return "is not bytes of two hexadecimal digits each"
	case len(b) == 0:
		return "is empty"
	case len(b) > MaxExceptionBytes:
		return fmt.Sprintf("is more than %d bytes, and no more are seen of a write", MaxExceptionBytes)
	}
	return ""
}

func wrongValue(s string) string {
	digits, ok := strings.CutPrefix(s, "0x")
	if _, err := strconv.ParseUint(digits, 16, 64); !ok || err != nil {
		return "is no number of at most 64 bits in hexadecimal, as in 0x1f"
	}
	return ""
}

// ByteValues returns the bytes of the condition of that name, nil if there is none.
func (e Exception) ByteValues() []byte {
	b, err := hex.DecodeString(e.Bytes)
	if err != nil {
		return nil
	}
	return b
}

// RegisterValue returns the value of the condition of that name, if there is one.
func (e Exception) RegisterValue() (uint64, bool) {
	digits, ok := strings.CutPrefix(e.Value, "0x")
	v, err := strconv.ParseUint(digits, 16, 64)
	return v, ok && err == nil
}

// Pattern splits a condition that may end in a star into the text and whether it
// need only begin so.
func Pattern(s string) (text string, prefix bool) { return strings.CutSuffix(s, "*") }

// Matches reports whether a text meets a condition that may end in a star. An
// empty condition is met by all.
func Matches(condition, text string) bool {
	begin, prefix := Pattern(condition)
	return condition == "" || text == begin || prefix && strings.HasPrefix(text, begin)
}

// Expired reports whether it has ended at that time.
func (e Exception) Expired(at time.Time) bool { return !e.Expires.IsZero() && !at.Before(e.Expires) }

// ID names an exception by what it permits: two that permit the same have one.
// Comment, dates and place do not count.
func (e Exception) ID() string {
	e.Comment, e.Created, e.Expires, e.Origin = "", time.Time{}, time.Time{}, Origin{}
	b, err := json.Marshal(e)
	if err != nil {
		return "" // strings have JSON
	}
	sum := sha256.Sum256(b)
	return "x" + hex.EncodeToString(sum[:5])
}

// String is the exception's conditions on one line: what it permits.
func (e Exception) String() string {
	var b strings.Builder
	b.WriteString(string(e.Guard))
	for _, f := range exceptionFields {
		if v := f.get(&e); f.Condition && v != "" {
			b.WriteString(" " + f.Name + "=" + quotedWord(v))
		}
	}
	return b.String()
}

func quotedWord(s string) string {
	if strings.ContainsAny(s, " \t\"'=") {
		return strconv.Quote(s)
	}
	return s
}

// Validate checks an exception that no [Builder] made, and returns everything
// that is wrong with it, joined.
func (e Exception) Validate() error {
	var errs []error
	for _, f := range exceptionFields {
		if v := f.get(&e); v != "" {
			if err := f.set(&Exception{}, v); err != nil {
				errs = append(errs, err.at(e.Origin))
			}
		}
	}
	return errors.Join(append(errs, e.whole()...)...)
}

// whole returns what is wrong with the exception as one.
func (e Exception) whole() []error {
	var errs []error
	add := func(reason, hint string) {
		errs = append(errs, &Error{Origin: e.Origin, What: "exception", Reason: reason, Hint: hint})
	}
	if e.Guard == "" {
		add("names no guard", "add guard = \""+guardWords()[0]+"\"")
	}
	g, known := LookupGuard(e.Guard)
	access := e.Process != "" || e.Module != "" || e.Symbol != "" || e.Target != "" || e.TargetModule != "" || e.Bytes != "" || e.Value != ""
	finding := e.Object != "" || e.What != ""
	switch {
	case known && g.Finds && access:
		add("has a condition of who wrote what, which is not known of what the guard finds", "say which finding: object, what")
	case known && g.Finds && !finding:
		add("permits everything that the guard is for", "say which finding: object, what; or set the guard to off")
	case known && !g.Finds && finding:
		add("has an object or what, and the guard is none that looks", "say who or what: process, module, symbol, target, target_module, bytes or value")
	case !access && !finding:
		add("permits everything that the guard is for", "say who or what: process, module, symbol, target, target_module, bytes or value; or set the guard to off")
	}
	if e.Module != "" && e.Symbol != "" {
		add("has both a module and a symbol", "a module's own symbols are not known: leave one out")
	}
	if e.Target != "" && e.TargetModule != "" {
		add("has both a target and a target_module", "a module's own symbols are not known: leave one out")
	}
	if e.Bytes != "" && e.Value != "" {
		add("has both bytes and a value", "bytes are of memory, a value is of a register: leave one out")
	}
	if !e.Expires.IsZero() && !e.Created.IsZero() && !e.Created.Before(e.Expires) {
		add("expires before it was made", "")
	}
	return errs
}

// Word is a key with its value, as a front end found them.
type Word struct {
	Key, Text string
	// KeyAt and At are where they were written.
	KeyAt, At Origin
}

// Exception adds one exception from its words. at is where it begins; not are
// keys that cannot be used here.
func (b *Builder) Exception(words []Word, at Origin, not ...string) {
	e := Exception{Origin: written(at)}
	wrong := false
	fail := func(err *Error, o Origin) {
		wrong = true
		b.Fail(err.at(written(o)))
	}
	seen := map[string]Origin{}
next:
	for _, w := range words {
		var known []string
		for _, f := range exceptionFields {
			known = append(known, f.Name)
			if f.Name != w.Key {
				continue
			}
			if first, ok := seen[w.Key]; ok {
				fail(twice(w.Key, first, w.KeyAt), w.KeyAt)
				continue next
			}
			seen[w.Key] = w.KeyAt
			for _, n := range not {
				if n == w.Key {
					fail(&Error{What: w.Key, Reason: "cannot be set here", Hint: "the domains that name the policy have the exception"}, w.KeyAt)
					continue next
				}
			}
			if err := f.set(&e, w.Text); err != nil {
				fail(err, w.At)
			}
			continue next
		}
		fail(UnknownWord("setting of an exception", w.Key, known, Origin{}), w.KeyAt)
	}
	if wrong {
		return
	}
	for _, err := range e.whole() {
		wrong = true
		b.Fail(err)
	}
	if first, ok := b.exceptionAt[e.ID()]; ok && !wrong {
		b.Fail(&Error{Origin: e.Origin, What: "exception", Reason: "is there twice", Hint: "the first is at " + first.String()})
		return
	}
	if b.exceptionAt == nil {
		b.exceptionAt = map[string]Origin{}
	}
	b.exceptionAt[e.ID()] = e.Origin
	b.exceptions = append(b.exceptions, e)
}

// BuildExceptions returns the exceptions that were added, or every problem
// joined.
func (b *Builder) BuildExceptions() ([]Exception, error) {
	if err := errors.Join(b.errs...); err != nil {
		return nil, err
	}
	return b.exceptions, nil
}

func checkExceptions(list []Exception) []error {
	var errs []error
	for _, e := range list {
		if err := e.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(list) > MaxExceptions {
		errs = append(errs, &Error{What: "exceptions", Reason: fmt.Sprintf("are more than %d", MaxExceptions)})
	}
	return errs
}
