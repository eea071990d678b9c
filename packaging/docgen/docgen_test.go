package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/packaging/manual"
)

// shown is a page's text as a reader has it, by its file's name.
func shown(t *testing.T) map[string]string {
	t.Helper()
	fonts := regexp.MustCompile(`\\f[BIR]`)
	got := map[string]string{}
	for _, p := range pages(manual.Build{Version: "1", Date: time.Unix(0, 0)}) {
		if _, twice := got[p.FileName()]; twice {
			t.Errorf("two pages are called %s", p.FileName())
		}
		got[p.FileName()] = strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(ti`, "~").Replace(fonts.ReplaceAllString(string(p.Bytes()), ""))
	}
	return got
}

// TestPagesThatAreReferredTo: a reader is sent to no page of ours that isn't
// there.
func TestPagesThatAreReferredTo(t *testing.T) {
	got := shown(t)
	ref := regexp.MustCompile(`\b(hvi[a-z-]*(?:\.toml)?)(?: |)\(([1-8])\)`)
	seen := 0
	for file, text := range got {
		for _, m := range ref.FindAllStringSubmatch(text, -1) {
			seen++
			if got[m[1]+"."+m[2]] == "" {
				t.Errorf("%s refers to %s", file, m[0])
			}
		}
	}
	if seen < len(got) {
		t.Errorf("only %d references in %d pages", seen, len(got))
	}
}

// TestEveryWordIsExplained: what can be written is in the page of the place
// where it is written.
func TestEveryWordIsExplained(t *testing.T) {
	got := shown(t)
	for _, k := range config.Keys() {
		name := k.Name[strings.LastIndexByte(k.Name, '.')+1:]
		if !strings.Contains(got["hvid.toml.5"], "\n"+name+" = ") {
			t.Errorf("hvid.toml(5) does not explain %s", k.Name)
		}
	}
	words := append(policy.Modes(), policy.Actions()...)
	for _, g := range policy.Guards() {
		words = append(words, string(g.Name))
	}
	for _, s := range policy.Presets() {
		words = append(words, s.Name)
	}
	for _, page := range []string{"hvi-policy.5", "hvi-xl.5", "hvi-libvirt.5"} {
		for _, w := range words {
			if !strings.Contains(got[page], ".TP\n"+w+"\n") {
				t.Errorf("%s does not explain %s", page, w)
			}
		}
	}
	for i, m := range policy.Modes() {
		if modeMeanings[policy.Mode(i)] == "" {
			t.Errorf("mode %s has no meaning", m)
		}
	}
	for i, a := range policy.Actions() {
		if actionMeanings[policy.Action(i)] == "" {
			t.Errorf("action %s has no meaning", a)
		}
	}
}

var someModules = []module{
	{"Go's standard library", "go1.99", []text{{"LICENSE", "Copyright 2009 The Go Authors.\n\nRedistribution is fine.\n"}}},
	{"example.org/a", "v1.2.3", []text{
		{"LICENSE.txt", "Apache License\nVersion 2.0, January 2004\n" + apacheMark + "\n...\nCopyright [yyyy] [name of copyright owner]\n"},
		{"NOTICE", "Copyright 2020 A, Inc.\n"},
	}},
}

func TestCopyright(t *testing.T) {
	var b bytes.Buffer
	if err := writeCopyright(&b, someModules); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{
		"\nFiles: vendor/std/*\nCopyright: Copyright 2009 The Go Authors.\nLicense: linked-1\nComment: Go's standard library go1.99\n",
		"\nLicense: linked-1\n Copyright 2009 The Go Authors.\n .\n Redistribution is fine.\n",
		"\nFiles: vendor/example.org/a/*\nCopyright: Copyright 2020 A, Inc.\n",
		"\nLicense: linked-2\n The Apache License, Version 2.0: see\n /usr/share/common-licenses/Apache-2.0.\n .\n Copyright 2020 A, Inc.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	for i, line := range strings.Split(got, "\n") {
		if strings.TrimRight(line, " ") != line || line == " " {
			t.Errorf("line %d ends with a blank: %q", i+1, line)
		}
	}
}

func TestNotice(t *testing.T) {
	var b bytes.Buffer
	writeNotice(&b, someModules)
	for _, want := range []string{"example.org/a v1.2.3\n", "\nLICENSE.txt\n\nApache License\n", "\nNOTICE\n\nCopyright 2020 A, Inc.\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("there is no %q in\n%s", want, b.String())
		}
	}
}

func TestTexts(t *testing.T) {
	if _, err := texts(t.TempDir()); err == nil {
		t.Error("a module without a licence is linked in silently")
	}
	for line, want := range map[string]bool{
		"Copyright 2009 The Go Authors.":             true,
		"Copyright (c) 2012 Alex Ogier":              true,
		"Copyright [yyyy] [name of copyright owner]": false,
		"Copyright {yyyy} {name}":                    false,
		"Copyright notice":                           false,
		"this Copyright":                             false,
	} {
		if isHolder(line) != want {
			t.Errorf("isHolder(%q) is %v", line, !want)
		}
	}
}
