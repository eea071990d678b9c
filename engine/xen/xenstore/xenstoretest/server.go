// Package xenstoretest is a xenstored for tests: it listens on a socket,
// speaks the real wire protocol, and keeps a tree with values, permissions,
// watches and transactions as xenstored does (docs/misc/xenstore.txt).
//
// A Server belongs to one test, which closes it. The tests of clients that
// break the protocol use it too, so it does not share code with the client.
package xenstoretest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// Message types of the protocol.
const (
	typDirectory     = 1
	typRead          = 2
	typGetPerms      = 3
	typWatch         = 4
	typUnwatch       = 5
	typTxStart       = 6
	typTxEnd         = 7
	typDomainPath    = 10
	typWrite         = 11
	typMkdir         = 12
	typRm            = 13
	typSetPerms      = 14
	typWatchEvent    = 15
	typError         = 16
	typDirectoryPart = 22

	payloadMax = 4096
)

// Server is a fake xenstored.
type Server struct {
	ln   net.Listener
	path string
	wg   sync.WaitGroup

	mu        sync.Mutex
	nodes     map[string]*node
	changes   uint64
	conns     map[*conn]bool
	conflicts int
	mute      bool
	closed    bool
}

// node is one entry of the tree. changed is the number of the change that
// touched it last.
type node struct {
	value   string
	perms   []string
	changed uint64
}

// conn is one client.
type conn struct {
	s       *Server
	c       net.Conn
	writeMu sync.Mutex
	watches []watch
	txs     map[uint32]*tx
	nextTx  uint32
}

type watch struct{ path, token string }

// tx is a transaction: a copy of the tree to work on, the tree as it was, and
// which nodes were used. Nodes are replaced and never changed, so a node that
// others changed is another node.
type tx struct {
	nodes, base map[string]*node
	used        map[string]bool
	fires       []string
}

// New starts a server on a socket in dir.
func New(dir string) (*Server, error) {
	p := path.Join(dir, "socket")
	ln, err := net.Listen("unix", p)
	if err != nil {
		return nil, err
	}
	s := &Server{
		ln: ln, path: p,
		nodes: map[string]*node{"/": {perms: []string{"n0"}}},
		conns: map[*conn]bool{},
	}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// Path returns the socket to dial.
func (s *Server) Path() string { return s.path }

// Close ends all connections and the server.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.ln.Close()
	s.HangUp()
	s.wg.Wait()
	return err
}

// HangUp ends all connections, as a xenstored that dies does.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.c.Close()
	}
}

// Mute makes the server answer nothing any more.
func (s *Server) Mute(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = on
}

// Conflict makes the next n transactions fail to end, as if others had
// changed what they used.
func (s *Server) Conflict(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conflicts = n
}

// Set writes a node, as a toolstack or a guest would.
func (s *Server) Set(p, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	write(s.nodes, p, value, s.changes)
	s.fire(p)
}

// Delete removes a node and what is below it.
func (s *Server) Delete(p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	remove(s.nodes, p, s.changes)
	s.fire(p)
}

// Get returns a node's value and whether it exists.
func (s *Server) Get(p string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.nodes[p]
	if !ok {
		return "", false
	}
	return n.value, true
}

// Fire reports a change of a path to the watches on it and above. For the
// special watches it is how domains come and go: Fire("@introduceDomain"), or
// from Xen 4.22 on Fire("@introduceDomain/5").
func (s *Server) Fire(p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fire(p)
}

// Send sends bytes to all clients as they are, for what no xenstored sends.
func (s *Server) Send(raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.send(raw)
	}
}

// Watches returns how many watches are registered on a path.
func (s *Server) Watches(p string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.conns {
		for _, w := range c.watches {
			if w.path == p {
				n++
			}
		}
	}
	return n
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		cn := &conn{s: s, c: c, txs: map[uint32]*tx{}}
		s.conns[cn] = true
		s.wg.Add(1)
		s.mu.Unlock()
		go cn.serve()
	}
}

// serve answers requests until the client goes or breaks the protocol.
func (c *conn) serve() {
	defer c.s.wg.Done()
	defer func() {
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
		_ = c.c.Close()
	}()
	for {
		var h [16]byte
		if _, err := io.ReadFull(c.c, h[:]); err != nil {
			return
		}
		typ, req, txid := binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[8:])
		size := binary.LittleEndian.Uint32(h[12:])
		if size > payloadMax {
			return // as xenstored does
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(c.c, payload); err != nil {
			return
		}
		c.s.mu.Lock()
		answer, after, err := c.handle(typ, txid, payload)
		if err != nil {
			typ, answer = typError, []byte(err.Error()+"\x00")
		}
		if !c.s.mute {
			c.send(pack(typ, req, txid, answer))
		}
		// Watches fire after the answer.
		for _, p := range after {
			c.s.fire(p)
		}
		if typ == typWatch && err == nil {
			w := c.watches[len(c.watches)-1]
			c.send(pack(typWatchEvent, 0, 0, []byte(w.path+"\x00"+w.token+"\x00")))
		}
		c.s.mu.Unlock()
	}
}

