package linux

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"weak"
)

// What a kernel patches is at the same places in all guests with the same build, 46,000
// of them in Debian's: they are kept once, for as long as one of the guests is watched.
var sharedSites struct {
	sync.Mutex
	by map[uint64]weak.Pointer[[]patchSite]
}

// siteSeed keys the sums by which they are found; they are compared besides.
var siteSeed = maphash.MakeSeed()

// shareSites returns places that are equal to these, and maybe another guest's. Nobody
// changes them.
func shareSites(sites []patchSite) *[]patchSite {
	var h maphash.Hash
	h.SetSeed(siteSeed)
	var b [10]byte
	for _, s := range sites {
		binary.LittleEndian.PutUint32(b[:], s.off)
		binary.LittleEndian.PutUint32(b[4:], s.target)
		b[8], b[9] = byte(s.kind), s.n
		_, _ = h.Write(b[:]) // it never fails
	}
	sum := h.Sum64()
	sharedSites.Lock()
	defer sharedSites.Unlock()
	if of := sharedSites.by[sum].Value(); of != nil && slices.Equal(*of, sites) {
		return of
	}
	if sharedSites.by == nil {
		sharedSites.by = make(map[uint64]weak.Pointer[[]patchSite])
	}
	for sum, of := range sharedSites.by {
		if of.Value() == nil {
			delete(sharedSites.by, sum)
		}
	}
	own := slices.Clone(sites) // as long as it is, and no longer
	sharedSites.by[sum] = weak.Make(&own)
	return &own
}
