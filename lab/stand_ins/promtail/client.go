package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	sentEntries    = "promtail_sent_entries_total"
	droppedEntries = "promtail_dropped_entries_total"
)

// client gathers entries into batches and sends each until Loki has it.
type client struct {
	settings clientConfig
	host     string
	password string
	token    string
	numbers  *metrics
	dry      bool
	entries  chan *entry
}

func newSinks(declared []clientConfig, numbers *metrics, dry bool) ([]*client, error) {
	var made []*client
	for _, settings := range declared {
		address, err := url.Parse(settings.URL)
		if err != nil || address.Host == "" {
			return nil, fmt.Errorf("client needs target URL, not %q", settings.URL)
		}
		password, err := told(settings.BasicAuth.Password, settings.BasicAuth.PasswordFile)
		if err != nil {
			return nil, err
		}
		token, err := told("", settings.BearerTokenFile)
		if err != nil {
			return nil, err
		}
		one := &client{settings, address.Host, password, token, numbers, dry, make(chan *entry)}
		numbers.add(sentEntries, one.label(), 0)
		for _, reason := range []string{"ingester_error", "rate_limited"} {
			numbers.add(droppedEntries, one.label("reason", reason), 0)
		}
		made = append(made, one)
	}
	return made, nil
}

// told returns a secret, from its file where there is one.
func told(text, file string) (string, error) {
	if file == "" {
		return text, nil
	}
	read, err := os.ReadFile(file)
	return strings.TrimSpace(string(read)), err
}

func (one *client) label(pair ...string) string {
	text := fmt.Sprintf("host=%q", one.host)
	if len(pair) == 2 {
		text += fmt.Sprintf(",%s=%q,tenant=%q", pair[0], pair[1], one.settings.TenantID)
	}
	return text
}

// send takes entries until no more come, and gives up with the context.
func (one *client) send(patience context.Context) {
	var batch []*entry
	size, tick := 0, time.NewTicker(one.settings.BatchWait)
	defer tick.Stop()
	for {
		select {
		case next, more := <-one.entries:
			if !more {
				one.push(patience, batch)
				return
			}
			batch, size = append(batch, next), size+len(next.line)
			if size < one.settings.BatchSize {
				continue
			}
		case <-tick.C:
		}
		one.push(patience, batch)
		batch, size = nil, 0
	}
}

// push sends a batch, again and again where that may help.
func (one *client) push(patience context.Context, batch []*entry) {
	if len(batch) == 0 {
		return
	}
	if one.dry {
		for _, each := range batch {
			fmt.Printf("%s%s\t%s\n", each.time.Format(time.RFC3339Nano), labelText(each.labels), each.line)
		}
		return
	}
	body, wait, reason := one.body(batch), one.settings.Backoff.MinPeriod, "ingester_error"
	for tries := 0; tries < one.settings.Backoff.MaxRetries && patience.Err() == nil; tries++ {
		status, err := one.post(patience, body)
		if err == nil {
			one.numbers.add(sentEntries, one.label(), len(batch))
			return
		}
		if status == http.StatusTooManyRequests {
			reason = "rate_limited"
		}
		if status > 0 && status != http.StatusTooManyRequests && status/100 != 5 {
			log("error", "final error sending batch", "status", strconv.Itoa(status), "error", err.Error())
			break
		}
		log("warn", "error sending batch, will retry", "status", strconv.Itoa(status), "error", err.Error())
		select {
		case <-patience.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, one.settings.Backoff.MaxPeriod)
	}
	one.numbers.add(droppedEntries, one.label("reason", reason), len(batch))
}

// post sends a body once; the status is -1 where there was no answer.
func (one *client) post(patience context.Context, body []byte) (int, error) {
	limited, done := context.WithTimeout(patience, one.settings.Timeout)
	defer done()
	request, err := http.NewRequestWithContext(limited, http.MethodPost, one.settings.URL, bytes.NewReader(body))
	if err != nil {
		return -1, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Content-Encoding", "gzip")
	request.Header.Set("User-Agent", "promtail/"+version)
	if one.settings.TenantID != "" {
		request.Header.Set("X-Scope-OrgID", one.settings.TenantID)
	}
	if user := one.settings.BasicAuth.Username; user != "" {
		request.SetBasicAuth(user, one.password)
	}
	if one.token != "" {
		request.Header.Set("Authorization", "Bearer "+one.token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return -1, err
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 == 2 {
		return answer.StatusCode, nil
	}
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 1024))
	return answer.StatusCode, fmt.Errorf("server returned HTTP status %s: %s", answer.Status, bytes.TrimSpace(said))
}

// body is Loki's JSON form of a batch, one stream a set of labels, compressed.
func (one *client) body(batch []*entry) []byte {
	type stream struct {
		Stream map[string]string `json:"stream"`
		Values [][2]string       `json:"values"`
	}
	var order []*stream
	known := map[string]*stream{}
	for _, each := range batch {
		labels := maps.Clone(one.settings.ExternalLabels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, each.labels)
		key := labelText(labels)
		if known[key] == nil {
			known[key] = &stream{Stream: labels}
			order = append(order, known[key])
		}
		value := [2]string{strconv.FormatInt(each.time.UnixNano(), 10), each.line}
		known[key].Values = append(known[key].Values, value)
	}
	made := &bytes.Buffer{}
	packed := gzip.NewWriter(made)
	json.NewEncoder(packed).Encode(map[string]any{"streams": order})
	packed.Close()
	return made.Bytes()
}
