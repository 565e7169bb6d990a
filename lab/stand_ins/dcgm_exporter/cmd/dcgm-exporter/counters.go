package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"strings"
)

type counter struct{ field, kind, help string }

// Numbers of the fields that the stand-in knows; source: dcgm_fields.h.
var fields = map[string]uint16{
	"DCGM_FI_DEV_SM_CLOCK":                    100,
	"DCGM_FI_DEV_MEM_CLOCK":                   101,
	"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS":      112,
	"DCGM_FI_DEV_MEMORY_TEMP":                 140,
	"DCGM_FI_DEV_GPU_TEMP":                    150,
	"DCGM_FI_DEV_POWER_USAGE":                 155,
	"DCGM_FI_DEV_GPU_UTIL":                    203,
	"DCGM_FI_DEV_MEM_COPY_UTIL":               204,
	"DCGM_FI_DEV_XID_ERRORS":                  230,
	"DCGM_FI_DEV_FB_FREE":                     251,
	"DCGM_FI_DEV_FB_USED":                     252,
	"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL":           310,
	"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":           311,
	"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 393,
	"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS":   394,
	"DCGM_FI_DEV_ROW_REMAP_FAILURE":           395,
}

// readCounters reads the counters file: FIELD, type, help; lines that begin with # are comments.
func readCounters(path string) ([]counter, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := csv.NewReader(file)
	reader.Comment = '#'
	reader.FieldsPerRecord = 3
	records, err := reader.ReadAll()
	if err != nil {
		return nil, err
	}
	counters := []counter{}
	for _, record := range records {
		for index := range record {
			record[index] = strings.TrimSpace(record[index])
		}
		if _, known := fields[record[0]]; !known {
			return nil, fmt.Errorf("could not find DCGM field; err: Unknown ExporterCounter field '%s'", record[0])
		}
		if record[1] != "gauge" && record[1] != "counter" && record[1] != "label" {
			return nil, fmt.Errorf("could not find Prometheus metric type '%s'", record[1])
		}
		counters = append(counters, counter{record[0], record[1], record[2]})
	}
	return counters, nil
}

// render returns the page of one collection.
func render(counters []counter, values map[string]string) string {
	host, _ := os.Hostname()
	page := strings.Builder{}
	for _, each := range counters {
		value, there := values[each.field]
		if !there {
			continue
		}
		fmt.Fprintf(&page, "# HELP %s %s\n# TYPE %s %s\n", each.field, each.help, each.field, each.kind)
		fmt.Fprintf(&page, "%s{gpu=\"0\",UUID=\"GPU-00000000-0000-0000-0000-000000000001\",device=\"nvidia0\",", each.field)
		fmt.Fprintf(&page, "modelName=\"NVIDIA L4\",Hostname=\"%s\"} %s\n", host, value)
	}
	return page.String()
}
