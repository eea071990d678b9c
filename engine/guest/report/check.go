package report

// Verdict is the outcome of all checks of a guest's kernel.
type Verdict struct {
	Reading Reading `json:"reading"`
	// Clean says that no check found anything, none failed, and at least one was
	// made. A check that is unavailable does not make a guest unclean, but says
	// nothing for it either.
	Clean    bool      `json:"clean"`
	Checks   []Check   `json:"checks"`
	Findings []Finding `json:"findings"`
}

// Check is one way of looking, and how it went.
type Check struct {
	// Name is the check's: "hidden-processes".
	Name string `json:"name"`
	// Means is what a finding would mean, one sentence.
	Means string `json:"means"`
	// Status is CheckClean, CheckFound, CheckUnavailable or CheckFailed.
	Status CheckStatus `json:"status"`
	// Why it is unavailable or has failed.
	Why string `json:"why,omitzero"`
	// Examined counts what was compared.
	Examined int `json:"examined"`
}

// CheckStatus is the outcome of a check.
type CheckStatus string

// The outcomes.
const (
	CheckClean CheckStatus = "clean"
	CheckFound CheckStatus = "found"
	// CheckUnavailable: it can't be made of this kernel, or of this kind of image.
	CheckUnavailable CheckStatus = "unavailable"
	// CheckFailed: it could not be carried through because what was read
	// contradicts itself, which a guest can do on purpose.
	CheckFailed CheckStatus = "failed"
)

// Finding is a contradiction in the guest's kernel.
type Finding struct {
	// Check is the name of the check that made it.
	Check string `json:"check"`
	// Object is what it is about: "process 812 (sshd)".
	Object Text `json:"object"`
	// Detail says what contradicts what.
	Detail Text `json:"detail"`
	// Place is the code that is involved, where there is any.
	Place *Place `json:"place,omitempty"`
	// Log is the kernel's log, where that says more of it. Its end is kept with the event
	// that is made of the finding.
	Log []LogRecord `json:"-"`
}
