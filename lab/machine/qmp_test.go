package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// monitor plays QEMU's: it answers each command as answers says, the first
// being for qmp_capabilities.
func monitor(t *testing.T, answers ...string) (path string, asked chan string) {
	path = filepath.Join(t.TempDir(), "monitor")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked = make(chan string, len(answers))
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte(`{"QMP": {"version": {}}}` + "\n"))
		lines := bufio.NewScanner(c)
		for _, a := range answers {
			if !lines.Scan() {
				return
			}
			asked <- lines.Text()
			_, _ = c.Write([]byte(a + "\n"))
		}
		lines.Scan() // until the other side has gone
	}()
	return path, asked
}

func TestQMP(t *testing.T) {
	path, asked := monitor(t, `{"return": {}}`, `{"event": "STOP"}`+"\n"+`{"return": {"base-memory": 5}}`, `{"return": "RAX=0"}`,
		`{"error": {"class": "GenericError", "desc": "no"}}`)
	q, err := DialQMP(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	<-asked
	var size struct {
		Base int64 `json:"base-memory"`
	}
	if err := q.Execute(t.Context(), "query", map[string]any{"n": 1}, &size); err != nil || size.Base != 5 {
		t.Errorf("%+v, %v", size, err)
	}
	var sent map[string]any
	if err := json.Unmarshal([]byte(<-asked), &sent); err != nil || sent["execute"] != "query" || sent["arguments"] == nil {
		t.Errorf("%v, %v", sent, err)
	}
	if text, err := q.Human(t.Context(), "info registers"); err != nil || text != "RAX=0" {
		t.Errorf("%q, %v", text, err)
	}
	var refused *MonitorError
	if err := q.Execute(t.Context(), "stop", nil, nil); !errors.As(err, &refused) || refused.Command != "stop" || refused.Description != "no" {
		t.Errorf("got %v", err)
	}
}

func TestQMPCut(t *testing.T) {
	path, _ := monitor(t, `{"return": {}}`)
	q, err := DialQMP(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := q.Execute(ctx, "stop", nil, nil); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestDialWaits(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, filepath.Join(t.TempDir(), "none")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPC(t *testing.T) {
	c := PC{Tree: "/t", Program: "/p", Dir: "/d", Kernel: "/k", Args: "a b", Ramdisk: "/r,1", CPU: "max", VCPUs: 4, Memory: 256, Disks: []string{"/x,y", "/z"}}.Command()
	all := strings.Join(c.Args, " ")
	for _, want := range []string{"-kernel /k", "-append a b", "-initrd /r,,1", "-smp 4", "-m 256", "-cpu max", "file=/x,,y,format=raw,if=none,id=disk0",
		"virtio-blk-pci,drive=disk1", "unix:monitor,", "unix:control,"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in %s", want, all)
		}
	}
	if c.Dir != "/d" {
		t.Errorf("it runs in %s", c.Dir)
	}
}

func TestPCSharesItsMemory(t *testing.T) {
	args := strings.Join(PC{Memory: 512, Shared: true}.Command().Args, " ")
	for _, want := range []string{"-object memory-backend-memfd,id=ram,share=on,size=512M", "-M q35,memory-backend=ram", "-m 512"} {
		if !strings.Contains(args, want) {
			t.Errorf("%s is not in %s", want, args)
		}
	}
	if args := strings.Join(PC{Memory: 512}.Command().Args, " "); strings.Contains(args, "memory-backend") {
		t.Errorf("a machine that shares nothing: %s", args)
	}
}
