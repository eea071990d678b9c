package command

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: nothing is shown of what is quick, and what is shown of the rest
// is gone at the end.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := newApp(&out, &out)
		a.progress = true
		p := a.work("one", "one", "two")
		<-time.After(progressAfter - time.Millisecond)
		p.end()
		if out.Len() > 0 {
			t.Errorf("quick work shows %q", out.String())
		}

		p = a.work("one", "one", "two")
		<-time.After(progressAfter + time.Millisecond)
		p.at(1, "two of web\x1b1")
		<-time.After(progressEvery)
		p.end()
		shown := strings.Split(out.String(), "\r")
		if len(shown) < 4 || !strings.Contains(shown[1], "[--------------------] one, 1s") || !strings.Contains(shown[2], `[##########----------] two of web\x1b1, 1s`) {
			t.Errorf("shows %q", shown)
		}
		if last := shown[len(shown)-2]; strings.TrimSpace(last) != "" || len(last) < len("[##########----------] two of web") || shown[len(shown)-1] != "" {
			t.Errorf("leaves %q", last)
		}
	})
	var out bytes.Buffer
	p := newApp(&out, &out).work("piped")
	p.at(0, "x")
	p.end()
	if p != nil || out.Len() > 0 {
		t.Errorf("what is no terminal gets %q", out.String())
	}
}
