package scenario

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/x86"
)

// How often each part of a domain's life is repeated: on demand, and a twentieth
// of it in every test.
const (
	soakCreates, soakReboots, soakSaves = 1000, 200, 100
	cyclesShare                         = 20
)

func init() {
	Register(Scenario{
		Name:     "soak-create",
		Brief:    "1,000 guests are created and destroyed, and hvid holds no more than before",
		Emulator: QEMU,
		Timeout:  90 * time.Minute,
		Run:      func(t *T) error { return soak(t, soakCreates, 0, 0) },
	})
	Register(Scenario{
		Name:     "soak-reboot",
		Brief:    "A guest reboots 200 times, and hvid holds no more than before",
		Emulator: QEMU,
		Timeout:  45 * time.Minute,
		Run:      func(t *T) error { return soak(t, 0, soakReboots, 0) },
	})
	Register(Scenario{
		Name:     "soak-save",
		Brief:    "A guest is saved and restored 100 times, and hvid holds no more than before",
		Emulator: QEMU,
		Timeout:  45 * time.Minute,
		Run:      func(t *T) error { return soak(t, 0, 0, soakSaves) },
	})
	Register(Scenario{
		Name:     "cycles",
		Brief:    "50 creations, 10 reboots, 5 saves and restores: hvid holds no more than before",
		Emulator: QEMU,
		Timeout:  20 * time.Minute,
		Run: func(t *T) error {
			return soak(t, soakCreates/cyclesShare, soakReboots/cyclesShare, soakSaves/cyclesShare)
		},
	})
}

// warmUp is how often each part is done before the first count, so that what is
// made once and kept is there.
const warmUp = 3

// capturedDir is where hvid keeps policies, by UUID.
const capturedDir = "/var/lib/hvi/domains"

// tally is what hvid holds, by those who account for it.
type tally struct {
	Files         int `json:"open_files"`      // of hvid, by the kernel
	Goroutines    int `json:"goroutines"`      // by its own metrics
	EventChannels int `json:"event_channels"`  // of dom0, by Xen
	Watches       int `json:"watches"`         // by xenstored
	Ledgers       int `json:"ledgers"`         // changes of Xen's state outstanding
	Captured      int `json:"captured"`        // policies kept
	Domains       int `json:"domains"`         // by Xen, with those that cannot die
	Memory        int `json:"resident_kbytes"` // of hvid
}

