package linux

import (
	"bytes"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// The tag of a block is what the paper says: the sum of (m₀+k₀)·(m₁+k₁), each sum of
// two words without its carry, modulo 2¹²⁸.
func TestDigestTag(t *testing.T) {
	key := newDigestKey([]byte("a secret"))
	ones := bytes.Repeat([]byte{0xff}, nhBlock)
	for name, b := range map[string][]byte{
		"zeros": make([]byte, nhBlock), "ones": ones, "random": randomBytes(1, nhBlock), "others": randomBytes(2, nhBlock),
	} {
		want := new(big.Int)
		for i := 0; i < nhBlock/8; i += 2 {
			m0, m1 := le64(b[8*i:])+key.nh[i], le64(b[8*i+8:])+key.nh[i+1]
			want.Add(want, new(big.Int).Mul(new(big.Int).SetUint64(m0), new(big.Int).SetUint64(m1)))
		}
		want.And(want, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(1)))
		hi, lo := key.tag((*[nhBlock]byte)(b))
		got := new(big.Int).Add(new(big.Int).Lsh(new(big.Int).SetUint64(hi), 64), new(big.Int).SetUint64(lo))
		if got.Cmp(want) != 0 {
			t.Errorf("%s: tag %x, want %x", name, got, want)
		}
	}
}

// No two words of a key are one, or what is exchanged in a block would not be noticed.
func TestDigestKey(t *testing.T) {
	key, other := newDigestKey([]byte("a secret")), newDigestKey([]byte("another"))
	seen := map[uint64]bool{}
	for _, w := range append(key.nh[:], other.nh[:]...) {
		if seen[w] {
			t.Fatalf("%#x is in the keys twice", w)
		}
		seen[w] = true
	}
}

// A digest is another for every change of what it is of: each byte near the borders
// of blocks and windows, its length, the order of its parts, its purpose.
func TestDigestChanges(t *testing.T) {
	key := newDigestKey([]byte("a secret"))
	of := func(purpose string, pieces ...[]byte) digest {
		d := key.digester(purpose)
		for _, p := range pieces {
			d.bytes(p)
		}
		return d.digest()
	}
	b := randomBytes(3, 2*digestWindow+nhBlock+13)
	whole := of("test", b)
	seen := map[digest]string{whole: "the whole"}
	add := func(what string, d digest) {
		if before, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", what, before)
		}
		seen[d] = what
	}
	for _, border := range []int{0, 16, nhBlock, digestWindow, 2 * digestWindow, 2*digestWindow + nhBlock, len(b)} {
		for at := max(border-17, 0); at < min(border+17, len(b)); at++ {
			b[at] ^= 0x80
			d := of("test", b)
			if d == whole {
				t.Errorf("a change of byte %d is not noticed", at)
			}
			b[at] ^= 0x80
		}
	}
	add("one byte less", of("test", b[:len(b)-1]))
	add("a zero more", of("test", append(bytes.Clone(b), 0)))
	add("another purpose", of("tests", b))
	add("two parts", of("test", b[:nhBlock], b[nhBlock:]))
	add("their exchange", of("test", b[nhBlock:], b[:nhBlock]))
	first, second := bytes.Clone(b), b[nhBlock:2*nhBlock]
	copy(first[nhBlock:], b[:nhBlock])
	copy(first, second)
	add("two blocks exchanged", of("test", first))
	add("nothing", of("test"))
	add("an empty part", of("test", nil))
	if of("test", b) != whole {
		t.Error("the same has two digests")
	}
}

// What is summed in the guest has the digest of its copy, and all of the copy is
// left where there is room for it.
func TestDigestGuest(t *testing.T) {
	key := newDigestKey([]byte("a secret"))
	const va = x86.VirtAddr(0xffff_ffff_8100_0000)
	for _, n := range []int{0, 1, 15, nhBlock - 1, nhBlock, digestWindow, digestWindow + 1, 3*digestWindow + 5} {
		b := randomBytes(4, n)
		read := func(at x86.VirtAddr, buf []byte) error {
			copy(buf, b[at-va:])
			return nil
		}
		d := key.digester("test")
		d.bytes(b)
		want := d.digest()
		for name, room := range map[string][]byte{"a window": make([]byte, digestWindow), "all": make([]byte, max(n, 1))} {
			d := key.digester("test")
			if err := d.guest(read, va, n, room); err != nil || d.digest() != want {
				t.Errorf("%d bytes, room for %s: another digest, or %v", n, name, err)
			}
			if len(room) >= n && !bytes.Equal(room[:n], b) {
				t.Errorf("%d bytes, room for %s: the copy is not whole", n, name)
			}
		}
	}
}
