package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gopkg.in/yaml.v3"
)

// positions says how far each file and each journal was read.
type positions struct {
	lock     sync.Mutex
	path     string
	readOnly bool
	known    map[string]string
}

type positionsFile struct {
	Positions map[string]string `yaml:"positions"`
}

func readPositions(path string, readOnly bool) (*positions, error) {
	kept := &positions{path: filepath.Clean(path), readOnly: readOnly, known: map[string]string{}}
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return kept, nil
	}
	var found positionsFile
	if err == nil {
		err = yaml.Unmarshal(text, &found)
	}
	if err != nil {
		return nil, fmt.Errorf("unable to read positions file %s: %w", path, err)
	}
	maps.Copy(kept.known, found.Positions)
	return kept, nil
}

func (kept *positions) get(name string) string {
	kept.lock.Lock()
	defer kept.lock.Unlock()
	return kept.known[name]
}

func (kept *positions) put(name, position string) {
	kept.lock.Lock()
	defer kept.lock.Unlock()
	kept.known[name] = position
}

func (kept *positions) forget(name string) {
	kept.lock.Lock()
	defer kept.lock.Unlock()
	delete(kept.known, name)
}

func (kept *positions) keepWriting(until context.Context, period time.Duration) {
	for {
		select {
		case <-until.Done():
			return
		case <-time.After(period):
			kept.write()
		}
	}
}

// write replaces the file as a whole: a kill leaves the old one or the new one.
func (kept *positions) write() {
	if kept.readOnly {
		return
	}
	kept.lock.Lock()
	text, err := yaml.Marshal(positionsFile{kept.known})
	kept.lock.Unlock()
	if err == nil {
		err = os.WriteFile(kept.path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(kept.path+".new", kept.path)
	}
	if err != nil {
		log("error", "error writing positions file", "error", err.Error())
	}
}
