# Targets that other parts of the project add stand beside these.
GO ?= go

# The lab: a real Xen in an emulator. See `make lab-list` for names.
#   make lab S=boot-intel        one scenario, or several: S=a,b
.PHONY: lab lab-list lab-images lab-clean
lab:
	@test -n "$(S)" || { echo "usage: make lab S=NAME[,NAME]...; make lab-list shows the names" >&2; exit 2; }
	@$(GO) run ./lab/cmd/lab run $(if $(Q),-q) "$(S)"

lab-list:
	@$(GO) run ./lab/cmd/lab list

lab-images:
	@$(GO) run ./lab/cmd/lab images

lab-clean:
	@$(GO) run ./lab/cmd/lab clean
