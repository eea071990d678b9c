// Package xentest is a hypervisor that is not there: a fake of Xen at the
// level of hypercalls, foreign mappings and event channels, for tests that
// run without Xen and without root.
//
// It decodes the same structures, by the same layouts, that Xen of the chosen
// release would, refuses what Xen refuses with the errno Xen uses, and keeps
// what Xen keeps: pauses, access restrictions, monitored events and the
// monitor ring of each domain. Guest memory is real memory that is mapped page
// by page, so mappings alias, outlive what the guest does, and have holes.
//
// A Hypervisor belongs to one test. Any number of hosts can be opened on it;
// each stands for a process of its own. Close releases the guest memory;
// mappings that are left then are counted by Domain.MappedPages.
package xentest
