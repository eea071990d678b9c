package abi

import "fmt"

// Series names a line of stable Xen releases.
type Series struct{ Major, Minor int }

// String returns the series as in "4.17".
func (s Series) String() string { return fmt.Sprintf("%d.%d", s.Major, s.Minor) }

// Releases returns the series with a layout, oldest first.
func Releases() []Series {
	out := make([]Series, len(layouts))
	for i := range layouts {
		out[i] = layouts[i].Series()
	}
	return out
}

// Series returns the series the layout is of.
func (l *Layout) Series() Series { return Series{l.Major, l.Minor} }

// For returns the layout of a release series, or an *UnknownReleaseError. The
// result is shared and read-only.
func For(major, minor int) (*Layout, error) {
	for i := range layouts {
		if l := &layouts[i]; l.Major == major && l.Minor == minor {
			return l, nil
		}
	}
	return nil, &UnknownReleaseError{Major: major, Minor: minor}
}

// UnknownReleaseError says that Xen is of a release whose interface is not
// known. Guessing would risk silent damage: between 4.19 and 4.20, for
// example, the number that meant "default access" came to mean "read-only".
type UnknownReleaseError struct{ Major, Minor int }

// Error names the release and the range that is known.
func (e *UnknownReleaseError) Error() string {
	first, last := layouts[0].Series(), layouts[len(layouts)-1].Series()
	return fmt.Sprintf("Xen %d.%d is not known to this hvi (%v to %v)", e.Major, e.Minor, first, last)
}

// SegmentDPL returns the descriptor privilege level of a segment as VMEventRegs
// packs it (limit in bits 0 to 19, access rights in 20 to 31). The DPL of SS is
// the current privilege level.
func SegmentDPL(packed uint32) uint8 { return uint8(packed >> 25 & 3) }

// SegmentLong returns whether CS, packed likewise, is of 64-bit code: its L.
func SegmentLong(packed uint32) bool { return packed>>29&1 != 0 }
