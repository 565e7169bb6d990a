"""The host: memory, processors, disks, network and clock."""

from dashboards.content.server import DISK
from dashboards.model import (
    BYTES,
    BYTES_PER_SECOND,
    COUNT,
    GIB,
    HOURS,
    PER_SECOND,
    SECONDS,
    SHARE,
    Dashboard,
    Limit,
    Panel,
    Row,
)

NIC = '{$host,device!~"lo|veth.*|docker.*|br-.*|cni.*|podman.*"}'
PRESSURE = "a kernel that measures pressure (PSI)"

DASHBOARD = Dashboard(
    name="host",
    order=5,
    title="Host",
    about="Memory, processors, disks, network and clock of each host.",
    services=False,
    rows=(
        Row(
            "Memory",
            (
                Panel(
                    "Available",
                    BYTES,
                    (("min by (host) (node_memory_MemAvailable_bytes{$host})", "{{host}}"),),
                    limit=Limit(5 * GIB, least=True),
                ),
                Panel(
                    "Swap used",
                    BYTES,
                    (
                        (
                            "max by (host) (node_memory_SwapTotal_bytes{$host} - node_memory_SwapFree_bytes{$host})",
                            "{{host}}",
                        ),
                    ),
                    about="Swap that is used and grows: the next step is the OOM killer.",
                ),
                Panel(
                    "Processes killed for memory, in an hour",
                    COUNT,
                    (("max by (host) (increase(node_vmstat_oom_kill{$host}[1h]))", "{{host}}"),),
                ),
                Panel(
                    "Share of time with waiting tasks",
                    SHARE,
                    tuple(
                        (f"max by (host) (rate(node_pressure_{kind}_waiting_seconds_total{{$host}}[$rate]))", label)
                        for kind, label in (
                            ("memory", "{{host}} for memory"),
                            ("io", "{{host}} for disks"),
                            ("cpu", "{{host}} for a processor"),
                        )
                    ),
                    needs=PRESSURE,
                ),
                Panel(
                    "Memory of the kernel's caches",
                    BYTES,
                    (("max by (host) (node_memory_Cached_bytes{$host})", "{{host}}"),),
                    about="Freed when needed; models are read from here after the first start.",
                ),
                Panel(
                    "Uptime",
                    HOURS,
                    (("max by (host) (time() - node_boot_time_seconds{$host})", "{{host}}"),),
                ),
            ),
        ),
        Row(
            "Processors",
            (
                Panel(
                    "Busy",
                    SHARE,
                    (
                        (
                            "sum by (host, mode)"
                            ' (rate(node_cpu_seconds_total{$host,mode=~"user|system|iowait|steal"}[$rate]))'
                            ' / on (host) group_left () count by (host) (node_cpu_seconds_total{$host,mode="idle"})',
                            "{{host}} {{mode}}",
                        ),
                    ),
                ),
                Panel(
                    "Load per processor",
                    COUNT,
                    (
                        (
                            "max by (host) (node_load1{$host})"
                            ' / count by (host) (node_cpu_seconds_total{$host,mode="idle"})',
                            "{{host}}",
                        ),
                    ),
                    about="Above 1, tasks wait for a processor.",
                ),
                Panel(
                    "Clock offset",
                    SECONDS,
                    (("max by (host) (abs(node_timex_offset_seconds{$host}))", "{{host}}"),),
                    about="As reported to the kernel by the time service.",
                    limit=Limit(0.1),
                ),
            ),
        ),
        Row(
            "Disks and network",
            (
                Panel(
                    "Free",
                    SHARE,
                    (
                        (
                            f"min by (host, mountpoint) (node_filesystem_avail_bytes{DISK}"
                            f" / node_filesystem_size_bytes{DISK})",
                            "{{host}} {{mountpoint}}",
                        ),
                    ),
                    limit=Limit(0.1, least=True),
                ),
                Panel(
                    "Inodes free",
                    SHARE,
                    (
                        (
                            f"min by (host, mountpoint) (node_filesystem_files_free{DISK}"
                            f" / (node_filesystem_files{DISK} > 0))",
                            "{{host}} {{mountpoint}}",
                        ),
                    ),
                    limit=Limit(0.1, least=True),
                ),
                Panel(
                    "Free in 24 hours, at this rate",
                    BYTES,
                    (
                        (
                            f"min by (host, mountpoint) (predict_linear(node_filesystem_avail_bytes{DISK}[6h], 86400))",
                            "{{host}} {{mountpoint}}",
                        ),
                    ),
                    about="Extrapolated from six hours; below 0, the disk is full within a day.",
                    negative=True,
                    limit=Limit(0, least=True),
                ),
                Panel(
                    "Disk busy",
                    SHARE,
                    (
                        (
                            "max by (host, device) (rate(node_disk_io_time_seconds_total{$host}[$rate]))",
                            "{{host}} {{device}}",
                        ),
                    ),
                ),
                Panel(
                    "Disk throughput",
                    BYTES_PER_SECOND,
                    (
                        ("sum by (host) (rate(node_disk_read_bytes_total{$host}[$rate]))", "{{host}} read"),
                        ("sum by (host) (rate(node_disk_written_bytes_total{$host}[$rate]))", "{{host}} written"),
                    ),
                ),
                Panel(
                    "Network",
                    BYTES_PER_SECOND,
                    (
                        (f"sum by (host) (rate(node_network_receive_bytes_total{NIC}[$rate]))", "{{host}} received"),
                        (f"sum by (host) (rate(node_network_transmit_bytes_total{NIC}[$rate]))", "{{host}} sent"),
                    ),
                ),
            ),
        ),
        Row(
            "Watchdog and backups",
            (
                Panel(
                    "Services that answer (1 is yes)",
                    COUNT,
                    (("min by (host, unit) (llm_watchdog_ready{$host})", "{{host}} {{unit}}"),),
                    needs="the role watchdog",
                ),
                Panel(
                    "Restarts",
                    PER_SECOND,
                    (
                        (
                            "sum by (host, unit) (rate(llm_watchdog_restarts_total{$host}[$rate]))",
                            "{{host}} {{unit}}",
                        ),
                        (
                            "sum by (host, unit) (rate(llm_watchdog_planned_restarts_total{$host}[$rate]))",
                            "{{host}} {{unit}} planned",
                        ),
                    ),
                    needs="the role watchdog",
                ),
                Panel(
                    "Age of the last good backup",
                    HOURS,
                    (("max by (host) (time() - llm_backup_last_success_seconds{$host})", "{{host}}"),),
                    limit=Limit(36 * 3600),
                    needs="a backup",
                ),
            ),
        ),
    ),
)
