package main

import (
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/libvirt/metadata"
	"github.com/xen-hvi/hvi/packaging/manual"
	"github.com/xen-hvi/hvi/xlplugin"
)

var modeMeanings = map[policy.Mode]string{
	policy.ModeOff:     "The domain is not introspected.",
	policy.ModeLearn:   "As `observe`, to find out what a healthy guest does: hvictl-learn(1) proposes exceptions from what is reported under it. A guard may be set to what it is to do under `enforce` already; it reports until then.",
	policy.ModeObserve: "The guards report what they see and let it happen. Nothing is ever blocked, no process killed, and no domain stopped. A switch that is on (`1`, `yes`, `true`, `on`) means this mode.",
	policy.ModeEnforce: "The guards may block, kill the process, and stop the domain.",
}

var actionMeanings = map[policy.Action]string{
	policy.ActionOff:      "The guard is not armed.",
	policy.ActionAlert:    "A violation is reported and let happen.",
	policy.ActionKill:     "As `block`, and the process that did it is ended, as by `kill -9`. Kernel threads, the first process and what happens in an interrupt are spared. Not under `learn` and `observe`.",
	policy.ActionPause:    "A violation is reported, prevented where the guard can, and the domain is paused: it stays so, also when hvid ends, until `hvictl resume`. Not under `learn` and `observe`.",
	policy.ActionShutdown: "As `pause`, and then the domain is shut down as if its guest had crashed: its toolstack does what `on_crash` says. Not under `learn` and `observe`.",
	policy.ActionBlock:    "A violation is reported and prevented; the guest runs on. Under `learn` it is reported only; under `observe` it is an error to set this for one domain.",
}

// vocabulary writes the words that every declaration is made of.
func vocabulary(p *manual.Page) {
	p.Heading("modes")
	for i, word := range policy.Modes() {
		p.Item("`"+word+"`", modeMeanings[policy.Mode(i)])
	}
	p.Heading("guards")
	p.Para("A guard is one protection. What it does when the policy says nothing of it depends on the mode.")
	for _, g := range policy.Guards() {
		p.Item("`"+string(g.Name)+"`", fmt.Sprintf("%s%s. Under `observe`: %s. Under `enforce`: %s.",
			strings.ToUpper(g.Meaning[:1]), g.Meaning[1:], g.Observe, g.Enforce))
	}
	p.Heading("actions")
	for i, word := range policy.Actions() {
		p.Item("`"+word+"`", actionMeanings[policy.Action(i)])
	}
	p.Heading("policies")
	p.Para("A policy is a named set of actions to start from. These are built in:")
	for _, s := range policy.Presets() {
		p.Item("`"+s.Name+"`", strings.ToUpper(s.Meaning[:1])+s.Meaning[1:]+".")
	}
}

const strictness = `A word that hvi doesn't know is an error and never a default: it is reported with its place and the nearest
known word by hvictl-status(1), and the domain isn't reported as protected.`

