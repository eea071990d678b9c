package linux

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sort"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// textLine is how much code has a digest of its own: a change is told as
	// exactly as this.
	textLine     = 64
	linesPerPage = x86.PageSize / textLine
	// maxPatch is the longest instruction that the kernel patches in.
	maxPatch = 6
)

// ImageWatch knows a part of the kernel's image as it was at one moment: its code,
// so that a change can be told from the kernel's own patches, or data that is
// never written. It has a digest of each stretch with the places left out that the
// kernel patches, and those places with what may be there.
//
// It takes a sixteenth of the part's size, less where it shares that with another guest's.
// It borrows nothing; its methods read
// through the [Reader] they are given.
type ImageWatch struct {
	start x86.VirtAddr
	size  int
	code  bool        // and not data, so that there may be kprobes in it
	sites []patchSite // in order
	// sharedSites and sharedLines keep those of a kernel's code for other guests with the
	// same.
	sharedSites *[]patchSite
	sharedLines *[]uint32
	// ignored are not watched.
	ignored []Range
	lines   []uint32 // digests, by offset / textLine
	// accepted are digests of lines that were found to be other ones, and told of.
	accepted map[int]uint32
	// odd are the places that were found to hold what they should not, as told
	// before, by offset.
	odd map[uint32][maxPatch]byte
	// page is for the page that is compared, nil before the first: that is done all day,
	// and a copy of its own for each kept the garbage collector busy.
	page *watchedPage
	// batches are those of the guest's table of functions that can be traced, as read
	// when that was first asked since [ImageWatch.Refresh].
	batches []traceBatch
}

// watchedPage is a copy of a page, with the bytes behind it, for an instruction that goes
// beyond, and one in which the places are left out that the kernel patches.
type watchedPage struct {
	text   [x86.PageSize + maxPatch]byte
	masked [x86.PageSize]byte
}

// ImageChange is what is not as it was, and what no patch of the kernel's own
// explains.
type ImageChange struct {
	// Addr is where it begins: a multiple of 64 bytes, since it is known no more
	// exactly, or the place of a patch.
	Addr x86.VirtAddr
	// Now is what is there.
	Now []byte
	// Patch says that the kernel does patch this place, but not with this. To is
	// where it leads, if it leads away.
	Patch bool
	To    report.Place
	// UnderWay says that it is what the kernel puts there while it patches the place.
	UnderWay bool
}

// Taking says how code is read that is taken for right while the guest runs.
type Taking struct {
	// Original returns what a page was, where the guest may have patched it since; nil
	// where it is what it was. It is asked after the page was read. A nil function is
	// that of a guest that is paused.
	Original func(page int) *[x86.PageSize]byte
	// Rest is called between one piece and the next, if it is not nil.
	Rest func()
}

// WatchText takes the kernel's code as it is now for right, or as it was, but for what
// kprobes have displaced in it.
func (r *Reader) WatchText(how Taking) (*ImageWatch, error) {
	r.tlb.Flush()
	r.beginLook()
	w, err := r.watchCode(r.kernelCode(), watchPiece, how)
	if err == nil {
		w.sharedSites, w.sharedLines = shareSites(w.sites), shareLines(w.lines)
		w.sites, w.lines = *w.sharedSites, *w.sharedLines
	}
	return w, err
}

// WatchModule does so with the code of a module that is live; nil of one that has none.
// traced is of [Reader.ModuleTraceSites].
func (r *Reader) WatchModule(m report.Module, traced TraceSites) (*ImageWatch, error) {
	r.tlb.Flush()
	r.beginLook()
	for _, a := range m.Regions {
		if a.Kind == regionText {
			return r.watchCode(r.moduleCode(m.Addr, Range{a.Base, a.Base + x86.VirtAddr(a.Size)}, traced), watchPiece, Taking{})
		}
	}
	return nil, nil
}

