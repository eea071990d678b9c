package machine

import "strings"

// Xen's command line on every machine. Most of it leaves out what an emulator
// has not or does slowly. There is no sync_console, for it waits for each byte;
// bootscrub=0 leaves guests the memory that others have used.
const xenArgs = "console=com1 com1=115200,8n1 serial_tx_buffer=256k loglvl=all guest_loglvl=all console_timestamps=boot " +
	"dom0_mem=512M,max:512M dom0_max_vcpus=1 ucode=0 spec-ctrl=no xpti=0 pcid=0 cpuidle=0 cpufreq=none " +
	"iommu=0 watchdog=0 cet=0 noreboot mce=0 bootscrub=0"

// Bochs does not record which event was being delivered when the delivery of a
// virtual interrupt causes a violation, so a Linux guest in an altp2m view dies
// of a stale fault unless Xen delivers interrupts itself.
const xenArgsIntel = "altp2m=1 apicv=0"

// The control domain's command line. rodata=off leaves out the check of all
// mappings at the end of the boot, 2 of 13 seconds in Bochs.
const dom0Args = "console=hvc0 earlyprintk=xen nomodeset mitigations=off nokaslr clocksource=xen audit=0 apparmor=0 lsm= " +
	"rdinit=/init rootfstype=ramfs panic=1 cryptomgr.notests rodata=off"

// XenArgs returns the hypervisor's command line with what a scenario adds.
func XenArgs(intel bool, more []string) string {
	args := []string{xenArgs}
	if intel {
		args = append(args, xenArgsIntel)
	}
	return strings.Join(append(args, more...), " ")
}

// Dom0Args returns the control domain's command line.
func Dom0Args() string { return dom0Args }
