package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/specimen"
)

func specimenCommand() *cobra.Command {
	var v specimen.Variant
	var quiet bool
	cmd := &cobra.Command{
		Use:     "specimen KERNEL",
		Short:   "Take a memory image of a Linux guest, and show where it is",
		Long:    "Boot a Linux guest on a plain emulated PC, have it write down what it is made of,\nand take its memory. Kernels: " + kernelNames() + ".",
		Example: "  lab specimen 6.1-cloud\n  lab specimen --load 'hide task=hide-me module=1' 6.1-cloud\n  lab specimen --vcpus 4 --pti 6.12-amd64",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, ok := image.FindKernel(args[0])
			if !ok {
				return fmt.Errorf("no kernel is called %q; there are %s", args[0], kernelNames())
			}
			v.Kernel = k
			p := newProgress(os.Stderr)
			b, err := newBuilder(cmd.Context(), p)
			if err != nil {
				return err
			}
			m := specimen.Maker{Builder: b, Show: func(line string) {
				if !quiet {
					p.text(line)
				}
			}}
			s, err := m.Make(cmd.Context(), v)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), s.Dir)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show the guest's console")
	cmd.Flags().IntVar(&v.VCPUs, "vcpus", 1, "processors")
	cmd.Flags().IntVar(&v.Memory, "memory", 256, "MiB")
	cmd.Flags().BoolVar(&v.PTI, "pti", false, "isolate page tables")
	cmd.Flags().BoolVar(&v.LA57, "la57", false, "five-level paging")
	cmd.Flags().StringArrayVar(&v.Load, "load", nil, "load a module of testdata/attack before its memory is taken: `\"NAME ARGUMENT...\"`")
	return cmd
}

func kernelNames() string {
	var names []string
	for _, k := range image.Kernels() {
		names = append(names, k.Name)
	}
	return strings.Join(names, ", ")
}
