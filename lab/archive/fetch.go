package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// attempts per file; the waits between them double from retryBase. Where
	// the cache can stand in for an unreachable mirror there are refreshAttempts.
	attempts        = 5
	refreshAttempts = 2
	retryBase       = 500 * time.Millisecond
	// stallTime is how long a transfer may stand still before it is cut and
	// tried again.
	stallTime = 45 * time.Second
	// maxInRelease bounds the one file whose size nothing signed tells
	// beforehand. Debian's are around 150 kB.
	maxInRelease = 16 << 20
)

// fetcher speaks to mirrors.
type fetcher struct {
	client *http.Client
	// sleep waits between attempts; tests replace it.
	sleep func(context.Context, time.Duration) error
}

func newFetcher(conf func() aptConfig) *fetcher {
	t := &http.Transport{
		Proxy:                 func(r *http.Request) (*url.URL, error) { return conf().proxyFor(r) },
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		DisableCompression:    true, // checksums are of the file as it is
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: stallTime,
		ForceAttemptHTTP2:     true,
	}
	t.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return &fetcher{client: &http.Client{Transport: t}, sleep: sleep}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// redact hides a password in a mirror's URL.
func redact(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return u.Redacted()
	}
	return raw
}

// retry runs try until it succeeds, fails for good, or has had so many
// attempts. onRetry is told why each further one is made.
func (f *fetcher) retry(ctx context.Context, attempts int, onRetry func(error), try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
		if n == attempts || !worthRetry(err) {
			return err
		}
		if onRetry != nil {
			onRetry(err)
		}
		wait := retryBase << (n - 1)
		wait += rand.N(wait / 2) // so that parallel downloads don't come back as one
		if serr := f.sleep(ctx, wait); serr != nil {
			return fmt.Errorf("%w (%w)", err, serr)
		}
	}
}

func worthRetry(err error) bool {
	if he, ok := errors.AsType[*HTTPError](err); ok {
		return he.Status >= 500 || he.Status == http.StatusTooManyRequests || he.Status == http.StatusRequestTimeout
	}
	var local *localError
	return !errors.As(err, &local)
}

// localError is a failure on this side, such as a full disk, that the mirror
// can't mend.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// get opens a URL from a byte offset. It returns the offset the body starts at,
// which is 0 where the server can't resume. The body is cut when it stalls.
func (f *fetcher) get(ctx context.Context, rawURL string, offset int64) (io.ReadCloser, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		cancel(nil)
		return nil, 0, &localError{fmt.Errorf("mirror URL %s: %w", quote(redact(rawURL)), err)}
	}
	req.Header.Set("User-Agent", "hvi-lab")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	resp, err := f.client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, 0, err // *url.Error, which names the URL without its password
	}
	start := int64(0)
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusPartialContent && offset > 0 &&
		strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(offset, 10)+"-"):
		start = offset
	default:
		_ = resp.Body.Close()
		cancel(nil)
		return nil, 0, &HTTPError{URL: redact(rawURL), Status: resp.StatusCode}
	}
	b := &body{ReadCloser: resp.Body, cancel: cancel, ctx: ctx}
	b.timer = time.AfterFunc(stallTime, func() {
		cancel(fmt.Errorf("%s: no data for %s", redact(rawURL), stallTime))
	})
	return b, start, nil
}

// body cancels its request when no data comes for stallTime.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.timer.Reset(stallTime)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// small fetches a file whose size and hash are not known beforehand.
func (f *fetcher) small(ctx context.Context, rawURL string, limit int64, attempts int) ([]byte, error) {
	var out []byte
	err := f.retry(ctx, attempts, nil, func() error {
		r, _, err := f.get(ctx, rawURL, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		out, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil {
			return fmt.Errorf("%s: %w", redact(rawURL), err)
		}
		if int64(len(out)) > limit {
			return &localError{fmt.Errorf("%s: larger than %d bytes", redact(rawURL), limit)}
		}
		return nil
	})
	return out, err
}

// want is a file named by a signed index.
type want struct {
	what   string // for errors
	url    string
	size   int64
	sha256 string // lower-case hex
}

// toFile brings a file to path, resuming path+".part" where there is one. The
// file gets its name only after its size and hash were found right. The caller
// holds a lock for path. seen is told how many bytes of the file there are.
func (f *fetcher) toFile(ctx context.Context, w want, path string, seen func(int64), onRetry func(error)) error {
	part := path + ".part"
	return f.retry(ctx, attempts, onRetry, func() error {
		err := f.attempt(ctx, w, part, seen)
		if err == nil {
			if err := os.Rename(part, path); err != nil {
				return &localError{err}
			}
			return nil
		}
		// A short file may be continued, as its hash was not looked at yet.
		// Anything else that is wrong can't.
		if ie, ok := errors.AsType[*IntegrityError](err); ok && ie.GotSize >= ie.WantSize {
			_ = os.Remove(part)
		}
		return err
	})
}

func (f *fetcher) attempt(ctx context.Context, w want, part string, seen func(int64)) (err error) {
	file, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return &localError{err}
	}
	defer func() {
		if cerr := file.Close(); cerr != nil && err == nil {
			err = &localError{cerr}
		}
	}()
	sum := sha256.New()
	have, err := io.Copy(sum, io.LimitReader(file, w.size+1))
	if err != nil {
		return &localError{err}
	}
	if have < w.size {
		before := have
		have, err = f.transfer(ctx, w, file, sum, have, seen)
		if he, ok := errors.AsType[*HTTPError](err); ok && before > 0 && he.Status == http.StatusRequestedRangeNotSatisfiable {
			// The mirror's file ends where this one does, or before. Next time
			// from the start.
			if err := file.Truncate(0); err != nil {
				return &localError{err}
			}
			return &IntegrityError{What: w.what, URL: redact(w.url), WantSize: w.size, GotSize: before, WantSHA256: w.sha256}
		}
		if err != nil {
			return err
		}
	}
	if have != w.size {
		return &IntegrityError{What: w.what, URL: redact(w.url), WantSize: w.size, GotSize: have, WantSHA256: w.sha256}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != w.sha256 {
		return &IntegrityError{What: w.what, URL: redact(w.url), WantSize: w.size, GotSize: have, WantSHA256: w.sha256, GotSHA: got}
	}
	if err := file.Sync(); err != nil {
		return &localError{err}
	}
	return nil
}

// transfer appends to file what it lacks and returns its size.
func (f *fetcher) transfer(ctx context.Context, w want, file *os.File, sum hash.Hash, have int64, seen func(int64)) (int64, error) {
	r, start, err := f.get(ctx, w.url, have)
	if err != nil {
		return have, err
	}
	defer r.Close()
	if start != have {
		sum.Reset()
		have = 0
		if err := file.Truncate(0); err != nil {
			return 0, &localError{err}
		}
	}
	if _, err := file.Seek(have, io.SeekStart); err != nil {
		return have, &localError{err}
	}
	buf := make([]byte, 128<<10)
	for have <= w.size {
		// One byte more than wanted, to see a file that is too long.
		n, rerr := r.Read(buf[:min(int64(len(buf)), w.size+1-have)])
		if n > 0 {
			sum.Write(buf[:n])
			if _, err := file.Write(buf[:n]); err != nil {
				return have, &localError{err}
			}
			have += int64(n)
			if seen != nil {
				seen(min(have, w.size))
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return have, fmt.Errorf("%s: after %d of %d bytes: %w", redact(w.url), have, w.size, rerr)
		}
	}
	return have, nil
}
