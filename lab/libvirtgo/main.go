// Command virtprobe sees the lab's libvirt as any other program does: through
// libvirt's own C library and its official Go binding. What hvi writes must be
// read here, and what is written here must be read by hvi, which has a client of
// its own.
//
// It is a module by itself, so that nothing of hvi's needs cgo, and it is built
// with the tag libvirt_dlopen, so that building takes no libvirt:
//
//	CGO_ENABLED=1 go build -tags libvirt_dlopen
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"libvirt.org/go/libvirt"
)

const usage = `usage: virtprobe list
       virtprobe get NAME live|config
       virtprobe set NAME live|config|both ELEMENT
       virtprobe remove NAME live|config|both
       virtprobe xml NAME live|config
       virtprobe start NAME [paused]
       virtprobe watch SECONDS
All print JSON.
`

const (
	namespace = "urn:xen-hvi:domain:1.0"
	prefix    = "hvi"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "virtprobe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	if args[0] == "watch" && len(args) == 2 {
		// Before the first connection, or there are no events.
		if err := libvirt.EventRegisterDefaultImpl(); err != nil {
			return err
		}
	}
	conn, err := libvirt.NewConnect("xen:///system")
	if err != nil {
		return err
	}
	defer conn.Close()
	switch {
	case args[0] == "list" && len(args) == 1:
		return list(conn)
	case args[0] == "watch" && len(args) == 2:
		return watch(conn, args[1])
	case len(args) < 2:
		return errors.New(usage)
	}
	dom, err := conn.LookupDomainByName(args[1])
	if err != nil {
		return err
	}
	defer dom.Free()
	which := libvirt.DomainModificationImpact(libvirt.DOMAIN_AFFECT_CURRENT)
	if len(args) > 2 {
		switch args[2] {
		case "live":
			which = libvirt.DOMAIN_AFFECT_LIVE
		case "config":
			which = libvirt.DOMAIN_AFFECT_CONFIG
		case "both":
			which = libvirt.DOMAIN_AFFECT_LIVE | libvirt.DOMAIN_AFFECT_CONFIG
		}
	}
	switch {
	case args[0] == "get" && len(args) == 3:
		text, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, namespace, which)
		var e libvirt.Error
		if errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN_METADATA {
			text, err = "", nil
		}
		return show(text, err)
	case args[0] == "set" && len(args) == 4:
		return show("done", dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, args[3], prefix, namespace, which))
	case args[0] == "remove" && len(args) == 3:
		return show("done", dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "", prefix, namespace, which))
	case args[0] == "xml" && len(args) == 3:
		var flags libvirt.DomainXMLFlags
		if args[2] == "config" {
			flags = libvirt.DOMAIN_XML_INACTIVE
		}
		text, err := dom.GetXMLDesc(flags)
		return show(text, err)
	case args[0] == "start" && len(args) <= 3:
		var flags libvirt.DomainCreateFlags
		if len(args) == 3 && args[2] == "paused" {
			flags = libvirt.DOMAIN_START_PAUSED
		}
		return show("done", dom.CreateWithFlags(flags))
	}
	return errors.New(usage)
}

func show(v any, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

// row is a domain in a list.
type row struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	ID    int    `json:"id"`
	State int    `json:"state"`
}

func list(conn *libvirt.Connect) error {
	doms, err := conn.ListAllDomains(0)
	if err != nil {
		return err
	}
	rows := []row{}
	for _, d := range doms {
		r := row{ID: -1}
		var errs [3]error
		var state libvirt.DomainState
		r.Name, errs[0] = d.GetName()
		r.UUID, errs[1] = d.GetUUIDString()
		state, _, errs[2] = d.GetState()
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		r.State = int(state)
		if id, err := d.GetID(); err == nil {
			r.ID = int(id)
		}
		rows = append(rows, r)
		d.Free()
	}
	return show(rows, nil)
}

// event is one line of a watch.
type event struct {
	At   time.Time `json:"at"`
	Kind string    `json:"kind"` // "watching", "metadata" or "lifecycle"
	Name string    `json:"name,omitempty"`
	// URI of a change of metadata, or the number of a lifecycle event.
	URI   string `json:"uri,omitempty"`
	Event int    `json:"event,omitempty"`
}

// watch prints events as they come, for so many seconds.
func watch(conn *libvirt.Connect, seconds string) error {
	d, err := time.ParseDuration(seconds + "s")
	if err != nil {
		return err
	}
	events := make(chan event, 1000)
	tell := func(dom *libvirt.Domain, e event) {
		e.At = time.Now()
		e.Name, _ = dom.GetName()
		events <- e
	}
	if _, err := conn.DomainEventMetadataChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventMetadataChange) {
		tell(d, event{Kind: "metadata", URI: e.NSURI})
	}); err != nil {
		return err
	}
	if _, err := conn.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		tell(d, event{Kind: "lifecycle", Event: int(e.Event)})
	}); err != nil {
		return err
	}
	go func() {
		for libvirt.EventRunDefaultImpl() == nil {
		}
	}()
	events <- event{At: time.Now(), Kind: "watching"}
	end := time.After(d)
	out := json.NewEncoder(os.Stdout)
	for {
		select {
		case e := <-events:
			if err := out.Encode(e); err != nil {
				return err
			}
		case <-end:
			return nil
		}
	}
}
