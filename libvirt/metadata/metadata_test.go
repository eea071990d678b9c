package metadata

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
)

// domain wraps what is inside <metadata> into a domain's XML, whose line 5 it
// begins at.
func domain(inner string) string {
	return `<domain type='xen' id='7'>
  <name>web1</name>
  <uuid>6A14B9B1-7d2b-4e3f-9f2a-0123456789ab</uuid>
  <metadata>
` + inner + `
  </metadata>
  <memory unit='KiB'>163840</memory>
  <devices><emulator>/usr/libexec/hvi/dm-gate</emulator></devices>
</domain>`
}

const ns = `xmlns:hvi="urn:xen-hvi:domain:1.0"`

func TestParseDomain(t *testing.T) {
	d, err := ParseDomain("web1.xml", []byte(domain(`    <other:app xmlns:other="urn:other"><other:introspection mode="bogus"/></other:app>
    <hvi:introspection xmlns:hvi="urn:xen-hvi:domain:1.0" mode="enforce"
        policy="default" require_attach="yes" on_engine_failure="pause">
      <hvi:guard name="kernel-text" action="alert"/>
    </hvi:introspection>`)))
	if err != nil {
		t.Fatal(err)
	}
	if d.Type != "xen" || d.Name != "web1" || d.UUID != "6a14b9b1-7d2b-4e3f-9f2a-0123456789ab" {
		t.Errorf("identity: %+v", d)
	}
	if d.Element == nil {
		t.Fatal("the element was not found")
	}
	s, err := d.Element.Spec(nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != policy.ModeEnforce || s.OnEngineFailure != policy.Pause || !s.RequireAttach || s.Preset != "default" {
		t.Errorf("spec: %+v", s)
	}
	if a := s.Effective().Action(policy.GuardKernelText); a != policy.ActionAlert {
		t.Errorf("kernel-text is %v", a)
	}
	for name, tt := range map[string]struct{ got, want string }{
		"element":        {d.Element.At.String(), "web1.xml:6:5"},
		"mode":           {s.Origins.Mode.String(), "web1.xml:6:59"},
		"policy":         {s.Origins.Preset.String(), "web1.xml:7:9"},
		"require_attach": {s.Origins.RequireAttach.String(), "web1.xml:7:26"},
		"guard":          {s.Guards[0].Origin.String(), "web1.xml:8:18"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is at %s, want %s", name, tt.got, tt.want)
		}
	}
}

func TestADomainWithoutOurs(t *testing.T) {
	for name, doc := range map[string]string{
		"no metadata":    `<domain type='xen'><name>a</name></domain>`,
		"empty metadata": domain(""),
		"foreign":        domain(`<libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:os id="x"/></libosinfo:libosinfo>`),
		// A backup program may keep a whole domain, ours with it, in its own.
		"quoted by another": domain(`<b:backup xmlns:b="urn:backup"><hvi:introspection ` + ns + ` mode="nonsense"/></b:backup>`),
		"same local name":   domain(`<introspection xmlns="urn:somebody-else" mode="x"/>`),
		"in a comment":      domain(`<!-- <hvi:introspection mode="enforce"/> -->`),
		"in CDATA":          domain(`<b:b xmlns:b="urn:b"><![CDATA[<hvi:introspection/>]]></b:b>`),
		"rebound prefix":    domain(`<hvi:thing xmlns:hvi="urn:high-voltage-installation"/>`),
		"foreign, unclean":  domain(`<b:b xmlns:b="urn:b"><c:undeclared/></b:b><nothing/>`),
		"byte order mark":   "\ufeff" + domain(""),
		"namespaced domain": `<domain type='xen' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name><qemu:commandline/></domain>`,
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ParseDomain("x", []byte(doc))
			if err != nil || d.Element != nil {
				t.Errorf("element %+v, error %v", d.Element, err)
			}
		})
	}
}

