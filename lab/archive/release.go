package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// keyringFiles are where debian-archive-keyring installs Debian's keys, newest
// layout first.
var keyringFiles = []string{
	"/usr/share/keyrings/debian-archive-keyring.pgp",
	"/usr/share/keyrings/debian-archive-keyring.gpg",
}

const keyringHint = "install or upgrade the package debian-archive-keyring (its newest version, taken from a newer suite, also installs on older ones), " +
	"or name a keyring file with HVI_LAB_KEYRING"

// release is a verified InRelease.
type release struct {
	suite      string
	base       string // the mirror it came from
	date       time.Time
	validUntil time.Time // zero: the suite does not expire
	byHash     bool
	fresh      bool                 // asked by this Archive, not read from the cache
	files      map[string]indexFile // by path below dists/SUITE
	fetched    time.Time            // when the mirror was last asked
}

type indexFile struct {
	sha256 string
	size   int64
}

// readKeyring reads a binary or armored OpenPGP keyring. Keys of kinds that
// aren't understood are passed over, as the ones that matter may still be there.
func readKeyring(path string) (openpgp.EntityList, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no keyring %s: %s", path, keyringHint)
	}
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	var r io.Reader = bytes.NewReader(data)
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")) {
		block, err := armor.Decode(r)
		if err != nil {
			return nil, fmt.Errorf("keyring %s: %w", path, err)
		}
		r = block.Body
	}
	keys, err := openpgp.ReadKeyRing(r)
	if len(keys) == 0 {
		if err == nil {
			err = errors.New("no keys in it")
		}
		return nil, fmt.Errorf("keyring %s: %w; %s", path, err, keyringHint)
	}
	return keys, nil
}

// verify checks a clear-signed file and returns the text that was signed. One
// good signature by any key of the keyring suffices: a release is signed by the
// keys of several Debian releases, so that older keyrings know one of them.
func verify(data []byte, keys openpgp.KeyRing, now time.Time) (text []byte, signers []string, err error) {
	block, rest := clearsign.Decode(data)
	if block == nil {
		return nil, nil, errors.New("it is not a clear-signed file (does the network ask for a login, or a proxy answer in the mirror's place?)")
	}
	if len(bytes.TrimSpace(rest)) != 0 || !bytes.HasPrefix(data, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, nil, errors.New("it has text outside of what is signed")
	}
	// Signatures are tried one by one, so that one by an unknown key or in a
	// format of the future does not spoil the others.
	conf := &packet.Config{Time: func() time.Time { return now }}
	packets := packet.NewOpaqueReader(block.ArmoredSignature.Body)
	var fails []error
	for {
		op, err := packets.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fails = append(fails, err)
			break
		}
		if op.Tag != 2 { // a signature, RFC 9580 section 5
			continue
		}
		var raw bytes.Buffer
		if err := op.Serialize(&raw); err != nil {
			fails = append(fails, err)
			continue
		}
		if p, err := op.Parse(); err == nil {
			if sig, ok := p.(*packet.Signature); ok && sig.IssuerKeyId != nil {
				signers = append(signers, fmt.Sprintf("%016X", *sig.IssuerKeyId))
			}
		}
		if _, _, err := openpgp.VerifyDetachedSignature(keys, bytes.NewReader(block.Bytes), &raw, conf); err != nil {
			fails = append(fails, err)
			continue
		}
		return block.Bytes, signers, nil
	}
	if len(fails) == 0 {
		return nil, signers, errors.New("it carries no signature")
	}
	reasons := make([]string, len(fails))
	for i, e := range fails {
		reasons[i] = e.Error()
	}
	return nil, signers, errors.New("no good signature (" + strings.Join(reasons, "; ") + ")")
}

// parseRelease reads the signed text of an InRelease.
func parseRelease(text []byte) (*release, []string, error) {
	fields, err := newScanner("InRelease", bytes.NewReader(text)).Next()
	if err != nil {
		return nil, nil, err
	}
	rel := &release{files: make(map[string]indexFile)}
	names := []string{get(fields, "codename"), get(fields, "suite")}
	rel.byHash = strings.EqualFold(get(fields, "acquire-by-hash"), "yes")
	if rel.date, err = parseDate(get(fields, "date")); err != nil {
		return nil, nil, &SyntaxError{What: "InRelease", Msg: "Date: " + err.Error()}
	}
	if v := get(fields, "valid-until"); v != "" {
		if rel.validUntil, err = parseDate(v); err != nil {
			return nil, nil, &SyntaxError{What: "InRelease", Msg: "Valid-Until: " + err.Error()}
		}
	}
	for line := range strings.SplitSeq(get(fields, "sha256"), "\n") {
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		size := int64(-1)
		if len(w) == 3 {
			size, err = strconv.ParseInt(w[1], 10, 64)
		}
		if len(w) != 3 || err != nil || size < 0 || !isSHA256(w[0]) {
			return nil, nil, &SyntaxError{What: "InRelease", Msg: "SHA256: malformed line " + quote(line)}
		}
		rel.files[w[2]] = indexFile{w[0], size}
	}
	if len(rel.files) == 0 {
		return nil, nil, &SyntaxError{What: "InRelease", Msg: "no SHA256 field"}
	}
	return rel, names, nil
}

