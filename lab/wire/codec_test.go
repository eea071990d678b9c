package wire

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func encode(t *testing.T, ms ...Message) string {
	t.Helper()
	var b bytes.Buffer
	e := NewEncoder(&b)
	for _, m := range ms {
		if err := e.Encode(m); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func decode(stream string, step int) (ms []Message, text []string, lost int) {
	d := NewDecoder(func(m Message) { ms = append(ms, m) }, func(l string) { text = append(text, l) })
	for len(stream) > 0 {
		n := min(step, len(stream))
		d.Write([]byte(stream[:n]))
		stream = stream[n:]
	}
	return ms, text, d.Lost()
}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("a newline \n, a quote \", a rune \u00e4; ", 40)
	value, _ := json.Marshal(map[string]any{"list": []int{1, 2, 3}})
	in := []Message{
		{Kind: Hello, Time: 12.5},
		{Kind: Fact, Scenario: "s", Key: "k", Value: value},
		{Kind: Log, Scenario: "s", Text: long},
		{Kind: End, Scenario: "s", OK: true},
		{Kind: Done},
	}
	for _, step := range []int{1, 7, 1 << 20} {
		got, text, lost := decode(encode(t, in...), step)
		if !reflect.DeepEqual(got, in) || len(text) != 0 || lost != 0 {
			t.Errorf("step %d: got %+v, text %q, lost %d", step, got, text, lost)
		}
	}
}

func TestForeignText(t *testing.T) {
	a := encode(t, Message{Kind: Hello})
	stream := "====\nbanner without end" + a + "tail\r\n"
	got, text, lost := decode(stream, 5)
	if len(got) != 1 || lost != 0 {
		t.Fatalf("got %v lost %d", got, lost)
	}
	if want := []string{"====", "banner without end", "tail"}; !reflect.DeepEqual(text, want) {
		t.Errorf("text %q, want %q", text, want)
	}
}

func TestDamage(t *testing.T) {
	long := Message{Kind: Log, Text: strings.Repeat("x", 5*chunk)}
	whole := encode(t, Message{Kind: Hello}, long, Message{Kind: Done})
	lines := strings.SplitAfter(strings.TrimSuffix(whole, "\n"), "\n")
	join := func(l []string) string { return strings.Join(l, "") + "\n" }
	cut := func(i int) string { return join(append(append([]string{}, lines[:i]...), lines[i+1:]...)) }
	flip := func(i int) string {
		l := append([]string{}, lines...)
		l[i] = strings.Replace(l[i], "x", "y", 1)
		return join(l)
	}
	into := func(i int) string {
		l := append([]string{}, lines...)
		l[i] = l[i][:30] + "(XEN) something\n" + l[i][30:]
		return join(l)
	}
	tests := []struct {
		name   string
		stream string
		kinds  []Kind
		lost   int
	}{
		{"whole", whole, []Kind{Hello, Log, Done}, 0},
		{"a part is missing", cut(2), []Kind{Hello, Done}, 1},
		{"a part is changed", flip(2), []Kind{Hello, Done}, 1},
		{"something cuts in", into(3), []Kind{Hello, Done}, 1},
		{"the first message is missing", cut(0), []Kind{Log, Done}, 1},
		{"cut off within a message", join(lines[:3]), []Kind{Hello}, 1},
		{"sent twice", join(append(append([]string{}, lines...), "\n"+whole)), []Kind{Hello, Log, Done}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ms, _, lost := decode(tt.stream, 64)
			var kinds []Kind
			for _, m := range ms {
				kinds = append(kinds, m.Kind)
			}
			if !reflect.DeepEqual(kinds, tt.kinds) || lost != tt.lost {
				t.Errorf("got %v lost %d, want %v lost %d", kinds, lost, tt.kinds, tt.lost)
			}
		})
	}
}

func FuzzDecoder(f *testing.F) {
	var b bytes.Buffer
	e := NewEncoder(&b)
	e.Encode(Message{Kind: Hello, Text: strings.Repeat("x", 400)})
	e.Encode(Message{Kind: Done})
	f.Add(b.Bytes())
	f.Add([]byte("@@hvi 1 0 ffff 00000000 x\n"))
	f.Add([]byte("@@hvi 1 2 1 0 \n@@hvi"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		count := func(step int) (n, lost int) {
			d := NewDecoder(func(Message) { n++ }, nil)
			for s := stream; len(s) > 0; {
				k := min(step, len(s))
				d.Write(s[:k])
				s = s[k:]
			}
			return n, d.Lost()
		}
		n1, l1 := count(1 << 20)
		n2, l2 := count(3)
		if len(stream) < maxLine && (n1 != n2 || l1 != l2) {
			t.Errorf("%d messages, %d lost in one piece; %d, %d in small ones", n1, l1, n2, l2)
		}
		if l1 < 0 {
			t.Errorf("lost %d", l1)
		}
	})
}
