package linux

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// RingOffsets lays out struct printk_ringbuffer (5.10): a ring of descriptors,
// a ring of what is told of each record, and a ring of text.
type RingOffsets struct {
	Size      int
	CountBits int `c:"desc_ring.count_bits"`
	Descs     int `c:"desc_ring.descs"`
	Infos     int `c:"desc_ring.infos"`
	HeadID    int `c:"desc_ring.head_id"`
	TailID    int `c:"desc_ring.tail_id"`
	TextBits  int `c:"text_data_ring.size_bits"`
	TextData  int `c:"text_data_ring.data"`
}

// DescOffsets lays out struct prb_desc.
type DescOffsets struct {
	Size  int
	State int `c:"state_var"`
	Begin int `c:"text_blk_lpos.begin"`
	Next  int `c:"text_blk_lpos.next"`
}

// LogInfoOffsets lays out struct printk_info.
type LogInfoOffsets struct {
	Size     int
	Seq      int  `c:"seq"`
	Time     int  `c:"ts_nsec"`
	TextLen  int  `c:"text_len"`
	Facility int  `c:"facility"`
	Level    Bits `c:"level"`
}

// OldLogOffsets lays out struct printk_log, the record of the kernels before
// 5.10: its text is right behind it.
type OldLogOffsets struct {
	Size     int
	Time     int  `c:"ts_nsec"`
	Len      int  `c:"len"`
	TextLen  int  `c:"text_len"`
	Facility int  `c:"facility"`
	Level    Bits `c:"level"`
}

const (
	// maxLogBits bounds the rings: LOG_BUF_LEN_MAX is 2 GiB, CONFIG_LOG_BUF_SHIFT
	// at most 25, and a descriptor is there for each 32 bytes of text.
	maxLogBits  = 31
	maxDescBits = maxLogBits - 5
	// maxLogRecords and maxLogText bound a report: the newest that many
	// records. Debian's kernels hold some thousand, of 128 KiB.
	maxLogRecords = 1 << 17
	maxLogText    = 16 << 20
	// logChunk is how many descriptors are read at a time.
	logChunk = 256
)

// States of a descriptor, in the uppermost bits of its state_var; its id is in
// the others (kernel/printk/printk_ringbuffer.h).
const (
	descStateShift = 62
	descIDMask     = 1<<descStateShift - 1
	descFinalized  = 2
)

// noText is the position of a text that is empty (NO_LPOS; EMPTY_LINE_LPOS
// later). Another odd one stands for a text that was lost.
const noText = 3

// Log reports the kernel's log, oldest record first, as dmesg shows it. A
// record that is overwritten while it is read is left out.
func (r *Reader) Log() (report.List[report.LogRecord], error) {
	out := report.List[report.LogRecord]{Items: []report.LogRecord{}}
	err := r.reading(&out.Reading, func() error {
		if prb, err := r.variable("prb"); err == nil {
			return r.ringLog(prb, &out.Items)
		}
		return r.consistently("the kernel's log", func() error { return r.oldLog(&out.Items) })
	})
	return out, err
}

// logRing is a copy of the kernel's printk_ringbuffer.
type logRing struct {
	count        uint64
	descs, infos x86.VirtAddr
	head, tail   uint64 // ids
	text         x86.VirtAddr
	textBits     uint32
}

func (r *Reader) logRing(prb x86.VirtAddr) (logRing, error) {
	o := &r.k.Offsets.Ring
	if err := need("printk_ringbuffer.desc_ring", o.Descs, "desc_ring.infos", o.Infos, "desc_ring.head_id", o.HeadID, "desc_ring.tail_id", o.TailID,
		"text_data_ring.data", o.TextData, "text_data_ring.size_bits", o.TextBits, "desc_ring.count_bits", o.CountBits,
		"prb_desc.state_var", r.k.Offsets.Desc.State, "prb_desc.text_blk_lpos.begin", r.k.Offsets.Desc.Begin,
		"prb_desc.text_blk_lpos.next", r.k.Offsets.Desc.Next,
		"printk_info.seq", r.k.Offsets.LogInfo.Seq, "printk_info.text_len", r.k.Offsets.LogInfo.TextLen); err != nil {
		return logRing{}, err
	}
	at, err := r.as.ReadPointer(prb)
	if err != nil {
		return logRing{}, &ReadError{What: "prb", Err: err}
	}
	var rb object
	if err := r.read(&rb, at, o.Size); err != nil {
		return logRing{}, &ReadError{What: "printk_ringbuffer", Err: err}
	}
	countBits, textBits := rb.u32(o.CountBits), rb.u32(o.TextBits)
	ring := logRing{
		descs: rb.pointer(o.Descs), infos: rb.pointer(o.Infos),
		head: rb.u64(o.HeadID) & descIDMask, tail: rb.u64(o.TailID) & descIDMask,
		text: rb.pointer(o.TextData), textBits: textBits,
	}
	if countBits == 0 || countBits > maxDescBits || textBits == 0 || textBits > maxLogBits ||
		!ring.descs.KernelHalf() || !ring.infos.KernelHalf() || !ring.text.KernelHalf() {
		return logRing{}, &ReadError{What: "printk_ringbuffer", Err: ErrImplausible,
			Got: fmt.Sprintf("2^%d descriptors at %v, 2^%d bytes at %v", countBits, ring.descs, textBits, ring.text)}
	}
	ring.count = 1 << countBits
	return ring, nil
}