func policyPage(build manual.Build) *manual.Page {
	p := manual.New("hvi-policy", 5, "what can be declared about the protection of a guest", build.Version, build.Date)
	p.Heading("description")
	p.Para(`What hvid(8) does for a domain is declared by a mode, the name of a policy, actions of single guards, and
whether the domain may run without protection. The words are the same wherever they are written: in an xl config
(hvi-xl(5)), in a libvirt domain (hvi-libvirt(5)), in the files described below, and on the command line of hvictl(1).

` + strictness)
	vocabulary(p)
	p.Para("An admin's own are files, see below. A domain's own settings of guards go before those of the policy that it names.")
	p.Heading("require_attach")
	p.Para("A domain that hvi can't protect runs on without, and its state says so. With `require_attach` it is held instead: " +
		"it doesn't run a single instruction, or doesn't go on after a restore or a migration, until hvid is attached to it. " +
		"Where a hook of hvi-hook(8) stands in the way of its start, the start fails when that doesn't happen within a bound. It is off where nothing else is said.")
	p.Heading("on_engine_failure")
	p.Para("What becomes of a domain when hvid dies or hangs, or loses its events. With `release`, which holds where nothing else is said, " +
		"it runs on without protection until hvid is back. With `pause` it stands still until it is protected again. " +
		"To stop hvid in order is no failure. hvid(8) says how such a domain is let go by hand.")

	p.Heading("files")
	p.Item("`/etc/hvi/policies/`<NAME>`.toml`", fmt.Sprintf("The policy <NAME>, which a domain may name beside the built-in ones. "+
		"A name is a letter or a digit and at most %d letters, digits, dots, underscores and dashes. It sets actions of guards, "+
		"and may set `require_attach` and `on_engine_failure`. It can't set the mode: that is the domain's. Under `observe` what it would block is only reported, "+
		"so that it can be tried out.", policy.MaxName-1))
	p.Item("`/etc/hvi/domains/`<UUID>`.toml`, `/etc/hvi/domains/`<NAME>`.toml`", `What holds for the domain of that UUID, or else that name, when its toolstack declares
nothing: for XAPI, for domains of "xl create -e", for those that came from another host. It has a mode, and may have the
rest.`)
	p.Item("`/etc/hvi/exceptions.toml`", "The host's exceptions, see below. hvid reads it when it starts and when `hvictl exceptions reload` says so.")
	p.Para("They are TOML, and owned by root and writable by nobody else; others are refused.")

	p.Heading("lists")
	p.Para(fmt.Sprintf("A policy may list what guards are to let pass, or not. Each is a list of at most %d strings, or one string. A domain gets them with the policy that it names.", policy.MaxList))
	for _, l := range policy.Lists() {
		of := l.Meaning + ". It is of the guard `" + string(l.Guard) + "`."
		if l.Default != nil {
			of += " If it is not set: " + strings.Join(l.Default, ", ") + "."
		}
		p.Item("`"+string(l.Name)+"`", of)
	}

	p.Heading("exceptions")
	p.Para(fmt.Sprintf("An exception permits what would be a violation of a guard: it takes place, also where the guard blocks, and is counted instead of "+
		"reported. `hvictl allow` makes one of an event; hvid keeps it. Others stand in `/etc/hvi/exceptions.toml`, or in a policy, for the domains "+
		"that name it; each is a table `[[exception]]`, and a file has at most %d. Every condition that is set must be met, and there must be one besides "+
		"`guard`, `domain` and `kernel`.", policy.MaxExceptions))
	for _, x := range policy.ExceptionFields() {
		p.Item("`"+x.Name+"`", x.Meaning+".")
	}
	p.Para("Names of processes and modules are what the guest says of itself: who has taken over its kernel can choose them. The place written to and the " +
		"function that writes are judged by addresses, which can't be chosen.")

	p.Heading("views")
	p.Para(fmt.Sprintf("A policy may declare views, at most %d, each a table `[[view]]`. A domain runs in one of them at a time, and the guards of memory hold in the views "+
		"that name them; guards of anything else hold in every view. Without any, there is one in which all hold. `hvictl views` <domain> `--switch` <name> has a domain run in another, "+
		"on the tier `views`. On other tiers the initial view is the one there is.", policy.MaxViews))
	p.Item("`name`", fmt.Sprintf("A small letter and at most %d small letters, digits, underscores and dashes; not `host`.", policy.MaxViewName-1))
	p.Item("`guards`", "A list of the guards of memory that hold in it; all of them where it is left out. Each must be in one of the views, or off.")
	p.Item("`switch`", "Who may have a domain switched to it: `admin`, which is the default, or `nobody`.")
	p.Item("`initial`", "`true` for the view that a domain is in first; else the first one is.")

	p.Heading("which declaration holds")
	p.Para("The first of these that says something:")
	for i, s := range []string{
		"what a hook handed over for the domain's UUID: libvirt's element;",
		"the config of the xl process that creates the domain. A config without a word of hvi's declares nothing, and what was captured earlier is forgotten;",
		"the file of the domain below `/etc/hvi/domains`;",
		"what was captured for its UUID earlier. It is kept through reboot, save, restore and migration, and is removed when the domain is destroyed or powered off;",
		"the default of hvid.toml(5), which is `off` unless it was changed.",
	} {
		p.Item(fmt.Sprintf("%d.", i+1), strings.ToUpper(s[:1])+s[1:])
	}
	p.Para("A declaration that can't be read is not passed over for a weaker one. `hvictl policy show` <domain> says which one holds, and where each word of it was written.")

	p.Heading("examples")
	p.Para("A policy, `/etc/hvi/policies/web.toml`:")
	p.Code("require_attach = true\n\n[guards]\nkernel-text = \"block\"\nsyscall-entry = \"alert\"")
	p.Para("A policy of two views, in the second of which the kernel's code may be changed:")
	p.Code("[[view]]\nname = \"strict\"\n\n[[view]]\nname = \"maintenance\"\nguards = [\"kernel-rodata\", \"ex-table\", \"syscall-table\", \"idt\", \"vdso\"]")
	p.Para("A domain that another toolstack starts, `/etc/hvi/domains/web1.toml`:")
	p.Code("mode = \"enforce\"\npolicy = \"web\"")
	p.Para("An agent that patches the kernels of all domains, in `/etc/hvi/exceptions.toml`:")
	p.Code("[[exception]]\nguard = \"kernel-text\"\nprocess = \"agent\"\nmodule = \"agent\"\ntarget = \"do_syscall_64\"\nexpires = 2027-12-31")
	p.Para("Is it right?")
	p.Code("hvictl policy check /etc/hvi/exceptions.toml /etc/hvi/policies/web.toml /etc/hvi/domains/web1.toml")
	p.SeeAlso("hvictl(1)", "hvi-libvirt(5)", "hvi-xl(5)", "hvid.toml(5)", "hvid(8)")
	return p
}

