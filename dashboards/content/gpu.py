"""The GPUs, as DCGM reports them."""

from dashboards.model import (
    BYTES,
    CELSIUS,
    COUNT,
    GIB,
    PER_SECOND,
    SHARE,
    WATTS,
    Dashboard,
    Limit,
    Panel,
    Row,
)

GPU = "{{host}} GPU {{gpu}}"
NEEDS = "a GPU"
# The name changed with DCGM 4.
REASONS = '{$host,__name__=~"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS|DCGM_FI_DEV_CLOCKS_EVENT_REASONS"}'


def each(field: str, how: str = "max") -> str:
    return f"{how} by (host, gpu) ({field}{{$host}})"


DASHBOARD = Dashboard(
    name="gpu",
    order=4,
    title="GPU",
    about="Work, memory, heat and faults of each GPU, as DCGM sees them.",
    services=False,
    rows=(
        Row(
            "Work and memory",
            (
                Panel(
                    "Busy",
                    SHARE,
                    ((f"{each('DCGM_FI_DEV_GPU_UTIL')} / 100", GPU),),
                    about="The share of time in which anything ran at all; not how well it was used.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory used",
                    BYTES,
                    (
                        (f"{each('DCGM_FI_DEV_FB_USED')} * 1048576", GPU),
                        (
                            "sum by (host) (max by (host, group) (llm_gpu_planned_max_bytes{$host}))",
                            "{{host}} planned at most",
                        ),
                    ),
                    about="More than was planned: something else holds memory, or the plan was wrong.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory free",
                    BYTES,
                    ((f"{each('DCGM_FI_DEV_FB_FREE', 'min')} * 1048576", GPU),),
                    limit=Limit(5 * GIB, least=True),
                    needs=NEEDS,
                ),
                Panel(
                    "Memory bus busy",
                    SHARE,
                    ((f"{each('DCGM_FI_DEV_MEM_COPY_UTIL')} / 100", GPU),),
                    about="Writing tokens is bound by this more than by computing.",
                    needs=NEEDS,
                ),
                Panel(
                    "Tokens written per GPU",
                    PER_SECOND,
                    (
                        (
                            "sum by (host) (rate(vllm:generation_tokens_total{$host}[$rate]))"
                            " / count by (host) (DCGM_FI_DEV_GPU_UTIL{$host})",
                            "{{host}}",
                        ),
                    ),
                    needs=NEEDS,
                ),
                Panel("Power", WATTS, ((each("DCGM_FI_DEV_POWER_USAGE"), GPU),), needs=NEEDS),
            ),
        ),
        Row(
            "Heat and faults",
            (
                Panel("Temperature", CELSIUS, ((each("DCGM_FI_DEV_GPU_TEMP"), GPU),), limit=Limit(85), needs=NEEDS),
                Panel(
                    "Slowed down (1 is yes)",
                    COUNT,
                    (
                        (f"max by (host, gpu) (floor({REASONS} / 32) % 4 > bool 0)", f"{GPU} by heat"),
                        (
                            f"max by (host, gpu) (floor({REASONS} / 8) % 2 + floor({REASONS} / 128) % 2 > bool 0)",
                            f"{GPU} by the hardware",
                        ),
                    ),
                    about="Bits 0x20 and 0x40 of the reasons for lower clocks; 0x08 and 0x80.",
                    needs=NEEDS,
                ),
                Panel(
                    "Last Xid",
                    COUNT,
                    ((each("DCGM_FI_DEV_XID_ERRORS"), GPU),),
                    about="The number of the last fault that the driver reported; 0 is none.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory errors corrected in an hour",
                    COUNT,
                    (("max by (host, gpu) (increase(DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{$host}[1h]))", GPU),),
                    needs=NEEDS,
                ),
                Panel(
                    "Memory errors not corrected",
                    COUNT,
                    ((each("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"), GPU),),
                    about="Since the driver was loaded. Whatever read that memory failed.",
                    needs=NEEDS,
                ),
                Panel(
                    "Rows of memory remapped",
                    COUNT,
                    (
                        (each("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS"), f"{GPU} after corrected errors"),
                        (each("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"), f"{GPU} after others"),
                        (each("DCGM_FI_DEV_ROW_REMAP_FAILURE"), f"{GPU} failed"),
                    ),
                    about="When remapping fails, the card is to be replaced.",
                    needs=NEEDS,
                ),
            ),
        ),
    ),
)
