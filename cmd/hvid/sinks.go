package main

import (
	"log/slog"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/journal/sink"
)

// forward begins to pass events on to where the settings say. One of these places
// that does not take them is logged, and is no reason to leave guests without
// protection.
func forward(j *journal.Journal, to config.Events, log *slog.Logger) []*sink.Forwarder {
	var sinks []sink.Sink
	if to.Journald {
		sinks = append(sinks, sink.Journald(sink.JournaldSocket))
	}
	if to.Syslog != "" {
		sinks = append(sinks, sink.Syslog(to.Syslog))
	}
	if to.File != "" {
		sinks = append(sinks, sink.File(to.File, sink.Format(to.Format)))
	}
	var out []*sink.Forwarder
	for _, s := range sinks {
		f, err := sink.Forward(j, s, log)
		if err != nil {
			log.Error("pass events on", "err", err)
			continue
		}
		log.Info("events are passed on", "sink", s.Name())
		out = append(out, f)
	}
	return out
}
