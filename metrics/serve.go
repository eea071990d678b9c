package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of what a reader may ask for. Prometheus is far within them.
const (
	maxConnections = 16
	maxInFlight    = 4
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute // longer than most scrape intervals
	stopGrace      = time.Second
)

// Path is where the metrics are.
const Path = "/metrics"

// Options is what a Server serves. Source is required.
type Options struct {
	Source Source
	Build  Build
	// Log is told of scrapes that failed. Default: none.
	Log *slog.Logger
}

// NewRegistry returns a registry of all that hvid shows: the collector's
// metrics, those of its process and those of the Go runtime.
func NewRegistry(c *Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Server answers GET /metrics. It is safe for concurrent use.
type Server struct {
	collector *Collector
	addr      net.Addr
	http      *http.Server
	log       *slog.Logger

	detach func() bool // stops Close at the end of Serve's context
	served chan struct{}
	conns  sync.WaitGroup
	once   sync.Once
	err    error
}

// Serve answers at listen, see CheckListen, until ctx ends or Close is called.
// A unix socket is of mode 0660 and belongs to the group hvi, where that
// exists. The error is a *ListenError.
func Serve(ctx context.Context, listen string, opt Options) (*Server, error) {
	return serve(ctx, listen, groupID(), opt)
}

func serve(ctx context.Context, listen string, gid int, opt Options) (*Server, error) {
	if opt.Source == nil {
		panic("metrics: Serve without a Source")
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	addr, err := parseListen(listen)
	if err != nil {
		return nil, err
	}
	l, err := addr.open(listen, gid)
	if err != nil {
		return nil, err
	}
	s := &Server{
		collector: NewCollector(opt.Source, opt.Build),
		addr:      l.Addr(), log: opt.Log, served: make(chan struct{}),
	}
	if addr.unix != "" {
		s.addr = &net.UnixAddr{Name: addr.unix, Net: "unix"}
	}
	errorLog := slog.NewLogLogger(opt.Log.Handler(), slog.LevelWarn)
	s.http = &http.Server{
		Handler: handler(promhttp.HandlerFor(NewRegistry(s.collector), promhttp.HandlerOpts{
			ErrorLog:            errorLog,
			ErrorHandling:       promhttp.ContinueOnError, // what is sound is of use
			MaxRequestsInFlight: maxInFlight,
			DisableCompression:  true, // it goes nowhere but to this host
		})),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(opt.Log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.served)
		err := s.http.Serve(newLimited(l, maxConnections, &s.conns))
		if !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the metrics are no longer served", "err", err)
		}
	}()
	s.detach = context.AfterFunc(ctx, func() {
		if err := s.stop(); err != nil {
			s.log.Warn("stop serving the metrics", "err", err)
		}
	})
	return s, nil
}

// handler answers GET and HEAD of Path, and nothing else.
func handler(metrics http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != Path:
			http.Error(w, "there is only "+Path, http.StatusNotFound)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		default:
			metrics.ServeHTTP(w, r)
		}
	})
}

// Addr is where the server answers.
func (s *Server) Addr() net.Addr { return s.addr }

// Ended is Collector.Ended of the server's collector.
func (s *Server) Ended(d Domain) { s.collector.Ended(d) }

// Close stops answering, waits a moment for the scrapes under way, and returns
// when the connections are closed and the socket is removed.
func (s *Server) Close() error {
	s.detach()
	return s.stop()
}

func (s *Server) stop() error {
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			// A reader that does not read is cut off.
			s.err = s.http.Close()
		}
		<-s.served
		s.conns.Wait()
	})
	return s.err
}

// limited bounds the connections that are open at once; others wait in the
// kernel's queue.
type limited struct {
	net.Listener
	room   chan struct{}
	open   *sync.WaitGroup // those that are open
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, n int, open *sync.WaitGroup) *limited {
	return &limited{Listener: l, room: make(chan struct{}, n), open: open, closed: make(chan struct{})}
}

// Accept waits for room, then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	l.open.Add(1)
	return &limitedConn{Conn: c, done: func() { <-l.room; l.open.Done() }}, nil
}

// Close ends Accept too where that waits for room.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	once sync.Once
	done func()
}

// Close makes room.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.done)
	return err
}
