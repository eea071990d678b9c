// Command docgen writes the documents of the packages that are made from code:
// the manual pages of file formats and hooks, and whose software is linked into
// the programs.
package main

import (
	"bufio"
	"fmt"
	"os"
)

const usage = `usage: docgen notice PROGRAM...      every licence of what is linked in
       docgen copyright PROGRAM...   the same as Debian's copyright file`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s", usage)
	}
	w := bufio.NewWriter(os.Stdout)
	switch args[0] {
	case "notice", "copyright":
		all, err := linked(args[1:])
		if err != nil {
			return err
		}
		if args[0] == "notice" {
			writeNotice(w, all)
		} else if err := writeCopyright(w, all); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s", usage)
	}
	return w.Flush()
}