// watchCode takes some code as it is now for right, reading piece bytes of it at a time,
// which are whole pages.
func (r *Reader) watchCode(c patchedCode, piece int, how Taking) (*ImageWatch, error) {
	start, end := c.where.Start.Page(), c.where.End
	if end <= start || end-start > maxText {
		return nil, &ReadError{What: "code", Got: fmt.Sprintf("from %v to %v", start, end), Err: ErrImplausible}
	}
	w := &ImageWatch{start: start, code: true}
	found, err := c.patchSites(start)
	if err != nil {
		return nil, err
	}
	size := (int(end-start) + x86.PageMask) &^ x86.PageMask
	return w, w.take(r, size, piece, how, func(off int, text []byte) error {
		if err := r.undoKprobes(start+x86.VirtAddr(off), text); err != nil {
			return err
		}
		n := 0
		for n < len(found) && int(found[n].off) < off+piece {
			n++
		}
		w.addSites(found[:n], off, text, size)
		found = found[n:]
		return nil
	})
}

// Start is where the first page begins.
func (w *ImageWatch) Start() x86.VirtAddr { return w.start }

// WatchData takes data of the kernel's that is never written, as it is now, for
// right, but for what is in except.
func (r *Reader) WatchData(what Range, except []Range) (*ImageWatch, error) {
	r.tlb.Flush()
	start, end := what.Start.Page(), (what.End + x86.PageMask).Page()
	if end <= start || end-start > maxROData {
		return nil, &ReadError{What: "read-only data", Got: fmt.Sprintf("from %v to %v", start, end), Err: ErrImplausible}
	}
	w := &ImageWatch{start: start, ignored: append([]Range{{start, what.Start}, {what.End, end}}, except...)}
	return w, w.take(r, int(end-start), watchPiece, Taking{}, func(int, []byte) error { return nil })
}

// watchPiece is how much is read at a time to make digests of. Code has megabytes, and
// to have memory for all of it of the system takes longer than to read it.
const watchPiece = 256 << 10

// take makes the digests of what is there now, piece bytes at a time. Before those of a
// piece, each is called with its offset, with what is in it, and with as much of the next
// as an instruction may have that begins in it: it may change that, and add places to w.
func (w *ImageWatch) take(r *Reader, size, piece int, how Taking, each func(off int, b []byte) error) error {
	w.size = size
	w.lines, w.odd, w.accepted = make([]uint32, size/textLine), map[uint32][maxPatch]byte{}, map[int]uint32{}
	buf := make([]byte, min(size, piece+maxPatch))
	var page [x86.PageSize]byte
	for off := 0; off < size; off += piece {
		b := buf[:min(len(buf), size-off)]
		if err := r.as.Read(w.start+x86.VirtAddr(off), b); err != nil {
			return &ReadError{What: "the kernel's image", Err: err}
		}
		if how.Original != nil {
			for at := 0; at < len(b); at += x86.PageSize {
				if was := how.Original((off + at) >> x86.PageShift); was != nil {
					copy(b[at:], was[:])
				}
			}
		}
		if err := each(off, b); err != nil {
			return err
		}
		for p := off >> x86.PageShift; p < min(off+piece, size)>>x86.PageShift; p++ {
			copy(page[:], b[p<<x86.PageShift-off:])
			w.mask(p, &page)
			for i := range linesPerPage {
				w.lines[p*linesPerPage+i] = digestLine(&page, i)
			}
		}
		if how.Rest != nil && off+piece < size {
			how.Rest()
		}
	}
	return nil
}

// addSites adds those of the places found, in order, whose present instruction belongs
// there; code is what is there from off on, of size bytes in all. For a place with any
// other, nothing but what it holds now is right.
func (w *ImageWatch) addSites(found []patchSite, off int, code []byte, size int) {
	for _, s := range found {
		b := code[int(s.off)-off:]
		if s.n = s.length(b); s.n == 0 {
			s.n = s.lengthUnderWay(b, uint32(size))
		}
		if s.n == 0 {
			continue
		}
		// Where two overlap, the first says more: branches come before calls.
		if n := len(w.sites); n > 0 && s.off < w.sites[n-1].off+uint32(w.sites[n-1].n) {
			continue
		}
		w.sites = append(w.sites, s)
	}
}

