package machine

import (
	"fmt"
	"strings"
)

// Xen's command line on every machine. Most of it leaves out what an emulator
// has not or does slowly. There is no sync_console, for it waits for each byte;
// bootscrub=0 leaves guests the memory that others have used.
const xenArgs = "console=com1 com1=115200,8n1 serial_tx_buffer=256k loglvl=all guest_loglvl=all console_timestamps=boot " +
	"dom0_max_vcpus=1 ucode=0 spec-ctrl=no xpti=0 pcid=0 cpuidle=0 cpufreq=none " +
	"iommu=0 watchdog=0 cet=0 noreboot mce=0 bootscrub=0"

// Bochs does not record which event was being delivered when the delivery of a
// virtual interrupt causes a violation, so a Linux guest in an altp2m view dies
// of a stale fault unless Xen delivers interrupts itself.
const xenArgsIntel = "altp2m=1 apicv=0"

// The emulated AMD processor has SMEP and SMAP for guests to use. Xen itself does
// without: where a PV kernel in ring 3 executes IRET, QEMU 7.2 reads its stack with
// the supervisor's rights, which SMAP forbids, and the control domain dies of it.
const xenArgsAMD = "smep=hvm smap=hvm"

// The control domain's command line. rodata=off leaves out the check of all
// mappings at the end of the boot, 2 of 13 seconds in Bochs.
const dom0Args = "console=hvc0 earlyprintk=xen nomodeset mitigations=off nokaslr clocksource=xen audit=0 apparmor=0 lsm= " +
	"rdinit=/init rootfstype=ramfs panic=1 cryptomgr.notests rodata=off"

// What a control domain with a system of its own is told in place of dom0Args:
// AppArmor is on, as it is in Debian.
const debianArgs = "console=hvc0 earlyprintk=xen nomodeset mitigations=off nokaslr clocksource=xen audit=0 lsm=apparmor " +
	"rdinit=/init rootfstype=ramfs panic=1 cryptomgr.notests rodata=off loglevel=5 " +
	"systemd.show_status=error systemd.default_timeout_start_sec=600 net.ifnames=0"

// XenArgs returns the hypervisor's command line, with the control domain's
// memory in MiB and what a scenario adds.
func XenArgs(intel bool, dom0 int, more []string) string {
	args := []string{xenArgs, fmt.Sprintf("dom0_mem=%dM,max:%[1]dM", dom0)}
	if intel {
		args = append(args, xenArgsIntel)
	} else {
		args = append(args, xenArgsAMD)
	}
	return strings.Join(append(args, more...), " ")
}

// Dom0Args returns the control domain's command line.
func Dom0Args() string { return dom0Args }

// DebianArgs returns the control domain's command line where it runs Debian from
// two disks: the system's, and the one with what the lab brings.
func DebianArgs(system, lab string) string {
	return debianArgs + " lab.root=" + system + " lab.disk=" + lab
}
