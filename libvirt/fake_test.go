package libvirt

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/libvirt/metadata"
)

// Numbers of remote_protocol.x.
const (
	program      = 0x20008086
	procOpen     = 1
	procXML      = 14
	procByName   = 23
	procByUUID   = 24
	procAuthList = 66
	procVersion  = 157
	procSet      = 264
	procList     = 273
	procRegister = 316
	procStarted  = 318
	procChanged  = 379

	typeReply   = 1
	typeMessage = 2

	xmlInactive = 2
)

// guest is a domain of the fake.
type guest struct {
	name         string
	uuid         xen.UUID
	id           int32
	live, config string // what is in <metadata>
}

// daemon is a libvirtd that speaks the real protocol, as far as the client goes.
type daemon struct {
	t      *testing.T
	socket string
	l      net.Listener

	mu     sync.Mutex
	guests []*guest
	conns  map[net.Conn]bool
	opened []string // the URIs
	sets   []string // what SetMetadata was given
	pings  int
	// callbacks of the connections, by the kind of event.
	callbacks map[int32]map[net.Conn]int32
	// hold says of a procedure that it is never answered.
	hold map[uint32]bool
	// fail is answered to a procedure.
	fail map[uint32]rpc.Error
	// raw is sent instead of any answer.
	raw []byte
	wg  sync.WaitGroup
}

func startDaemon(t *testing.T, socket string, guests ...*guest) *daemon {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{
		t: t, socket: socket, l: l, guests: guests, conns: map[net.Conn]bool{},
		callbacks: map[int32]map[net.Conn]int32{}, hold: map[uint32]bool{}, fail: map[uint32]rpc.Error{},
	}
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[c] = true
			d.mu.Unlock()
			d.wg.Add(1)
			go func() {
				defer d.wg.Done()
				d.serve(c)
			}()
		}
	}()
	t.Cleanup(d.stop)
	return d
}

// stop ends the daemon and removes its socket.
func (d *daemon) stop() {
	d.l.Close()
	d.mu.Lock()
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
	os.Remove(d.socket)
}

func (d *daemon) serve(c net.Conn) {
	defer func() {
		c.Close()
		d.mu.Lock()
		delete(d.conns, c)
		for _, by := range d.callbacks {
			delete(by, c)
		}
		d.mu.Unlock()
	}()
	for {
		var head [7]uint32
		if binary.Read(c, binary.BigEndian, &head) != nil {
			return
		}
		body := make([]byte, head[0]-28)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		proc, serial := head[3], head[5]
		d.mu.Lock()
		if d.raw != nil {
			c.Write(d.raw)
			d.mu.Unlock()
			continue
		}
		if d.hold[proc] {
			d.mu.Unlock()
			continue
		}
		out, bad := d.answer(c, proc, &xdr{b: body})
		if bad == nil {
			send(c, proc, typeReply, serial, 0, out)
		} else {
			e := &xdr{}
			e.u32(bad.Code)
			e.u32(10)
			e.u32(1)
			e.str(bad.Message)
			e.u32(2)
			e.b = append(e.b, make([]byte, 64)...)
			send(c, proc, typeReply, serial, 1, e.b)
		}
		d.mu.Unlock()
	}
}

func send(c net.Conn, proc, typ, serial, status uint32, body []byte) {
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, [7]uint32{uint32(28 + len(body)), program, 1, proc, typ, serial, status})
	b.Write(body)
	c.Write(b.Bytes())
}

