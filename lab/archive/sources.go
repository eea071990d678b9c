package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one entry of apt's sources: every combination of its URIs and
// suites.
type aptSource struct {
	URIs       []string
	Suites     []string
	Components []string
	SignedBy   string
}

// parseSourcesList reads the one-line format of sources.list(5). Source
// packages and comments are passed over.
func parseSourcesList(what string, data []byte) ([]aptSource, error) {
	var out []aptSource
	line := 0
	for raw := range bytes.Lines(data) {
		line++
		text, _, _ := strings.Cut(string(raw), "#")
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		kind, rest := cutWord(text)
		var src aptSource
		if strings.HasPrefix(rest, "[") {
			opts, after, closed := strings.Cut(rest[1:], "]")
			if !closed {
				return out, &SyntaxError{What: what, Line: line, Msg: "the options have no closing bracket"}
			}
			for opt := range strings.FieldsSeq(opts) {
				if k, v, ok := strings.Cut(opt, "="); ok && strings.EqualFold(k, "signed-by") {
					src.SignedBy = v
				}
			}
			rest = strings.TrimSpace(after)
		}
		words := strings.Fields(rest)
		if kind == "deb-src" {
			continue
		}
		if kind != "deb" {
			return out, &SyntaxError{What: what, Line: line, Msg: "unknown type " + quote(kind)}
		}
		if len(words) < 2 {
			return out, &SyntaxError{What: what, Line: line, Msg: "needs a URI and a suite"}
		}
		src.URIs, src.Suites, src.Components = words[:1:1], words[1:2:2], words[2:]
		out = append(out, src)
	}
	return out, nil
}

func cutWord(s string) (word, rest string) {
	if i := strings.IndexAny(s, " \t["); i >= 0 {
		return s[:i], strings.TrimSpace(s[i:])
	}
	return s, ""
}

// parseSourcesDeb822 reads the deb822 format of sources.list(5).
func parseSourcesDeb822(what string, data []byte) ([]aptSource, error) {
	var out []aptSource
	sc := newScanner(what, bytes.NewReader(data))
	for {
		fields, err := sc.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		switch strings.ToLower(get(fields, "enabled")) {
		case "no", "false", "without", "off", "disable", "0":
			continue
		}
		if !slices.Contains(strings.Fields(get(fields, "types")), "deb") {
			continue
		}
		out = append(out, aptSource{
			URIs:       strings.Fields(get(fields, "uris")),
			Suites:     strings.Fields(get(fields, "suites")),
			Components: strings.Fields(get(fields, "components")),
			SignedBy:   get(fields, "signed-by"),
		})
	}
}

// mirrors are base URLs without a trailing slash, best first. Several are kept
// because an entry's text alone doesn't tell Debian's own archive from somebody
// else's with the same suite names; the signature does.
type mirrors struct {
	main     []string
	security []string
}

// of returns the mirrors that serve a suite.
func (m *mirrors) of(suite string) []string {
	if isSecuritySuite(suite) {
		return m.security
	}
	return m.main
}

func isSecuritySuite(suite string) bool { return strings.HasSuffix(suite, "-security") }

// known suites weigh more than unknown ones when mirrors are ranked; a codename
// that is missing here still works.
var knownSuites = []string{
	"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
	"oldoldstable", "oldstable", "stable", "testing", "unstable",
}