// maxText bounds the kernel's code: Debian's has 14 to 20 MiB.
const maxText = 256 << 20

// Pages returns how many pages there are.
func (w *ImageWatch) Pages() int { return w.size >> x86.PageShift }

// lineSeed keys the digests. It is a secret of this process, so that no guest can make
// other code with the same digest, and one for all guests, so that they share them.
var lineSeed = maphash.MakeSeed()

// digestLine is the digest of one line of a page.
func digestLine(page *[x86.PageSize]byte, line int) uint32 {
	return uint32(maphash.Bytes(lineSeed, page[line*textLine:(line+1)*textLine]))
}

// sitesOf returns the places that have a byte in a page.
func (w *ImageWatch) sitesOf(page int) []patchSite {
	from, to := uint32(page)<<x86.PageShift, uint32(page+1)<<x86.PageShift
	first := sort.Search(len(w.sites), func(i int) bool { return w.sites[i].off+uint32(w.sites[i].n) > from })
	last := sort.Search(len(w.sites), func(i int) bool { return w.sites[i].off >= to })
	return w.sites[first:max(first, last)]
}

// Refresh forgets what was read of the guest for the comparisons so far, beside what
// they compare: what else there is of code. It is read once for all comparisons until
// the next Refresh.
func (w *ImageWatch) Refresh(r *Reader) {
	r.tlb.Flush()
	r.beginLook()
	w.batches = nil
}

// tracedIn returns which functions in a page are traced, as the guest's table says.
func (w *ImageWatch) tracedIn(r *Reader, page int) (map[x86.VirtAddr]bool, error) {
	if w.batches == nil {
		var err error
		if w.batches, err = r.traceBatches(); err != nil {
			return nil, err
		}
	}
	from := w.start + x86.VirtAddr(page)<<x86.PageShift
	traced := map[x86.VirtAddr]bool{}
	err := r.eachRecord(w.batches, from, from+x86.PageSize, func(ip x86.VirtAddr, on bool) { traced[ip] = on })
	return traced, err
}

// mask clears what the kernel patches, and what is not watched.
func (w *ImageWatch) mask(page int, b *[x86.PageSize]byte) {
	base := page << x86.PageShift
	va := w.start + x86.VirtAddr(base)
	for _, x := range w.ignored {
		if from, to := max(x.Start, va), min(x.End, va+x86.PageSize); from < to {
			clear(b[from-va : to-va])
		}
	}
	for _, s := range w.sitesOf(page) {
		from, to := max(int(s.off)-base, 0), min(int(s.off)+int(s.n)-base, x86.PageSize)
		clear(b[from:to])
	}
}

// Compare returns what has changed in a page, page being below [ImageWatch.Pages]. Of a
// guest that runs, [ImageWatch.Refresh] is called before each lot of comparisons.
// A guest that runs may be patching it at this very moment: what is still there a
// second later is no patch.
func (w *ImageWatch) Compare(r *Reader, page int) ([]ImageChange, error) {
	va := w.start + x86.VirtAddr(page)<<x86.PageShift
	if w.page == nil {
		w.page = new(watchedPage)
	}
	text := &w.page.text
	n := min(len(text), w.size-page<<x86.PageShift)
	clear(text[n:])
	if err := r.as.Read(va, text[:n]); err != nil {
		return nil, &ReadError{What: "the kernel's image", Err: err}
	}
	changed := w.changed(page)
	if len(changed) > 0 && w.code {
		if err := r.undoKprobes(va, text[:n]); err != nil {
			return nil, err
		}
		changed = w.changed(page)
	}
	var out []ImageChange
	for _, line := range changed {
		at := line * textLine
		out = append(out, ImageChange{Addr: va + x86.VirtAddr(at), Now: slices.Clone(text[at : at+textLine])})
	}
	patches, err := w.comparePatches(r, page, text[:n], len(changed) > 0)
	return append(out, patches...), err
}

