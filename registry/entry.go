package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Toolstacks, as [Entry.Toolstack] names who said something.
const (
	ToolstackXL      = "xl"
	ToolstackLibvirt = "libvirt"
	// ToolstackFile is an admin's file in /etc/hvi/domains. What it said is
	// kept to be shown; the file is asked again each time.
	ToolstackFile   = "file"
	ToolstackHvictl = "hvictl"
)

// Entry is what was said about a domain.
type Entry struct {
	UUID xen.UUID
	// Name is the domain's name when it was said: any bytes, to be shown only
	// quoted. It is what people recognise it by; the UUID counts.
	Name string
	// Toolstack is whose word it is, one of the constants.
	Toolstack string
	// Source is where it was found, for people.
	Source string
	// Spec is what was declared; it may be that nothing is.
	Spec policy.Spec
	// Broken is why what was declared cannot be honoured, in which case Spec
	// declares nothing, or empty.
	Broken string
	// Required says of what is broken that, as far as it can be understood, the
	// domain may run only while it is attached to.
	Required bool
	// Asserted is when it was said: when the xl process was started, when it
	// was set by hand. What is said later beats it.
	Asserted time.Time
	// Captured is when it was written down.
	Captured time.Time
	// Standing says that it was said for the domain as such, by hand or by
	// `xl config-update`, and not by who creates it: it holds against an xl
	// process that is older, which would say again what it said at first.
	Standing bool
	// Suspended says that the domain was once saved or migrated, or is yet to
	// come from another host, so that it may appear at any time.
	Suspended bool
	// Gone is when the domain ended, and End how; zero while it lives.
	Gone time.Time
	End  End
	// Domain is the number the domain had when it was seen last, 0 if it never
	// was.
	Domain xen.DomID
	// Next is what holds from the next restart on, or nil.
	Next *Next
}

// Next is what was said about the next restart of a domain.
type Next struct {
	// Name is the name it will have, and UUID its UUID if HasUUID; xl makes up
	// a new one for a config without.
	Name    string
	UUID    xen.UUID
	HasUUID bool
	Source  string
	Spec    policy.Spec
	// Broken is what is wrong with it, in which case Spec declares nothing, or
	// empty.
	Broken string
	// Required is as in Entry.
	Required bool
	Asserted time.Time
}

// End is how a domain ended.
type End uint8

const (
	// Alive is a domain that did not end.
	Alive End = iota
	// Destroyed is a domain that a toolstack ended while it ran.
	Destroyed
	// PoweredOff is a guest that ended by itself and usually stays so.
	PoweredOff
	// Restarting is a guest that asked to be rebooted, or crashed: a toolstack
	// commonly starts it anew.
	Restarting
	// Saved is a guest that was suspended.
	Saved
	// Unseen is a domain that is not there, and nobody saw it end, or begin.
	Unseen
)

var endWords = []string{Alive: "alive", Destroyed: "destroyed", PoweredOff: "powered off", Restarting: "restarting", Saved: "saved", Unseen: "unseen"}

// String is the end in lower case.
func (e End) String() string {
	if int(e) < len(endWords) {
		return endWords[e]
	}
	return fmt.Sprintf("end(%d)", uint8(e))
}

// EndOf tells how a domain ended from what Xen said of it last.
func EndOf(info xen.DomainInfo) End {
	if !info.Shutdown {
		return Destroyed
	}
	switch info.ShutdownReason.String() {
	case "poweroff":
		return PoweredOff
	case "suspend":
		return Saved
	default:
		return Restarting
	}
}

// Limits of an entry's file.
const (
	// MaxEntrySize is the largest file that is read or written, in bytes.
	MaxEntrySize = 1 << 20
	// MaxText is the longest name or source that is kept, in bytes. Xen's
	// toolstacks have no limit but xenstore's, which is this.
	MaxText = 4096

	formatVersion = 1
)

// record is an entry as it is written.
type record struct {
	Version   int         `json:"version"`
	UUID      xen.UUID    `json:"uuid"`
	Name      anyBytes    `json:"name"`
	Toolstack string      `json:"toolstack"`
	Source    anyBytes    `json:"source"`
	Spec      policy.Spec `json:"declared"`
	Broken    anyBytes    `json:"broken,omitempty"`
	Required  bool        `json:"required,omitempty"`
	Asserted  time.Time   `json:"asserted,omitzero"`
	Captured  time.Time   `json:"captured"`
	Standing  bool        `json:"standing,omitempty"`
	Suspended bool        `json:"suspended,omitempty"`
	Gone      time.Time   `json:"gone,omitzero"`
	End       End         `json:"end,omitempty"`
	Domain    xen.DomID   `json:"domid,omitempty"`
	Next      *nextRecord `json:"next,omitempty"`
}

type nextRecord struct {
	Name     anyBytes    `json:"name"`
	UUID     *xen.UUID   `json:"uuid,omitempty"`
	Source   anyBytes    `json:"source"`
	Spec     policy.Spec `json:"declared"`
	Broken   anyBytes    `json:"broken,omitempty"`
	Required bool        `json:"required,omitempty"`
	Asserted time.Time   `json:"asserted"`
}

