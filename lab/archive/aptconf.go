package archive

import (
	"context"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"
)

// aptConfig is apt's effective configuration: names in lower case, without the
// trailing "::" of list items, to values.
type aptConfig map[string]string

// readAptConfig asks apt-config. A machine without it has no apt configuration
// to honour, which is not an error.
func readAptConfig() aptConfig {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output()
	if err != nil {
		return nil
	}
	return parseAptConfig(string(out))
}

// parseAptConfig reads the output of apt-config dump: lines of Name "value";
func parseAptConfig(text string) aptConfig {
	c := make(aptConfig)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, rest, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		value := strings.TrimSuffix(rest, ";")
		if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
			continue
		}
		c[strings.ToLower(strings.TrimSuffix(name, "::"))] = value[1 : len(value)-1]
	}
	return c
}

// checkValidUntil is apt's own switch; off means the administrator accepts
// stale mirrors.
func (c aptConfig) checkValidUntil() bool {
	switch strings.ToLower(c["acquire::check-valid-until"]) {
	case "false", "no", "off", "0", "without", "disable":
		return false
	}
	return true
}

// proxyFor picks the proxy for a request as apt does: the host's own setting,
// then the scheme's, then a detection command, then the environment.
func (c aptConfig) proxyFor(req *http.Request) (*url.URL, error) {
	scheme := strings.ToLower(req.URL.Scheme)
	host := strings.ToLower(req.URL.Hostname())
	schemes := []string{scheme}
	if scheme == "https" {
		schemes = append(schemes, "http") // as apt-transport-https(1) falls back
	}
	for _, s := range schemes {
		key := "acquire::" + s + "::proxy"
		for _, k := range []string{key + "::" + host, key} {
			if v := c[k]; v != "" {
				return parseProxy(v)
			}
		}
		for _, k := range []string{"acquire::" + s + "::proxy-auto-detect", "acquire::" + s + "::proxyautodetect"} {
			command := c[k]
			if command == "" {
				continue
			}
			out, err := exec.CommandContext(req.Context(), command, req.URL.Scheme+"://"+req.URL.Host).Output()
			if v := strings.TrimSpace(string(out)); err == nil && v != "" {
				return parseProxy(v)
			}
		}
	}
	return http.ProxyFromEnvironment(req)
}

func parseProxy(v string) (*url.URL, error) {
	if strings.EqualFold(v, "DIRECT") || strings.EqualFold(v, "false") {
		return nil, nil
	}
	if !strings.Contains(v, "://") {
		v = "http://" + v
	}
	return url.Parse(v)
}
