package linux

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"sync"

	"github.com/xen-hvi/hvi/engine/x86"
)

// digest is a sum that only who has the key can make, or find two inputs for.
type digest [32]byte

// digestWindow is how much of a piece is summed at once, and so how much of the
// guest is held in memory for it.
const digestWindow = 128 << 10

// digestKey makes digests of guest memory, some 8 MiB for each kernel, while a
// vCPU is held. So each window gets a GMAC (AES-GCM with nothing to encrypt),
// which is several times faster than SHA-256, and the tags go into one
// HMAC-SHA256. GMAC's collisions are as hard to find as its key as long as no
// tag gets out, and none does: nonces, which count the windows of one digest,
// may therefore be used again in the next.
type digestKey struct {
	gcm cipher.AEAD
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
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has GCM's block size
	}
	return &digestKey{gcm: gcm, mac: derive("hvi digest"), names: nameMultiplier(le64(derive("hvi symbol names")))}
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
	n   uint32 // windows so far
	tag [16]byte
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

// window adds one window's bytes.
func (d *digester) window(b []byte) {
	var nonce [12]byte
	binary.LittleEndian.PutUint32(nonce[:], d.n)
	d.n++
	_, _ = d.sum.Write(d.key.gcm.Seal(d.tag[:0], nonce[:], nil, b))
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
