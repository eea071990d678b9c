// Command gen writes the published grammars of hvi's element in libvirt domain
// XML, from the vocabulary that package policy knows. Run it with go generate
// in libvirt/metadata.
//
// Each grammar says what its language can: XSD 1.0 that a guard is set once,
// RELAX NG that mode observe blocks nothing and mode off requires nothing. The
// parser checks both.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/libvirt/metadata"
)

func main() {
	for name, text := range map[string]string{"introspection.xsd": xsd(), "introspection.rng": rng()} {
		if err := os.WriteFile(filepath.Join("schema", name), []byte(text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "gen:", err)
			os.Exit(1)
		}
	}
}

// candidates are the words that could be a switch or a mode.
var candidates = append(policy.Modes(), "1", "on", "yes", "true", "0", "no", "false")

// modeWords returns the words of each mode.
func modeWords() map[policy.Mode][]string {
	words := map[policy.Mode][]string{}
	for _, c := range candidates {
		if m, err := policy.ParseMode(c); err == nil {
			words[m] = append(words[m], c)
		}
	}
	return words
}

// switchWords returns the words for yes or no.
func switchWords(want bool) (words []string) {
	for _, c := range candidates {
		if v, err := policy.ParseSwitch("", c); err == nil && v == want {
			words = append(words, c)
		}
	}
	return words
}

func guardNames() (names []string) {
	for _, g := range policy.Guards() {
		names = append(names, string(g.Name))
	}
	return names
}

// namePattern is what [policy.CheckName] takes, and the presets.
var namePattern = fmt.Sprintf(`[A-Za-z0-9][A-Za-z0-9._\-]{0,%d}`, policy.MaxName-1)

const made = `<!-- Made by go generate in libvirt/metadata. %s -->
`

func xsd() string {
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	enum := func(name string, words []string) {
		p(`  <xs:simpleType name="%s">`, name)
		p(`    <xs:restriction base="xs:string">`)
		for _, w := range words {
			p(`      <xs:enumeration value="%s"/>`, w)
		}
		p(`    </xs:restriction>`)
		p(`  </xs:simpleType>`)
	}
	p(`<?xml version="1.0" encoding="UTF-8"?>`)
	fmt.Fprintf(&b, made, "XSD 1.0 cannot say that mode observe blocks nothing, nor that mode off requires nothing: see introspection.rng.")
	p(`<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns="%s"`, metadata.Namespace)
	p(`           targetNamespace="%s" elementFormDefault="qualified">`, metadata.Namespace)
	p(`  <xs:element name="%s" type="introspection">`, metadata.Root)
	p(`    <xs:unique name="each-guard-once">`)
	p(`      <xs:selector xpath="*"/>`)
	p(`      <xs:field xpath="@name"/>`)
	p(`    </xs:unique>`)
	p(`  </xs:element>`)
	p(`  <xs:complexType name="introspection">`)
	p(`    <xs:sequence>`)
	p(`      <xs:element name="guard" type="guard" minOccurs="0" maxOccurs="%d"/>`, metadata.MaxGuards)
	p(`    </xs:sequence>`)
	p(`    <xs:attribute name="mode" type="mode" use="required"/>`)
	p(`    <xs:attribute name="policy" type="policy"/>`)
	p(`    <xs:attribute name="require_attach" type="switch"/>`)
	p(`    <xs:attribute name="on_engine_failure" type="engineFailure"/>`)
	p(`  </xs:complexType>`)
	p(`  <xs:complexType name="guard">`)
	p(`    <xs:simpleContent>`)
	p(`      <xs:extension base="blank">`)
	p(`        <xs:attribute name="name" type="guardName" use="required"/>`)
	p(`        <xs:attribute name="action" type="action" use="required"/>`)
	p(`      </xs:extension>`)
	p(`    </xs:simpleContent>`)
	p(`  </xs:complexType>`)
	p(`  <xs:simpleType name="blank">`)
	p(`    <xs:restriction base="xs:token">`)
	p(`      <xs:maxLength value="0"/>`)
	p(`    </xs:restriction>`)
	p(`  </xs:simpleType>`)
	modes := modeWords()
	var every []string
	for i := range policy.Modes() {
		every = append(every, modes[policy.Mode(i)]...)
	}
	enum("mode", every)
	enum("switch", append(switchWords(true), switchWords(false)...))
	enum("engineFailure", policy.EngineFailures())
	enum("guardName", guardNames())
	enum("action", policy.Actions())
	p(`  <xs:simpleType name="policy">`)
	p(`    <xs:restriction base="xs:string">`)
	p(`      <xs:pattern value="%s"/>`, namePattern)
	p(`    </xs:restriction>`)
	p(`  </xs:simpleType>`)
	p(`</xs:schema>`)
	return b.String()
}

func rng() string {
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	choice := func(indent, attribute string, words []string) {
		p(`%s<attribute name="%s">`, indent, attribute)
		p(`%s  <choice>`, indent)
		for _, w := range words {
			p(`%s    <value type="string">%s</value>`, indent, w)
		}
		p(`%s  </choice>`, indent)
		p(`%s</attribute>`, indent)
	}
	guard := func(name string, actions []string) {
		p(`  <define name="%s">`, name)
		p(`    <zeroOrMore>`)
		p(`      <element name="guard">`)
		choice("        ", "name", guardNames())
		choice("        ", "action", actions)
		p(`      </element>`)
		p(`    </zeroOrMore>`)
		p(`  </define>`)
	}
	p(`<?xml version="1.0" encoding="UTF-8"?>`)
	fmt.Fprintf(&b, made, "RELAX NG cannot say that a guard is set once: see introspection.xsd.")
	p(`<grammar xmlns="http://relaxng.org/ns/structure/1.0" ns="%s"`, metadata.Namespace)
	p(`         datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">`)
	p(`  <start>`)
	p(`    <element name="%s">`, metadata.Root)
	p(`      <ref name="policy"/>`)
	p(`      <choice>`)
	modes := modeWords()
	for i := range policy.Modes() {
		m := policy.Mode(i)
		require, guards := append(switchWords(true), switchWords(false)...), "guards"
		switch m {
		case policy.ModeOff:
			require = switchWords(false)
		case policy.ModeObserve:
			guards = "watching-guards"
		}
		p(`        <group>`)
		choice("          ", "mode", modes[m])
		p(`          <optional>`)
		choice("            ", "require_attach", require)
		p(`          </optional>`)
		p(`          <optional>`)
		choice("            ", "on_engine_failure", policy.EngineFailures())
		p(`          </optional>`)
		p(`          <ref name="%s"/>`, guards)
		p(`        </group>`)
	}
	p(`      </choice>`)
	p(`    </element>`)
	p(`  </start>`)
	p(`  <define name="policy">`)
	p(`    <optional>`)
	p(`      <attribute name="policy">`)
	p(`        <data type="string">`)
	p(`          <param name="pattern">%s</param>`, namePattern)
	p(`        </data>`)
	p(`      </attribute>`)
	p(`    </optional>`)
	p(`  </define>`)
	guard("guards", policy.Actions())
	guard("watching-guards", []string{policy.ActionOff.String(), policy.ActionAlert.String()})
	p(`</grammar>`)
	return b.String()
}