func pack(typ, req, txid uint32, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, typ)
	b = binary.LittleEndian.AppendUint32(b, req)
	b = binary.LittleEndian.AppendUint32(b, txid)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func (c *conn) send(b []byte) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	_, _ = c.c.Write(b)
}

// fire tells all watches on p, above it, and below it.
func (s *Server) fire(p string) {
	for c := range s.conns {
		for _, w := range c.watches {
			if w.path == p || below(p, w.path) {
				c.send(pack(typWatchEvent, 0, 0, []byte(p+"\x00"+w.token+"\x00")))
			} else if below(w.path, p) && s.nodes[p] == nil {
				// What was watched went with the node above it.
				c.send(pack(typWatchEvent, 0, 0, []byte(w.path+"\x00"+w.token+"\x00")))
			}
		}
	}
}

// below reports whether p is below parent.
func below(p, parent string) bool {
	return parent == "/" && p != "/" && p[0] == '/' || strings.HasPrefix(p, parent+"/")
}

// Errors of the protocol.
var (
	errNoEnt  = errors.New("ENOENT")
	errInval  = errors.New("EINVAL")
	errExist  = errors.New("EEXIST")
	errAgain  = errors.New("EAGAIN")
	errTooBig = errors.New("E2BIG")
	errNoSys  = errors.New("ENOSYS")
)

// handle carries out a request and returns its answer and what changed.
func (c *conn) handle(typ, txid uint32, payload []byte) (answer []byte, changed []string, err error) {
	s := c.s
	nodes := s.nodes
	var t *tx
	if txid != 0 {
		if t = c.txs[txid]; t == nil {
			return nil, nil, errNoEnt
		}
		nodes = t.nodes
	}
	args := strings.Split(string(payload), "\x00")
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	p := arg(0)
	if typ != typTxStart && typ != typTxEnd && typ != typDomainPath && typ != typWatch && typ != typUnwatch && !valid(p) {
		return nil, nil, errInval
	}
	use := func(p string) {
		if t != nil {
			t.used[p] = true
		}
	}
	done := func() ([]byte, []string, error) {
		if t != nil {
			t.fires = append(t.fires, p)
			return []byte("OK\x00"), nil, nil
		}
		return []byte("OK\x00"), []string{p}, nil
	}
	switch typ {
	case typRead:
		use(p)
		n := nodes[p]
		if n == nil {
			return nil, nil, errNoEnt
		}
		return []byte(n.value), nil, nil
	case typWrite:
		use(p)
		s.changes++
		_, value, ok := strings.Cut(string(payload), "\x00")
		if !ok {
			return nil, nil, errInval
		}
		write(nodes, p, value, s.changes)
		return done()
	case typMkdir:
		use(p)
		if nodes[p] != nil {
			return []byte("OK\x00"), nil, nil
		}
		s.changes++
		write(nodes, p, "", s.changes)
		return done()
	case typRm:
		use(p)
		switch {
		case p == "/":
			return nil, nil, errInval
		case nodes[p] == nil && nodes[path.Dir(p)] == nil:
			return nil, nil, errNoEnt
		case nodes[p] == nil:
			return []byte("OK\x00"), nil, nil
		}
		s.changes++
		remove(nodes, p, s.changes)
		return done()
	case typDirectory, typDirectoryPart:
		use(p)
		n := nodes[p]
		if n == nil {
			return nil, nil, errNoEnt
		}
		list := children(nodes, p)
		if typ == typDirectory {
			if len(list) > payloadMax {
				return nil, nil, errTooBig
			}
			return list, nil, nil
		}
		off, err := strconv.Atoi(arg(1))
		if err != nil || off < 0 {
			return nil, nil, errInval
		}
		return part(n.changed, list, off), nil, nil
	case typGetPerms:
		use(p)
		n := nodes[p]
		if n == nil {
			return nil, nil, errNoEnt
		}
		return []byte(strings.Join(n.perms, "\x00") + "\x00"), nil, nil
	case typSetPerms:
		use(p)
		n := nodes[p]
		if n == nil {
			return nil, nil, errNoEnt
		}
		perms := slices.DeleteFunc(slices.Clone(args[1:]), func(a string) bool { return a == "" })
		if len(perms) == 0 {
			return nil, nil, errInval
		}
		s.changes++
		nodes[p] = &node{value: n.value, perms: perms, changed: s.changes}
		return done()
	case typWatch:
		if len(args) < 2 || p != "@introduceDomain" && p != "@releaseDomain" && !valid(p) {
			return nil, nil, errInval
		}
		w := watch{p, arg(1)}
		if slices.Contains(c.watches, w) {
			return nil, nil, errExist
		}
		c.watches = append(c.watches, w)
		return []byte("OK\x00"), nil, nil
	case typUnwatch:
		i := slices.Index(c.watches, watch{p, arg(1)})
		if i < 0 {
			return nil, nil, errNoEnt
		}
		c.watches = slices.Delete(c.watches, i, i+1)
		return []byte("OK\x00"), nil, nil
	case typDomainPath:
		return []byte("/local/domain/" + p + "\x00"), nil, nil
	case typTxStart:
		c.nextTx++
		c.txs[c.nextTx] = &tx{nodes: maps.Clone(s.nodes), base: maps.Clone(s.nodes), used: map[string]bool{}}
		return fmt.Appendf(nil, "%d\x00", c.nextTx), nil, nil
	case typTxEnd:
		if t == nil {
			return nil, nil, errNoEnt
		}
		delete(c.txs, txid)
		if p != "T" {
			return []byte("OK\x00"), nil, nil
		}
		if s.conflicts > 0 {
			s.conflicts--
			return nil, nil, errAgain
		}
		return c.commit(t)
	}
	return nil, nil, errNoSys
}

