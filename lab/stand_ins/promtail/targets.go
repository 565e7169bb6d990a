package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	lookAgain  = 250 * time.Millisecond // at files that are known
	globAgain  = time.Second            // for files that are new
	startAgain = time.Second            // a journalctl that ended
)

// entry is one line on its way.
type entry struct {
	labels map[string]string
	time   time.Time
	line   string
}

// sink takes an entry and says false once the program is to stop.
type sink func(*entry) bool

// target reads one source until the context ends.
type target interface {
	read(context.Context)
	ready() bool
}

// newTargets makes what the jobs ask for; an error names what keeps promtail from starting.
func newTargets(jobs []scrapeConfig, kept *positions, numbers *metrics, out sink) ([]target, error) {
	var targets []target
	for _, job := range jobs {
		if job.Journal != nil {
			made, err := newJournal(job, kept, numbers, out)
			if err != nil {
				return nil, fmt.Errorf("failed to make journal target manager: %w", err)
			}
			targets = append(targets, made)
			continue
		}
		stages, err := newPipeline(job.Stages)
		if err != nil {
			return nil, fmt.Errorf("failed to make file target manager: %w", err)
		}
		for _, static := range job.StaticConfigs {
			pattern := static.Labels["__path__"]
			if _, err := filepath.Match(pattern, ""); err != nil || strings.Contains(pattern, "**") {
				return nil, fmt.Errorf("failed to make file target manager: the stand-in cannot look for %q", pattern)
			}
			targets = append(targets, &files{pattern, static.Labels, stages, kept, numbers, out, atomic.Int32{}})
		}
	}
	return targets, nil
}

// visible returns the labels without those that are for relabelling only.
func visible(labels map[string]string) map[string]string {
	shown := map[string]string{}
	for name, value := range labels {
		if !strings.HasPrefix(name, "__") && value != "" {
			shown[name] = value
		}
	}
	return shown
}

// journal reads the lines of a job's unit through journalctl.
type journal struct {
	job     scrapeConfig
	maxAge  time.Duration
	stages  pipeline
	kept    *positions
	numbers *metrics
	out     sink
}

func newJournal(job scrapeConfig, kept *positions, numbers *metrics, out sink) (*journal, error) {
	stages, err := newPipeline(job.Stages)
	if err != nil {
		return nil, err
	}
	made := &journal{job: job, maxAge: 7 * time.Hour, stages: stages, kept: kept, numbers: numbers, out: out}
	if job.Journal.MaxAge != "" {
		if made.maxAge, err = time.ParseDuration(job.Journal.MaxAge); err != nil {
			return nil, fmt.Errorf("parsing journal reader 'max_age' config value: %w", err)
		}
	}
	if path := job.Journal.Path; path != "" {
		if _, err := os.ReadDir(path); err != nil {
			return nil, fmt.Errorf("creating journal reader: failed to open journal in directory %q: %w", path, err)
		}
	}
	_, err = exec.LookPath("journalctl")
	return made, err
}

func (one *journal) ready() bool { return true }

func (one *journal) read(until context.Context) {
	for until.Err() == nil {
		err := one.follow(until)
		select {
		case <-until.Done():
		case <-time.After(startAgain):
			log("warn", "journalctl ended and is started again", "job", one.job.JobName, "error", fmt.Sprint(err))
		}
	}
}

