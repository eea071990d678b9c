package xen

import (
	"syscall"
	"time"
)

// OpenAt opens the devices below another root.
var OpenAt = openAt

// SetClock replaces the clock by which a Memory believes in holes.
func (m *Memory) SetClock(now func() time.Time) { m.now = now }

// Linger is linger.
func (e *EventChannel) Linger(work func() (int, bool)) bool { return e.linger(work) }

// SetClock replaces the clock by which it is told how thick events come. It is called before
// Serve.
func (e *EventChannel) SetClock(now func() time.Time) { e.pace.clock = now }

// Thick and Answered are of its pace.
func (e *EventChannel) Thick() bool    { return e.pace.thick }
func (e *EventChannel) Answered(n int) { e.pace.answered(n) }

// LingerTurn and LingerLooks are when it ends.
const (
	LingerTurn  = lingerTurn
	LingerLooks = lingerLooks
)

// CopyGuarded is copyGuarded.
var CopyGuarded = copyGuarded

// HolePatience is how long a hole is believed in.
const HolePatience = holePatience

// WindowChunks is how many chunks a Memory keeps at most, ChunkBytes and NarrowBytes the sizes
// of one.
const (
	WindowChunks = sets * ways
	ChunkBytes   = 1 << wideShift
	NarrowBytes  = 1 << narrowShift
)

// NewOpError makes the error for what a call on domain 1 returned.
func NewOpError(op string, errno syscall.Errno) error {
	return opError(Release{}, op, 1, errno, "")
}
