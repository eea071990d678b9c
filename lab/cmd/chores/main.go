// Chores has a guest's kernel do what an administrator asks of it and a shell can't
// do, see the scenarios healthy: eBPF programs, performance events, namespaces.
//
//	chores WORK TIMES
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

var works = map[string]func() error{
	"filter":     filter,
	"trace":      trace,
	"xdp":        xdp,
	"perf":       sample,
	"watch":      watchpoint,
	"namespaces": namespaces,
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == inside {
		if err := live(); err != nil {
			fmt.Println("chores inside:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("chores:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: chores WORK TIMES")
	}
	work := works[args[0]]
	if work == nil {
		return fmt.Errorf("no work is called %q", args[0])
	}
	times, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range times {
		if err := work(); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
	}
	fmt.Printf("%s %d\n", args[0], times)
	return nil
}
