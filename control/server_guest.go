package control

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/xen-hvi/hvi/engine/inspect"
)

// maxItems bounds an answer about a guest, which may have made up a million
// processes: with it, an answer is within what a Client reads.
const maxItems = 1 << 16

// withQuestions adds a path for each question about a guest.
func withQuestions(routes map[string]pathRoutes) map[string]pathRoutes {
	for _, q := range inspect.Questions() {
		var params []string
		if q.PID != inspect.NoPID {
			params = append(params, "pid")
		}
		if q.Threads {
			params = append(params, "threads")
		}
		routes["guest/"+string(q.Kind)] = pathRoutes{{
			method: http.MethodGet, need: mayLook, params: params,
			serve: func(s *Server, w http.ResponseWriter, r *http.Request, ref string) error {
				return s.guest(w, r, ref, q)
			},
		}}
	}
	return routes
}

// MaxProfile bounds a profile in bytes. One of a Debian kernel has 15 to 50 MB, by who made it.
const MaxProfile = 128 << 20

func (s *Server) profile(w http.ResponseWriter, r *http.Request, ref string) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	dom, err := s.resolve(ctx, ref)
	if err != nil {
		return err
	}
	b, err := s.opt.Engine.Profile(ctx, dom)
	if err != nil {
		return err
	}
	// So that a client can tell a part from the whole.
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	s.send(w, http.StatusOK, b)
	return nil
}

func (s *Server) guest(w http.ResponseWriter, r *http.Request, ref string, q inspect.Question) error {
	args, p := guestArgs(r.URL.Query(), q)
	if p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.ReadTimeout)
	defer cancel()
	dom, err := s.resolve(ctx, ref)
	if err != nil {
		return err
	}
	answer, err := s.opt.Engine.Guest(ctx, dom, q, args)
	if err != nil {
		return err
	}
	if l, ok := answer.(interface{ Cut(int) }); ok {
		l.Cut(maxItems)
	}
	return s.answer(w, answer)
}

// guestArgs reads the parameters of a question.
func guestArgs(v url.Values, q inspect.Question) (inspect.Args, *Problem) {
	var a inspect.Args
	bad := func(what, fix string) (inspect.Args, *Problem) {
		return a, &Problem{Code: CodeBadRequest, What: what, Fix: fix}
	}
	if s := v.Get("pid"); s != "" {
		pid, err := inspect.ParsePID(s)
		if err != nil {
			return bad("parameter pid: "+err.Error(), "give a number above 0")
		}
		a.PID = pid
	}
	switch v.Get("threads") {
	case "", "0":
	case "1":
		a.Threads = true
	default:
		return bad("parameter threads is neither 0 nor 1", "give 0 or 1")
	}
	var wrong *inspect.ArgumentError
	if err := q.Accepts(a); errors.As(err, &wrong) {
		return bad(wrong.Error(), wrong.Fix)
	}
	return a, nil
}
