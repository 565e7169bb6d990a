package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// The part of promtail's configuration that this stand-in carries out; any other key is refused.
type config struct {
	Server    serverConfig `yaml:"server"`
	Positions struct {
		Filename   string        `yaml:"filename"`
		SyncPeriod time.Duration `yaml:"sync_period"`
	} `yaml:"positions"`
	Clients       []clientConfig `yaml:"clients"`
	ScrapeConfigs []scrapeConfig `yaml:"scrape_configs"`
}

type serverConfig struct {
	HTTPAddress string `yaml:"http_listen_address"`
	HTTPPort    int    `yaml:"http_listen_port"`
	GRPCAddress string `yaml:"grpc_listen_address"`
	GRPCPort    int    `yaml:"grpc_listen_port"`
}

type clientConfig struct {
	URL       string        `yaml:"url"`
	TenantID  string        `yaml:"tenant_id"`
	Timeout   time.Duration `yaml:"timeout"`
	BatchWait time.Duration `yaml:"batchwait"`
	BatchSize int           `yaml:"batchsize"`
	BasicAuth struct {
		Username     string `yaml:"username"`
		Password     string `yaml:"password"`
		PasswordFile string `yaml:"password_file"`
	} `yaml:"basic_auth"`
	BearerTokenFile string `yaml:"bearer_token_file"`
	Backoff         struct {
		MinPeriod  time.Duration `yaml:"min_period"`
		MaxPeriod  time.Duration `yaml:"max_period"`
		MaxRetries int           `yaml:"max_retries"`
	} `yaml:"backoff_config"`
	ExternalLabels map[string]string `yaml:"external_labels"`
}

type scrapeConfig struct {
	JobName string `yaml:"job_name"`
	Journal *struct {
		Path    string            `yaml:"path"`
		MaxAge  string            `yaml:"max_age"`
		Matches string            `yaml:"matches"`
		Labels  map[string]string `yaml:"labels"`
	} `yaml:"journal"`
	StaticConfigs []struct {
		Targets []string          `yaml:"targets"`
		Labels  map[string]string `yaml:"labels"`
	} `yaml:"static_configs"`
	Relabel []struct {
		SourceLabels []string `yaml:"source_labels"`
		TargetLabel  string   `yaml:"target_label"`
	} `yaml:"relabel_configs"`
	// What is inside a stage is looked at when the program starts, not by the check of the syntax.
	Stages []map[string]yaml.Node `yaml:"pipeline_stages"`
}

func (settings *clientConfig) UnmarshalYAML(node *yaml.Node) error {
	type plain clientConfig
	settings.Timeout, settings.BatchWait, settings.BatchSize = 10*time.Second, time.Second, 1<<20
	settings.Backoff.MinPeriod, settings.Backoff.MaxPeriod = 500*time.Millisecond, 5*time.Minute
	settings.Backoff.MaxRetries = 10
	return strictly(node, (*plain)(settings))
}

// strictly decodes a node and refuses unknown keys, which a node's own Decode does not.
func strictly(node *yaml.Node, into any) error {
	text, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	return strict(text, into)
}

func strict(text []byte, into any) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func readConfig(path string, expand bool) (*config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if expand {
		text = []byte(os.Expand(string(text), func(name string) string {
			name, otherwise, _ := strings.Cut(name, ":")
			if value := os.Getenv(name); value != "" {
				return value
			}
			return otherwise
		}))
	}
	settings := &config{}
	settings.Server.HTTPPort, settings.Server.GRPCPort = 80, 9095
	settings.Positions.Filename, settings.Positions.SyncPeriod = "/var/log/positions.yaml", 10*time.Second
	if err := strict(text, settings); err != nil {
		return nil, err
	}
	if len(settings.Clients) == 0 {
		return nil, errors.New("at least one client config must be provided")
	}
	return settings, nil
}
