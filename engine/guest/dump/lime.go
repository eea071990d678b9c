package dump

// The header before each range of a LiME dump, 32 bytes: magic u32, version
// u32, first and last address u64, 8 bytes of zero.
const (
	limeMagic   = "EMiL" // 0x4c694d45
	limeHeader  = 32
	limeVersion = 1
)

func parseLiME(data []byte) (layout, error) {
	var l layout
	for off := uint64(0); off < uint64(len(data)); {
		h, ok := part(data, off, limeHeader)
		if !ok {
			return l, broken(ErrTruncated, LiME, "a header at offset %#x of a file of %d bytes", off, len(data))
		}
		version, first, last := le32(h[4:]), le64(h[8:]), le64(h[16:])
		if string(h[:4]) != limeMagic {
			return l, broken(ErrDamaged, LiME, "no header at offset %#x", off)
		}
		if version != limeVersion {
			return l, broken(ErrUnsupported, LiME, "version %d, and %d is read", version, limeVersion)
		}
		if last < first || last >= maxPhys {
			return l, broken(ErrDamaged, LiME, "a range from %#x to %#x", first, last)
		}
		off += limeHeader
		size := last - first + 1
		if _, ok := part(data, off, size); !ok {
			return l, broken(ErrTruncated, LiME, "%#x bytes of memory at %#x, and %#x are there", size, first, uint64(len(data))-off)
		}
		l.add(first, size, off)
		off += size
	}
	l.arrange()
	return l, nil
}
