package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestThePublishedGrammarsAreCurrent(t *testing.T) {
	for name, want := range map[string]string{"introspection.xsd": xsd(), "introspection.rng": rng()} {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the vocabulary says; run go generate ./libvirt/metadata", name)
		}
	}
}