func xlPage(build manual.Build) *manual.Page {
	p := manual.New("hvi-xl", 5, "hvi's settings in a domain config of xl", build.Version, build.Date)
	p.Heading("description")
	p.Para(`A guest that xl(1) starts is protected by settings in its domain config, see xl.cfg(5). xl takes no notice of
them; hvid(8) finds the config through the xl process that creates the domain. Assignments on xl's command line count as
they do for xl: the last one holds.

` + strictness + ` A setting whose name begins with "introspection" and is none of these is such an error.`)
	p.Heading("settings")
	p.Item("`"+xlplugin.KeyMode+"` = <mode>", "How far introspection goes: `\""+strings.Join(policy.Modes(), "\"`, `\"")+"\"`. `1` means `observe` and `0` means `off`. Without it nothing is declared, and the other settings are errors.")
	p.Item("`"+xlplugin.KeyPolicy+"` = <name>", "The set of actions to start from: a built-in policy or one of the admin's own, see hvi-policy(5).")
	p.Item("`"+xlplugin.KeyGuards+"` = [ <guard=action>, ... ]", "Actions of single guards, each a string.")
	p.Item("`"+xlplugin.KeyRequireAttach+"` = <1|0>", "Whether the domain may run only while it is attached to.")
	p.Item("`"+xlplugin.KeyOnEngineFailure+"` = <word>", "What becomes of the domain when hvid fails: `\""+strings.Join(policy.EngineFailures(), "\"` or `\"")+"\"`.")
	vocabulary(p)
	p.Heading("what belongs to xl")
	p.Item("`altp2m = \"external\"`", "Lets hvi use views of the guest's memory of its own, on Intel. hvictl-doctor(1) says whether the host can.")
	p.Item("`uuid` = <UUID>", "What is declared is kept by UUID. xl makes up a new one at each creation where the config has none.")
	p.Item("`device_model_override = \"/usr/libexec/hvi/dm-gate\"`, `vif = [ \"script=hvi-vif-bridge\" ]`", "Make the start of the domain wait for hvid, and fail if it isn't protected in time, see hvi-hook(8). `hvictl create` does so without either.")
	p.Heading("examples")
	p.Code("introspection        = \"enforce\"\nintrospection_guards = [ \"kernel-text=block\", \"syscall-entry=alert\" ]\naltp2m               = \"external\"")
	p.Para("Is it right?")
	p.Code("hvictl policy check /etc/xen/web.cfg")
	p.SeeAlso("hvictl(1)", "xl(1)", "hvi-policy(5)", "xl.cfg(5)", "hvi-hook(8)", "hvid(8)")
	return p
}

