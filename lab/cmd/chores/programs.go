package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// passes returns a value.
func passes(value int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, value), asm.Return()}
}

// filter has a socket's messages go through a program, which is made machine code.
func filter() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "chore_filter", Type: ebpf.SocketFilter, Instructions: passes(0xffff), License: "GPL"})
	if err != nil {
		return err
	}
	defer p.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_ATTACH_BPF, p.FD()); err != nil {
		return err
	}
	if _, err := unix.Write(pair[0], []byte("chore")); err != nil {
		return err
	}
	var b [16]byte
	n, err := unix.Read(pair[1], b[:])
	if err == nil && string(b[:n]) != "chore" {
		err = fmt.Errorf("the filter let %q pass", b[:n])
	}
	return err
}

// trace has a program run whenever a function is entered, through a trampoline that
// the kernel patches into it.
func trace() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "chore_trace", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "vfs_rmdir",
		Instructions: passes(0), License: "GPL",
	})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return err
	}
	const dir = "/tmp/chore"
	return errors.Join(os.Mkdir(dir, 0o700), os.Remove(dir), l.Close())
}

// xdp has a program run on a packet, through a dispatcher that the kernel patches.
func xdp() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "chore_xdp", Type: ebpf.XDP, Instructions: passes(2), License: "GPL"})
	if err != nil {
		return err
	}
	defer p.Close()
	verdict, _, err := p.Test(make([]byte, 64))
	if err == nil && verdict != 2 {
		err = fmt.Errorf("the program's verdict is %d", verdict)
	}
	return err
}
