package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"
)

// prefix opens each line of ours. It is never part of a message: JSON text is
// cut into lines only behind it.
const prefix = "@@hvi "

const (
	// chunk is how many bytes of a message one line carries. Short lines lose
	// little when something cuts into one.
	chunk = 160
	// maxParts bounds what a damaged or hostile line can make the decoder keep.
	maxParts = 1 << 15
	// maxLine bounds a line without an end.
	maxLine = 64 << 10
)

// Encoder writes messages. It is safe for concurrent use.
type Encoder struct {
	mu  sync.Mutex
	w   io.Writer
	seq uint32
}

// NewEncoder returns an Encoder that writes to w. Each message reaches w in
// one Write.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w} }

// Encode writes one message.
func (e *Encoder) Encode(m Message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s message: %w", m.Kind, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	parts := (len(text) + chunk - 1) / chunk
	var b bytes.Buffer
	for i := range parts {
		part := text[i*chunk : min((i+1)*chunk, len(text))]
		head := fmt.Sprintf("%x %x %x", e.seq, i, parts)
		fmt.Fprintf(&b, "%s%s %08x %s\n", prefix, head, checksum(head, part), part)
	}
	if _, err := e.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write %s message: %w", m.Kind, err)
	}
	return nil
}

func checksum(head string, part []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(head)), crc32.IEEETable, part)
}

// Decoder is an [io.Writer] that takes the stream apart again. It is not safe
// for concurrent use. A Write never fails.
type Decoder struct {
	onMessage func(Message)
	onText    func(line string)

	line    []byte
	parts   map[uint32]*pending
	next    uint32 // the first sequence number not yet delivered or given up
	damaged int
}

type pending struct {
	parts [][]byte
	have  int
}

// NewDecoder returns a Decoder that calls onMessage for each whole message, in
// the order they were completed, and onText for each other line, without its
// line end. onText may be nil.
func NewDecoder(onMessage func(Message), onText func(line string)) *Decoder {
	if onText == nil {
		onText = func(string) {}
	}
	return &Decoder{onMessage: onMessage, onText: onText, parts: map[uint32]*pending{}, next: 1}
}

// Write takes the next piece of the stream.
func (d *Decoder) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			d.line = append(d.line, p...)
			if len(d.line) > maxLine {
				d.take(d.line)
				d.line = d.line[:0]
			}
			break
		}
		d.line = append(d.line, p[:i]...)
		d.take(d.line)
		d.line = d.line[:0]
		p = p[i+1:]
	}
	return n, nil
}

// Lost returns how many messages are known not to have arrived whole: those
// with a part missing and those skipped in the numbering. It is final once the
// stream has ended.
func (d *Decoder) Lost() int {
	n := d.damaged
	for seq := range d.parts {
		if seq >= d.next {
			n++
		}
	}
	return n
}

func (d *Decoder) take(line []byte) {
	line = bytes.TrimRight(line, "\r")
	// Text that came before ours on the same line, such as a banner without a
	// line end, must not cost us the message.
	at := bytes.Index(line, []byte(prefix))
	if at < 0 {
		d.onText(string(line))
		return
	}
	if at > 0 {
		d.onText(string(line[:at]))
	}
	seq, index, parts, body, ok := parseLine(line[at+len(prefix):])
	if !ok {
		d.onText(string(line[at:]))
		return
	}
	if seq < d.next {
		return // a repetition of what we have
	}
	p := d.parts[seq]
	if p == nil {
		p = &pending{parts: make([][]byte, parts)}
		d.parts[seq] = p
	}
	if len(p.parts) != parts || p.parts[index] != nil {
		return
	}
	p.parts[index] = bytes.Clone(body)
	p.have++
	if p.have < parts {
		return
	}
	delete(d.parts, seq)
	// One sender numbers from 1 without a gap and finishes one message before
	// the next, so whatever is older and not here yet will not come.
	if seq >= d.next {
		d.damaged += int(seq - d.next)
		for old := range d.parts {
			if old < seq {
				delete(d.parts, old)
			}
		}
		d.next = seq + 1
	}
	var m Message
	if err := json.Unmarshal(bytes.Join(p.parts, nil), &m); err != nil {
		d.damaged++
		return
	}
	d.onMessage(m)
}

// parseLine reads "seq index parts crc body", numbers in hexadecimal.
func parseLine(line []byte) (seq uint32, index, parts int, body []byte, ok bool) {
	f := strings.SplitN(string(line), " ", 5)
	if len(f) != 5 {
		return 0, 0, 0, nil, false
	}
	var n [4]uint64
	for i, limit := range [4]int{32, 16, 16, 32} {
		v, err := strconv.ParseUint(f[i], 16, limit)
		if err != nil {
			return 0, 0, 0, nil, false
		}
		n[i] = v
	}
	body = []byte(f[4])
	head := strings.Join(f[:3], " ")
	if n[2] == 0 || n[2] > maxParts || n[1] >= n[2] || n[0] == 0 || uint32(n[3]) != checksum(head, body) {
		return 0, 0, 0, nil, false
	}
	return uint32(n[0]), int(n[1]), int(n[2]), body, true
}
