package config

import (
	"github.com/xen-hvi/hvi/engine/policy"
)

// The words of a view.
const (
	wordViewName    = "name"
	wordViewGuards  = "guards"
	wordViewSwitch  = "switch"
	wordViewInitial = "initial"
)

var viewWords = []string{wordViewName, wordViewGuards, wordViewSwitch, wordViewInitial}

// feedViews gives the builder the views in a document.
func feedViews(b *policy.Builder, d *document) {
	for _, t := range d.views {
		words := policy.ViewWords{AllGuards: true}
		text := func(s setting) policy.Word {
			if s.kind != kindText {
				b.Fail(s.wrongKind(kindText))
			}
			return policy.Word{Key: s.name(), Text: s.text, KeyAt: s.at, At: s.value.at}
		}
		wrong := false
		for _, s := range t.settings {
			switch s.name() {
			case wordViewName:
				words.Name = text(s)
				wrong = wrong || s.kind != kindText
			case wordViewSwitch:
				words.Switch = text(s)
				wrong = wrong || s.kind != kindText
			case wordViewInitial:
				if s.kind != kindSwitch {
					b.Fail(s.wrongKind(kindSwitch))
					continue
				}
				words.Initial = s.text == "true"
			case wordViewGuards:
				words.AllGuards = false
				if s.kind != kindList {
					b.Fail(s.wrongKind(kindList))
					wrong = true
					continue
				}
				for _, v := range s.list {
					words.Guards = append(words.Guards, text(setting{path: s.path, at: s.at, value: v}))
					wrong = wrong || v.kind != kindText
				}
			default:
				b.Fail(policy.UnknownWord("setting of a view", s.name(), viewWords, s.at))
			}
		}
		if wrong {
			b.ViewRejected()
			continue
		}
		b.View(words, t.at)
	}
}

// refuseViews makes views an error, where no one would look for them.
func refuseViews(b *policy.Builder, d *document) {
	for _, t := range d.views {
		b.Fail(&policy.Error{
			Origin: t.at, What: "table", Value: wordView, Reason: "cannot stand in this file",
			Hint: "views stand in policies, which domains name: " + DefaultDir + "/" + PoliciesDir,
		})
	}
}
