package scenario

import "testing"

func TestTaskName(t *testing.T) {
	for in, want := range map[string]string{
		"1 0 init":                         "1 0 init",
		"7 2 kworker/0:1-events":           "7 2 kworker/0:1",
		"8 2 kworker/u4:0+flush-254:0":     "8 2 kworker/u4:0",
		"9 2 kworker/R-mm_percpu_wq":       "9 2 kworker/R-mm_pe",
		"10 2 rcu_tasks_rude_kthread":      "10 2 rcu_tasks_rude_",
		"11 1 a name of several words: -x": "11 1 a name of sever",
		"":                                 "",
	} {
		if got := taskName(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