func libvirtPage(build manual.Build) *manual.Page {
	p := manual.New("hvi-libvirt", 5, "hvi's element in a libvirt domain", build.Version, build.Date)
	p.Heading("description")
	p.Para(`A Xen guest that libvirt starts is protected by one element in the metadata of its domain. libvirt keeps it and
takes no notice of it; hvi-hook(8), which libvirt calls when it starts the domain, hands it to hvid(8). A change of a
running domain takes effect at once.

` + strictness + ` With an element that can't be read the domain isn't started. What others keep in a domain's metadata
isn't looked at.`)
	p.Heading("the element")
	p.Para("Its namespace is `" + metadata.Namespace + "`; the prefix may be any.")
	p.Code(`<domain type='xen'>
  ...
  <metadata>
    <hvi:introspection xmlns:hvi="` + metadata.Namespace + `"
                       mode="enforce" policy="default" require_attach="yes">
      <hvi:guard name="kernel-text" action="block"/>
    </hvi:introspection>
  </metadata>
</domain>`)
	p.Para("`hvictl set` writes it, so that nobody has to edit XML.")
	p.Heading("attributes")
	p.Item("`mode`", "How far introspection goes: `"+strings.Join(policy.Modes(), "`, `")+"`. It must be there.")
	p.Item("`policy`", "The set of actions to start from: a built-in policy or one of the admin's own, see hvi-policy(5).")
	p.Item("`require_attach`", "`yes` or `no`: whether the domain may run only while it is attached to. Under `enforce`, or with this, the domain isn't started while hvid doesn't answer.")
	p.Item("`on_engine_failure`", "`"+strings.Join(policy.EngineFailures(), "` or `")+"`: what becomes of the domain when hvid fails.")
	p.Item("`guard`, with `name` and `action`", "The action of one guard. There may be one such element for each guard.")
	vocabulary(p)
	p.Heading("gates")
	p.Para("libvirt calls no hook between the creation of a domain and its first instruction. hvid holds each new domain as soon as Xen tells of it. Whoever wants certainty puts a gate into the domain, see hvi-hook(8):")
	p.Code("<emulator>/usr/libexec/hvi/dm-gate</emulator>           (HVM)\n<interface ...><script path='hvi-vif-bridge'/></interface>")
	p.Heading("files")
	p.Item("`/etc/libvirt/hooks/libxl.d/50-hvi`", "Calls hvi-hook(8). libvirt looks for hooks when it starts and when it reloads; hvictl-doctor(1) says whether it has seen this one.")
	p.Item("`/usr/share/hvi/schema/introspection.rng`, `introspection.xsd`", "Grammars of the element.")
	p.Heading("examples")
	p.Code("hvictl set web --mode enforce\nvirsh metadata web " + metadata.Namespace + " --config\nhvictl policy check web.xml")
	p.SeeAlso("hvictl(1)", "virsh(1)", "hvi-policy(5)", "hvi-hook(8)", "hvid(8)")
	return p
}

func hookPage(build manual.Build) *manual.Page {
	p := manual.New("hvi-hook", 8, "bring hvid into the start of a domain", build.Version, build.Date)
	p.Heading("synopsis")
	p.Para("`hvi-hook libvirt` <domain> <operation> <suboperation> <extra>")
	p.Para("`hvi-hook vif-gate` <argument>...")
	p.Para("`hvi-hook dm-gate` <argument>...")
	p.Heading("description")
	p.Para(`Toolstacks call this program while they start a domain. Which of its parts is meant is said by the first
argument, or by the name that it is called by: its links are named after the part or, for scripts of network
interfaces, after the script that they stand before. Every part ends within a bound, whatever hvid does.`)
	p.Heading("the parts")
	p.Item("`libvirt`", "libvirt's hook for Xen domains, with the domain's XML on standard input. It checks hvi's element (hvi-libvirt(5)) and "+
		"hands it to hvid before the domain is created. An element that can't be read, or one of mode `enforce` or with `require_attach` while hvid doesn't answer, refuses the start. "+
		"A domain without the element is never held up. It calls nothing of libvirt's.")
	p.Item("`vif-gate`", "A script of libxl's for a virtual network interface. It waits until hvid says that the domain may run, and then becomes the script that it stands before: "+
		"`hvi-vif-bridge` is for `vif-bridge`. Otherwise it fails, and with it the domain's start.")
	p.Item("`dm-gate`", "The same in place of the device model of an HVM domain. Called without a domain, as libvirt does to learn what QEMU can do, it becomes QEMU at once.")
	p.Heading("environment")
	p.Item("`HVI_DM`", "The device model that `dm-gate` becomes, instead of the first that it finds where distributions put Xen's.")
	p.Item("`HVI_SOCKET`", "The control socket of hvid, where it is not the one that `/etc/hvi/hvid.toml` names, or else `/run/hvi/hvid.sock`.")
	p.Heading("exit status")
	p.Item("`0`", "The toolstack may go on.")
	p.Item("`1`", "The start is refused; standard error says why, and what to do.")
	p.Item("`2`", "The command line is wrong.")
	p.Heading("files")
	p.Item("`/etc/libvirt/hooks/libxl.d/50-hvi`", "Calls the part `libvirt`.")
	p.Item("`/etc/xen/scripts/hvi-vif-bridge`, `hvi-vif-nat`, `hvi-vif-openvswitch`, `hvi-vif-route`", "Links, for `script=` in a vif of an xl config or the script of a libvirt interface.")
	p.Item("`/usr/libexec/hvi/dm-gate`", "A link, for `device_model_override` in an xl config or the emulator of a libvirt domain.")
	p.Heading("examples")
	p.Para("In an xl config, for a domain that must not run without protection:")
	p.Code("introspection                = \"enforce\"\nintrospection_require_attach = 1\nvif = [ \"bridge=br0,script=hvi-vif-bridge\" ]")
	p.SeeAlso("hvictl(1)", "hvi-libvirt(5)", "hvi-xl(5)", "hvid(8)")
	return p
}
