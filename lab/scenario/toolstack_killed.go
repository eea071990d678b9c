package scenario

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "toolstack-killed",
		Brief:    "xl is killed at any moment of creating and saving a guest: what it leaves can be destroyed, hvid keeps nothing",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      toolstackKilled,
	})
}

// toolstackRest is how long hvid is given to come to rest, emulated.
const toolstackRest = 3 * time.Second

// toolstackKills is how often xl is killed at each of its tasks.
const toolstackKills = 12

// toolstackKilled kills xl while it creates a guest, and while it saves one, each time
// at another moment of the time that it takes. Whatever it leaves, hvid goes on, and
// knows nothing of it once it is destroyed.
func toolstackKilled(t *T) error {
	if err := os.RemoveAll(capturedDir); err != nil {
		return err
	}
	if err := t.listen("unix:" + metricsSocket); err != nil {
		return err
	}
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	const seed = 5
	t.Fact("seed", seed)
	k := &toolstackKiller{soaker: &soaker{t: t, hvid: hvid, metrics: metricsSocket}, random: rand.New(rand.NewPCG(seed, 0))}
	if err := k.prepare(); err != nil {
		return err
	}
	before, err := k.measure()
	if err != nil {
		return err
	}
	left := map[string]int{}
	for i := range toolstackKills {
		what, err := k.killCreate()
		if err != nil {
			return fmt.Errorf("creation %d: %w", i+1, err)
		}
		left["create: "+what]++
	}
	for i := range toolstackKills {
		what, err := k.killSave()
		if err != nil {
			return fmt.Errorf("save %d: %w", i+1, err)
		}
		left["save: "+what]++
	}
	t.Fact("left_by_xl", left)
	var after tally
	err = t.Eventually(hvidLimit, "hvid holds no more than before", func() (bool, error) {
		after, err = k.count()
		// A saved guest's policy is kept, since its image may be restored.
		after.Captured = before.Captured
		return after.within(before), err
	})
	t.Check(err == nil, "hvid holds no more than before %d deaths of xl: %v; %+v, then %+v", 2*toolstackKills, err, before, after)
	t.Fact("before", before)
	t.Fact("after", after)
	// And all is as ever.
	if err := k.create(); err != nil {
		return err
	}
	return k.end()
}

type toolstackKiller struct {
	*soaker
	random *rand.Rand
	// creating and saving are how long xl takes for it.
	creating, saving time.Duration
}

// measure does both undisturbed, and takes what hvid holds then.
func (k *toolstackKiller) measure() (tally, error) {
	start := time.Now()
	if err := k.create(); err != nil {
		return tally{}, err
	}
	k.creating = time.Since(start)
	start = time.Now()
	if err := k.saveRestore(); err != nil {
		return tally{}, err
	}
	k.saving = time.Since(start) / 2
	k.t.Fact("seconds", map[string]float64{"create": round(k.creating), "save": round(k.saving)})
	if err := k.end(); err != nil {
		return tally{}, err
	}
	return k.settled()
}

// kill starts xl and kills it within a time.
func (k *toolstackKiller) kill(within time.Duration, args ...string) error {
	p, err := k.t.Start("xl", args...)
	if err != nil {
		return err
	}
	if err := k.t.wait(time.Duration(k.random.Int64N(int64(within)))); err != nil {
		return err
	}
	_ = p.Signal(syscall.SIGKILL) // it may have ended
	select {
	case <-p.Exited():
		return nil
	case <-time.After(hvidLimit):
		return fmt.Errorf("xl %v is not dead after %v", args, hvidLimit)
	}
}

// killCreate kills xl while it creates the guest, says what there was then, and
// destroys it.
func (k *toolstackKiller) killCreate() (left string, err error) {
	if err := k.kill(k.creating, "create", "-q", k.config.Path()); err != nil {
		return "", err
	}
	return k.remains()
}

// killSave kills xl while it saves the guest, likewise.
func (k *toolstackKiller) killSave() (left string, err error) {
	if err := k.create(); err != nil {
		return "", err
	}
	k.id = 0
	ids, err := k.t.domains()
	if err != nil || len(ids) != 1 {
		return "", fmt.Errorf("domains %v: %w", ids, err)
	}
	if err := k.kill(k.saving, "save", strconv.Itoa(ids[0]), k.image); err != nil {
		return "", err
	}
	return k.remains()
}

// remains says what hvid makes of the domain that is there, destroys it, and waits until
// hvid has forgotten it.
func (k *toolstackKiller) remains() (left string, err error) {
	ids, err := k.t.domains()
	if err != nil {
		return "", err
	}
	if len(ids) == 0 {
		return "nothing", nil
	}
	id := strconv.Itoa(ids[0])
	left = "a domain that hvid was not told of"
	// hvid is given some time for what it does by itself. A domain that xl did not come
	// to build stays gated: nobody but xl could say that it will never be.
	var st control.DomainStatus
	for deadline := time.Now().Add(toolstackRest); ; {
		st, err = client.Domain(k.t.ctx, id)
		if err != nil || st.State != control.StateGated && st.State != control.StateDeclared && st.State != control.StateDetaching || time.Now().After(deadline) {
			break
		}
		if err := k.t.wait(50 * time.Millisecond); err != nil {
			return "", err
		}
	}
	k.t.Check(st.State != control.StateDeclared && st.State != control.StateDetaching, "domain %s is in no state that ends by itself: %q", id, st.State)
	if st.State != "" {
		left = string(st.State)
		if st.Held != "" {
			left += ", held"
		}
		if st.State == control.StateFailed {
			k.t.Check(st.Failure != nil, "domain %s has failed, and hvid says why: %+v", id, st.Failure)
		}
	}
	if _, err := k.t.XL("destroy", id); err != nil {
		return "", err
	}
	return left, k.gone(uint16(ids[0]))
}