// changed returns the lines of a page, of which there is a copy, that are not what they
// were.
func (w *ImageWatch) changed(page int) []int {
	masked := &w.page.masked
	copy(masked[:], w.page.text[:])
	w.mask(page, masked)
	var out []int
	for i := range linesPerPage {
		line := page*linesPerPage + i
		now := digestLine(masked, i)
		if now == w.lines[line] {
			delete(w.accepted, line) // it is told of if it is made again
			continue
		}
		if known, ok := w.accepted[line]; !ok || now != known {
			out = append(out, i)
		}
	}
	return out
}

// comparePatches looks at the places that the kernel patches. clean says that what
// kprobes have displaced is in the copy of the page already.
func (w *ImageWatch) comparePatches(r *Reader, page int, text []byte, clean bool) ([]ImageChange, error) {
	var out []ImageChange
	var traced map[x86.VirtAddr]bool
	base := page << x86.PageShift
	pageVA := w.start + x86.VirtAddr(base)
	for _, s := range w.sitesOf(page) {
		at := int(s.off) - base
		if at < 0 || at+int(s.n) > len(text) {
			continue // of the page before, or cut off by the end of all code
		}
		b := text[at : at+int(s.n)]
		va := pageVA + x86.VirtAddr(at)
		var now [maxPatch]byte
		copy(now[:], b)
		right := w.patchRight(r, s, b, va)
		if !right && !clean {
			if err := r.undoKprobes(pageVA, text); err != nil {
				return out, err
			}
			clean = true
			right = w.patchRight(r, s, b, va)
		}
		if right && s.kind == siteTrace && b[0] == 0xe8 {
			// A call needs somebody who traces.
			if traced == nil {
				var err error
				if traced, err = w.tracedIn(r, page); err != nil {
					return out, err
				}
			}
			right = traced[va]
		}
		if right {
			delete(w.odd, s.off)
			continue
		}
		if told, ok := w.odd[s.off]; ok && told == now {
			continue
		}
		out = append(out, ImageChange{
			Addr: va, Now: slices.Clone(now[:s.n]), Patch: true, To: w.patchLeads(r, s, now, va),
			UnderWay: s.lengthUnderWay(now[:], uint32(w.size)) == s.n,
		})
	}
	return out, nil
}

// patchRight says whether an instruction is one that the kernel puts at a place.
func (w *ImageWatch) patchRight(r *Reader, s patchSite, b []byte, va x86.VirtAddr) bool {
	var whole [maxPatch]byte
	copy(whole[:], b)
	if s.kind == siteLock {
		return isLock(b[0])
	}
	if s.length(whole[:]) != s.n {
		return false
	}
	target, leads := goesTo(whole[:], va)
	switch {
	case !leads:
		return true
	case s.kind == siteKey:
		return target == w.start+x86.VirtAddr(s.target)
	case target >= r.k.TextStart && target < r.k.TextEnd:
		return true // without asking which function it is
	}
	return r.place(target).In.Code()
}

// patchLeads says where an instruction leads that does not belong at a place.
func (w *ImageWatch) patchLeads(r *Reader, s patchSite, b [maxPatch]byte, va x86.VirtAddr) report.Place {
	if target, leads := goesTo(b[:], va); leads && s.kind != siteLock && s.length(b[:]) == s.n {
		return r.place(target)
	}
	return report.Place{In: report.InNothing}
}

// Accept takes a change for known, so that it is not told again.
func (w *ImageWatch) Accept(c ImageChange) {
	off := uint32(c.Addr - w.start)
	if c.Patch {
		var now [maxPatch]byte
		copy(now[:], c.Now)
		w.odd[off] = now
		return
	}
	var page [x86.PageSize]byte
	at := int(off) & x86.PageMask
	copy(page[at:], c.Now)
	w.mask(int(off)>>x86.PageShift, &page)
	w.accepted[int(off/textLine)] = digestLine(&page, at/textLine)
}