// anyBytes is text that may hold any bytes: a string in JSON if it is UTF-8,
// and otherwise an object with the bytes in base64, since JSON has no other way
// to keep them.
type anyBytes string

func (s anyBytes) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(s)) {
		return json.Marshal(string(s))
	}
	return json.Marshal(map[string][]byte{"bytes": []byte(s)})
}

func (s *anyBytes) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		var text string
		err := json.Unmarshal(data, &text)
		*s = anyBytes(text)
		return err
	}
	var raw struct {
		Bytes []byte `json:"bytes"`
	}
	err := strictly(data, &raw)
	*s = anyBytes(raw.Bytes)
	return err
}

// strictly decodes one JSON value without unknown fields.
func strictly(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the entry")
	}
	return nil
}

// check says what is wrong with an entry, or nil.
func (e Entry) check() error {
	var errs []error
	switch e.Toolstack {
	case ToolstackXL, ToolstackLibvirt, ToolstackFile, ToolstackHvictl:
	default:
		errs = append(errs, fmt.Errorf("unknown toolstack %s", policy.Quote(e.Toolstack)))
	}
	texts := []string{e.Name, e.Source, e.Broken}
	if e.Next != nil {
		texts = append(texts, e.Next.Name, e.Next.Source, e.Next.Broken)
		errs = append(errs, e.Next.Spec.Validate())
		if e.Next.Broken != "" && e.Next.Spec.Declared() {
			errs = append(errs, errors.New("what holds from the next restart on is both broken and declared"))
		}
	}
	if e.Broken != "" && e.Spec.Declared() {
		errs = append(errs, errors.New("it is both broken and declared"))
	}
	for _, s := range texts {
		if len(s) > MaxText {
			errs = append(errs, fmt.Errorf("%s is longer than %d bytes", policy.Quote(s), MaxText))
		}
	}
	if int(e.End) >= len(endWords) {
		errs = append(errs, fmt.Errorf("unknown %v", e.End))
	}
	return errors.Join(append(errs, e.Spec.Validate())...)
}

// EncodeEntry gives an entry the form that [DecodeEntry] reads: JSON on several
// lines, for files and for other hosts.
func EncodeEntry(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("what is declared for %v cannot be kept: %w", e.UUID, err)
	}
	r := record{
		Version: formatVersion, UUID: e.UUID, Name: anyBytes(e.Name), Toolstack: e.Toolstack,
		Source: anyBytes(e.Source), Spec: e.Spec, Broken: anyBytes(e.Broken), Required: e.Required, Asserted: e.Asserted.UTC(), Captured: e.Captured.UTC(),
		Standing: e.Standing, Suspended: e.Suspended, Gone: e.Gone.UTC(), End: e.End, Domain: e.Domain,
	}
	if n := e.Next; n != nil {
		r.Next = &nextRecord{
			Name: anyBytes(n.Name), Source: anyBytes(n.Source), Spec: n.Spec, Broken: anyBytes(n.Broken), Required: n.Required, Asserted: n.Asserted.UTC(),
		}
		if n.HasUUID {
			r.Next.UUID = &n.UUID
		}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode what is declared for %v: %w", e.UUID, err)
	}
	if len(data) >= MaxEntrySize {
		return nil, fmt.Errorf("what is declared for %v is larger than %d bytes", e.UUID, MaxEntrySize)
	}
	return append(data, '\n'), nil
}

// DecodeEntry reads what [EncodeEntry] wrote, and believes nothing of it that it
// has not checked.
func DecodeEntry(data []byte) (Entry, error) {
	if len(data) > MaxEntrySize {
		return Entry{}, fmt.Errorf("larger than %d bytes", MaxEntrySize)
	}
	var r record
	if err := strictly(data, &r); err != nil {
		return Entry{}, err
	}
	if r.Version != formatVersion {
		return Entry{}, fmt.Errorf("format version %d, want %d", r.Version, formatVersion)
	}
	e := Entry{
		UUID: r.UUID, Name: string(r.Name), Toolstack: r.Toolstack, Source: string(r.Source), Spec: r.Spec, Broken: string(r.Broken), Required: r.Required,
		Asserted: r.Asserted, Captured: r.Captured,
		Standing: r.Standing, Suspended: r.Suspended, Gone: r.Gone, End: r.End, Domain: r.Domain,
	}
	if n := r.Next; n != nil {
		e.Next = &Next{
			Name: string(n.Name), Source: string(n.Source), Spec: n.Spec, Broken: string(n.Broken), Required: n.Required, Asserted: n.Asserted,
		}
		if n.UUID != nil {
			e.Next.UUID, e.Next.HasUUID = *n.UUID, true
		}
	}
	if err := e.check(); err != nil {
		return Entry{}, err
	}
	return e, nil
}
