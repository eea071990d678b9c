package x86

// Protections are the bits of a register with which a kernel keeps code from
// doing what it should not, by the SDM's names.
type Protections []struct {
	Mask uint64
	Name string
}

// The registers that hold such bits.
var (
	CR0Protections = Protections{{CR0WP, "WP"}}
	CR4Protections = Protections{
		{CR4UMIP, "UMIP"}, {CR4FSGSBASE, "FSGSBASE"}, {CR4SMEP, "SMEP"},
		{CR4SMAP, "SMAP"}, {CR4PKE, "PKE"}, {CR4CET, "CET"},
	}
	// EFERProtections has SCE, without which a SYSCALL ends in #UD, where an
	// attacker could wait for it.
	EFERProtections = Protections{{EFERSCE, "SCE"}, {EFERNXE, "NXE"}}
)

// Mask is all the bits of p.
func (p Protections) Mask() uint64 {
	var m uint64
	for _, b := range p {
		m |= b.Mask
	}
	return m
}

// Names returns the names of those bits of p that are set in v, lowest first.
func (p Protections) Names(v uint64) []string {
	var out []string
	for _, b := range p {
		if v&b.Mask != 0 {
			out = append(out, b.Name)
		}
	}
	return out
}
