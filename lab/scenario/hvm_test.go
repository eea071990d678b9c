package scenario

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestHVMTwins holds what the scenarios write for an HVM guest to what the
// guest's disk reads.
func TestHVMTwins(t *testing.T) {
	text, err := os.ReadFile("../image/files/hvm.c")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("#define PARAMS %#x\n", hvmAddress),
		fmt.Sprintf("p->magic != %#x)", hvmMagic),
		fmt.Sprintf("struct params { u32 magic, pvh, entry, initrd, initrd_size; char cmdline[%d]; };", cmdlineBytes),
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("hvm.c has no %q", want)
		}
	}
	if n := binary.Size(hvmParams{}); n != 5*4+cmdlineBytes {
		t.Errorf("the parameters have %d bytes", n)
	}
}

func TestHVMConfig(t *testing.T) {
	linux := GuestConfig{Name: "h", Type: TypeHVM, Lines: []string{VifLine("mac=00:16:3e:00:00:01")}}.String()
	for _, want := range []string{
		"type = \"hvm\"\n", "memory = 160\n",
		`disk = [ "format=raw,vdev=hda,access=rw,target=/run/hvi-lab/h.img" ]`,
		`"loader,file=/guest/vmlinux", "-device", "loader,file=/run/hvi-lab/h.params,addr=0x300000,force-raw=on", "-device", "loader,file=/guest/initrd,`,
		`vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]`,
	} {
		if !strings.Contains(linux, want) {
			t.Errorf("%s is not in\n%s", want, linux)
		}
	}
	if strings.Contains(linux, "kernel =") || strings.Contains(linux, "pvh") {
		t.Errorf("a kernel in\n%s", linux)
	}
	tiny := GuestConfig{Type: TypeHVM, Kernel: KernelTiny}.String()
	if !strings.Contains(tiny, "file=/guest/tiny") || strings.Contains(tiny, "initrd") {
		t.Errorf("tiny:\n%s", tiny)
	}
}
