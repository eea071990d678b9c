package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// errNoBTF: the kernel has no type information, and never will.
var errNoBTF = errors.New("no such symbols: built without CONFIG_DEBUG_INFO_BTF")

// readTypes reads the kernel's own type information, or notes why not.
func (k *Kernel) readTypes() {
	fail := func(got string, err error) {
		k.BTFError = &IdentifyError{Stage: StageBTF, Want: "type information from __start_BTF to __stop_BTF", Got: got, Err: err,
			Hint: "without it no process is named and the kernel's own patching can't be told from an attack; a profile of this kernel can stand in for it"}
	}
	start, end, err := k.btfBounds()
	if err != nil {
		fail("", err)
		return
	}
	if start < k.Base || end > k.Symbols.end {
		fail(fmt.Sprintf("%v to %v", start, end), errOutsideImage)
		return
	}
	blob, err := readBTF(k.as, start, end)
	if err != nil {
		fail("", err)
		return
	}
	types, err := parseBTF(blob, wanted())
	if err != nil {
		fail("", err)
		return
	}
	o, err := offsetsFrom(types)
	if err != nil {
		fail("", err)
		return
	}
	k.Offsets, k.Types = o, report.TypesBTF
	k.btfStart, k.btfEnd = start, end
	k.btfSum = k.key.sumBTF(blob)
}

func (k *Kernel) btfBounds() (start, end x86.VirtAddr, err error) {
	start, ok1 := k.Symbols.Lookup("__start_BTF")
	end, ok2 := k.Symbols.Lookup("__stop_BTF")
	if !ok1 || !ok2 {
		err = errNoBTF
	}
	return start, end, err
}

// useProfile takes from a profile what readTypes would find.
func (k *Kernel) useProfile(p *profile) {
	k.profile, k.Cached, k.Profile = p, true, p.build(k.key)
	if p.btf.size == 0 {
		k.readTypes() // which says that there is nothing to be read
		return
	}
	k.Offsets, k.Types = p.offsets, report.TypesBTF
	k.btfStart = k.Base + x86.VirtAddr(p.btf.at)
	k.btfEnd = k.btfStart + x86.VirtAddr(p.btf.size)
	k.btfSum = p.btfSum
}

// replaceTypes takes the layouts from elsewhere, where that was asked for or the
// kernel has none, and says what is missing.
func (k *Kernel) replaceTypes(opt *Options) error {
	isf := opt.ISF
	var noISF error
	if isf == nil && k.Types == report.TypesNone && opt.ISFs != nil {
		isf, noISF = opt.ISFs.find(k.Banner)
	}
	switch {
	case isf != nil:
		if isf.Banner != k.Banner {
			return &IdentifyError{Stage: StageISF, Want: fmt.Sprintf("a profile of %q", k.Banner), Got: fmt.Sprintf("%s, one of %q", isf.Name, isf.Banner),
				Hint: "a profile fits the one build of a kernel that it was made from"}
		}
		k.Offsets, k.Types = isf.offsets, report.TypesISF
		return nil
	case k.Types == report.TypesBTF:
		return nil
	}
	k.TypesNote = k.BTFError.Error()
	if noISF != nil {
		k.TypesNote += "; " + noISF.Error()
	}
	if o, ok := k.guessOffsets(); ok {
		k.Offsets, k.Types = o, report.TypesGuess
		k.TypesNote += "; pid and name of tasks were found by what the first ones must contain"
	}
	return nil
}
