package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// labelText writes labels in the form of a selector, always in the same order.
func labelText(labels map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, fmt.Sprintf("%s=%q", name, labels[name]))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// metrics are counters: by name, then by the text of their labels.
type metrics struct {
	lock   sync.Mutex
	counts map[string]map[string]int
}

func newMetrics() *metrics {
	made := &metrics{counts: map[string]map[string]int{}}
	made.add("promtail_build_info", fmt.Sprintf("version=%q", version), 1)
	return made
}

func (all *metrics) add(name, labels string, by int) {
	all.lock.Lock()
	defer all.lock.Unlock()
	if all.counts[name] == nil {
		all.counts[name] = map[string]int{}
	}
	all.counts[name][labels] += by
}

func (all *metrics) page() string {
	all.lock.Lock()
	defer all.lock.Unlock()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all.counts)) {
		kind := "counter"
		if name == "promtail_build_info" {
			kind = "gauge"
		}
		fmt.Fprintf(&text, "# TYPE %s %s\n", name, kind)
		for _, labels := range slices.Sorted(maps.Keys(all.counts[name])) {
			braces := ""
			if labels != "" {
				braces = "{" + labels + "}"
			}
			fmt.Fprintf(&text, "%s%s %d\n", name, braces, all.counts[name][labels])
		}
	}
	return text.String()
}

// serve opens both ports and answers from then on; nobody speaks gRPC here, so that port only takes connections.
func serve(settings serverConfig, numbers *metrics, targets []target) error {
	pages, err := listen(settings.HTTPAddress, settings.HTTPPort)
	if err != nil {
		return err
	}
	other, err := listen(settings.GRPCAddress, settings.GRPCPort)
	if err != nil {
		return err
	}
	go func() {
		for {
			connection, err := other.Accept()
			if err != nil {
				return
			}
			connection.Close()
		}
	}()
	http.HandleFunc("/metrics", func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		fmt.Fprint(out, numbers.page())
	})
	http.HandleFunc("/ready", func(out http.ResponseWriter, _ *http.Request) {
		if slices.ContainsFunc(targets, target.ready) {
			fmt.Fprintln(out, "Ready")
			return
		}
		http.Error(out, "Not ready: Unable to find any logs to tail.", http.StatusInternalServerError)
	})
	go http.Serve(pages, nil)
	return nil
}

func listen(address string, port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port)))
}
