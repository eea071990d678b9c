package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the published schemas")

const published = "../../docs/schema"

// TestSchemas holds the published schemas against the code.
func TestSchemas(t *testing.T) {
	for name, s := range schemas() {
		want, err := writeSchema(s)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(published, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code says; run: go test ./packaging/docgen -update (%v)", path, err)
		}
	}
}

// TestEventSchema holds real records against the schema: every member is in it, and
// what it requires is there.
func TestEventSchema(t *testing.T) {
	names, err := filepath.Glob("../../engine/journal/testdata/record-*.json")
	if err != nil || len(names) < 3 {
		t.Fatalf("%d records, %v", len(names), err)
	}
	b, err := writeSchema(eventSchema())
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var record any
		if err := json.Unmarshal(data, &record); err != nil {
			t.Fatal(err)
		}
		fits(t, name, schema, record)
	}
}

// fits compares a value with a schema, as far as ours go.
func fits(t *testing.T, at string, schema map[string]any, v any) {
	switch v := v.(type) {
	case map[string]any:
		props, _ := schema["properties"].(map[string]any)
		if schema["type"] != "object" {
			t.Errorf("%s is an object", at)
		}
		for name, member := range v {
			s, ok := props[name].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", at, name)
				continue
			}
			fits(t, at+"."+name, s, member)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				t.Errorf("%s has no %s", at, name)
			}
		}
	case []any:
		items, ok := schema["items"].(map[string]any)
		if !ok {
			t.Errorf("%s is a list", at)
			return
		}
		for _, e := range v {
			fits(t, at+"[]", items, e)
		}
	case string:
		words, enum := schema["enum"].([]any)
		found := !enum
		for _, w := range words {
			found = found || w == v
		}
		if !found || !enum && schema["type"] != "string" && schema["const"] == nil {
			t.Errorf("%s is %q", at, v)
		}
	case float64:
		if schema["type"] != "integer" {
			t.Errorf("%s is a number", at)
		}
	}
}