// readMirrors reads apt's sources below aptDir (normally /etc/apt).
func readMirrors(aptDir string) (*mirrors, error) {
	var (
		fail  MirrorError
		found []aptSource
	)
	names := []string{filepath.Join(aptDir, "sources.list")}
	for _, glob := range []string{"*.list", "*.sources"} {
		m, err := filepath.Glob(filepath.Join(aptDir, "sources.list.d", glob))
		if err != nil {
			return nil, fmt.Errorf("apt sources: %w", err)
		}
		names = append(names, m...)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		fail.Looked = append(fail.Looked, name)
		if err != nil {
			fail.Skipped = append(fail.Skipped, err.Error())
			continue
		}
		parse := parseSourcesList
		if strings.HasSuffix(name, ".sources") {
			parse = parseSourcesDeb822
		}
		// A broken line elsewhere in apt's configuration is apt's to report;
		// what was read before it may be all that is needed.
		srcs, err := parse(name, data)
		if err != nil {
			fail.Skipped = append(fail.Skipped, err.Error())
		}
		found = append(found, srcs...)
	}
	m := rankMirrors(found, &fail)
	if len(m.main) == 0 && len(m.security) == 0 {
		return nil, &fail
	}
	return m, nil
}

type ranked struct {
	base  string
	score int
}

func rankMirrors(found []aptSource, fail *MirrorError) *mirrors {
	var main, security []ranked
	for _, src := range found {
		if !slices.Contains(src.Components, "main") {
			continue
		}
		for _, uri := range src.URIs {
			bases, err := expandURI(uri)
			if err != nil {
				fail.Skipped = append(fail.Skipped, err.Error())
				continue
			}
			for _, suite := range src.Suites {
				for _, base := range bases {
					score := 0
					if strings.Contains(src.SignedBy, "debian-archive") {
						score += 4
					}
					name, _, _ := strings.Cut(suite, "/")
					name, _, _ = strings.Cut(name, "-")
					if slices.Contains(knownSuites, name) {
						score += 2
					}
					if isSecuritySuite(suite) || strings.HasSuffix(suite, "/updates") {
						security = append(security, ranked{base, score})
						continue
					}
					if strings.HasSuffix(base, "/debian") {
						score++
					}
					main = append(main, ranked{base, score})
				}
			}
		}
	}
	m := &mirrors{main: best(main), security: best(security)}
	if len(m.security) == 0 {
		m.security = securitySiblings(m.main)
	}
	return m
}

func best(r []ranked) []string {
	slices.SortStableFunc(r, func(a, b ranked) int { return b.score - a.score })
	var out []string
	for _, x := range r {
		if !slices.Contains(out, x.base) {
			out = append(out, x.base)
		}
	}
	return out
}

// securitySiblings guesses where a mirror keeps the security archive: beside
// the main one, as Debian's own hosts and most full mirrors do.
func securitySiblings(main []string) []string {
	var out []string
	for _, base := range main {
		if dir, ok := strings.CutSuffix(base, "/debian"); ok {
			out = append(out, dir+"/debian-security")
		}
	}
	return out
}

// expandURI turns an apt URI into base URLs that can be fetched: itself, or the
// lines of a mirror+file: list, as Debian's cloud images have it.
func expandURI(uri string) ([]string, error) {
	if path, ok := strings.CutPrefix(uri, "mirror+file:"); ok {
		path = "/" + strings.TrimLeft(path, "/")
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", uri, err)
		}
		var out []string
		for line := range strings.Lines(string(data)) {
			line, _, _ = strings.Cut(line, "#")
			if words := strings.Fields(line); len(words) > 0 {
				base, err := checkBase(words[0])
				if err != nil {
					return nil, fmt.Errorf("%s: %w", uri, err)
				}
				out = append(out, base)
			}
		}
		return out, nil
	}
	base, err := checkBase(uri)
	if err != nil {
		return nil, err
	}
	return []string{base}, nil
}

// checkBase validates a mirror's base URL and drops its trailing slash.
func checkBase(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("mirror %s: not a URL", quote(base))
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return "", fmt.Errorf("mirror %s: no host", u.Redacted())
		}
	case "file", "copy":
		u = &url.URL{Scheme: "file", Path: "/" + strings.TrimLeft(u.Path+u.Opaque, "/")}
	default:
		return "", fmt.Errorf("mirror %s: only http, https, file and mirror+file are understood", u.Redacted())
	}
	return strings.TrimRight(u.String(), "/"), nil
}