// soak repeats each part of a domain's life so many times and compares what
// hvid holds before and after.
func soak(t *T, creates, reboots, saves int) error {
	const socket = "/run/hvi/metrics.sock"
	// What an earlier scenario's guests left to be kept for a reboot is forgotten
	// after some minutes, which would hide as many that this one leaves.
	if err := os.RemoveAll(capturedDir); err != nil {
		return err
	}
	settings := filepath.Join("/etc/hvi", "hvid.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(settings), 0o755),
		os.WriteFile(settings, []byte("[metrics]\nlisten = \"unix:"+socket+"\"\n"), 0o644)); err != nil {
		return err
	}
	t.Cleanup(func() { os.Remove(settings) })
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	entry, err := kernelEntry(TinyKernel)
	if err != nil {
		return err
	}
	s := &soaker{t: t, hvid: hvid, metrics: socket, entry: entry}
	parts := []struct {
		name  string
		n     int
		begin func() error
		cycle func() error
	}{
		{"create", creates, s.prepare, s.createDestroy},
		{"reboot", reboots, s.begin, s.reboot},
		{"save", saves, s.begin, s.saveRestore},
	}
	for _, p := range parts {
		if p.n == 0 {
			continue
		}
		if err := s.run(p.name, p.n, p.begin, p.cycle); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, word := range []string{"EBUSY", "resource busy", "in use by another"} {
		t.Check(!strings.Contains(hvid.Log(), word), "hvid never found anything taken: %q is not in its log", word)
	}
	t.Check(!strings.Contains(hvid.Log(), "level=ERROR"), "and met no error: %s", firstLine(hvid.Log(), "level=ERROR"))
	return nil
}

func firstLine(text, with string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, with) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

type soaker struct {
	t       *T
	hvid    *Process
	metrics string
	entry   x86.VirtAddr
	config  GuestConfig
	uuid    string
	id      uint16 // of the guest that lives, 0 if none does
	late    int    // how often hvi was not attached before the first instruction
	image   string
}

func (s *soaker) run(name string, n int, begin, cycle func() error) error {
	t := s.t
	t.Logf("%d times %s ...", n, name)
	if err := begin(); err != nil {
		return err
	}
	for range warmUp {
		if err := cycle(); err != nil {
			return err
		}
	}
	before, err := s.settled()
	if err != nil {
		return err
	}
	start := time.Now()
	for i := range n {
		if err := cycle(); err != nil {
			return fmt.Errorf("cycle %d of %d: %w", i+1, n, err)
		}
		if (i+1)%50 == 0 {
			now, err := s.count()
			if err != nil {
				return err
			}
			t.Logf("%s %d of %d: %+v", name, i+1, n, now)
		}
	}
	each := time.Since(start) / time.Duration(n)
	// What is being taken down may take another moment.
	var after tally
	err = t.Eventually(hvidLimit, "hvid holds no more than before", func() (bool, error) {
		after, err = s.count()
		return after.within(before), err
	})
	t.Check(err == nil, "%d times %s: %v; before %+v, after %+v", n, name, err, before, after)
	const growth = 16 << 10
	t.Check(after.Memory < before.Memory+growth, "and its memory has not grown by %d KiB: %d, then %d", growth, before.Memory, after.Memory)
	t.Check(s.late == 0, "%d times %s: hvi was attached before the first instruction each time, but for %d", n, name, s.late)
	t.Fact("soak."+name, map[string]any{
		"cycles": n, "late": s.late, "seconds_each": round(each), "before": before, "after": after,
	})
	s.late = 0
	return s.end()
}

// settled counts until several counts in a row are the same: others work on
// after hvi is attached, xl with a watch of its own, and what they have not
// taken yet would count as ours later. What comes and goes for ever, as a
// goroutine that is there while hvid looks after a guest, is counted at its
// most: a leak adds one for every cycle, not one in all.
func (s *soaker) settled() (tally, error) {
	const pause, inARow, most = 500 * time.Millisecond, 5, 20
	var last, high tally
	same := 0
	for i := range most {
		now, err := s.count()
		if err != nil {
			return tally{}, err
		}
		high = high.highest(now)
		last.Memory = now.Memory // has a bound of its own
		if now != last && i > 0 {
			s.t.Logf("not settled: %+v, then %+v", last, now)
			same = 0
		}
		last = now
		if same++; same == inARow {
			return now, nil
		}
		time.Sleep(pause)
	}
	return high, nil
}

// highest returns the higher of each count.
func (c tally) highest(o tally) tally {
	return tally{
		Files: max(c.Files, o.Files), Goroutines: max(c.Goroutines, o.Goroutines),
		EventChannels: max(c.EventChannels, o.EventChannels), Watches: max(c.Watches, o.Watches),
		Ledgers: max(c.Ledgers, o.Ledgers), Captured: max(c.Captured, o.Captured),
		Domains: max(c.Domains, o.Domains), Memory: max(c.Memory, o.Memory),
	}
}

// within says whether nothing is held that was not held before. Less is no leak.
// Memory has a bound of its own.
func (c tally) within(before tally) bool {
	return c.Files <= before.Files && c.Goroutines <= before.Goroutines &&
		c.EventChannels <= before.EventChannels && c.Watches <= before.Watches &&
		c.Ledgers <= before.Ledgers && c.Captured <= before.Captured && c.Domains <= before.Domains
}

func (s *soaker) count() (c tally, err error) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.hvid.Pid()))
	if err != nil {
		return c, err
	}
	c.Files = len(fds)
	for _, dir := range []struct {
		path string
		n    *int
	}{{ledger.DefaultDir, &c.Ledgers}, {capturedDir, &c.Captured}} {
		entries, err := os.ReadDir(dir.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
		*dir.n = len(entries)
	}
	ports, err := s.t.Exec("lsevtchn", "0")
	if err != nil {
		return c, err
	}
	c.EventChannels = strings.Count(ports.Stdout, "\n")
	ids, err := s.t.domains()
	if err != nil {
		return c, err
	}
	c.Domains = len(ids)
	if c.Watches, err = watches(s.t.ctx); err != nil {
		return c, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.hvid.Pid()))
	if err != nil {
		return c, err
	}
	if c.Memory, err = field(string(status), "VmRSS:"); err != nil {
		return c, err
	}
	text, err := s.scrape()
	if err != nil {
		return c, err
	}
	c.Goroutines, err = field(text, "go_goroutines")
	return c, err
}

