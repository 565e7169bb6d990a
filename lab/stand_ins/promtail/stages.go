package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// item is an entry inside a pipeline, with what the stages took out of it so far.
type item struct {
	*entry
	found map[string]string
}

// source is a text that was taken out, or the line where no name is given.
func (one *item) source(name string) (string, bool) {
	if name == "" {
		return one.line, true
	}
	text, there := one.found[name]
	return text, there
}

// stage changes an item; false drops it.
type stage func(*item) bool

type pipeline []stage

func (stages pipeline) process(one *entry) *entry {
	made := &item{one, map[string]string{}}
	for _, each := range stages {
		if !each(made) {
			return nil
		}
	}
	return made.entry
}

var makers = map[string]func(*yaml.Node) (stage, error){
	"regex": regexStage, "json": jsonStage, "labels": labelsStage, "static_labels": staticLabelsStage,
	"timestamp": timestampStage, "output": outputStage, "drop": dropStage,
}

func newPipeline(declared []map[string]yaml.Node) (pipeline, error) {
	var made pipeline
	for _, each := range declared {
		if len(each) != 1 {
			return nil, errors.New("pipeline stage must contain only one key")
		}
		for name, options := range each {
			maker, known := makers[name]
			if !known {
				return nil, fmt.Errorf("unknown stage type: %s", name)
			}
			one, err := maker(&options)
			if err != nil {
				return nil, fmt.Errorf("invalid %s stage config: %w", name, err)
			}
			made = append(made, one)
		}
	}
	return made, nil
}

func compiled(expression string) (*regexp.Regexp, error) {
	if expression == "" {
		return nil, errors.New("expression is required")
	}
	pattern, err := regexp.Compile(expression)
	if err != nil {
		return nil, fmt.Errorf("could not compile regular expression: %w", err)
	}
	return pattern, nil
}

func regexStage(node *yaml.Node) (stage, error) {
	var options struct{ Expression, Source string }
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	pattern, err := compiled(options.Expression)
	return func(one *item) bool {
		text, _ := one.source(options.Source)
		if match := pattern.FindStringSubmatch(text); match != nil {
			for at, name := range pattern.SubexpNames() {
				if name != "" {
					one.found[name] = match[at]
				}
			}
		}
		return true
	}, err
}

// A name, or names with dots between: the part of JMESPath that this stand-in takes.
var path = regexp.MustCompile(`^\w+(\.\w+)*$`)

func jsonStage(node *yaml.Node) (stage, error) {
	var options struct {
		Expressions map[string]string
		Source      string
	}
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	for name, expression := range options.Expressions {
		if expression == "" {
			options.Expressions[name] = name
		} else if !path.MatchString(expression) {
			return nil, fmt.Errorf("the stand-in does not know the expression %q", expression)
		}
	}
	return func(one *item) bool {
		text, _ := one.source(options.Source)
		var whole any
		if json.Unmarshal([]byte(text), &whole) != nil {
			return true
		}
		for name, expression := range options.Expressions {
			part := whole
			for _, key := range strings.Split(expression, ".") {
				object, _ := part.(map[string]any)
				part = object[key]
			}
			switch value := part.(type) {
			case nil:
			case string:
				one.found[name] = value
			default:
				made, _ := json.Marshal(value)
				one.found[name] = string(made)
			}
		}
		return true
	}, nil
}

func labelsStage(node *yaml.Node) (stage, error) {
	var options map[string]string
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	return func(one *item) bool {
		for name, source := range options {
			if source == "" {
				source = name
			}
			if text := one.found[source]; text != "" {
				one.labels[name] = text
			}
		}
		return true
	}, nil
}

func staticLabelsStage(node *yaml.Node) (stage, error) {
	var options map[string]string
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	return func(one *item) bool {
		for name, text := range options {
			one.labels[name] = text
		}
		return true
	}, nil
}

func timestampStage(node *yaml.Node) (stage, error) {
	var options struct{ Source, Format string }
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	if options.Source == "" || options.Format == "" {
		return nil, errors.New("timestamp source and format are required")
	}
	return func(one *item) bool {
		text, there := one.source(options.Source)
		if read, err := instant(text, options.Format); there && err == nil {
			one.time = read
		}
		return true
	}, nil
}

func instant(text, format string) (time.Time, error) {
	whole, err := strconv.ParseInt(text, 10, 64)
	switch format {
	case "Unix":
		seconds, err := strconv.ParseFloat(text, 64)
		return time.UnixMicro(int64(seconds * 1e6)), err
	case "UnixMs":
		return time.UnixMilli(whole), err
	case "UnixUs":
		return time.UnixMicro(whole), err
	case "UnixNs":
		return time.Unix(0, whole), err
	case "RFC3339", "RFC3339Nano":
		format = time.RFC3339Nano
	}
	return time.Parse(format, text)
}

func outputStage(node *yaml.Node) (stage, error) {
	var options struct{ Source string }
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	if options.Source == "" {
		return nil, errors.New("output source is required")
	}
	return func(one *item) bool {
		if text, there := one.found[options.Source]; there {
			one.line = text
		}
		return true
	}, nil
}

func dropStage(node *yaml.Node) (stage, error) {
	var options struct{ Expression, Source string }
	if err := strictly(node, &options); err != nil {
		return nil, err
	}
	pattern, err := compiled(options.Expression)
	return func(one *item) bool {
		text, there := one.source(options.Source)
		return !there || !pattern.MatchString(text)
	}, err
}