func (one *journal) follow(until context.Context) error {
	words := append([]string{"--follow", "--no-tail", "--all", "--quiet", "--output=json"}, one.begin()...)
	if path := one.job.Journal.Path; path != "" {
		words = append(words, "--directory="+path)
	}
	command := exec.CommandContext(until, "journalctl", append(words, strings.Fields(one.job.Journal.Matches)...)...)
	said := &bytes.Buffer{}
	command.Stderr = said
	pipe, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		return err
	}
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil || !one.take(line) {
			break
		}
	}
	if err := command.Wait(); err != nil || said.Len() > 0 {
		return fmt.Errorf("%v %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// The moment in a cursor, in microseconds since 1970, hexadecimal.
var moment = regexp.MustCompile(`(?:^|;)t=([0-9a-f]+)(?:;|$)`)

// begin says where to go on: after the cursor, unless it is older than max_age.
func (one *journal) begin() []string {
	oldest := time.Now().Add(-one.maxAge)
	cursor := one.kept.get("cursor-" + one.job.JobName)
	if found := moment.FindStringSubmatch(cursor); found != nil {
		if micros, err := strconv.ParseInt(found[1], 16, 64); err == nil && time.UnixMicro(micros).After(oldest) {
			return []string{"--after-cursor=" + cursor}
		}
	}
	return []string{fmt.Sprintf("--since=@%d", oldest.Unix())}
}

// take hands one entry of the journal on and keeps its cursor; false once the program is to stop.
func (one *journal) take(text []byte) bool {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		log("warn", "an entry of the journal cannot be read", "error", err.Error())
		return true
	}
	labels := maps.Clone(one.job.Journal.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, rule := range one.job.Relabel {
		var values []string
		for _, name := range rule.SourceLabels {
			if field, ours := strings.CutPrefix(name, "__journal_"); ours {
				values = append(values, textOf(raw[strings.ToUpper(field)]))
			}
		}
		labels[rule.TargetLabel] = strings.Join(values, ";")
	}
	micros, _ := strconv.ParseInt(textOf(raw["__REALTIME_TIMESTAMP"]), 10, 64)
	if _, there := raw["MESSAGE"]; there {
		one.numbers.add("promtail_journal_target_lines_total", "", 1)
		made := &entry{visible(labels), time.UnixMicro(micros), textOf(raw["MESSAGE"])}
		if made = one.stages.process(made); made != nil && !one.out(made) {
			return false
		}
	}
	one.kept.put("cursor-"+one.job.JobName, textOf(raw["__CURSOR"]))
	return true
}

// textOf reads a field: a text, the numbers of its bytes where it is not UTF-8, or several of these.
func textOf(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var numbers []int
	if json.Unmarshal(raw, &numbers) == nil {
		made := make([]byte, len(numbers))
		for at, number := range numbers {
			made[at] = byte(number)
		}
		return strings.ToValidUTF8(string(made), "\uFFFD")
	}
	var several []json.RawMessage
	if json.Unmarshal(raw, &several) == nil && len(several) > 0 {
		return textOf(several[0])
	}
	return ""
}

// files reads every file of a pattern to its end, again and again.
type files struct {
	pattern string
	labels  map[string]string
	stages  pipeline
	kept    *positions
	numbers *metrics
	out     sink
	open    atomic.Int32
}

func (one *files) ready() bool { return one.open.Load() > 0 }

func (one *files) read(until context.Context) {
	tails := map[string]*tail{}
	defer func() {
		for _, each := range tails {
			each.file.Close()
		}
	}()
	var looked time.Time
	for {
		if time.Since(looked) >= globAgain {
			looked = time.Now()
			found, _ := filepath.Glob(one.pattern)
			for _, path := range found {
				if tails[path] == nil {
					one.begin(path, tails)
				}
			}
		}
		for path, each := range tails {
			if !one.drain(each) {
				return
			}
			switch there, err := os.Stat(path); {
			case errors.Is(err, os.ErrNotExist):
				one.end(path, tails)
			case err == nil && !os.SameFile(there, each.info):
				// Rotated: the old file is read to its end, the new one from its beginning.
				one.end(path, tails)
				one.begin(path, tails)
			case err == nil && there.Size() < each.at:
				each.rewind()
			}
		}
		one.open.Store(int32(len(tails)))
		select {
		case <-until.Done():
			return
		case <-time.After(lookAgain):
		}
	}
}

func (one *files) begin(path string, tails map[string]*tail) {
	file, err := os.Open(path)
	if err != nil {
		log("error", "failed to start tailer", "path", path, "error", err.Error())
		return
	}
	info, err := file.Stat()
	if err != nil || info.IsDir() {
		file.Close()
		return
	}
	at, _ := strconv.ParseInt(one.kept.get(path), 10, 64)
	made := &tail{path: path, file: file, info: info}
	if at <= info.Size() {
		made.at = at
	}
	made.seek()
	tails[path] = made
	log("info", "tail routine: started", "path", path)
}

func (one *files) end(path string, tails map[string]*tail) {
	tails[path].file.Close()
	delete(tails, path)
	one.kept.forget(path)
}

// drain hands on every finished line that is there; false once the program is to stop.
func (one *files) drain(each *tail) bool {
	for {
		line, more := each.next()
		if !more {
			return true
		}
		one.numbers.add("promtail_read_lines_total", fmt.Sprintf("path=%q", each.path), 1)
		labels := visible(one.labels)
		labels["filename"] = each.path
		made := one.stages.process(&entry{labels, time.Now(), line})
		if made != nil && !one.out(made) {
			return false
		}
		one.kept.put(each.path, strconv.FormatInt(each.at, 10))
	}
}

// tail is a file that is read as it grows; `at` is behind the last finished line.
type tail struct {
	path   string
	file   *os.File
	info   os.FileInfo
	at     int64
	begun  []byte
	reader *bufio.Reader
}

func (one *tail) seek() {
	one.file.Seek(one.at, io.SeekStart)
	one.reader, one.begun = bufio.NewReader(one.file), nil
}

func (one *tail) rewind() {
	one.at = 0
	one.seek()
}

// next returns the next finished line; what has no end yet is kept for later.
func (one *tail) next() (string, bool) {
	part, err := one.reader.ReadBytes('\n')
	one.begun = append(one.begun, part...)
	if err != nil {
		return "", false
	}
	line := one.begun
	one.at, one.begun = one.at+int64(len(line)), nil
	return strings.ToValidUTF8(strings.TrimRight(string(line), "\r\n"), "\uFFFD"), true
}
