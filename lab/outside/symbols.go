package outside

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/lab/specimen"
	"github.com/xen-hvi/hvi/lab/witness"
)

// symbols compares each symbol of the kernel's own table, and its type
// information, with what the guest shows of them.
func symbols(s specimen.Specimen, r witness.Report) (table *comparison, btf int, err error) {
	text, err := os.ReadFile(s.Description())
	if err != nil {
		return nil, 0, err
	}
	var d struct {
		Regs []x86.Registers `json:"regs"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", s.Description(), err)
	}
	if len(d.Regs) == 0 {
		return nil, 0, fmt.Errorf("%s: no registers", s.Description())
	}
	mem, err := dump.Open(s.Raw())
	if err != nil {
		return nil, 0, err
	}
	defer mem.Close()
	k, err := linux.Identify(mem, d.Regs[0])
	if err != nil {
		return nil, 0, err
	}
	table = compareSymbols(k, r)
	want := r["sys/kernel/btf/vmlinux"]
	from, ok1 := k.Lookup("__start_BTF")
	to, ok2 := k.Lookup("__stop_BTF")
	if !ok1 || !ok2 || uint64(to-from) != uint64(len(want)) {
		return table, 0, fmt.Errorf("BTF from %v to %v, the guest has %d bytes", from, to, len(want))
	}
	got := make([]byte, len(want))
	as := k.AddressSpace()
	if err := as.Read(from, got); err != nil {
		return table, 0, err
	}
	if !bytes.Equal(got, want) {
		return table, 0, errors.New("the type information differs from the guest's own")
	}
	if k.BTFError != nil {
		return table, 0, k.BTFError
	}
	return table, len(want), nil
}

// compareSymbols compares them in their order, each one's address, type and
// name.
func compareSymbols(k *linux.Kernel, r witness.Report) *comparison {
	c := &comparison{}
	lines := strings.Lines(string(r["proc/kallsyms"]))
	want := []string{}
	for line := range lines {
		if strings.Contains(line, "\t") { // a module's symbol ends in its name
			break
		}
		want = append(want, strings.TrimSpace(line))
	}
	i := 0
	for s := range k.Symbols.All() {
		if i < len(want) {
			c.Things++
			c.equal("symbol "+strconv.Itoa(i), fmt.Sprintf("%016x %c %s", uint64(s.Addr), s.Type, s.Name), want[i])
		}
		i++
	}
	c.equal("number of symbols", strconv.Itoa(i), strconv.Itoa(len(want)))
	return c
}