// answer is called with mu held.
func (d *daemon) answer(c net.Conn, proc uint32, in *xdr) ([]byte, *rpc.Error) {
	if e, ok := d.fail[proc]; ok {
		return nil, &e
	}
	out := &xdr{}
	unknown := &rpc.Error{Code: uint32(rpc.ErrNoDomain), Message: "Domain not found"}
	switch proc {
	case procAuthList:
		out.u32(1)
		out.u32(0)
	case procOpen:
		in.readU32()
		d.opened = append(d.opened, in.readStr())
	case procVersion:
		d.pings++
		out.u32(0)
		out.u32(9000000)
	case procList:
		var n uint32
		list := &xdr{}
		for _, g := range d.guests {
			if g.id >= 0 {
				n++
				list.dom(g)
			}
		}
		out.u32(n)
		out.b = append(out.b, list.b...)
		out.u32(n)
	case procByName:
		g := d.find(in.readStr(), xen.UUID{})
		if g == nil {
			return nil, unknown
		}
		out.dom(g)
	case procByUUID:
		g := d.find("", in.readUUID())
		if g == nil {
			return nil, unknown
		}
		out.dom(g)
	case procXML:
		g := d.find("", in.readDom())
		if g == nil {
			return nil, unknown
		}
		inner := g.live
		if in.readU32()&xmlInactive != 0 || g.id < 0 {
			inner = g.config
		}
		out.str("<domain type='xen'>\n  <name>x</name>\n  <uuid>" + g.uuid.String() + "</uuid>\n  <metadata>\n" + inner + "\n  </metadata>\n</domain>\n")
	case procSet:
		g := d.find("", in.readDom())
		if g == nil {
			return nil, unknown
		}
		in.readU32()
		text, key, uri := in.readOpt(), in.readOpt(), in.readOpt()
		flags := in.readU32()
		d.sets = append(d.sets, strings.Join([]string{text, key, uri}, "|"))
		if flags&1 != 0 {
			if g.id < 0 {
				return nil, &rpc.Error{Code: uint32(rpc.ErrOperationInvalid), Message: "domain is not running"}
			}
			g.live = withNamespace(text, key, uri)
		}
		if flags&2 != 0 {
			g.config = withNamespace(text, key, uri)
		}
		d.changed(g, uri)
	case procRegister:
		kind := int32(in.readU32())
		if d.callbacks[kind] == nil {
			d.callbacks[kind] = map[net.Conn]int32{}
		}
		id := 100 + kind
		d.callbacks[kind][c] = id
		out.u32(uint32(id))
	default:
		d.t.Errorf("the fake does not know procedure %d", proc)
	}
	return out.b, nil
}

// withNamespace does to an element what libvirt does.
func withNamespace(text, key, uri string) string {
	if text == "" {
		return ""
	}
	text = strings.ReplaceAll(strings.ReplaceAll(text, "</", "</"+key+":"), "<guard", "<"+key+":guard")
	return strings.Replace(text, "<introspection", "<"+key+":introspection xmlns:"+key+`="`+uri+`"`, 1)
}

func (d *daemon) find(name string, u xen.UUID) *guest {
	for _, g := range d.guests {
		if (name != "" && g.name == name) || (name == "" && g.uuid == u) {
			return g
		}
	}
	return nil
}

// changed sends an event, with mu held.
func (d *daemon) changed(g *guest, uri string) {
	for c, id := range d.callbacks[int32(rpc.DomainEventIDMetadataChange)] {
		e := &xdr{}
		e.u32(uint32(id))
		e.dom(g)
		e.u32(uint32(rpc.DomainMetadataElement))
		e.u32(1)
		e.str(uri)
		send(c, procChanged, typeMessage, 0, 0, e.b)
	}
}

// lifecycle sends an event, with mu held.
func (d *daemon) lifecycle(g *guest, kind rpc.DomainEventType) {
	for c, id := range d.callbacks[int32(rpc.DomainEventIDLifecycle)] {
		e := &xdr{}
		e.u32(uint32(id))
		e.dom(g)
		e.u32(uint32(kind))
		e.u32(0)
		send(c, procStarted, typeMessage, 0, 0, e.b)
	}
}

// with does something to the daemon.
func (d *daemon) with(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// setLive changes what a domain runs with, as virsh metadata --live does.
func (d *daemon) setLive(g *guest, inner, uri string) {
	d.with(func() {
		g.live = inner
		d.changed(g, uri)
	})
}

// xdr writes and reads what little of XDR is needed.
type xdr struct{ b []byte }

func (x *xdr) u32(v uint32) { x.b = binary.BigEndian.AppendUint32(x.b, v) }

func (x *xdr) str(s string) {
	x.u32(uint32(len(s)))
	x.b = append(x.b, s...)
	for len(x.b)%4 != 0 {
		x.b = append(x.b, 0)
	}
}

func (x *xdr) dom(g *guest) {
	x.str(g.name)
	x.b = append(x.b, g.uuid[:]...)
	x.u32(uint32(g.id))
}

func (x *xdr) readU32() uint32 {
	v := binary.BigEndian.Uint32(x.b)
	x.b = x.b[4:]
	return v
}

func (x *xdr) readStr() string {
	n := int(x.readU32())
	s := string(x.b[:n])
	x.b = x.b[(n+3)/4*4:]
	return s
}

func (x *xdr) readOpt() string {
	if x.readU32() == 0 {
		return ""
	}
	return x.readStr()
}

func (x *xdr) readUUID() (u xen.UUID) {
	copy(u[:], x.b)
	x.b = x.b[16:]
	return u
}

func (x *xdr) readDom() xen.UUID {
	x.readStr()
	u := x.readUUID()
	x.readU32()
	return u
}

func ours(attributes string) string {
	return `<hvi:introspection xmlns:hvi="` + metadata.Namespace + `" ` + attributes + `/>`
}