func parseDate(s string) (time.Time, error) {
	t, err := time.Parse("Mon, _2 Jan 2006 15:04:05 MST", s)
	if err != nil {
		t, err = time.Parse(time.RFC1123Z, s)
	}
	return t, err
}

// isSHA256 accepts 64 lower-case hex digits, the only form that may become a
// file name here.
func isSHA256(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if !isDigit(s[i]) && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

// validSuite accepts suite names that are safe as part of a path and a URL.
func validSuite(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || isDigit(c) || i > 0 && (c == '-' || c == '.')) {
			return false
		}
	}
	return s != ""
}

// checkRelease verifies and parses an InRelease and sees that it is the suite's.
// An expired one is returned, for the caller to judge.
func (a *Archive) checkRelease(suite, base string, data []byte) (*release, error) {
	keys, err := a.keys()
	if err != nil {
		return nil, err
	}
	trust := &TrustError{Suite: suite, URL: redact(base) + "/dists/" + suite + "/InRelease", Keyring: a.opt.Keyring}
	a.verifying.Lock() // keys remember what was verified of them
	text, signers, err := verify(data, keys, a.now())
	a.verifying.Unlock()
	if err != nil {
		trust.Reason, trust.Signers = err.Error(), signers
		if len(signers) > 0 {
			trust.Hint = keyringHint + "; also see that this machine's clock is right"
		}
		return nil, trust
	}
	rel, names, err := parseRelease(text)
	if err != nil {
		trust.Reason = err.Error()
		return nil, trust
	}
	if !slices.Contains(names, suite) {
		trust.Reason = "it is of suite " + strings.Join(names, "/")
		return nil, trust
	}
	rel.suite, rel.base = suite, base
	return rel, nil
}

// release returns a suite's verified InRelease, from memory, the cache or a
// mirror.
func (a *Archive) release(ctx context.Context, suite string) (*release, error) {
	if !validSuite(suite) {
		return nil, &NotFoundError{Name: "suite " + quote(suite), Suites: []string{"Debian"}, Hint: "a suite is named like bookworm or bookworm-security"}
	}
	a.mu.Lock()
	rel := a.releases[suite]
	a.mu.Unlock()
	if rel != nil {
		return rel, nil
	}
	unlock, err := a.lock(ctx, "release-"+suite)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a.mu.Lock()
	rel = a.releases[suite] // another goroutine may have been first
	a.mu.Unlock()
	if rel != nil {
		return rel, nil
	}
	rel, err = a.loadRelease(ctx, suite)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.releases[suite] = rel
	a.mu.Unlock()
	return rel, nil
}

func (a *Archive) loadRelease(ctx context.Context, suite string) (*release, error) {
	cached, cacheErr := a.cachedRelease(suite)
	if a.opt.Offline {
		if cached != nil {
			if a.expired(cached) {
				a.report.notice(suite, fmt.Sprintf("offline: using an index that was valid until %s", cached.validUntil.UTC().Format(time.DateTime)))
			}
			return cached, nil
		}
		if cacheErr != nil {
			return nil, cacheErr
		}
		return nil, &OfflineError{What: "the index of suite " + suite}
	}
	bases, err := a.mirrorsOf(suite)
	if err != nil {
		return nil, err
	}
	if cached != nil {
		i := slices.IndexFunc(bases, func(b string) bool { return redact(b) == cached.base })
		if i >= 0 {
			cached.base = bases[i]
		} else {
			cached = nil // the configuration has changed
		}
	}
	if cached != nil && a.now().Sub(cached.fetched) < a.opt.MaxAge && !cached.fetched.After(a.now()) {
		// Whoever fetched it was told already that it is old.
		if err := a.judgeExpiry(cached, false); err != nil {
			return nil, err
		}
		return cached, nil
	}
	tries := attempts
	if cached != nil {
		tries = refreshAttempts
	}
	fresh, data, fails := a.fetchRelease(ctx, suite, bases, tries)
	if fresh == nil {
		err := errors.Join(fails...)
		if cached == nil || ctx.Err() != nil {
			return nil, err
		}
		// A mirror that is away may be replaced by the cache. One that serves
		// what can't be trusted is something to look into.
		if errors.Is(fails[slices.Index(bases, cached.base)], ErrUntrusted) {
			return nil, err
		}
		if eerr := a.judgeExpiry(cached, true); eerr != nil {
			return nil, errors.Join(err, eerr)
		}
		a.report.notice(suite, fmt.Sprintf("no fresh index, using the one fetched %s: %v", cached.fetched.UTC().Format(time.DateTime), err))
		return cached, nil
	}
	if cached != nil && fresh.date.Before(cached.date) {
		// An older release than one already seen is a lagging mirror or a
		// replay; either way the newer one stays.
		a.report.notice(suite, fmt.Sprintf("the mirror offers an index of %s, older than the one of %s here, which stays in use",
			fresh.date.UTC().Format(time.DateTime), cached.date.UTC().Format(time.DateTime)))
		if err := a.judgeExpiry(cached, true); err != nil {
			return nil, err
		}
		return cached, nil
	}
	if err := a.judgeExpiry(fresh, true); err != nil {
		return nil, err
	}
	if err := a.storeRelease(fresh, data); err != nil {
		return nil, err
	}
	return fresh, nil
}

