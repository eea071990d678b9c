# hvi: make help says what there is.

GO     ?= go
PREFIX ?= /usr/local
UNITDIR ?= /etc/systemd/system
# A release sets VERSION; otherwise the binaries say which commit they are of.
VERSION ?=

# The scenario of make demo, those of make test, and those of make soak. What
# shares a machine runs in this order; the machines that take longest come first.
# Beside them, on demand: the same roads on the other processor (package-xl-intel,
# package-libvirt-intel, xl-roads-intel, xl-roads-amd), parts of those
# (package-units, package-metadata-intel), and what takes long by itself: tiers-amd,
# package-upgrade, idle, engine-failure, xenstored-restarted, toolstack-killed,
# soak-mixed and soak-mixed-intel, half an hour of everything at once, and -quick,
# process with -old, -middle and -next, patching with -access and -next,
# breakpoints with ten times the hits, breakpoints-vcpus, smp-intel, core-amd, xl-coredump-whole, attacks with its
# siblings attacks-old, -middle, -next, -access and -amd, healthy with -old, -middle, -next, -long and
# -next-long, looks-intel, looks-amd, slowdown, slowdown-debian,
# engine-killed and engine-killed-amd with more ways to die, and five times each,
# linux-matrix and linux-hidden, which take each kernel's memory, linux-live, which
# reads a guest that works, without Xen, linux-rest-xen and -next, which
# read one at rest under Xen, linux-live-xen and -next, which read one that works,
# linux-formats and linux-xencore, which read memory in each kind of file, and
# linux-volatility, which needs Volatility 3.
DEMO  ?= demo
SUITE ?= $(BOCHS) $(QEMU_DEBIAN) $(QEMU) $(RELEASES) $(HOST)
BOCHS ?= boot-intel demo skeleton-intel views breakpoints-quick breakpoints-access modules exceptions learn violation-actions metrics guest-pti guards-off hvid-stopped engine-killed-quick bad-input first-instruction xl-coredump-intel
QEMU  ?= boot-amd skeleton-amd cycles
HOST  ?= linux-matrix-quick linux-hidden-quick linux-live-quick
QEMU_DEBIAN  ?= package-libvirt
RELEASES ?= core-intel@4.14 core-intel@4.20 boot-amd@4.14 boot-amd@4.20
SOAK  ?= soak-create soak-reboot soak-save

# Go asks git which commit this is, and fails where git can't tell.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

# The release of Xen of scenarios that name none: make lab S=NAME XEN=4.20
XEN ?= 4.17

LAB := $(GO) run ./lab/cmd/lab
empty :=
comma := ,
space := $(empty) $(empty)

.DEFAULT_GOAL := help
.PHONY: help demo test bench build package install unit lint fuzz fmt lab lab-list lab-test soak lab-images lab-clean clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## see hvi protect a guest on a real Xen, in an emulator
	@$(LAB) run -q $(DEMO)

test: ## every check: format, vet, lint, unit tests, race detector, build, packages, lab
	@GO='$(GO)' tools/test

build: ## the static binaries, into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath $(VCS) $(if $(VERSION),-ldflags '-X github.com/xen-hvi/hvi/control.buildVersion=$(VERSION)') -o bin/ ./cmd/...

package: ## the deb and the rpm, into dist/
	@GO='$(GO)' packaging/build dist

# Without a package manager. Hooks, gates, manual pages and AppArmor's profile
# come with the packages only.
install: build ## hvid, hvictl, hvi-hook and the systemd unit, below PREFIX (and DESTDIR)
	install -d '$(DESTDIR)$(PREFIX)/sbin' '$(DESTDIR)$(PREFIX)/bin'
	install -m 0755 bin/hvid '$(DESTDIR)$(PREFIX)/sbin/hvid'
	install -m 0755 bin/hvi-hook '$(DESTDIR)$(PREFIX)/sbin/hvi-hook'
	install -m 0755 bin/hvictl '$(DESTDIR)$(PREFIX)/bin/hvictl'
	install -d '$(DESTDIR)$(UNITDIR)'
	sed 's|/usr/sbin/|$(PREFIX)/sbin/|' packaging/systemd/hvid.service > '$(DESTDIR)$(UNITDIR)/hvid.service'

unit: ## unit tests: no root, no Xen
	@GO='$(GO)' tools/test unit

lint: ## the linter, at the version pinned in tools/go.mod
	@GO='$(GO)' tools/test lint

bench: ## what an event costs, and how fast guests are read, on the memory of a real one
	@GO='$(GO)' tools/bench

fuzz: ## every fuzz target, each for FUZZTIME (1m): made for a night; tools/fuzz NAME... for some
	@GO='$(GO)' FUZZTIME='$(or $(FUZZTIME),1m)' tools/fuzz

fmt: ## format every Go file
	@find . -name .git -prune -o -name '*.go' -print0 | xargs -0 gofmt -l -w

# The lab: a real Xen in an emulator. See `make lab-list` for names.
#   make lab S=boot-intel        one scenario, or several: S=a,b; NAME@4.20 is one on
#                                that release of Xen, and XEN=4.20 all that name none
lab: ## one scenario: make lab S=NAME (several: S=A,B; on Xen 4.20: S=NAME@4.20; Q=1 hides the consoles)
	@test -n "$(S)" || { echo "usage: make lab S=NAME[,NAME]...; make lab-list shows the names" >&2; exit 2; }
	@$(LAB) run --xen '$(XEN)' $(if $(Q),-q) "$(S)"

lab-list: ## the scenarios, one line each
	@$(LAB) list

lab-test: ## the scenarios of make test
	@$(LAB) run -q $(subst $(space),$(comma),$(strip $(SUITE)))

soak: ## 1,000 creations, 200 reboots, 100 saves and restores: an hour
	@$(LAB) run -q $(subst $(space),$(comma),$(strip $(SOAK)))

lab-images: ## build everything the lab boots, and run nothing
	@$(LAB) images

lab-clean: ## remove the lab's cache and results
	@$(LAB) clean

clean: ## remove what was built here
	rm -rf bin dist
