package linux

import "sort"

// A nameIndex finds symbols by the hashes of their names. It holds nothing of the
// guest's but numbers of symbols, so a forged table can't make a search long.
//
// Of a hash's 32 bits the upper 12 choose a bucket and the next 12 are the tag of
// an entry. One name in a hundred of a table of 200,000 shares both with another,
// which costs a comparison; the whole hash beside the number would double the
// index, and so the file that a kernel is known from.
type nameIndex struct {
	mul uint64 // of the hashes, see nameMultiplier
	// entries are a tag<<20 | number for each symbol, by bucket, tag and number.
	entries []uint32
	// buckets[i] is where the entries of bucket i begin.
	buckets []uint32
}

const (
	indexBits   = 12
	numBuckets  = 1 << indexBits
	indexNumber = maxSymbols - 1 // the bits of a number
	indexTag    = 20             // the lowest bit of a tag

	// maxLookup bounds how many same-named symbols are looked at: local names
	// such as "__key" occur a few hundred times.
	maxLookup = 8192
)

// find returns the entries that may be of a name, the lowest number first.
func (x *nameIndex) find(name string) []uint32 {
	h := hashName(name, x.mul)
	bucket, tag := h>>(32-indexBits), h>>(32-2*indexBits)%numBuckets
	in := x.entries[x.buckets[bucket]:x.buckets[bucket+1]]
	in = in[sort.Search(len(in), func(i int) bool { return in[i]>>indexTag >= tag }):]
	n := 0
	for n < len(in) && in[n]>>indexTag == tag && n < maxLookup {
		n++
	}
	return in[:n]
}

// sound reports whether find works, for symbols with numbers below n.
func (x *nameIndex) sound(n int) bool {
	if len(x.entries) != n || len(x.buckets) != numBuckets+1 || x.buckets[0] != 0 || int(x.buckets[numBuckets]) != n {
		return false
	}
	for i := range numBuckets {
		if x.buckets[i] > x.buckets[i+1] {
			return false
		}
	}
	highest := uint32(0)
	for _, e := range x.entries {
		highest = max(highest, e&indexNumber)
	}
	return n == 0 || int(highest) < n
}

// nameMultiplier makes the multiplier of an index from a random number. Names are
// hashed by a polynomial, because the hash of a name is then made from the hashes
// of its tokens, with no need to expand it. The multiplier is a secret, so that a
// guest can't prepare collisions.
func nameMultiplier(random uint64) uint64 { return random&^7 | 5 }

// finish spreads the polynomial, whose low bits are weak.
func finish(h uint64) uint32 { return uint32((h ^ h>>29) * 0x9e3779b97f4a7c15 >> 32) }

func hashName[T string | []byte](name T, mul uint64) uint32 {
	var h uint64
	for i := range len(name) {
		h = h*mul + uint64(name[i]) + 1
	}
	return finish(h)
}

// tokenHash is what appending a token does to a hash: h*mul + add.
type tokenHash struct{ mul, add uint64 }

func hashToken(t []byte, mul uint64) tokenHash {
	r := tokenHash{mul: 1}
	for _, c := range t {
		r.add = r.add*mul + uint64(c) + 1
		r.mul *= mul
	}
	return r
}

// buildIndex makes the index, with a secret multiplier.
func (s *symbolTable) buildIndex(mul uint64) {
	var whole, tail [256]tokenHash // tail: of the token without its first byte
	var empty [256]bool
	for i := range 256 {
		t := s.tokens.token(byte(i))
		whole[i] = hashToken(t, mul)
		if empty[i] = len(t) == 0; !empty[i] {
			tail[i] = hashToken(t[1:], mul)
		}
	}
	hashes := make([]uint64, len(s.off)) // hash<<32 | number
	pos := 0
	for i := range hashes {
		var enc []byte
		enc, pos = entry(s.names, pos)
		for len(enc) > 0 && empty[enc[0]] {
			enc = enc[1:]
		}
		var h uint64
		if len(enc) > 0 {
			h = tail[enc[0]].add
			for _, b := range enc[1:] {
				h = h*whole[b].mul + whole[b].add
			}
		}
		hashes[i] = uint64(finish(h))<<32 | uint64(i)
	}
	s.index = indexOf(hashes)
	s.index.mul = mul
}

// indexOf sorts an index by bucket and tag, stably, in a time that does not depend
// on the values. a is hash<<32 | number of each symbol, and used up.
func indexOf(a []uint64) nameIndex {
	const tag, bucket = 64 - 2*indexBits, 64 - indexBits
	b := make([]uint64, len(a))
	var first [numBuckets + 1]uint32
	for _, shift := range []int{tag, bucket} {
		first = [numBuckets + 1]uint32{}
		for _, v := range a {
			first[v>>shift%numBuckets+1]++
		}
		for i := range numBuckets {
			first[i+1] += first[i]
		}
		next := first
		for _, v := range a {
			d := v >> shift % numBuckets
			b[next[d]] = v
			next[d]++
		}
		a, b = b, a
	}
	x := nameIndex{entries: make([]uint32, len(a)), buckets: first[:]}
	for i, v := range a {
		x.entries[i] = uint32(v>>tag%numBuckets)<<indexTag | uint32(v)
	}
	return x
}
