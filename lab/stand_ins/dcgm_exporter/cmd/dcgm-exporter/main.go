// Command dcgm-exporter stands in for NVIDIA's exporter of the same name; see README.md.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// BuildVersion is set by the linker.
var BuildVersion = "unknown"

const noGPU = "/etc/stand-in-without-gpu"

func log(level, message string) {
	fmt.Fprintf(os.Stderr, "time=%q level=%s msg=%s\n", time.Now().UTC().Format(time.RFC3339), level, message)
}

// panicked ends the process the way the real one ends after a panic: one error line and exit code 0.
func panicked(err error) {
	log("error", fmt.Sprintf("%q stacktrace=%q", "Encountered a failure.", err.Error()+"\ngoroutine 1 [running]:"))
	os.Exit(0)
}

func fatal(err error) {
	log("fatal", strconv.Quote(err.Error()))
	os.Exit(1)
}

func setting(name, otherwise string) string {
	if value, there := os.LookupEnv(name); there {
		return value
	}
	return otherwise
}

// exporter holds the page that the last collection made.
type exporter struct {
	lock sync.Mutex
	page string
}

func (one *exporter) set(page string) {
	one.lock.Lock()
	defer one.lock.Unlock()
	one.page = page
}

func (one *exporter) get() string {
	one.lock.Lock()
	defer one.lock.Unlock()
	return one.page
}

// answer serves one request; the standard HTTP server would more than double the time of a build.
func (one *exporter) answer(connection net.Conn) {
	defer connection.Close()
	line, err := bufio.NewReader(connection).ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) < 2 {
		return
	}
	status, body := "200 OK", one.get()
	switch words[1] {
	case "/metrics":
	case "/health":
		if body == "" {
			status, body = "503 Service Unavailable", "KO"
		} else {
			body = "OK"
		}
	default:
		status, body = "404 Not Found", "404 page not found\n"
	}
	fmt.Fprintf(connection, "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n", status)
	fmt.Fprintf(connection, "Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}

func (one *exporter) serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go one.answer(connection)
	}
}

func main() {
	var collectors, address, remote string
	var interval int
	var version bool
	text := func(target *string, names []string, value, usage string) {
		for _, name := range names {
			flag.StringVar(target, name, value, usage)
		}
	}
	usually, _ := strconv.Atoi(setting("DCGM_EXPORTER_INTERVAL", "30000"))
	text(&collectors, []string{"f", "collectors"},
		setting("DCGM_EXPORTER_COLLECTORS", "/etc/dcgm-exporter/default-counters.csv"), "counters file")
	text(&address, []string{"a", "address"}, setting("DCGM_EXPORTER_LISTEN", ":9400"), "address")
	text(&remote, []string{"r", "remote-hostengine-info"}, setting("DCGM_REMOTE_HOSTENGINE_INFO", ""), "HOST:PORT")
	flag.IntVar(&interval, "c", usually, "milliseconds between collections")
	flag.IntVar(&interval, "collect-interval", usually, "milliseconds between collections")
	flag.BoolVar(&version, "v", false, "version")
	flag.BoolVar(&version, "version", false, "version")
	flag.Parse()
	if version {
		fmt.Println("DCGM Exporter version " + BuildVersion)
		return
	}
	run(collectors, address, engine{remote}, time.Duration(interval)*time.Millisecond)
}

func run(collectors, address string, remote engine, interval time.Duration) {
	log("info", `"Starting dcgm-exporter"`)
	if err := openLibrary(); err != nil {
		panicked(err)
	}
	if _, err := remote.connect(); err != nil {
		panicked(err)
	}
	log("info", `"DCGM successfully initialized!"`)
	counters, err := readCounters(collectors)
	if err != nil {
		fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fatal(err)
	}
	one := &exporter{}
	go one.serve(listener)
	log("info", `"Starting webserver"`)
	events := make(chan os.Signal, 4)
	signal.Notify(events, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	clock := time.NewTicker(interval)
	for {
		select {
		case <-clock.C:
			values, err := remote.read(counters)
			if errors.Is(err, errConnectionLost) {
				fatal(err)
			}
			if _, none := os.Stat(noGPU); none == nil || err != nil {
				values = nil
			}
			one.set(render(counters, values))
		case event := <-events:
			if event != syscall.SIGHUP {
				return
			}
			if counters, err = readCounters(collectors); err != nil {
				fatal(err)
			}
			one.set("")
			clock.Reset(interval)
		}
	}
}
