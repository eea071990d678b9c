package main

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// module is one that is linked into a program, with what its licence demands
// to be passed on.
type module struct {
	path, version string
	texts         []text
}

// text is a licence's file.
type text struct{ name, body string }

// apacheMark is a line of the Apache License 2.0 and of no other licence.
const apacheMark = "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"

func (t text) apache() bool {
	return strings.Contains(t.body, apacheMark) && strings.Contains(t.body, "Version 2.0, January 2004")
}

// linked returns what is linked into the programs: Go's own library and every
// module, each once, in the order of their paths.
func linked(programs []string) ([]module, error) {
	versions := map[string]string{}
	goVersion := ""
	for _, p := range programs {
		info, err := buildinfo.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("%s: what is linked into it: %w", p, err)
		}
		goVersion = info.GoVersion
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				return nil, fmt.Errorf("%s: %s is replaced; a release has what go.mod says", p, dep.Path)
			}
			versions[dep.Path] = dep.Version
		}
	}
	root, err := exec.Command(goCommand(), "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go's own licence: %w", err)
	}
	std := module{path: "Go's standard library", version: goVersion}
	if std.texts, err = texts(strings.TrimSpace(string(root))); err != nil {
		return nil, err
	}
	all := []module{std}
	paths := make([]string, 0, len(versions))
	for path := range versions {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		m := module{path: path, version: versions[path]}
		dir, err := exec.Command(goCommand(), "list", "-m", "-f", "{{.Dir}}", path).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: find its source: %w", path, err)
		}
		if m.texts, err = texts(strings.TrimSpace(string(dir))); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// goCommand is the go command that built the programs; see packaging/build.
func goCommand() string {
	if own := os.Getenv("GO"); own != "" {
		return own
	}
	return "go"
}

// texts reads the files of dir that a licence consists of.
func texts(dir string) ([]text, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []text
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		stem, _, _ := strings.Cut(name, ".")
		stem, _, _ = strings.Cut(stem, "-")
		if e.IsDir() || !slices.Contains([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"}, stem) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		found = append(found, text{e.Name(), string(b)})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there is no licence in %s", dir)
	}
	return found, nil
}

// writeNotice writes every licence in full.
func writeNotice(w io.Writer, all []module) {
	fmt.Fprint(w, "hvi is licensed under the Apache License 2.0, see LICENSE.\n\n"+
		"Its programs are statically linked. The other software in them, and its\n"+
		"licences:\n")
	for _, m := range all {
		fmt.Fprintf(w, "\n%s\n%s %s\n", strings.Repeat("=", 78), m.path, m.version)
		for _, t := range m.texts {
			fmt.Fprintf(w, "%s\n%s\n\n%s\n", strings.Repeat("-", 78), t.name, strings.TrimRight(t.body, "\n"))
		}
	}
}

// writeCopyright writes Debian's copyright file, machine-readable as
// https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/ has it.
// Debian's base system has the Apache License, so it is referred to.
func writeCopyright(w io.Writer, all []module) error {
	fmt.Fprint(w, `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: hvi
Upstream-Contact: https://github.com/xen-hvi/hvi/issues
Source: https://github.com/xen-hvi/hvi
Comment:
 The programs are statically linked. The stanzas after the first are of the
 software that is linked into them; they were made from what each program says
 it was built from.

Files: *
Copyright: The hvi developers
License: Apache-2.0

License: Apache-2.0
 On Debian systems the full text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
`)
	for i, m := range all {
		name := fmt.Sprintf("linked-%d", i+1)
		files := "vendor/" + m.path + "/*"
		if i == 0 {
			files = "vendor/std/*"
		}
		holders, license := "The authors of "+m.path, new(bytes.Buffer)
		var who []string
		for _, t := range m.texts {
			if t.apache() {
				fmt.Fprint(license, " The Apache License, Version 2.0: see\n /usr/share/common-licenses/Apache-2.0.\n .\n")
			}
			lines := bufio.NewScanner(strings.NewReader(t.body))
			for lines.Scan() {
				line := strings.TrimRight(lines.Text(), " \t\r")
				if h := strings.TrimSpace(line); isHolder(h) && !slices.Contains(who, h) {
					who = append(who, h)
				}
				if t.apache() {
					continue
				}
				if strings.TrimSpace(line) == "" {
					line = "."
				}
				fmt.Fprintf(license, " %s\n", line)
			}
			if err := lines.Err(); err != nil {
				return fmt.Errorf("%s: %s: %w", m.path, t.name, err)
			}
		}
		if len(who) > 0 {
			holders = strings.Join(who, "\n ")
		}
		fmt.Fprintf(w, "\nFiles: %s\nCopyright: %s\nLicense: %s\nComment: %s %s\n\nLicense: %s\n%s",
			files, holders, name, m.path, m.version, name, license)
	}
	return nil
}

// isHolder reports whether a line of a licence says whose it is, and is not
// the form to fill in at the end of the Apache License.
func isHolder(line string) bool {
	return (strings.HasPrefix(line, "Copyright ") || strings.HasPrefix(line, "(C) ")) &&
		!strings.ContainsAny(line, "[{") && !strings.HasPrefix(line, "Copyright notice")
}