// ringLog reads the ring of 5.10 and later. Each record is believed by itself:
// its descriptor must have its id and be final both before and after.
func (r *Reader) ringLog(prb x86.VirtAddr, out *[]report.LogRecord) error {
	ring, err := r.logRing(prb)
	if err != nil {
		return err
	}
	// Ids wrap, so their difference counts.
	n := (ring.head-ring.tail)&descIDMask + 1
	if n > ring.count {
		return &ReadError{What: "printk_ringbuffer", Err: ErrImplausible, Got: fmt.Sprintf("ids %d to %d in %d descriptors", ring.tail, ring.head, ring.count)}
	}
	if n > maxLogRecords {
		r.missing("the oldest %d records: more than %d", n-maxLogRecords, maxLogRecords)
		ring.tail, n = ring.tail+n-maxLogRecords, maxLogRecords
	}
	var overwritten uint64
	text := 0
	for n > 0 {
		// A stretch of descriptors up to the end of their array.
		first := ring.tail % ring.count
		some := min(n, logChunk, ring.count-first)
		lost, err := r.logRecords(&ring, ring.tail, int(some), &text, out)
		if err != nil {
			return err
		}
		overwritten += lost
		ring.tail, n = (ring.tail+some)&descIDMask, n-some
	}
	if overwritten > 0 {
		r.missing("%d records that the guest overwrote meanwhile", overwritten)
	}
	return nil
}

// logRecords reads n records from an id on, whose descriptors follow each other
// in memory, and returns how many of them were overwritten.
func (r *Reader) logRecords(ring *logRing, id uint64, n int, text *int, out *[]report.LogRecord) (overwritten uint64, err error) {
	d, in := &r.k.Offsets.Desc, &r.k.Offsets.LogInfo
	at := x86.VirtAddr(id % ring.count)
	var descs, infos, after object
	if err := r.read(&descs, ring.descs+at*x86.VirtAddr(d.Size), n*d.Size); err != nil {
		return 0, &ReadError{What: "prb_desc", Err: err}
	}
	if err := r.read(&infos, ring.infos+at*x86.VirtAddr(in.Size), n*in.Size); err != nil {
		return 0, &ReadError{What: "printk_info", Err: err}
	}
	from := len(*out)
	of := make([]int, 0, n) // the descriptor of each record
	for i := range n {
		state := descs.u64(i*d.Size + d.State)
		want := (id + uint64(i)) & descIDMask
		switch {
		case state&descIDMask == (want-ring.count)&descIDMask:
			continue // the guest is just taking it
		case state&descIDMask != want:
			overwritten++
			continue
		case state>>descStateShift != descFinalized:
			continue // being written, or free
		}
		info := object{b: infos.b[i*in.Size : (i+1)*in.Size]}
		rec := report.LogRecord{Seq: info.u64(in.Seq), Nanoseconds: info.u64(in.Time),
			Level: uint8(info.bits(in.Level)), Facility: info.u8(in.Facility)}
		msg, ok := r.logText(ring, want, descs.u64(i*d.Size+d.Begin), descs.u64(i*d.Size+d.Next), int(info.u16(in.TextLen)))
		if !ok {
			continue // its text was overwritten: dmesg leaves it out, too
		}
		setMessage(&rec, msg)
		if *text += len(rec.Message); *text > maxLogText {
			return overwritten, &ReadError{What: "printk_ringbuffer", Err: ErrImplausible, Got: fmt.Sprintf("more than %d bytes of text", maxLogText)}
		}
		*out, of = append(*out, rec), append(of, i)
	}
	r.tlb.Flush()
	if err := r.read(&after, descs.at, len(descs.b)); err != nil {
		return 0, &ReadError{What: "prb_desc", Err: err}
	}
	keep := from
	for j, i := range of {
		if after.u64(i*d.Size+d.State) == descs.u64(i*d.Size+d.State) {
			(*out)[keep] = (*out)[from+j]
			keep++
		} else {
			overwritten++
		}
	}
	*out = (*out)[:keep]
	return overwritten, nil
}

