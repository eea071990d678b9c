package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	in := flag.String("in", "gen/xen-abi.json", "measured facts")
	out := flag.String("out", ".", "directory to write Go files to")
	reduce := flag.String("reduce", "", "full measurement to reduce into the file named by -in first")
	flag.Parse()
	if err := run(*in, *out, *reduce); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(in, out, reduce string) error {
	if reduce != "" {
		full, err := readFacts(reduce)
		if err != nil {
			return err
		}
		b, err := full.reduce().encode()
		if err != nil {
			return err
		}
		if err := os.WriteFile(in, b, 0o644); err != nil {
			return err
		}
	}
	f, err := readFacts(in)
	if err != nil {
		return err
	}
	files, err := generate(f)
	if err != nil {
		return err
	}
	for name, src := range files {
		if err := os.WriteFile(filepath.Join(out, name), src, 0o644); err != nil {
			return err
		}
	}
	return nil
}
