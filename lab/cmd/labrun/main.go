// Labrun runs scenarios inside the control domain of the lab's machine. The
// lab puts it into the machine's initial file system together with its plan;
// nobody starts it by hand.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/wire"
)

func main() {
	ok, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run() (ok bool, err error) {
	out := wire.NewEncoder(wire.Port(wire.PortE9))
	// The host waits for Done: it is sent whatever happens, with the reason
	// where the plan could not be carried out.
	defer func() {
		done := wire.Message{Kind: wire.Done, Time: scenario.Uptime(), OK: ok && err == nil}
		if err != nil {
			done.Text = err.Error()
		}
		err = errors.Join(err, out.Encode(done))
	}()

	ctx := context.Background()
	machine, err := scenario.Machine(ctx)
	if err != nil {
		return false, err
	}
	value, err := json.Marshal(machine)
	if err != nil {
		return false, err
	}
	if err := out.Encode(wire.Message{Kind: wire.Hello, Time: scenario.Uptime(), Value: value}); err != nil {
		return false, err
	}
	list, err := scenario.Find(scenario.All(), os.Args[1:]...)
	if err != nil {
		return false, err
	}
	return scenario.RunAll(ctx, out, list), nil
}