// Bytes are some at an address, to be written there.
type Bytes struct {
	Addr  x86.VirtAddr
	Bytes []byte
}

// Undo returns what is to be written so that a change is none any more, given what its
// page was when there was none. That may have been in the middle of a patch of the
// kernel's own: it returns nothing where the place had no instruction of its own then,
// or goes beyond the page.
func (w *ImageWatch) Undo(c ImageChange, was *[x86.PageSize]byte) []Bytes {
	off := uint32(c.Addr - w.start)
	at, page := int(off&x86.PageMask), int(off>>x86.PageShift)
	if c.Patch {
		for _, s := range w.sitesOf(page) {
			if s.off != off || at+int(s.n) > x86.PageSize {
				continue
			}
			var whole [maxPatch]byte
			copy(whole[:], was[at:at+int(s.n)])
			if s.length(whole[:]) == s.n {
				return []Bytes{{c.Addr, slices.Clone(was[at : at+int(s.n)])}}
			}
		}
		return nil
	}
	before, now := *was, *was
	copy(now[at:], c.Now)
	w.mask(page, &before)
	w.mask(page, &now)
	var out []Bytes
	for i := at; i < min(at+textLine, x86.PageSize); i++ {
		if before[i] == now[i] {
			continue
		}
		va := c.Addr + x86.VirtAddr(i-at)
		if n := len(out) - 1; n >= 0 && out[n].Addr+x86.VirtAddr(len(out[n].Bytes)) == va {
			out[n].Bytes = append(out[n].Bytes, was[i])
		} else {
			out = append(out, Bytes{va, []byte{was[i]}})
		}
	}
	return out
}

// undoKprobes puts back what the kernel's kprobes have displaced in a copy of the
// code at an address.
func (r *Reader) undoKprobes(va x86.VirtAddr, text []byte) error {
	o := &r.k.Offsets.Kprobe
	table, err := r.variable("kprobe_table")
	if err != nil {
		return nil // built without
	}
	if err := need("kprobe.hlist", o.Hash, "kprobe.addr", o.Addr, "kprobe.opcode", o.Opcode); err != nil {
		return err
	}
	var kp object
	return r.consistently("the table of kprobes", func() error {
		for i := range kprobeBuckets {
			err := r.hashChain(table+x86.VirtAddr(i)*8, maxKprobes, func(node x86.VirtAddr) error {
				at := node - x86.VirtAddr(o.Hash)
				if err := r.read(&kp, at, o.Size); err != nil {
					return errTorn
				}
				addr := kp.pointer(o.Addr)
				if addr+maxPatch <= va || addr >= va+x86.VirtAddr(len(text)) {
					return nil
				}
				if o.Flags >= 0 && kp.u32(o.Flags)&kprobeFtrace != 0 {
					return nil // what is patched there is the tracer's, and it has displaced nothing
				}
				var first [1]byte // of what is there
				if addr >= va {
					first[0] = text[addr-va]
				} else if err := r.as.Read(addr, first[:]); err != nil {
					return errTorn
				}
				displaced := [5]byte{kp.u8(o.Opcode)}
				n := 0
				switch first[0] {
				case 0xcc:
					n = 1
				case 0xe9: // A jump has taken the breakpoint's place.
					copied := r.k.Offsets.OptKprobe.Copied
					if copied < 0 {
						return nil
					}
					if err := r.as.Read(at+x86.VirtAddr(copied), displaced[1:]); err != nil {
						return errTorn
					}
					n = len(displaced)
				}
				was := displaced[:n]
				if addr < va { // its end may lie here
					was, addr = was[min(int(va-addr), n):], va
				}
				copy(text[addr-va:], was)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
