// Package metrics tells Prometheus how the domains' protection is: what is
// counted and under which names ([Collector]), and the small server that hands
// it out ([Serve]). A dashboard and alert rules made for these names lie in
// grafana and rules.
//
// # Labels
//
// Prometheus keeps one series for each combination of labels it ever saw, so
// what may become a label is bounded. A domain is named by its name, escaped
// and cut at [MaxLabel] bytes, and its UUID; its number, which changes with
// every reboot, is in hvi_domain_info alone. No label's value is chosen by a
// guest: names of its processes, and even the release of its kernel, are in
// hvictl's answers only. States are the words that hvictl status shows, and of
// hvi_domain_state, hvi_guard_state and hvi_domain_info only the series that
// holds now is there, with the value 1.
//
// # Counters
//
// hvid counts by session, from each attachment anew. A counter of a domain is
// the sum over all sessions of its UUID that the collector saw or was told of
// ([Server.Ended]), so that it does not go back when a domain is attached to
// again, reboots, or is saved and restored here. It begins anew with hvid, as
// every counter of a process does.
//
// What a session counted since the last scrape is lost to these sums if the
// session is replaced by another one, and Ended was not called for it. The
// journal has those violations all the same.
//
// A domain that has gone disappears from the gauges with the next scrape. Its
// counters stay for [Linger], so that what happened in its last seconds is
// still scraped and its next domain, after a reboot, goes on from there.
//
// Two domains of one UUID, as there are while a guest is migrated within the
// host, are one machine here: the states are the newer one's, the counts the
// sum.
//
// # Who owns what
//
// A [Server] owns its socket, its connections and their goroutines. All are
// gone when Close returns, or soon after the end of the context given to Serve.
// A Collector owns the sums and nothing that must be released. A [Source] is
// the caller's; it is asked once for each scrape.
package metrics
