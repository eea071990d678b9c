package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/unixsocket"
)

// RestartWindow is how long a RestartNotice is believed. A hvid that is not
// back by then is not restarting: it is down.
const RestartWindow = 5 * time.Minute

const (
	restartFile = "restart.json"
	// maxRestart bounds what is read of it. Xen has room for 32,752 domains.
	maxRestart        = 16 << 20
	maxRestartDomains = 1 << 15
)

// RestartNotice is what a hvid that stops leaves behind, so that the time until
// the next one runs can be told from a hvid that nobody started.
type RestartNotice struct {
	At  time.Time `json:"at"`
	PID int       `json:"pid"`
	// Domains are those that were protected and run without protection now, and
	// those that are held.
	Domains []RestartDomain `json:"domains"`
	// Recovered is set if that hvid did not stop but fail.
	Recovered *Recovery `json:"recovered,omitempty"`
}

// Recovery is what was done after a hvid had failed.
type Recovery struct {
	At time.Time `json:"at"`
	// By is who has undone what it left: "the keeper".
	By string `json:"by"`
	// Why says how it failed.
	Why string `json:"why"`
	// Domains is how many domains something was undone of.
	Domains int `json:"domains"`
}

// Held returns the domains that are held: whatever the notice's age, until
// somebody does something about them.
func (n RestartNotice) Held() []RestartDomain {
	var held []RestartDomain
	for _, d := range n.Domains {
		if d.Held != "" {
			held = append(held, d)
		}
	}
	return held
}

// RestartDomain is a domain that waits for the next hvid.
type RestartDomain struct {
	ID   uint16         `json:"id"`
	Name printable.Text `json:"name"`
	UUID string         `json:"uuid"`
	Mode string         `json:"mode"`
	// Held says why hvid left the domain paused, where it did: it may not run
	// unprotected.
	Held string `json:"held,omitempty"`
}

// Status is the domain as lists show it.
func (d RestartDomain) Status() DomainStatus {
	st := DomainStatus{ID: d.ID, Name: d.Name, UUID: d.UUID, Mode: d.Mode, State: StateRestarting, Held: d.Held, Guards: []GuardStatus{}}
	if d.Held != "" {
		st.State, st.RequireAttach = StateFailed, true
	}
	return st
}

// Fresh reports whether a hvid may still be restarting at the time now.
func (n RestartNotice) Fresh(now time.Time) bool {
	age := now.Sub(n.At)
	return age > -RestartWindow && age < RestartWindow
}

// WriteRestartNotice leaves the notice in runDir, the directory of the control
// socket, for those who may read the socket.
func WriteRestartNotice(runDir string, n RestartNotice) (err error) {
	if n.Domains == nil {
		n.Domains = []RestartDomain{}
	}
	b, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("control: restart notice: %w", err)
	}
	f, err := os.CreateTemp(runDir, restartFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("control: restart notice: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("control: restart notice: %w", err)
		}
	}()
	if gid, ok := unixsocket.GroupID(Group); ok {
		// Without the right to, only this user reads it.
		if f.Chown(-1, gid) == nil {
			if err := f.Chmod(0o640); err != nil {
				return err
			}
		}
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(runDir, restartFile))
}

// ReadRestartNotice returns the notice in runDir, or false where there is none.
// It does not look at its age.
func ReadRestartNotice(runDir string) (n RestartNotice, ok bool, err error) {
	path := filepath.Join(runDir, restartFile)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return n, false, nil
	}
	if err != nil {
		return n, false, fmt.Errorf("control: restart notice: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRestart+1))
	switch {
	case err != nil:
		return n, false, fmt.Errorf("control: restart notice: %w", err)
	case len(b) > maxRestart:
		return n, false, fmt.Errorf("control: restart notice %s: larger than %d bytes", path, maxRestart)
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return RestartNotice{}, false, fmt.Errorf("control: restart notice %s: %w", path, err)
	}
	if len(n.Domains) > maxRestartDomains {
		return RestartNotice{}, false, fmt.Errorf("control: restart notice %s: %d domains", path, len(n.Domains))
	}
	return n, true, nil
}

// RemoveRestartNotice removes the notice in runDir, if there is one.
func RemoveRestartNotice(runDir string) error {
	if err := os.Remove(filepath.Join(runDir, restartFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control: restart notice: %w", err)
	}
	return nil
}