func (a *Archive) expired(r *release) bool {
	return !r.validUntil.IsZero() && a.now().After(r.validUntil)
}

// judgeExpiry refuses an expired release unless somebody said it is fine, which
// it repeats if tell is set.
func (a *Archive) judgeExpiry(r *release, tell bool) error {
	if !a.expired(r) {
		return nil
	}
	why := "HVI_LAB_ALLOW_EXPIRED"
	if !a.opt.AllowExpired {
		if a.aptConfig().checkValidUntil() {
			return &ExpiredError{Suite: r.suite, URL: redact(r.base), ValidUntil: r.validUntil, Now: a.now()}
		}
		why = "apt's Acquire::Check-Valid-Until"
	}
	if !tell {
		return nil
	}
	a.report.notice(r.suite, fmt.Sprintf("the index was valid until %s only; accepted because of %s", r.validUntil.UTC().Format(time.DateTime), why))
	return nil
}

// fetchRelease asks the mirrors one after the other for a suite's InRelease.
// Another vendor's repository among apt's sources shows itself by a signature
// that is not Debian's, and is passed over. Where none serves, there is one
// error per mirror.
func (a *Archive) fetchRelease(ctx context.Context, suite string, bases []string, tries int) (*release, []byte, []error) {
	var fails []error
	for _, base := range bases {
		url := base + "/dists/" + suite + "/InRelease"
		data, err := a.fetch.small(ctx, url, maxInRelease, tries)
		if err != nil {
			if he, ok := errors.AsType[*HTTPError](err); ok && (he.Status == http.StatusNotFound || he.Status == http.StatusGone) {
				he.Hint = "the mirror does not serve the suite " + suite + "; an archived suite needs another mirror, named with HVI_LAB_MIRROR and HVI_LAB_SECURITY_MIRROR"
			}
			fails = append(fails, err)
			continue
		}
		rel, err := a.checkRelease(suite, base, data)
		if err != nil {
			fails = append(fails, err)
			continue
		}
		rel.fetched, rel.fresh = a.now(), true
		return rel, data, nil
	}
	return nil, nil, fails
}

func (a *Archive) releasePath(suite string) string {
	return filepath.Join(a.opt.CacheDir, "release", suite)
}

// storeRelease keeps an InRelease with where and when it was fetched in one
// file, so that the two can't get out of step. A password in the mirror's URL
// is left out.
func (a *Archive) storeRelease(r *release, data []byte) error {
	head := fmt.Sprintf("Mirror: %s\nFetched: %s\n\n", redact(r.base), r.fetched.UTC().Format(time.RFC3339))
	if err := writeAtomic(a.releasePath(r.suite), append([]byte(head), data...)); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}

// cachedRelease reads back what storeRelease wrote and verifies it again. Its
// base has no password. It returns nil, nil where there is none.
func (a *Archive) cachedRelease(suite string) (*release, error) {
	data, err := os.ReadFile(a.releasePath(suite))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	head, signed, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok {
		return nil, fmt.Errorf("cache: %s is damaged; remove it", a.releasePath(suite))
	}
	fields, err := newScanner(a.releasePath(suite), bytes.NewReader(head)).Next()
	if err != nil {
		return nil, err
	}
	rel, err := a.checkRelease(suite, get(fields, "mirror"), signed)
	if err != nil {
		return nil, err
	}
	// A bad time only makes the file old.
	rel.fetched, _ = time.Parse(time.RFC3339, get(fields, "fetched"))
	return rel, nil
}

// forget makes the next use of a suite ask the mirror again, also in other
// processes.
func (a *Archive) forget(suite string) {
	a.mu.Lock()
	delete(a.releases, suite)
	delete(a.indexes, suite)
	a.mu.Unlock()
	data, err := os.ReadFile(a.releasePath(suite))
	if err != nil {
		return
	}
	head, signed, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok {
		return
	}
	mirror, _, _ := bytes.Cut(head, []byte("\n"))
	out := slices.Concat(mirror, []byte("\nFetched: never\n\n"), signed)
	_ = writeAtomic(a.releasePath(suite), out) // only costs freshness
}
