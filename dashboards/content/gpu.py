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
    about="Load, memory, temperature and errors of each GPU, as DCGM reports them.",
    services=False,
    rows=(
        Row(
            "Load and memory",
            (
                Panel(
                    "Busy",
                    SHARE,
                    ((f"{each('DCGM_FI_DEV_GPU_UTIL')} / 100", GPU),),
                    about="Share of time in which anything ran, not how well the GPU was used.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory used",
                    BYTES,
                    (
                        (f"{each('DCGM_FI_DEV_FB_USED')} * 1048576", GPU),
                        (
                            "sum by (host) (max by (host, group) (llm_gpu_planned_max_bytes{$host}))",
                            "{{host}} planned maximum",
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
                    about="It limits token generation more than computing does.",
                    needs=NEEDS,
                ),
                Panel(
                    "Tokens generated per GPU",
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
            "Temperature and errors",
            (
                Panel("Temperature", CELSIUS, ((each("DCGM_FI_DEV_GPU_TEMP"), GPU),), limit=Limit(85), needs=NEEDS),
                Panel(
                    "Clocks lowered (1 is yes)",
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
                    about="Number of the last error that the driver reported; 0 is none.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory errors corrected in an hour",
                    COUNT,
                    (("max by (host, gpu) (increase(DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{$host}[1h]))", GPU),),
                    needs=NEEDS,
                ),
                Panel(
                    "Uncorrected memory errors",
                    COUNT,
                    ((each("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"), GPU),),
                    about="Since the driver was loaded. A process that read that memory failed.",
                    needs=NEEDS,
                ),
                Panel(
                    "Remapped memory rows",
                    COUNT,
                    (
                        (each("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS"), f"{GPU} after corrected errors"),
                        (each("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"), f"{GPU} after uncorrectable errors"),
                        (each("DCGM_FI_DEV_ROW_REMAP_FAILURE"), f"{GPU} failed"),
                    ),
                    about="If remapping fails, replace the card.",
                    needs=NEEDS,
                ),
            ),
        ),
    ),
)