func TestParseDomainRefuses(t *testing.T) {
	ours := `<hvi:introspection ` + ns + ` mode="enforce"/>`
	for name, tt := range map[string]struct{ doc, want string }{
		"nothing":           {"", "x: XML is empty"},
		"blanks":            {" \n\t", "x: XML is empty"},
		"no XML":            {"hello", "x:1:1: XML is not well-formed: there is text outside"},
		"only a comment":    {"<!-- -->", "there is no element in it"},
		"another root":      {"<domstatus><domain/></domstatus>", `x:1:1: XML "domstatus" is not the XML of a domain`},
		"cut off":           {domain(ours)[:60], "XML is not well-formed: it ends"},
		"cut off in a tag":  {"<domain type='xe", "x:1:1: XML is not well-formed: it ends in the middle of a tag"},
		"left open":         {"<domain>\n<name>", "<name> of x:2:1 is still open"},
		"crossed":           {"<domain>\n <name></domain>", "x:2:8: XML is not well-formed: </domain> where </name> is due, which was opened at x:2:2"},
		"two roots":         {"<domain/>\n<domain/>", "x:2:1: XML is not well-formed: <domain> follows the end"},
		"document type":     {`<!DOCTYPE domain [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><domain><name>&b;</name></domain>`, "x:1:1: XML has a document type"},
		"entity":            {`<domain><name>&lol;</name></domain>`, "XML is not well-formed: invalid character entity &lol;"},
		"another encoding":  {`<?xml version="1.0" encoding="UTF-16"?><domain/>`, `x:1:1: XML is not well-formed: encoding \"UTF-16\"`},
		"not UTF-8":         {"<domain><name>\xff</name></domain>", "invalid UTF-8"},
		"too deep":          {strings.Repeat("<domain>", 300), "is nested more than 256 deep"},
		"attribute twice":   {`<domain type='xen' type='kvm'/>`, "x:1:20: XML is not well-formed: attribute type is written twice in <domain>"},
		"two prefixes":      {`<domain xmlns:a='u' xmlns:b='u' a:t='' b:t=''/>`, "x:1:40: XML is not well-formed: attribute t is written twice in <domain>, under two prefixes"},
		"empty prefix":      {`<domain xmlns:a=''/>`, "prefix a stands for no namespace"},
		"control character": {"<domain \x1b='x'/>", `x:1:9: XML is not well-formed`},

		"twice":                {domain(ours + "\n" + ours), `x:6:1: element "hvi:introspection" is there twice, and libvirt keeps one of a namespace; the first is at x:5:1`},
		"next version":         {domain(`<hvi:introspection xmlns:hvi="urn:xen-hvi:domain:2.0" mode="enforce"/>`), `x:5:1: namespace "urn:xen-hvi:domain:2.0" is not the one this version knows, urn:xen-hvi:domain:1.0`},
		"namespace case":       {domain(`<i xmlns="URN:xen-hvi:domain:1.0"/>`), "is not the one this version knows"},
		"namespace cut":        {domain(`<i xmlns="urn:xen-hvi"/>`), "is not the one this version knows"},
		"namespace misspelt":   {domain(`<i xmlns="urn:hvi:domain:1.0"/>`), "is not the one this version knows"},
		"namespace as a URL":   {domain(`<i xmlns="http://xen-hvi:domain/1.0"/>`), "is not the one this version knows"},
		"no namespace":         {domain(`<introspection mode="enforce"/>`), `x:5:1: element "introspection" is in no namespace, so libvirt drops it; write <hvi:introspection xmlns:hvi="urn:xen-hvi:domain:1.0"`},
		"almost, no namespace": {domain(`<Introspecton mode="enforce"/>`), "is in no namespace"},
		"undeclared prefix":    {domain(`<hvi:introspection mode="enforce"/>`), `prefix "hvi" is not declared, so libvirt drops the element`},
		"undeclared, other":    {domain(`<xen:introspection mode="enforce"/>`), `prefix "xen" is not declared`},
		"misspelt":             {domain(`<hvi:introspecton ` + ns + `/>`), `x:5:1: unknown element "hvi:introspecton"; did you mean "introspection"?`},
		"only the guard":       {domain(`<hvi:guard ` + ns + ` name="kernel-text" action="block"/>`), `x:5:1: element "hvi:guard" stands alone`},
		"outside":              {`<domain>` + ours + `</domain>`, "x:1:9: element \"hvi:introspection\" is outside of <metadata>"},
		"attribute":            {domain(`<hvi:introspection ` + ns + ` mode="enforce" polcy="x"/>`), `x:5:70: unknown attribute "polcy"; did you mean "policy"? (known: mode, policy, require_attach, on_engine_failure)`},
		"hyphen":               {domain(`<hvi:introspection ` + ns + ` mode="enforce" require-attach="yes"/>`), `unknown attribute "require-attach"; did you mean "require_attach"?`},
		"long word":            {domain(`<hvi:introspection ` + ns + ` mode="` + strings.Repeat("x", 300) + `"/>`), "has a value of more than 256 bytes"},
		"child":                {domain(`<hvi:introspection ` + ns + ` mode="enforce"><hvi:gard/></hvi:introspection>`), `x:5:70: unknown element "hvi:gard" (known: guard)`},
		"bare guard":           {domain(`<hvi:introspection ` + ns + ` mode="enforce"><guard name="kernel-text" action="off"/></hvi:introspection>`), `element "guard" is not in the namespace of the element around it`},
		"many guards":          {domain(`<hvi:introspection ` + ns + ` mode="enforce">` + strings.Repeat(`<hvi:guard name="kernel-text" action="off"/>`, 65) + `</hvi:introspection>`), "is one guard more than the 64"},
		"escape sequence":      {domain(`<hvi:introspection ` + ns + ` mode="enforce">&#x9b;2J</hvi:introspection>`), `text "\u009b2J" is inside <hvi:introspection>, which has none`},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ParseDomain("x", []byte(tt.doc))
			if err == nil {
				t.Fatalf("no error; %+v", d)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want %q in it", err, tt.want)
			}
			if d.Element != nil {
				t.Error("there is an element beside the error")
			}
			var e *policy.Error
			if !errors.As(err, &e) || e.Origin.Source != "x" {
				t.Errorf("the error does not say where: %#v", err)
			}
		})
	}
}