// scrape reads hvid's metrics. The connection is not kept: it would count.
func (s *soaker) scrape() (string, error) {
	var d net.Dialer
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", s.metrics) },
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(s.t.ctx, http.MethodGet, "http://hvid/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return string(text), err
}

// field returns the number behind a word that begins a line.
func field(text, name string) (int, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("no %s", name)
}

// watches has xenstored report its memory and counts the watches in there, of
// all its clients.
func watches(ctx context.Context) (n int, err error) {
	const report = "/run/xenstored-report"
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/run/xenstored/socket")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return 0, err
		}
	}
	// XS_CONTROL is 0; xen/include/public/io/xs_wire.h.
	body := "memreport\x00" + report + "\x00"
	msg := binary.LittleEndian.AppendUint32(make([]byte, 12), uint32(len(body)))
	if _, err := conn.Write(append(msg, body...)); err != nil {
		return 0, err
	}
	var head [16]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, err
	}
	answer := make([]byte, min(binary.LittleEndian.Uint32(head[12:]), 4096))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return 0, err
	}
	if string(answer) != "OK\x00" {
		return 0, fmt.Errorf("xenstored's memreport: %q", answer)
	}
	defer func() { err = errors.Join(err, os.Remove(report)) }()
	f, err := os.Open(report)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if strings.HasPrefix(strings.TrimSpace(sc.Text()), "struct watch ") {
			n++
		}
	}
	return n, sc.Err()
}

// prepare writes the config of the guest, which reboots when poked.
func (s *soaker) prepare() error {
	const name = "soak"
	s.uuid = uuidOf(name)
	s.config = GuestConfig{
		Name: name, Kernel: KernelTiny, KernelArgs: []string{"1"},
		Lines: []string{`uuid = "` + s.uuid + `"`, enforceLine},
	}
	dir, err := s.t.TempDir()
	if err != nil {
		return err
	}
	s.image = filepath.Join(dir, "saved")
	_, err = s.t.WriteConfig(s.config)
	return err
}

// begin leaves a guest running.
func (s *soaker) begin() error {
	if err := s.prepare(); err != nil {
		return err
	}
	s.t.Cleanup(func() {
		if err := s.end(); err != nil {
			s.t.Logf("cleaning up: %v", err)
		}
	})
	return s.create()
}

// end destroys the guest, if there is one.
func (s *soaker) end() error {
	if s.id == 0 {
		return nil
	}
	id := s.id
	s.id = 0
	// Not the scenario's context, which may be over.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := run(ctx, "xl", "destroy", strconv.Itoa(int(id))); err != nil {
		return err
	}
	return s.gone(id)
}

func (s *soaker) create() error {
	if _, err := s.t.XL("create", "-q", s.config.Path()); err != nil {
		return err
	}
	return s.attached(s.entry)
}

func (s *soaker) createDestroy() error {
	if err := s.create(); err != nil {
		return err
	}
	return s.end()
}

func (s *soaker) reboot() error {
	if _, err := s.t.XL("trigger", strconv.Itoa(int(s.id)), "nmi"); err != nil {
		return err
	}
	return s.attached(s.entry)
}

func (s *soaker) saveRestore() error {
	id := s.id
	if _, err := s.t.XL("save", strconv.Itoa(int(id)), s.image); err != nil {
		return err
	}
	if err := s.gone(id); err != nil {
		return err
	}
	if _, err := s.t.XL("restore", s.image); err != nil {
		return err
	}
	return s.attached(0)
}

// attached waits until hvi is attached to the guest's new domain, and checks
// where the guest stood then, unless at is 0.
func (s *soaker) attached(at x86.VirtAddr) error {
	var st control.DomainStatus
	err := s.t.Eventually(attachLimit, "hvi is attached to the guest's new domain", func() (bool, error) {
		var err error
		if st, err = client.Domain(s.t.ctx, s.uuid); err != nil || st.ID == s.id {
			return false, nil // not yet, or two for a moment
		}
		if st.State == control.StateFailed {
			return false, fmt.Errorf("domain %d failed: %+v", st.ID, st.Failure)
		}
		return st.State == control.StateAttached || st.State == control.StateIdentifying, nil
	})
	if err != nil {
		return fmt.Errorf("%w; domain %d is %s, %s %q", err, st.ID, st.State, st.PolicyFrom, st.PolicySource)
	}
	s.id = st.ID
	if st.Mode != "enforce" {
		return fmt.Errorf("domain %d: mode %s, from %q", st.ID, st.Mode, st.PolicySource)
	}
	if at != 0 && (st.AttachPC == nil || *st.AttachPC != at) {
		s.late++
		s.t.Logf("domain %d: hvi was attached at %v, the guest's entry point is %s", st.ID, st.AttachPC, at)
	}
	return nil
}

func (s *soaker) gone(id uint16) error {
	return s.t.Eventually(shutLimit, fmt.Sprintf("domain %d is gone", id), func() (bool, error) {
		if _, err := client.Domain(s.t.ctx, strconv.Itoa(int(id))); err == nil {
			return false, nil
		}
		ids, err := s.t.domains()
		for _, i := range ids {
			if i == int(id) {
				return false, err
			}
		}
		return true, err
	})
}
