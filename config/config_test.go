package config

import (
	"bytes"
	"reflect"
	"regexp"
	"testing"
)

// TestShippedFile holds the file that is installed against the code: with every
// line commented out, and with every setting taken in.
func TestShippedFile(t *testing.T) {
	shipped := Default()
	taken := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAll(shipped, []byte("$1"))
	if n := bytes.Count(taken, []byte("\n")) - bytes.Count(taken, []byte("\n#")); bytes.Equal(shipped, taken) || n < len(keys) {
		t.Fatalf("the settings were not found in\n%s", shipped)
	}
	got, err := Parse("hvid.toml", shipped, nil)
	if err != nil || !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("got %+v, %v; want %+v", got, err, Defaults())
	}
	got, err = Parse("hvid.toml", taken, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Default.Effective(); e.Mode != 0 || e.RequireAttach || e.Preset != "default" {
		t.Errorf("the default policy is %+v", e)
	}
	got.Default = Defaults().Default
	if !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("the table of keys says %+v, the code %+v", got, Defaults())
	}
	for _, line := range bytes.Split(shipped, []byte("\n")) {
		if len(line) > 100 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
}