func TestAllErrorsAreTold(t *testing.T) {
	_, err := ParseDomain("x", []byte(domain(`<hvi:introspection `+ns+` polcy="a"><hvi:gard/><hvi:guard name="kernel-text"/></hvi:introspection>`)))
	if n := len(policy.Errors(err)); n != 4 {
		t.Errorf("%d errors, want 4:\n%v", n, err)
	}
}

func TestIdentitySurvivesABrokenElement(t *testing.T) {
	d, err := ParseDomain("x", []byte(domain(`<hvi:introspection `+ns+` mode="enforce" x=""/>`)))
	if err == nil || d.Name != "web1" || d.UUID == "" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestUUIDForms(t *testing.T) {
	const want = "01234567-89ab-cdef-0123-456789abcdef"
	for in, want := range map[string]string{
		"01234567-89AB-cdef-0123-456789abcdef":        want,
		" 0123456789abcdef0123456789abcdef\n":         want,
		"0123-4567-89ab-cdef-0123-4567-89ab-cdef":     want,
		"01234567-89ab-cdef-0123-456789abcde":         "",
		"01234567-89ab-cdef-0123-456789abcdeg":        "",
		"":                                            "",
		"../../../../../../../../../../../etc/passwd": "",
	} {
		if got := canonical(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestHostileNames(t *testing.T) {
	for written, want := range map[string]string{
		"../../x":                "../../x",
		"a b;rm":                 "a b;rm",
		"&lt;b&gt;":              "<b>",
		strings.Repeat("n", 200): strings.Repeat("n", 200),
		"žluť":                   "žluť",
		"a<!-- x -->b":           "ab",
		"a<x>y</x>b":             "ab",
	} {
		d, err := ParseDomain("x", []byte("<domain><name>"+written+"</name><name>second</name></domain>"))
		if err != nil || d.Name != want {
			t.Errorf("%q: name %q, %v", written, d.Name, err)
		}
	}
}

func TestLargeDocuments(t *testing.T) {
	if _, err := ParseDomain("x", make([]byte, MaxXML+1)); err == nil || !strings.Contains(err.Error(), "longer than 8 MiB") {
		t.Errorf("too long: %v", err)
	}
	// What is large must not take long: no step may cost what came before it.
	for name, filler := range map[string]string{
		"elements":  strings.Repeat("<guard a='1'/>\n", 300_000),
		"attribute": "<a " + manyAttributes(150_000) + "/>",
		"prefixes":  strings.Repeat("<a xmlns:b='u'><b:c/></a>", 100_000),
		"bad ones":  "<metadata>" + strings.Repeat("<introspection/>", 200_000) + "</metadata>",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := ParseDomain("x", []byte("<domain>"+filler+"</domain>"))
			if n := len(policy.Errors(err)); n > maxErrors {
				t.Errorf("%d errors", n)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func manyAttributes(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" a")
		for ; i > 0; i /= 26 {
			b.WriteByte(byte('a' + i%26))
		}
		b.WriteString("='1'")
	}
	return b.String()
}

func TestWhatLibvirtGives(t *testing.T) {
	// GetMetadata takes the namespace off.
	e, err := ParseElement("libvirt", []byte(`<introspection mode="enforce"><guard name="kernel-text" action="alert"/></introspection>`))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.Spec(nil); err != nil || len(s.Guards) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, doc := range []string{``, `<a/>`, `<introspection mode="enforce" xmlns="urn:o"/>`, `<introspection mode="off"/><a/>`, `<introspection><guard xmlns="urn:xen-hvi:domain:1.0" name="kernel-text" action="off"/></introspection>`} {
		if _, err := ParseElement("x", []byte(doc)); err == nil {
			t.Errorf("%s is taken", doc)
		}
	}
}

func TestSpecNeedsAMode(t *testing.T) {
	at := policy.Origin{Source: "x"}
	_, err := (&Element{At: at, Guards: []Guard{{Word{"kernel-text", at}, Word{"block", at}}}}).Spec(nil)
	if err == nil || !strings.Contains(err.Error(), `attribute "mode" is missing`) || len(policy.Errors(err)) != 1 {
		t.Errorf("error: %v", err)
	}
}

func TestPolicyNames(t *testing.T) {
	e, err := ParseElement("x", []byte(`<introspection mode="enforce" policy="web-server"/>`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Check(); err != nil {
		t.Errorf("a name that could be a policy's: %v", err)
	}
	if _, err := e.Spec(nil); err == nil {
		t.Error("a policy that is not there is taken")
	}
}

func TestRoundTrip(t *testing.T) {
	for _, name := range glob(t, "testdata/good/*.xml") {
		doc := read(t, name)
		e, err := ParseElement(name, doc)
		if err != nil {
			t.Fatal(err)
		}
		for form, text := range map[string]string{"whole": e.XML(), "bare": e.Bare(), "in a domain": domain(e.XML())} {
			var again *Element
			if form == "in a domain" {
				var d Domain
				d, err = ParseDomain(name, []byte(text))
				again = d.Element
			} else {
				again, err = ParseElement(name, []byte(text))
			}
			if err != nil {
				t.Errorf("%s, %s: %v\n%s", name, form, err, text)
				continue
			}
			a, errA := e.Spec(anyPolicy{})
			b, errB := again.Spec(anyPolicy{})
			if errA != nil || errB != nil || !a.SameIntent(b) {
				t.Errorf("%s, %s: %v, %v\n%s", name, form, errA, errB, text)
			}
			if c, err := Of(a).Spec(anyPolicy{}); err != nil || !a.SameIntent(c) {
				t.Errorf("%s: written from its spec it is %s (%v)", name, Of(a).XML(), err)
			}
		}
	}
	if Of(policy.Spec{}) != nil {
		t.Error("nothing declared makes an element")
	}
}

func TestEscaping(t *testing.T) {
	at := policy.Origin{Source: "x"}
	const evil = "\"/><a b='&<>\r\n\t"
	e := Element{At: at, Mode: Word{"off", at}, Policy: Word{evil, at}}
	again, err := ParseElement("x", []byte(e.XML()))
	if err != nil || again.Policy.Text != evil {
		t.Errorf("%q, %v", again, err)
	}
}

// TestTheGrammarsJudgeAlike holds the parser against the published grammars,
// where xmllint is installed. tools/test installs it, and requires it then.
func TestTheGrammarsJudgeAlike(t *testing.T) {
	xmllint, err := exec.LookPath("xmllint")
	judge := func(flag, file string) bool {
		return exec.Command(xmllint, "--noout", "--nonet", flag, "schema/introspection."+map[string]string{"--schema": "xsd", "--relaxng": "rng"}[flag], file).Run() == nil
	}
	for dir, want := range map[string]struct{ ours, xsd, rng bool }{
		"good":       {true, true, true},
		"bad":        {false, false, false},
		"xsd-misses": {false, true, false},
		"rng-misses": {false, false, true},
	} {
		for _, name := range glob(t, "testdata/"+dir+"/*.xml") {
			e, parseErr := ParseElement(name, read(t, name))
			if parseErr == nil {
				_, parseErr = e.Check()
			}
			if got := parseErr == nil; got != want.ours {
				t.Errorf("%s: parser says %v", name, parseErr)
			}
			if err != nil {
				continue
			}
			if got := judge("--schema", name); got != want.xsd {
				t.Errorf("%s: the XSD says %v, want %v", name, got, want.xsd)
			}
			if got := judge("--relaxng", name); got != want.rng {
				t.Errorf("%s: the RELAX NG says %v, want %v", name, got, want.rng)
			}
		}
	}
	switch {
	case err != nil && os.Getenv("HVI_OUTSIDE_TOOLS") == "required":
		t.Fatal(err)
	case err != nil:
		t.Skip("the grammars themselves were not asked: there is no xmllint")
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(names), err)
	}
	return names
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzParse(f *testing.F) {
	names, _ := filepath.Glob("testdata/*/*.xml")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add([]byte(domain(string(b))))
	}
	f.Add([]byte("<domain a='<'/>"))
	f.Add([]byte("<a\rb = \"'\"c='\"'/>"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		orig := bytes.Clone(doc)
		d, err := ParseDomain("x", doc)
		check := func(e *Element, err error) {
			if (e != nil) && (err != nil) {
				t.Error("an element and an error")
			}
			if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && (r < ' ' || r == 0x7f) }) {
				t.Errorf("the error would control a terminal: %q", err)
			}
			if e == nil {
				return
			}
			again, err := ParseElement("x", []byte(e.XML()))
			if err != nil {
				t.Errorf("what was read cannot be written: %v\n%s", err, e.XML())
				return
			}
			a, errA := e.Spec(anyPolicy{})
			b, errB := again.Spec(anyPolicy{})
			if (errA == nil) != (errB == nil) || !a.SameIntent(b) {
				t.Errorf("read %+v, written and read %+v", a, b)
			}
		}
		check(d.Element, err)
		if len(d.UUID) != 0 && len(d.UUID) != 36 {
			t.Errorf("UUID %q", d.UUID)
		}
		e, err := ParseElement("x", doc)
		if e == nil && err == nil {
			t.Error("neither an element nor an error")
		}
		check(e, err)
		if !bytes.Equal(orig, doc) {
			t.Error("the document was changed")
		}
	})
}