// logText reads the text of a record: a block in the ring of text, which begins
// with the record's id. Positions count on for ever; the block lies in one
// piece, at the ring's start if it did not fit in before the end.
func (r *Reader) logText(ring *logRing, id, begin, next uint64, length int) ([]byte, bool) {
	if begin == noText && next == noText {
		return nil, true
	}
	if begin&1 != 0 || next&1 != 0 {
		return nil, false
	}
	size := uint64(1) << ring.textBits
	from, end := begin&(size-1), uint64(0)
	switch {
	case begin>>ring.textBits == (next-1)>>ring.textBits && begin < next:
		end = from + (next - begin)
	case (begin+size)>>ring.textBits == next>>ring.textBits:
		from, end = 0, next&(size-1)
	default:
		return nil, false
	}
	const header = 8 // the id
	if end-from < header || end > size || uint64(length) > end-from-header {
		return nil, false
	}
	var block object
	if r.read(&block, ring.text+x86.VirtAddr(from), header+length) != nil || block.u64(0)&descIDMask != id {
		return nil, false
	}
	return block.b[header:], true
}

// setMessage sets the message and says whether it was cut.
func setMessage(rec *report.LogRecord, msg []byte) {
	rec.Message = printable.Escape(string(msg))
	const ellipsis = "…"
	rec.Cut = len(msg) > printable.MaxText ||
		strings.HasSuffix(string(rec.Message), ellipsis) && !bytes.HasSuffix(msg, []byte(ellipsis))
}

// oldLog reads the log of the kernels before 5.10: one buffer of records, each
// with its length, from log_first_idx to log_next_idx. One of length 0 says
// that the next is at the buffer's start.
func (r *Reader) oldLog(out *[]report.LogRecord) error {
	o := &r.k.Offsets.OldLog
	if err := need("printk_log.ts_nsec", o.Time, "printk_log.len", o.Len, "printk_log.text_len", o.TextLen); err != nil {
		return err
	}
	var at [5]x86.VirtAddr
	for i, name := range [...]string{"log_first_idx", "log_next_idx", "log_first_seq", "log_buf_len", "log_buf"} {
		va, err := r.variable(name)
		if err != nil {
			return err
		}
		at[i] = va
	}
	type state struct {
		first, next, size uint32
		seq               uint64
		buf               x86.VirtAddr
	}
	read := func() (s state, err error) {
		for _, v := range []struct {
			at  x86.VirtAddr
			val *uint32
		}{{at[0], &s.first}, {at[1], &s.next}, {at[3], &s.size}} {
			if *v.val, err = r.as.ReadUint32(v.at); err != nil {
				return s, &ReadError{What: "log_buf", Err: err}
			}
		}
		if s.seq, err = r.as.ReadUint64(at[2]); err == nil {
			s.buf, err = r.as.ReadPointer(at[4])
		}
		if err != nil {
			return s, &ReadError{What: "log_buf", Err: err}
		}
		return s, nil
	}
	s, err := read()
	if err != nil {
		return err
	}
	if s.size == 0 || s.size > maxLogText || s.first >= s.size || s.next > s.size || !s.buf.KernelHalf() {
		return &ReadError{What: "log_buf", Err: ErrImplausible, Got: fmt.Sprintf("%d bytes at %v, from %d to %d", s.size, s.buf, s.first, s.next)}
	}
	log := object{at: s.buf, b: make([]byte, s.size)}
	if err := r.as.Read(s.buf, log.b); err != nil {
		return &ReadError{What: "log_buf", Err: err}
	}
	r.tlb.Flush()
	// Newer records came behind next and did no harm; if old ones had to go
	// for them, what was copied may be half of each.
	if after, err := read(); err != nil || after.seq != s.seq || after.first != s.first || after.buf != s.buf {
		return errTorn
	}
	*out = (*out)[:0]
	if s.first == s.next {
		return nil
	}
	i, wrapped := int(s.first), s.first < s.next
	for seq := s.seq; i != int(s.next) || !wrapped; seq++ {
		n := int(log.u16(i + o.Len))
		if n == 0 && !wrapped {
			i, wrapped = 0, true
			if s.next == 0 {
				break
			}
			n = int(log.u16(o.Len))
		}
		length := int(log.u16(i + o.TextLen))
		if n < o.Size || length > n-o.Size || i+n > len(log.b) || wrapped && i+n > int(s.next) {
			return errTorn
		}
		rec := report.LogRecord{Seq: seq, Nanoseconds: log.u64(i + o.Time), Facility: log.u8(i + o.Facility),
			Level: uint8(log.bits(Bits{i + o.Level.Offset, o.Level.Shift, o.Level.Width}))}
		setMessage(&rec, log.b[i+o.Size:i+o.Size+length])
		*out = append(*out, rec)
		i += n
	}
	return nil
}
