/*
 * The least that a listener of a guest's writes can do, written in C over
 * libxenctrl: what hvi's own cost is measured against (scenario event-cost). It
 * restricts frames in a view, and lets each write through: it reads the request,
 * and answers that the processor carries out one instruction in the host's view.
 * There is no policy, no reading of the guest, and nothing is put back if it dies.
 *
 *   listener DOMID < FRAMES     lines of "first count", until SIGTERM
 */
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xen/memory.h>
#include <xen/vm_event.h>

static volatile sig_atomic_t stop;

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static void must(int rc, const char *what)
{
	if (rc < 0) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	uint32_t dom = argc > 1 ? atoi(argv[1]) : 0, remote;
	uint16_t view;
	unsigned long first, count, events = 0, others = 0;
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	xenevtchn_handle *ec = xenevtchn_open(NULL, 0);
	vm_event_back_ring_t ring;
	struct pollfd fd;
	int port;

	if (!dom || !xc || !ec)
		must(-1, "listener DOMID");
	signal(SIGTERM, on_term);
	/* hvid's. */
	must(setpriority(PRIO_PROCESS, 0, -15), "setpriority");
	void *page = xc_monitor_enable(xc, dom, &remote);
	if (!page)
		must(-1, "xc_monitor_enable");
	port = xenevtchn_bind_interdomain(ec, dom, remote);
	must(port, "xenevtchn_bind_interdomain");
	SHARED_RING_INIT((vm_event_sring_t *)page);
	BACK_RING_INIT(&ring, (vm_event_sring_t *)page, XC_PAGE_SIZE);

	must(xc_altp2m_set_domain_state(xc, dom, 1), "xc_altp2m_set_domain_state");
	must(xc_altp2m_create_view(xc, dom, XENMEM_access_rwx, &view), "xc_altp2m_create_view");
	while (scanf("%lu %lu", &first, &count) == 2)
		for (unsigned long gfn = first; gfn < first + count; gfn++)
			must(xc_altp2m_set_mem_access(xc, dom, view, gfn, XENMEM_access_rx), "xc_altp2m_set_mem_access");
	/* Without it Xen ends no step (hvm_monitor_debug). */
	must(xc_monitor_singlestep(xc, dom, true), "xc_monitor_singlestep");
	must(xc_altp2m_switch_to_view(xc, dom, view), "xc_altp2m_switch_to_view");
	puts("ready");
	fflush(stdout);

	fd.fd = xenevtchn_fd(ec);
	fd.events = POLLIN;
	while (!stop) {
		if (poll(&fd, 1, 1000) < 1)
			continue;
		int fired = xenevtchn_pending(ec);
		if (fired < 0)
			continue;
		must(xenevtchn_unmask(ec, fired), "xenevtchn_unmask");
		int answered = 0;
		while (RING_HAS_UNCONSUMED_REQUESTS(&ring)) {
			vm_event_request_t req;
			vm_event_response_t rsp;

			memcpy(&req, RING_GET_REQUEST(&ring, ring.req_cons), sizeof(req));
			ring.req_cons++;
			ring.sring->req_event = ring.req_cons + 1;
			memset(&rsp, 0, sizeof(rsp));
			rsp.version = VM_EVENT_INTERFACE_VERSION;
			rsp.vcpu_id = req.vcpu_id;
			rsp.reason = req.reason;
			rsp.flags = req.flags & VM_EVENT_FLAG_VCPU_PAUSED;
			if (req.reason == VM_EVENT_REASON_MEM_ACCESS && (req.u.mem_access.flags & MEM_ACCESS_W)) {
				rsp.flags |= VM_EVENT_FLAG_ALTERNATE_P2M | VM_EVENT_FLAG_FAST_SINGLESTEP;
				rsp.altp2m_idx = 0;
				rsp.u.fast_singlestep.p2midx = view;
				events++;
			} else {
				others++;
			}
			memcpy(RING_GET_RESPONSE(&ring, ring.rsp_prod_pvt), &rsp, sizeof(rsp));
			ring.rsp_prod_pvt++;
			answered = 1;
		}
		if (answered) {
			RING_PUSH_RESPONSES(&ring);
			must(xenevtchn_notify(ec, port), "xenevtchn_notify");
		}
	}
	must(xc_altp2m_switch_to_view(xc, dom, 0), "xc_altp2m_switch_to_view");
	must(xc_monitor_singlestep(xc, dom, false), "xc_monitor_singlestep");
	must(xc_altp2m_destroy_view(xc, dom, view), "xc_altp2m_destroy_view");
	must(xc_altp2m_set_domain_state(xc, dom, 0), "xc_altp2m_set_domain_state");
	must(xc_monitor_disable(xc, dom), "xc_monitor_disable");
	printf("events %lu others %lu\n", events, others);
	return 0;
}
