package xlplugin

import (
	"slices"

	"github.com/xen-hvi/hvi/engine/xen"
)

// XAPI's xenopsd gives a domain a temporary UUID while it migrates: that of its
// VM, with these last six bytes. The one to come has it until its memory has
// arrived, and gets its VM's before it is let run; the one that is sent has it
// from when its memory was sent until it is destroyed.
var (
	toCome  = []byte{0, 0, 0, 0, 0, 1}
	sentOff = []byte{0, 0, 0, 0, 0, 0}
)

// Temporary reports whether a UUID has the form of a temporary one. A domain's
// own may have it by chance; [OwnUUID] can tell.
func Temporary(uuid xen.UUID) bool {
	return slices.Equal(uuid[10:], toCome) || slices.Equal(uuid[10:], sentOff)
}

// OwnUUID returns the UUID of the VM that a domain is, and whether the one it
// has now is a temporary one. xenopsd writes it to where only dom0 may write;
// read reads a node of xenstore.
func OwnUUID(read func(path string) (string, error), uuid xen.UUID) (own xen.UUID, temporary bool) {
	if !Temporary(uuid) {
		return uuid, false
	}
	node := "final-uuid"
	if slices.Equal(uuid[10:], sentOff) {
		node = "origin-uuid"
	}
	text, err := read(vmNode(uuid, node))
	if err != nil {
		return uuid, false
	}
	own, err = xen.ParseUUID(text)
	if err != nil || own == uuid || !slices.Equal(own[:10], uuid[:10]) {
		return uuid, false
	}
	return own, true
}

func vmNode(uuid xen.UUID, node string) string { return "/vm/" + uuid.String() + "/" + node }
