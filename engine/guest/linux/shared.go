package linux

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"weak"
)

// shared keeps lists that are equal in all guests with the same build once, for as long
// as one of the guests is watched. Nobody changes them.
type shared[T comparable] struct {
	sync.Mutex
	by map[uint64]weak.Pointer[[]T]
}

var (
	// sharedSites are the places that a kernel patches, 46,000 in Debian's.
	sharedSites shared[patchSite]
	// sharedLines are the digests of its code, a megabyte. They are equal where the kernel
	// lies at the same address, as without randomization: it begins at its own entry in a
	// guest that its toolstack gives the kernel to.
	sharedLines shared[uint32]
)

// sharedSeed keys the sums by which lists are found; they are compared besides.
var sharedSeed = maphash.MakeSeed()

// share returns a list that is equal to this one, and maybe another guest's. sum is of
// what is in it.
func (s *shared[T]) share(sum uint64, list []T) *[]T {
	s.Lock()
	defer s.Unlock()
	if of := s.by[sum].Value(); of != nil && slices.Equal(*of, list) {
		return of
	}
	if s.by == nil {
		s.by = make(map[uint64]weak.Pointer[[]T])
	}
	for sum, of := range s.by {
		if of.Value() == nil {
			delete(s.by, sum)
		}
	}
	own := slices.Clone(list) // as long as it is, and no longer
	s.by[sum] = weak.Make(&own)
	return &own
}

func shareSites(sites []patchSite) *[]patchSite {
	var h maphash.Hash
	h.SetSeed(sharedSeed)
	var b [10]byte
	for _, s := range sites {
		binary.LittleEndian.PutUint32(b[:], s.off)
		binary.LittleEndian.PutUint32(b[4:], s.target)
		b[8], b[9] = byte(s.kind), s.n
		_, _ = h.Write(b[:]) // it never fails
	}
	return sharedSites.share(h.Sum64(), sites)
}

func shareLines(lines []uint32) *[]uint32 {
	var h maphash.Hash
	h.SetSeed(sharedSeed)
	var b [4]byte
	for _, digest := range lines {
		binary.LittleEndian.PutUint32(b[:], digest)
		_, _ = h.Write(b[:]) // it never fails
	}
	return sharedLines.share(h.Sum64(), lines)
}