// commit carries a transaction's changes over, unless others changed what it
// used.
func (c *conn) commit(t *tx) ([]byte, []string, error) {
	s := c.s
	for p := range t.used {
		if s.nodes[p] != t.base[p] {
			return nil, nil, errAgain
		}
	}
	for _, p := range t.fires {
		for k := range s.nodes {
			if (k == p || below(k, p)) && t.nodes[k] == nil {
				delete(s.nodes, k)
			}
		}
		for k := p; ; k = path.Dir(k) {
			if n := t.nodes[k]; n != nil {
				s.nodes[k] = n
			}
			if k == "/" {
				break
			}
		}
	}
	return []byte("OK\x00"), t.fires, nil
}

// valid reports whether a path is one xenstored accepts.
func valid(p string) bool {
	if p == "" || p[0] != '/' || len(p) > 3072 || p != "/" && (strings.HasSuffix(p, "/") || strings.Contains(p, "//")) {
		return false
	}
	return strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/_@") == ""
}

// write sets a node and makes those above it.
func write(nodes map[string]*node, p, value string, change uint64) {
	perms := []string{"n0"}
	if n := nodes[p]; n != nil {
		perms = n.perms
	} else {
		for k := path.Dir(p); ; k = path.Dir(k) {
			// The list of a node's children is part of it.
			if n := nodes[k]; n != nil {
				nodes[k] = &node{value: n.value, perms: n.perms, changed: change}
				break
			}
			nodes[k] = &node{perms: perms, changed: change}
		}
	}
	nodes[p] = &node{value: value, perms: perms, changed: change}
}

// remove deletes a node and what is below it.
func remove(nodes map[string]*node, p string, change uint64) {
	for k := range nodes {
		if k == p || below(k, p) {
			delete(nodes, k)
		}
	}
	if n := nodes[path.Dir(p)]; n != nil {
		nodes[path.Dir(p)] = &node{value: n.value, perms: n.perms, changed: change}
	}
}

// children returns the names below a node, each ended by NUL.
func children(nodes map[string]*node, p string) []byte {
	var names []string
	for k := range nodes {
		if k != "/" && path.Dir(k) == p {
			names = append(names, path.Base(k))
		}
	}
	sort.Strings(names)
	var b []byte
	for _, n := range names {
		b = append(append(b, n...), 0)
	}
	return b
}

// part returns what directory_part answers: the generation, whole names from
// off on as far as they fit, and an empty name at the end of the list.
func part(generation uint64, list []byte, off int) []byte {
	b := append(strconv.AppendUint(nil, generation, 10), 0)
	if off >= len(list) {
		return append(b, 0)
	}
	rest := list[off:]
	n := 0
	for n < len(rest) {
		l := strings.IndexByte(string(rest[n:]), 0) + 1
		if len(b)+n+l+1 > payloadMax {
			break
		}
		n += l
	}
	b = append(b, rest[:n]...)
	if n == len(rest) {
		b = append(b, 0)
	}
	return b
}
