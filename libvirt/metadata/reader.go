package metadata

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
)

// reader walks a document. encoding/xml splits it into tokens and checks their
// spelling; that tags match, that no attribute is written twice and what prefix
// means what namespace is checked here, because encoding/xml is generous about
// all three, and because libvirt's own parser is not.
type reader struct {
	source string
	doc    []byte
	dec    *xml.Decoder
	open   []element // the tags around here, the innermost last
	rooted bool      // the outermost element was seen
	errs   []error
}

// element is a tag that was opened.
type element struct {
	raw   xml.Name // Space is the prefix
	space string   // the namespace
	bound map[string]string
	attrs []attribute
	from  int // where it begins in the document
}

// attribute is one that is not a declaration of a namespace.
type attribute struct {
	raw   xml.Name
	space string
	value string
	from  int
}

// is reports whether the element has that name in no namespace.
func (e element) is(name string) bool { return e.space == "" && e.raw == xml.Name{Local: name} }

// written is the name as it was written.
func written(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

type tokenKind uint8

const (
	opened tokenKind = iota + 1
	closed
	text
	ended  // of the document
	broken // the error is in errs
)

// maxErrors is the number of errors after which a document is given up.
const maxErrors = 32

func (r *reader) fail(err error) { r.errs = append(r.errs, err) }

// origin turns an offset into a place. It walks through the document up to
// there, so it is called for what is ours and for errors only.
func (r *reader) origin(offset int) policy.Origin {
	before := r.doc[:min(offset, len(r.doc))]
	return policy.Origin{
		Source: r.source,
		Line:   1 + bytes.Count(before, []byte{'\n'}),
		Column: len(before) - bytes.LastIndexByte(before, '\n'),
	}
}

func (r *reader) malformed(offset int, reason string) tokenKind {
	r.fail(&policy.Error{Origin: r.origin(offset), What: "XML", Reason: "is not well-formed: " + reason})
	return broken
}

// start prepares the reader; false if there is nothing to read.
func (r *reader) start() bool {
	switch {
	case len(r.doc) > MaxXML:
		r.fail(&policy.Error{
			Origin: policy.Origin{Source: r.source}, What: "XML",
			Reason: fmt.Sprintf("is longer than %d MiB", MaxXML>>20),
		})
		return false
	case len(bytes.Trim(r.doc, blanks)) == 0:
		r.fail(&policy.Error{Origin: policy.Origin{Source: r.source}, What: "XML", Reason: "is empty"})
		return false
	}
	r.doc = bytes.TrimPrefix(r.doc, []byte("\ufeff"))
	r.dec = xml.NewDecoder(bytes.NewReader(r.doc))
	return true
}

// next reads one token: an element that opens, which is then the last of
// r.open; one that closes, which is returned and no longer in r.open; or text.
func (r *reader) next() (tokenKind, element, string) {
	for {
		if len(r.errs) >= maxErrors {
			return broken, element{}, ""
		}
		from := int(r.dec.InputOffset())
		tok, err := r.dec.RawToken()
		to := int(r.dec.InputOffset())
		if err != nil {
			return r.stop(from, to, err), element{}, ""
		}
		switch t := tok.(type) {
		case xml.StartElement:
			return r.push(t, from, to), element{}, ""
		case xml.EndElement:
			if len(r.open) == 0 {
				return r.malformed(from, "</"+quoted(written(t.Name))+"> closes nothing"), element{}, ""
			}
			last := r.open[len(r.open)-1]
			if last.raw != t.Name {
				return r.malformed(from, fmt.Sprintf("</%s> where </%s> is due, which was opened at %s",
					quoted(written(t.Name)), quoted(written(last.raw)), r.origin(last.from))), element{}, ""
			}
			r.open = r.open[:len(r.open)-1]
			return closed, last, ""
		case xml.CharData:
			if len(r.open) == 0 && len(bytes.Trim(t, blanks)) > 0 {
				return r.malformed(from, "there is text outside of the element"), element{}, ""
			}
			return text, element{}, string(t)
		case xml.Directive:
			r.fail(&policy.Error{
				Origin: r.origin(from), What: "XML", Reason: "has a document type, and hvi reads none with entities of its own",
				Hint: "take the <!…> out",
			})
			return broken, element{}, ""
		}
		// A comment or an instruction to somebody else.
	}
}

// stop explains the end of the tokens.
func (r *reader) stop(from, to int, err error) tokenKind {
	var syntax *xml.SyntaxError
	switch {
	case errors.As(err, &syntax) && to >= len(r.doc) && strings.Contains(syntax.Msg, "EOF"):
		return r.malformed(from, "it ends in the middle of a tag, a comment or a reference")
	case errors.As(err, &syntax):
		return r.malformed(to, quoted(syntax.Msg))
	case !errors.Is(err, io.EOF):
		// An encoding other than UTF-8, for one.
		return r.malformed(from, quoted(strings.TrimPrefix(err.Error(), "xml: ")))
	case len(r.open) > 0:
		last := r.open[len(r.open)-1]
		return r.malformed(to, fmt.Sprintf("it ends, and <%s> of %s is still open", quoted(written(last.raw)), r.origin(last.from)))
	case !r.rooted:
		return r.malformed(to, "there is no element in it")
	}
	return ended
}

// push enters an element.
func (r *reader) push(t xml.StartElement, from, to int) tokenKind {
	name := quoted(written(t.Name))
	switch {
	case len(r.open) == 0 && r.rooted:
		return r.malformed(from, "<"+name+"> follows the end of the document")
	case len(r.open) >= maxDepth:
		return r.malformed(from, fmt.Sprintf("<%s> is nested more than %d deep", name, maxDepth))
	}
	r.rooted = true
	e := element{raw: t.Name, from: from}
	places := attributePlaces(r.doc[from:to])
	seen := make(map[xml.Name]bool, len(t.Attr))
	for i, a := range t.Attr {
		at := from
		if i < len(places) {
			at += places[i]
		}
		if seen[a.Name] {
			return r.malformed(at, fmt.Sprintf("attribute %s is written twice in <%s>", quoted(written(a.Name)), name))
		}
		seen[a.Name] = true
		switch {
		case a.Name.Space == "xmlns":
			if a.Value == "" {
				return r.malformed(at, "prefix "+quoted(a.Name.Local)+" stands for no namespace")
			}
			e.bind(a.Name.Local, a.Value)
		case a.Name == xml.Name{Local: "xmlns"}:
			e.bind("", a.Value)
		default:
			e.attrs = append(e.attrs, attribute{raw: a.Name, value: a.Value, from: at})
		}
	}
	r.open = append(r.open, e)
	top := &r.open[len(r.open)-1]
	top.space = r.namespace(t.Name.Space)
	full := make(map[xml.Name]bool, len(top.attrs))
	for i := range top.attrs {
		a := &top.attrs[i]
		if a.raw.Space == "" {
			continue
		}
		a.space = r.namespace(a.raw.Space)
		n := xml.Name{Space: a.space, Local: a.raw.Local}
		if full[n] {
			return r.malformed(a.from, fmt.Sprintf("attribute %s is written twice in <%s>, under two prefixes", quoted(a.raw.Local), name))
		}
		full[n] = true
	}
	return opened
}

func (e *element) bind(prefix, space string) {
	if e.bound == nil {
		e.bound = map[string]string{}
	}
	e.bound[prefix] = space
}

// undeclared stands for the namespace of a prefix that nobody declared. No
// document can contain it.
const undeclared = "\x00"

// namespace is what a prefix means here.
func (r *reader) namespace(prefix string) string {
	for i := len(r.open) - 1; i >= 0; i-- {
		if s, ok := r.open[i].bound[prefix]; ok {
			return s
		}
	}
	switch prefix {
	case "":
		return ""
	case "xml":
		return "http://www.w3.org/XML/1998/namespace"
	}
	return undeclared
}

// blanks are XML's.
const blanks = " \t\r\n"

// attributePlaces returns where in a start tag, which is known to be well
// spelled, its attributes begin.
func attributePlaces(tag []byte) []int {
	i := bytes.IndexAny(tag, blanks)
	var places []int
	for i >= 0 && i < len(tag) {
		for i < len(tag) && strings.IndexByte(blanks, tag[i]) >= 0 {
			i++
		}
		if i >= len(tag) || tag[i] == '/' || tag[i] == '>' {
			break
		}
		places = append(places, i)
		open := bytes.IndexAny(tag[i:], `"'`)
		if open < 0 {
			break
		}
		i += open
		end := bytes.IndexByte(tag[i+1:], tag[i])
		if end < 0 {
			break
		}
		i += end + 2
	}
	return places
}

// quoted makes a piece of the document fit for a message, without the quotes.
func quoted(s string) string {
	q := policy.Quote(s)
	if rest, cut := strings.CutSuffix(q, "…"); cut {
		return rest[1:len(rest)-1] + "…"
	}
	return q[1 : len(q)-1]
}

// skip passes over the rest of the element that was opened last.
func (r *reader) skip() bool {
	for depth := len(r.open); len(r.open) >= depth; {
		if k, _, _ := r.next(); k == broken || k == ended {
			return false
		}
	}
	return true
}

// content reads the text of the element that was opened last, to its end.
func (r *reader) content() (string, bool) {
	var b strings.Builder
	depth := len(r.open)
	for {
		switch k, _, s := r.next(); k {
		case text:
			if len(r.open) == depth {
				b.WriteString(s)
			}
		case closed:
			if len(r.open) < depth {
				return b.String(), true
			}
		case broken, ended:
			return "", false
		}
	}
}

// end expects nothing more.
func (r *reader) end() {
	for {
		if k, _, _ := r.next(); k == broken || k == ended {
			return
		}
	}
}

// domain reads a whole domain.
func (r *reader) domain() (d Domain) {
	if !r.start() || !r.first() {
		return d
	}
	root := r.open[0]
	if !root.is("domain") {
		r.fail(&policy.Error{
			Origin: r.origin(root.from), What: "XML", Value: written(root.raw), Reason: "is not the XML of a domain",
			Hint: "its outermost element is <domain>: see virsh dumpxml",
		})
		return d
	}
	for _, a := range root.attrs {
		if a.raw == (xml.Name{Local: "type"}) {
			d.Type = a.value
		}
	}
	named, identified := false, false
	for {
		switch k, _, _ := r.next(); k {
		case closed:
			r.end()
			return d
		case broken, ended:
			return d
		case opened:
		default:
			continue
		}
		e := r.open[len(r.open)-1]
		var ok bool
		switch {
		case e.is("name") && !named:
			named = true
			d.Name, ok = r.content()
		case e.is("uuid") && !identified:
			identified = true
			var s string
			s, ok = r.content()
			d.UUID = canonical(s)
		case e.is("metadata"):
			ok = r.metadata(&d)
		case e.space == Namespace:
			r.fail(&policy.Error{
				Origin: r.origin(e.from), What: "element", Value: written(e.raw), Reason: "is outside of <metadata>, where libvirt drops it",
				Hint: "move it into <metadata> in <domain>",
			})
			ok = r.skip()
		default:
			ok = r.skip()
		}
		if !ok {
			return d
		}
	}
}

// first enters the outermost element.
func (r *reader) first() bool {
	for {
		switch k, _, _ := r.next(); k {
		case opened:
			return true
		case broken, ended:
			return false
		}
	}
}

// single reads an element that stands alone.
func (r *reader) single() *Element {
	if !r.start() || !r.first() {
		return nil
	}
	e := r.open[0]
	if e.raw.Local != Root || (e.space != Namespace && e.space != "") {
		r.fail(r.nearMiss(e, true))
		return nil
	}
	el, ok := r.introspection(e.space)
	if ok {
		r.end()
	}
	return el
}

// metadata reads what is kept with a domain. Each element belongs to the one
// whose namespace it has.
func (r *reader) metadata(d *Domain) bool {
	for {
		switch k, _, _ := r.next(); k {
		case closed:
			return true
		case broken, ended:
			return false
		case opened:
		default:
			continue
		}
		e := r.open[len(r.open)-1]
		switch {
		case e.space == Namespace && e.raw.Local == Root:
			first := d.Element
			el, ok := r.introspection(Namespace)
			if !ok {
				return false
			}
			if first != nil {
				r.fail(&policy.Error{
					Origin: r.origin(e.from), What: "element", Value: written(e.raw), Reason: "is there twice, and libvirt keeps one of a namespace",
					Hint: "the first is at " + first.At.String(),
				})
				continue
			}
			d.Element = el
			continue
		default:
			if err := r.nearMiss(e, false); err != nil {
				r.fail(err)
			}
		}
		if !r.skip() {
			return false
		}
	}
}

// nearMiss says why an element that is not ours should have been, or nil if it
// is somebody else's. With sure there is no doubt that it should be ours.
func (r *reader) nearMiss(e element, sure bool) error {
	declare := fmt.Sprintf(`write <%s:%s xmlns:%s="%s" …>`, Prefix, Root, Prefix, Namespace)
	bad := func(what, value, reason string) error {
		return &policy.Error{Origin: r.origin(e.from), What: what, Value: value, Reason: reason, Hint: declare}
	}
	like := strings.EqualFold(e.raw.Local, Root) || policy.Nearest(e.raw.Local, []string{Root}) != ""
	switch {
	case e.space == Namespace && e.raw.Local == childGuard:
		return bad("element", written(e.raw), "stands alone; it belongs into <"+Prefix+":"+Root+">")
	case e.space == Namespace:
		u := policy.UnknownWord("element", written(e.raw), []string{Root}, r.origin(e.from))
		u.Hint = declare
		return u
	case e.space == undeclared && (e.raw.Space == Prefix || like):
		return bad("prefix", e.raw.Space, "is not declared, so libvirt drops the element")
	case e.space == "" && like:
		return bad("element", written(e.raw), "is in no namespace, so libvirt drops it")
	case closeTo(e.space):
		return bad("namespace", e.space, fmt.Sprintf("is not the one this version knows, %s", Namespace))
	case sure:
		return bad("element", written(e.raw), "is not hvi's")
	}
	return nil
}

// closeTo reports whether a namespace is nobody's but a misspelling of ours, or
// ours in a version that is unknown here.
func closeTo(space string) bool {
	if space == "" || space == undeclared {
		return false
	}
	s := strings.ToLower(space)
	family, _, _ := strings.Cut(Namespace, ":domain")
	return strings.EqualFold(space, Namespace) || s == family || strings.HasPrefix(s, family+":") ||
		strings.HasPrefix(s, strings.ReplaceAll(family, "xen-hvi", "hvi")+":") || strings.Contains(s, "xen-hvi:domain")
}

// introspection reads our element, which was opened last, to its end. space is
// the namespace it and its children are in.
func (r *reader) introspection(space string) (*Element, bool) {
	at := r.open[len(r.open)-1]
	e := &Element{At: r.origin(at.from)}
	r.words(at, rootAttrs, map[string]*Word{attrMode: &e.Mode, attrPolicy: &e.Policy, attrRequireAttach: &e.RequireAttach, attrEngineFailure: &e.OnEngineFailure})
	if e.Mode.At.IsZero() {
		r.fail(missing(attrMode, written(at.raw), e.At, policy.Modes()))
	}
	for {
		k, _, s := r.next()
		switch k {
		case closed:
			return e, true
		case broken, ended:
			return nil, false
		case text:
			r.blank(s, at)
			continue
		}
		c := r.open[len(r.open)-1]
		if c.raw.Local == childGuard && c.space == space {
			g, ok := r.guard(c)
			if !ok {
				return nil, false
			}
			if len(e.Guards) == MaxGuards {
				r.fail(&policy.Error{Origin: r.origin(c.from), What: "element", Value: written(c.raw), Reason: fmt.Sprintf("is one guard more than the %d that are read", MaxGuards)})
				return nil, false
			}
			e.Guards = append(e.Guards, g)
			continue
		}
		u := policy.UnknownWord("element", written(c.raw), []string{childGuard}, r.origin(c.from))
		if c.raw.Local == childGuard {
			u.Nearest, u.Reason = "", "is not in the namespace of the element around it"
			u.Hint = "write it with the same prefix"
		}
		r.fail(u)
		if !r.skip() {
			return nil, false
		}
	}
}

// guard reads one guard, which was opened last, to its end.
func (r *reader) guard(c element) (g Guard, ok bool) {
	r.words(c, guardAttrs, map[string]*Word{attrName: &g.Name, attrAction: &g.Action})
	if g.Name.At.IsZero() {
		var known []string
		for _, k := range policy.Guards() {
			known = append(known, string(k.Name))
		}
		r.fail(missing(attrName, written(c.raw), r.origin(c.from), known))
	}
	if g.Action.At.IsZero() {
		r.fail(missing(attrAction, written(c.raw), r.origin(c.from), policy.Actions()))
	}
	for {
		k, _, s := r.next()
		switch k {
		case closed:
			return g, true
		case broken, ended:
			return g, false
		case text:
			r.blank(s, c)
		case opened:
			inner := r.open[len(r.open)-1]
			r.fail(&policy.Error{Origin: r.origin(inner.from), What: "element", Value: written(inner.raw), Reason: "is inside a guard, which is empty"})
			if !r.skip() {
				return g, false
			}
		}
	}
}

// blank complains about text.
func (r *reader) blank(s string, in element) {
	if t := strings.Trim(s, blanks); t != "" {
		r.fail(&policy.Error{Origin: r.origin(in.from), What: "text", Value: t, Reason: "is inside <" + quoted(written(in.raw)) + ">, which has none"})
	}
}

// words takes the attributes of an element of ours.
func (r *reader) words(e element, known []string, into map[string]*Word) {
	for _, a := range e.attrs {
		w := into[a.raw.Local]
		switch {
		case a.raw.Space != "" && w != nil:
			r.fail(&policy.Error{Origin: r.origin(a.from), What: "attribute", Value: written(a.raw), Reason: "has a prefix", Hint: "write " + a.raw.Local})
		case a.raw.Space != "" || w == nil:
			r.fail(policy.UnknownWord("attribute", written(a.raw), known, r.origin(a.from)))
		case len(a.value) > maxWord:
			r.fail(&policy.Error{Origin: r.origin(a.from), What: "attribute", Value: a.raw.Local, Reason: fmt.Sprintf("has a value of more than %d bytes", maxWord)})
		default:
			*w = Word{a.value, r.origin(a.from)}
		}
	}
}

// canonical is a UUID in the form libvirt prints, or "". Like libvirt it takes
// hyphens anywhere between the digits and blanks around them.
func canonical(s string) string {
	s = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
