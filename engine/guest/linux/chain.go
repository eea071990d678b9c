package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// listenNulls is LISTENING_NULLS_BASE: what tells the end of a chain of
// listening sockets from that of a chain of connections.
const listenNulls = 1 << 29

// chain walks one chain of a hash table of the kernel's, a struct hlist_head or
// hlist_nulls_head, whose nodes (hlist_node, hlist_nulls_node) are alike: next,
// and the address of the pointer that leads to the node. It calls f with the
// address of each node. bucket is the chain's number in its table, with which a
// chain of the second kind ends.
//
// It is one attempt, for [Reader.consistently]: errTorn where a node does not
// point back, before f or after, and where the walk ends in another chain,
// because an object was freed and used again there. More than most nodes are
// ErrImplausible.
func (r *Reader) chain(head x86.VirtAddr, bucket uint64, most int, f func(node x86.VirtAddr) error) error {
	link := head // where the pointer to the next node is
	for n := 0; ; n++ {
		v, err := r.as.ReadUint64(link)
		if err != nil {
			return errTorn
		}
		if v == 0 {
			return nil
		}
		if v&1 != 0 {
			if end := v >> 1; end != bucket && end != bucket+listenNulls {
				return errTorn
			}
			return nil
		}
		if n >= most {
			return &ReadError{What: "a hash chain", Got: fmt.Sprintf("more than %d entries", most), Err: ErrImplausible}
		}
		node := x86.VirtAddr(v)
		// A circle of nodes that all point back goes through its head.
		if node == head || !r.linkedAt(node, link) {
			return errTorn
		}
		if err := f(node); err != nil {
			return err
		}
		if !r.linkedAt(node, link) {
			return errTorn
		}
		link = node
	}
}

// linkedAt reports whether a node says that the pointer at link leads to it.
func (r *Reader) linkedAt(node, link x86.VirtAddr) bool {
	if !node.KernelHalf() || node&7 != 0 {
		return false
	}
	back, err := r.as.ReadPointer(node + 8)
	return err == nil && back == link
}

// hashTable is a table of chain heads.
type hashTable struct {
	what    string // for errors
	at      x86.VirtAddr
	buckets int
	// stride is the size of a bucket, head where its chain head is in it.
	stride, head int
}

// maxBuckets bounds a hash table: the kernel makes at most 512 Ki buckets for
// connections and 64 Ki for others unless it is told otherwise at its start, or
// 16 Mi for a network namespace of its own.
const maxBuckets = 1 << 24

// masked is a table whose number of buckets is a mask plus one.
func masked(what string, at x86.VirtAddr, mask uint32, stride, head int) hashTable {
	return hashTable{what, at, int(mask) + 1, stride, head}
}

// check refuses what is no table of the kernel's.
func (t *hashTable) check() error {
	if t.buckets <= 0 || t.buckets > maxBuckets || t.buckets&(t.buckets-1) != 0 || !t.at.KernelHalf() {
		return &ReadError{What: t.what, Got: fmt.Sprintf("%d buckets at %v", t.buckets, t.at), Err: ErrImplausible}
	}
	if t.stride < 8 || t.stride > x86.PageSize || t.head < 0 || t.head > t.stride-8 {
		return &ReadError{What: t.what, Got: "no such members in this kernel's types", Err: ErrUnsupported}
	}
	return nil
}

// eachBucket calls f with the number of each bucket of a table that is not
// empty, and the address of its chain head.
func (r *Reader) eachBucket(t hashTable, f func(bucket uint64, head x86.VirtAddr) error) error {
	if err := t.check(); err != nil {
		return err
	}
	var o object
	atOnce := x86.PageSize / t.stride
	for i := 0; i < t.buckets; i += atOnce {
		n := min(atOnce, t.buckets-i)
		at := t.at + x86.VirtAddr(i*t.stride)
		if err := r.read(&o, at, n*t.stride); err != nil {
			return &ReadError{What: t.what, Err: err}
		}
		for j := range n {
			v := o.u64(j*t.stride + t.head)
			if v == 0 || v&1 != 0 && x86.VirtAddr(v) < 1<<32 {
				continue
			}
			if err := f(uint64(i+j), at+x86.VirtAddr(j*t.stride+t.head)); err != nil {
				if errors.Is(err, errStop) {
					return nil
				}
				return err
			}
		}
	}
	return nil
}
