// Command promtail stands in for Grafana's log shipper of the same name; see README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Set by the linker.
var version = "unknown"

// How long a stop goes on trying to send what was read.
const stopPatience = 60 * time.Second

// log writes one line in logfmt: a level, a message, and pairs of name and value.
func log(level, message string, pairs ...string) {
	line := fmt.Sprintf("level=%s ts=%s msg=%s", level, time.Now().UTC().Format(time.RFC3339Nano), quoted(message))
	for at := 0; at+1 < len(pairs); at += 2 {
		line += " " + pairs[at] + "=" + quoted(pairs[at+1])
	}
	fmt.Fprintln(os.Stderr, line)
}

func quoted(text string) string {
	if text == "" || strings.ContainsAny(text, " =\"\\\n\t") {
		return strconv.Quote(text)
	}
	return text
}

func main() {
	file := flag.String("config.file", "", "yaml file to load")
	expand := flag.Bool("config.expand-env", false, "expand ${var} in the configuration by environment variables")
	check := flag.Bool("check-syntax", false, "validate the configuration file and exit")
	dry := flag.Bool("dry-run", false, "print the entries instead of sending them")
	tell := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *tell {
		fmt.Printf("promtail, version %s (stand-in)\n", version)
		return
	}
	settings, err := readConfig(*file, *expand)
	if err != nil {
		fmt.Fprintf(os.Stderr, "Unable to parse config: %s: %v\n", *file, err)
		os.Exit(1)
	}
	if *check {
		fmt.Println("Valid config file! No syntax issues found")
		return
	}
	if err := run(settings, *dry); err != nil {
		log("error", "error creating promtail", "error", err.Error())
		os.Exit(1)
	}
}

// run ships until a signal ends it; an error is one of the start.
func run(settings *config, dry bool) error {
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	numbers := newMetrics()
	kept, err := readPositions(settings.Positions.Filename, dry)
	if err != nil {
		return err
	}
	sinks, err := newSinks(settings.Clients, numbers, dry)
	if err != nil {
		return err
	}
	out := func(one *entry) bool {
		for _, each := range sinks {
			select {
			case each.entries <- one:
			case <-stopped.Done():
				return false
			}
		}
		return true
	}
	targets, err := newTargets(settings.ScrapeConfigs, kept, numbers, out)
	if err != nil {
		return err
	}
	if err := serve(settings.Server, numbers, targets); err != nil {
		return fmt.Errorf("error creating server: %w", err)
	}
	log("info", "Starting Promtail", "version", version)

	var readers, senders sync.WaitGroup
	patience, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	for _, each := range targets {
		readers.Add(1)
		go func() { defer readers.Done(); each.read(stopped) }()
	}
	for _, each := range sinks {
		senders.Add(1)
		go func() { defer senders.Done(); each.send(patience) }()
	}
	kept.keepWriting(stopped, settings.Positions.SyncPeriod)

	readers.Wait()
	kept.write()
	time.AfterFunc(stopPatience, giveUp)
	for _, each := range sinks {
		close(each.entries)
	}
	senders.Wait()
	return nil
}
