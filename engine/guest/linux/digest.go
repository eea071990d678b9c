package linux

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"
	"sync"

	"github.com/xen-hvi/hvi/engine/x86"
)

// digest is a sum that only who has the key can make, or find two inputs for.
type digest [32]byte

// digestWindow is how much of a piece is summed at once, and so how much of the
// guest is held in memory for it: what stays in a processor's cache between the copy
// and the sum.
const digestWindow = 128 << 10

// nhBlock is how many bytes NH makes one tag of, and so the size of its key.
const nhBlock = 4096

// digestKey makes digests of guest memory, some 9 MiB for each kernel, while a
// vCPU is held. So what is summed is first made shorter by NH, the hash of UMAC
// (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999) with words of 64 bits: a
// tag of 16 bytes for each block, at twice the speed of GMAC. The tags go into one
// HMAC-SHA256.
//
// Two different blocks of one length have one tag for a share of 2⁻⁶⁴ of the keys,
// whatever they are. As no tag gets out of the process, nobody can choose blocks by
// the key, and one key serves all of them: who wants a digest to fit what it is not
// of has one chance in 2⁶⁴ each time.
type digestKey struct {
	nh  [nhBlock / 8]uint64
	mac []byte
	// names is the multiplier of the index of symbols, see hashName.
	names uint64
}

func newDigestKey(secret []byte) *digestKey {
	derive := func(purpose string) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(purpose))
		return h.Sum(nil)
	}
	block, err := aes.NewCipher(derive("hvi guest memory"))
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	var stream [nhBlock]byte
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(stream[:], stream[:])
	k := &digestKey{mac: derive("hvi digest"), names: nameMultiplier(le64(derive("hvi symbol names")))}
	for i := range k.nh {
		k.nh[i] = le64(stream[8*i:])
	}
	return k
}

// tag is NH of a block: the sum of (m₀+k₀)·(m₁+k₁) over its pairs of words, modulo
// 2¹²⁸.
func (k *digestKey) tag(block *[nhBlock]byte) (hi, lo uint64) {
	// Two sums, so that neither addition waits for the other.
	var hi2, lo2, carry uint64
	for i := 0; i < len(k.nh); i += 4 {
		m, n := (*[32]byte)(block[8*i:]), (*[4]uint64)(k.nh[i:])
		h, l := bits.Mul64(le64(m[:8])+n[0], le64(m[8:16])+n[1])
		lo, carry = bits.Add64(lo, l, 0)
		hi += h + carry
		h, l = bits.Mul64(le64(m[16:24])+n[2], le64(m[24:])+n[3])
		lo2, carry = bits.Add64(lo2, l, 0)
		hi2 += h + carry
	}
	lo, carry = bits.Add64(lo, lo2, 0)
	return hi + hi2 + carry, lo
}

// ownKey is the key of digests that don't outlive the process.
var ownKey = sync.OnceValue(func() *digestKey {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return newDigestKey(secret)
})

// digester makes one digest.
type digester struct {
	key *digestKey
	sum hash.Hash
	// tags are those of one window, and last is its last block, filled up with
	// zeros if it is short. Its length is in the sum.
	tags [16 * digestWindow / nhBlock]byte
	last [nhBlock]byte
}

// digester begins a digest. Digests of different purposes never agree.
func (k *digestKey) digester(purpose string) *digester {
	d := &digester{key: k, sum: hmac.New(sha256.New, k.mac)}
	d.text(purpose)
	return d
}

func (d *digester) number(v uint64) {
	_, _ = d.sum.Write(binary.LittleEndian.AppendUint64(nil, v))
}

func (d *digester) text(s string) {
	d.number(uint64(len(s)))
	_, _ = d.sum.Write([]byte(s))
}

// window adds one window's bytes, at most digestWindow.
func (d *digester) window(b []byte) {
	tags := d.tags[:0]
	for len(b) > 0 {
		block := &d.last
		if len(b) >= nhBlock {
			block = (*[nhBlock]byte)(b)
		} else {
			clear(d.last[copy(d.last[:], b):])
		}
		hi, lo := d.key.tag(block)
		tags = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(tags, lo), hi)
		b = b[min(len(b), nhBlock):]
	}
	_, _ = d.sum.Write(tags)
}

// bytes adds a piece of memory and its length.
func (d *digester) bytes(b []byte) {
	d.number(uint64(len(b)))
	for len(b) > 0 {
		n := min(len(b), digestWindow)
		d.window(b[:n])
		b = b[n:]
	}
}

// guest adds what bytes does with a copy of n bytes at va. All of the copy is left
// in buf if it fits, and otherwise only a window of it at a time, for which there
// must be room.
func (d *digester) guest(read func(x86.VirtAddr, []byte) error, va x86.VirtAddr, n int, buf []byte) error {
	d.number(uint64(n))
	whole := n <= len(buf)
	for n > 0 {
		b := buf[:min(n, digestWindow)]
		if err := read(va, b); err != nil {
			return err
		}
		d.window(b)
		n -= len(b)
		va += x86.VirtAddr(len(b))
		if whole {
			buf = buf[len(b):]
		}
	}
	return nil
}

func (d *digester) digest() (out digest) {
	d.sum.Sum(out[:0])
	return out
}
