package linux

import (
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

// share returns a list that is equal to this one, and maybe another guest's. sum is of
// what is in it: by that lists are found, and they are compared besides.
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

// sharedSum is the sum of some words. Who makes another list with the same has his own
// guest keep one of its own, and that is all.
type sharedSum uint64

func (s *sharedSum) add(word uint64) {
	const prime = 0x100_0000_01b3 // of FNV
	*s = (*s ^ sharedSum(word)) * prime
}

func shareSites(sites []patchSite) *[]patchSite {
	var sum sharedSum
	for _, s := range sites {
		sum.add(uint64(s.off) | uint64(s.target)<<32)
		sum.add(uint64(s.kind) | uint64(s.n)<<8)
	}
	return sharedSites.share(uint64(sum), sites)
}

func shareLines(lines []uint32) *[]uint32 {
	var sum sharedSum
	for _, digest := range lines {
		sum.add(uint64(digest))
	}
	return sharedLines.share(uint64(sum), lines)
}
