package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "metrics",
		Brief:    "What Prometheus reads of a guest that is attacked, renamed, attached to again, and gone",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      metricsOfAGuest,
	})
}

const (
	metricsSocket = "/run/hvi/metrics.sock"
	metricsPort   = "127.0.0.1:9617"
	settingsFile  = "/etc/hvi/hvid.toml"
)

// samples are the values of a scrape, by the name of the metric with its labels
// as they are written.
type samples map[string]float64

// scrape reads the metrics as Prometheus does, in its text format.
func (t *T) scrape(network, address string) (samples, error) {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.ctx, http.MethodGet, "http://hvid/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: tr, Timeout: hvidLimit}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, errors.Join(err, fmt.Errorf("the answer is %s: %.200s", resp.Status, body))
	}
	out := samples{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// A label's value may hold blanks; the sample has none.
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if i < 0 || err != nil {
			return nil, fmt.Errorf("no sample: %q", line)
		}
		out[line[:i]] = v
	}
	return out, nil
}

// of is the sum of a metric's samples that have all of the labels, and whether
// there are any.
func (s samples) of(name string, labels ...string) (sum float64, found bool) {
next:
	for k, v := range s {
		if k != name && !strings.HasPrefix(k, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(k, l) {
				continue next
			}
		}
		sum, found = sum+v, true
	}
	return sum, found
}

func label(name, value string) string { return name + `="` + value + `"` }

// listen writes where hvid is to serve its metrics.
func (t *T) listen(where string) error {
	if err := os.MkdirAll("/etc/hvi", 0o755); err != nil {
		return err
	}
	t.Cleanup(func() { os.Remove(settingsFile) })
	return os.WriteFile(settingsFile, []byte("[metrics]\nlisten = "+strconv.Quote(where)+"\n"), 0o644)
}

func metricsOfAGuest(t *T) error {
	if err := t.listen("unix:" + metricsSocket); err != nil {
		return err
	}
	// What a scenario before this one left to be kept is none of this guest's.
	if err := os.RemoveAll("/var/lib/hvi/domains"); err != nil {
		return err
	}
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	fi, err := os.Lstat(metricsSocket)
	if err != nil {
		return err
	}
	t.Check(fi.Mode() == fs.ModeSocket|0o660, "the socket is for root and one group: %v", fi.Mode())

	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	uuid := label("uuid", g.UUID)
	read := func() (samples, error) { return t.scrape("unix", metricsSocket) }
	// expect checks values of the guest's.
	expect := func(s samples, when string, want map[string]float64) {
		for name, v := range want {
			metric, rest, _ := strings.Cut(name, " ")
			have, found := s.of(metric, append(strings.Fields(rest), uuid)...)
			t.Check(found && have == v, "%s, %s is %v: %v, there is one: %v", when, name, v, have, found)
		}
	}
	s, err := read()
	if err != nil {
		return err
	}
	t.Fact("metrics", s)
	expect(s, "when it is protected", map[string]float64{
		"hvi_domain_protected": 1, "hvi_domain_protection_asked": 1, "hvi_domain_held": 0,
		"hvi_domain_state " + label("state", "protecting"):                                                 1,
		"hvi_domain_info " + label("domain", g.Name) + " " + label("mode", "enforce"):                      1,
		"hvi_guard_state " + label("guard", "kernel-text") + " " + label("state", "armed"):                 1,
		"hvi_guard_violations_total " + label("guard", "kernel-text") + " " + label("action", "blocked"):   0,
		"hvi_guard_violations_total " + label("guard", "syscall-entry") + " " + label("action", "blocked"): 0,
		"hvi_guard_violations_total " + label("guard", "cr") + " " + label("action", "blocked"):            0,
		"hvi_guard_violations_total " + label("guard", "kernel-text") + " " + label("action", "alerted"):   0,
		"hvi_records_lost_total": 0,
	})
	for name, want := range map[string]float64{"hvi_domains": 1, "hvi_attach_duration_seconds_count": 1, "hvi_attach_failures_total": 0, "hvi_declarations": 1, "hvi_build_info": 1} {
		have, found := s.of(name)
		t.Check(found && have == want, "for the host, %s is %v: %v, there is one: %v", name, want, have, found)
	}
	_, found := s.of("hvi_libvirt_connected")
	t.Check(!found, "nothing is said of a libvirt that is not there")
	took, _ := s.of("hvi_attach_duration_seconds_sum")
	t.Check(took > 0 && took < attachLimit.Seconds(), "attaching took a plausible time: %v s", took)

	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	blocked := "hvi_guard_violations_total " + label("guard", "kernel-text") + " " + label("action", "blocked")
	if s, err = read(); err != nil {
		return err
	}
	expect(s, "after an attack", map[string]float64{blocked: 1, "hvi_domain_protected": 1})
	records, _ := s.of("hvi_journal_records_total")
	t.Check(records == 1, "and one record was made: %v", records)
	events, _ := s.of("hvi_ring_events_total", uuid)

	// Another name, and another session, whose own counts begin at 0.
	const hostile = `a "b";{x=1,y}`
	if _, err := t.XL("rename", strconv.Itoa(g.ID), hostile); err != nil {
		return err
	}
	for _, do := range []string{"detach", "attach"} {
		if _, err := t.Exec("hvictl", do, g.UUID); err != nil {
			return err
		}
		if s, err = read(); err != nil {
			return err
		}
		expect(s, "after hvictl "+do, map[string]float64{blocked: 1, "hvi_domain_protection_asked": 1})
		n, _ := s.of("hvi_ring_events_total", uuid)
		t.Check(n >= events, "after hvictl %s, events are not fewer: %v, there were %v", do, n, events)
		events = n
	}
	name := ""
	err = t.Eventually(hvidLimit, "the metrics have the new name", func() (bool, error) {
		if s, err = read(); err != nil {
			return false, err
		}
		// What hvictl shows is escaped, and the format escapes that once more.
		name = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(`a \"b\";{x=1,y}`)
		_, found := s.of("hvi_domain_protected", label("domain", name), uuid)
		return found, nil
	})
	if err != nil {
		return err
	}

	if err := g.Destroy(); err != nil {
		return err
	}
	err = t.Eventually(hvidLimit, "the guest's gauges are gone", func() (bool, error) {
		if s, err = read(); err != nil {
			return false, err
		}
		_, found := s.of("hvi_domain_state", uuid)
		return !found, nil
	})
	if err != nil {
		return err
	}
	expect(s, "once it has gone", map[string]float64{blocked: 1})

	code, text := t.failsAs(nobody, "hvictl", "--socket", metricsSocket, "list")
	t.Check(code == 5 && strings.Contains(text, "may not talk to hvid"), "another user may not read them: exit code %d, %q", code, text)

	if err := hvid.Stop(hvidLimit); err != nil {
		return err
	}
	_, err = os.Lstat(metricsSocket)
	t.Check(errors.Is(err, fs.ErrNotExist), "hvid takes the socket along: %v", err)

	if err := t.listen(metricsPort); err != nil {
		return err
	}
	if _, err := t.Exec("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	s, err = t.scrape("tcp", metricsPort)
	n, found := s.of("hvi_domains")
	t.Check(err == nil && found && n == 0, "they are on the loopback interface, and there is no domain: %v %v %v", n, found, err)
	return nil
}
